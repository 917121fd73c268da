"""The audit of small runs: whose problems are members, which views there are, and that no problem is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import moved_adapter, tiny_cohort
from small_runs import CLIENTS, Configs, Runs
from typer.testing import CliRunner

import fedrlvr
from fedrlvr.audit.behaviour import behaviours
from fedrlvr.audit.run import AuditSettings, audit_run
from fedrlvr.cli.main import app
from fedrlvr.errors import ConfigError
from fedrlvr.policy.sampler import Decoding
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.tasks.problem import Problem

SMALL = AuditSettings(problems=8, responses=4, canary_responses=8)


def test_an_adapter_that_changes_nothing_shows_nothing(model: Path) -> None:
    """Gain, drift and drop of the loss are 0 to the rounding; those of a moved adapter are not."""
    cohort = tiny_cohort(model)
    asked = [Problem(f"{i} + {i}?", str(2 * i), str(i), "sums", "math") for i in range(3)]
    prompts = cohort.base.encode_all([problem.prompt for problem in asked])
    adapters = {"same": cohort.fresh_adapter(0), "moved": moved_adapter(cohort, 1)}
    grade = lambda problem, texts, finished: [float(len(text)) for text in texts]  # noqa: E731
    seen = behaviours(cohort, adapters, asked, prompts, grade, Decoding(4, 6), 0)
    for of in seen["same"]:
        assert (of.gain, of.loss_drop) == (0.0, 0.0)
        assert of.drift == pytest.approx(0.0, abs=1e-6)
        assert of.loss > 0
    assert min(of.drift for of in seen["moved"]) > 1e-5
    assert all(of.loss_drop != 0 for of in seen["moved"])


@pytest.mark.slow
def test_members_are_the_problems_that_were_drawn(finished: Runs) -> None:
    """Two problems in each of two steps and five rounds: all eight of each client."""
    run = open_run(finished("all"))
    audit = audit_run(run, SMALL)
    assert audit.figures["site", "diba"].members == 8 * len(CLIENTS)
    assert audit.figures["public", "gain"].others == 4 * len(CLIENTS)
    assert ("server", "diba") not in audit.figures
    assert any("aggregation.keep_adapters" in note for note in audit.notes)
    assert audit_run(run, SMALL).to_json() == audit.to_json(), "the same run gives the same figures"


@pytest.mark.slow
def test_the_command_writes_figures_and_no_problem(configured: Configs, tmp_path: Path) -> None:
    """With kept adapters the server's view is there; canaries are those of the file."""
    fedrlvr.run(configured(tmp_path / "run", train={"rounds": 1}, aggregation={"keep_adapters": True}))
    row = {"prompt": "train 3 of ann?", "answer": "3", "client": "ann", "times": 1, "candidates": ["3", "77"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ["audit", str(tmp_path / "run"), "--canaries", str(tmp_path / "c.jsonl"), "--problems", "4"]
    done = CliRunner().invoke(app, [*arguments, "--responses", "2"])
    assert done.exit_code == 0, done.output
    tree = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert {(row["view"], row["attack"]) for row in tree["membership"]} >= {("server", "diba"), ("public", "gain")}
    assert [row["members"] for row in tree["membership"]] == [4 * len(CLIENTS)] * len(tree["membership"])
    assert [canary["most"] for canary in tree["canaries"]["server"]] == [1.0]
    for file in ("audit.json", "audit.html"):
        text = (tmp_path / "run" / file).read_text()
        assert "of ann?" not in text, file
    assert "The public" in done.output


@pytest.mark.slow
def test_runs_without_a_shared_adapter_are_refused(finished: Runs) -> None:
    with pytest.raises(ConfigError, match="share"):
        audit_run(open_run(finished("local")), SMALL)
