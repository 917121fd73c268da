"""`fedrlvr site approve`, `site log` and what `site status` says of replies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from factories import make_card, make_site
from siteparts import output_of
from typer.testing import CliRunner

from fedrlvr.cli.site import site
from fedrlvr.deployment.site import check as checks
from fedrlvr.deployment.site.config import EgressConfig, Organisation, load_site
from fedrlvr.deployment.site.socket import state_directory
from fedrlvr.errors import ConfigError, EgressError
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.privacy.card import Card
from fedrlvr.privacy.decision_log import DecisionLog


@pytest.fixture
def org(tmp_path: Path) -> Organisation:
    org = make_site(tmp_path / "ann")
    state_directory(org)
    return org


def put(org: Organisation, **changes: object) -> Card:
    card = make_card(asked_at=time.time(), expires_at=time.time() + 100, **changes)
    directory = Approvals(org.state).directory
    directory.mkdir()
    (directory / f"{card.id}.json").write_text(card.model_dump_json())
    return card


def test_a_card_is_shown_in_full_and_escaped_and_a_person_decides(org: Organisation) -> None:
    assert "no reply waits" in output_of("approve", org.path)
    responses = [{"problem": "What is 2 + 2?", "text": "It is 4.\n<b>\x1b[2Jbold</b>"}]
    card = put(org, kind="responses", responses=responses, numbers={"reward": 0.5})
    said = output_of("approve", org.path)
    for part in (
        card.digest,
        "40 private problems",
        "reward 0.5",
        "What is 2 + 2?",
        "    It is 4.\n",
        "no noise is added",
    ):
        assert part in said
    assert "<b>\\x1b[2Jbold</b>" in said
    assert "\x1b" not in said
    assert f"waits for approval: responses {card.id}" in output_of("status", org.path)
    with pytest.raises(ConfigError, match="--yes"):
        output_of("approve", org.path, "--yes", card.id, "--no", card.id)
    with pytest.raises(EgressError):
        output_of("approve", org.path, "--yes", "f" * 16)
    output_of("approve", org.path, "--no", card.id, "--name", "Ruiz")
    assert "no reply waits" in output_of("approve", org.path)
    assert '"allow": false, "by": "Ruiz"' in (org.state / "egress" / f"{card.id}.decision").read_text()


def test_the_log_is_shown_counted_and_verified(org: Organisation) -> None:
    assert "nothing has left yet" in output_of("log", org.path)
    log = DecisionLog(org.state)
    for decision in ("allow", "left", "deny"):
        log.append(decision, kind="adapter", digest="0" * 64, bytes=5, by="person Ruiz", dropped=decision == "deny")
    assert output_of("log", org.path, "--lines", 1).split()[0] == "3"
    assert "replies: 1 left, 1 denied, 0 not decided in time; 1 responses held back" in output_of("status", org.path)
    said = output_of("log", org.path, "--verify")
    head = log.verify().head.digest
    assert "in order: 3 lines" in said
    assert f"head: {head}" in said
    log.append("left", kind="adapter", digest="0" * 64, bytes=5)
    assert "in order: 4 lines" in output_of("log", org.path, "--verify", "--noted", head)
    other = CliRunner().invoke(site, ["log", str(org.path), "--verify", "--noted", "a" * 64])
    assert (other.exit_code, "another log" in other.output) == (1, True)
    log.path.write_bytes(log.path.read_bytes().replace(b"person Ruiz", b"person Ames", 1))
    changed = CliRunner().invoke(site, ["log", str(org.path), "--verify"])
    assert (changed.exit_code, "changed: behind line 1" in changed.output) == (1, True)
    with pytest.raises(ConfigError, match="--noted"):
        output_of("log", org.path, "--noted", head)


def test_settings_of_egress_are_named_in_errors(tmp_path: Path) -> None:
    assert make_site(tmp_path / "a").config.egress == EgressConfig()
    for place, (name, value) in enumerate(
        {"canaries": ["a-b"], "approve": "some", "rule": "x", "aprove": "all"}.items()
    ):
        with pytest.raises(ConfigError, match=rf"egress\.{name}"):
            make_site(tmp_path / str(place), egress={name: value})
    assert load_site(tmp_path / "a" / "site.toml").config.egress.approve == "none"


def test_check_finds_a_rule_that_cannot_be_used_and_a_log_that_was_changed(tmp_path: Path) -> None:
    org = make_site(tmp_path, egress={"rule": "site_rule:decide", "approve": "all"})
    finding = checks.egress(org)
    assert (finding.status, "site_rule" in finding.advice) == ("problem", True)
    (tmp_path / "site_rule.py").write_text("def decide(card): return True\n")
    finding = checks.egress(org)
    assert (finding.status, finding.value) == ("ok", "approve all, rule site_rule:decide")
    state_directory(org)
    log = DecisionLog(org.state)
    log.append("left")
    log.path.unlink()
    finding = checks.egress(org)
    assert (finding.status, "decisions.head" in finding.value) == ("problem", True)
