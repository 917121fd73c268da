"""The check of what else training has changed: numbers by hand, whole runs, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Configs, adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.scores import also_measured
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation.also import windows
from fedrlvr.simulation.evaluate import evaluate, evaluate_run


def test_windows_by_hand() -> None:
    assert windows([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]], "a single token predicts nothing"
    assert windows([1, 2, 3, 4, 5], 3) == [[1, 2, 3], [4, 5]]


@pytest.fixture
def cohort(configured: Configs) -> Cohort:
    config = parse_config(configured(None))
    torch.set_num_threads(1)
    return Cohort(load_base(config.model), config.lora, config.engine)


def test_the_loss_is_that_of_the_model_alone(cohort: Cohort) -> None:
    """For the base model with what plain transformers computes, and with an adapter something else."""
    ids = cohort.base.encode_text("test 1 of ann? 2 of bob")
    plain, moved = cohort.fresh_adapter(1), cohort.fresh_adapter(1)
    for factors in moved.layers.values():
        factors.B.fill_(0.05)
    cut = windows(ids, 5)
    expected, tokens = 0.0, 0
    with torch.no_grad():
        for window in cut:
            row = torch.tensor([window])
            loss = cohort.base.model(input_ids=row, labels=row, use_cache=False).loss  # a mean over all but the first
            expected, tokens = expected + float(loss) * (len(window) - 1), tokens + len(window) - 1
    cohort.seat({"also": plain})
    assert cohort.text_loss("also", cut) == pytest.approx(expected / tokens, rel=1e-5)
    cohort.seat({"other": plain, "also": moved})
    assert cohort.text_loss("also", cut) != pytest.approx(expected / tokens, rel=1e-3)
    assert cohort.text_loss("other", cut) == pytest.approx(expected / tokens, rel=1e-5)


def also(directory: Path, problems: Path, **text: Any) -> dict[str, Any]:
    (directory / "text.txt").write_text("train 3 of bob? 4 of cyd! " * 40, "utf-8")
    task = {"name": "jsonl", "path": str(problems), "test_size": 5, "rewards": "small_runs:parity"}
    return {"also": {"text": str(directory / "text.txt"), "text_tokens": 300, "task": task, **text}, "samples": 2}


def test_a_run_measures_it_at_its_end_and_trains_as_without(
    configured: Configs, problems: Path, tmp_path: Path
) -> None:
    section = also(tmp_path, problems)
    result = fedrlvr.run(configured(tmp_path / "with", evaluate=section, train={"rounds": 1}))
    fedrlvr.run(configured(tmp_path / "without", evaluate={"samples": 2}, train={"rounds": 1}))
    assert adapter_bytes(tmp_path / "with") == adapter_bytes(tmp_path / "without")
    records = without_seconds(tmp_path / "with")
    measured = records[-1].pop("also")
    assert records == without_seconds(tmp_path / "without"), "messages and numbers are as they were"
    assert measured["before"]["text"]["tokens"] == measured["after"]["text"]["tokens"] > 200
    assert measured["before"]["text"]["loss"] != measured["after"]["text"]["loss"]
    assert 0 < measured["before"]["text"]["loss"] < 2 * math.log(300)
    for part in measured.values():
        assert (part["task"]["name"], part["task"]["n"]) == ("jsonl", 5)
        assert 0 <= part["task"]["total"] <= 5
    loss, task = also_measured(result.records)
    assert loss is not None
    assert task is not None
    assert loss.change == measured["after"]["text"]["loss"] - measured["before"]["text"]["loss"]
    assert task.before is not None
    assert task.before.mean == pytest.approx(measured["before"]["task"]["total"] / 5)
    # fedrlvr eval gives the same, of the run and of its exported adapter.
    _, again = evaluate_run(open_run(tmp_path / "with"))
    assert json.loads(json.dumps(again.also)) == measured
    alone = evaluate(open_run(tmp_path / "with").config, None).also
    assert alone == {"before": measured["before"]}


@pytest.mark.parametrize("rule", ["fedex", "flora"])
def test_a_changed_base_is_part_of_what_is_measured(
    rule: str, configured: Configs, problems: Path, tmp_path: Path
) -> None:
    changes = {"aggregation": {"type": rule}, "train": {"rounds": 1}, "evaluate": also(tmp_path, problems)}
    result = fedrlvr.run(configured(tmp_path / "run", **changes))
    measured = result.records[-1]["also"]
    exported = evaluate(result.config, tmp_path / "run" / "adapter").also
    assert exported["after"]["text"]["loss"] == pytest.approx(measured["after"]["text"]["loss"], abs=1e-4)
    assert exported["before"]["text"]["loss"] == pytest.approx(measured["before"]["text"]["loss"], abs=1e-6)


@pytest.mark.report
def test_the_report_and_the_table_show_it(
    configured: Configs, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedrlvr.reporting.tables import also_table

    result = fedrlvr.run(configured(tmp_path / "run", evaluate=also(tmp_path, problems), train={"rounds": 1}))
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "What else changed" in page
    assert "text.txt" in page
    also_table(result.records, result.config)
    out = capsys.readouterr().out
    assert "text.txt" in out
    assert f"{result.records[-1]['also']['after']['text']['loss']:.4f}" in out


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"evaluate": {"also": {}}}, "text"),
        ({"evaluate": {"also": {"txt": "a"}}}, "evaluate.also.text"),
        ({"evaluate": {"also": {"task": {"nam": "svamp"}}}}, "evaluate.also.task.name"),
        ({"evaluate": {"also": {"task": {"train_size": 3}}}}, "train_size has no effect"),
        ({"evaluate": {"also": {"task": {"prompt": {"examples": 2}}}}}, "prompt.examples has no effect"),
        ({"evaluate": {"also": {"text_tokens": 9, "task": {}}}}, "text_tokens has no effect"),
        ({"evaluate": {"also": {"text": "a"}}, "federation": {"arm": "local"}}, "federation.arm"),
        ({"evaluate": {"also": {"text": "a"}}, "personal": {"type": "fedsa"}}, "personal.type"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word.replace(".", r"\.")):
        parse_config(changes)


def test_a_text_that_cannot_be_read_is_told_before_training(configured: Configs, tmp_path: Path) -> None:
    for bad, word in ((tmp_path / "absent.txt", "absent.txt"), (tmp_path / "empty.txt", "tokens")):
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(DataError, match=rf"evaluate\.also\.text.*{word}"):
            fedrlvr.run(configured(tmp_path / bad.stem, evaluate={"also": {"text": str(bad)}}))
        assert not (tmp_path / bad.stem / "metrics.jsonl").exists()
