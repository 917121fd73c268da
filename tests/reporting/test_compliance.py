"""The compliance page: its values are the run's, its blanks are blank, and no private prompt is on it."""

from __future__ import annotations

import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from factories import make_site
from small_runs import Configs
from typer.testing import CliRunner

import fedrlvr
from fedrlvr.cli.main import app
from fedrlvr.deployment.site.socket import state_directory
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.reporting.audit_page import sentences
from fedrlvr.reporting.compliance import ComplianceFacts, chapters, facts_of, site_facts, write_compliance
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.saved_adapter import open_run

EMPTY = ComplianceFacts(*[()] * 10)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(configured: Configs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compliance") / "run"
    fedrlvr.run(configured(directory, train={"rounds": 1}))
    return directory


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "\n", page.read_text("utf-8")))


def test_what_only_the_organisation_can_write_is_blank() -> None:
    entries = {entry.label: entry for chapter in chapters(EMPTY) for entry in chapter.entries}
    for start in ("(a) Purposes", "7 ", "8 ", "9 ", "Advice"):
        (label,) = (label for label in entries if label.startswith(start))
        assert not entries[label].lines, label
    assert entries["(b) Necessity and proportionality"].blank


def test_the_chapters_are_those_of_the_three_texts() -> None:
    titles = " ".join(chapter.title for chapter in chapters(EMPTY))
    assert all(name in titles for name in ("article 35", "annex IV", "SATRE 3.3.07"))
    annex = [entry.label for chapter in chapters(EMPTY) if "annex" in chapter.title for entry in chapter.entries]
    assert [label.split()[0] for label in annex] == [str(number) for number in range(1, 10)]


@pytest.mark.slow
def test_values_on_the_page_are_those_of_the_run(trained: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(trained), "--compliance"])
    assert done.exit_code == 0, done.output
    text, config = text_of(trained / "compliance.html"), open_run(trained).config
    assert f"train.learning_rate = {config.train.learning_rate}" in text
    assert f"lora.rank = {config.lora.rank}" in text
    for name in ("config.json", "adapter/adapter_model.safetensors"):
        assert hashlib.sha256((trained / name).read_bytes()).hexdigest() in text
    assert "ann: 8 training problems" in text
    scores = read_metrics(trained)[-1]["evaluate"]
    n = sum(row["n"] for of in scores.values() for row in of.values())
    assert f"on {n} held-out problems" in text
    assert "none: no noise is added" in text
    assert "fedrlvr audit, or fedrlvr site audit" in text, "there is no audit.json yet"
    assert f"fedrlvr {fedrlvr.__version__}" in text


@pytest.mark.slow
def test_no_private_prompt_and_no_path_is_on_it(trained: Path) -> None:
    text = write_compliance(open_run(trained)).read_text("utf-8")
    assert "of ann?" not in text
    assert str(trained.parent) not in text
    assert not re.search(r"not personal data|anonymous", text)
    assert "src=" not in text


@pytest.mark.slow
def test_a_sites_limits_and_log_stand_on_it_and_its_canaries_do_not(trained: Path, tmp_path: Path) -> None:
    org = make_site(tmp_path / "ann", limits={"least_problems": 12}, egress={"canaries": ["Zorblax Q77"]})
    state_directory(org)
    head = DecisionLog(org.state).append("allow", kind="adapter")
    area = {"value": 0.6, "low": 0.55, "high": 0.65}
    row = {"view": "site", "attack": "diba", "members": 9, "others": 9, "auc": area, "true_positives": {}}
    audit = {"round": 1, "clients": [], "membership": [row], "canaries": {}, "returned": {}, "notes": ["A note."]}
    (org.state / "audit").mkdir()
    (org.state / "audit" / "audit.json").write_text(json.dumps(audit))
    text = text_of(write_compliance(open_run(trained), site_facts(org), tmp_path))
    assert "limits.least_problems = 12 (default 8)" in text
    assert "egress.canaries = 1 (default 0)" in text
    assert "Zorblax" not in text
    assert head.digest in text
    assert "allow: 1" in text
    assert sentences(audit)[0] in text
    assert "A note." in text


@pytest.mark.slow
def test_a_changed_decision_log_is_named(trained: Path, tmp_path: Path) -> None:
    org = make_site(tmp_path / "ann")
    log = DecisionLog(state_directory(org))
    log.append("allow", kind="adapter")
    log.path.write_bytes(log.path.read_bytes().replace(b"allow", b"denyy"))
    assert any("NOT in order" in line for line in facts_of(open_run(trained), site_facts(org)).log)
