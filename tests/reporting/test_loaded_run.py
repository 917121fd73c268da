"""`fedrlvr.load_run`: tables by hand, figures, and what is no run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from run_samples import run_records, score

import fedrlvr
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.reporting import run_tables
from fedrlvr.reporting.scores import estimate


def write_run(directory: Path, records: list[dict[str, Any]], **settings: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tree = {"run": {"seed": 3}, "train": {"rounds": 2}, **settings}
    (directory / "config.json").write_text(json.dumps(tree), "utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(lines, "utf-8")
    return directory


def records() -> list[dict[str, Any]]:
    """Two rounds with an exchange, labels, a client that was left out, and personal adapters."""
    made = run_records()
    made[1]["exchanges"] = [{"pool": 2, "clients": {"alpha": {"sent": 4, "correct": 2}, "beta": {"sent": 3}}}]
    made[1]["left_out"] = {"beta": "late"}
    made[1]["clients"]["alpha"] |= {"labels_asked": 5, "labels_used": 4, "labels_total": 5, "majority_right": 0.5}
    made[1]["clients"]["alpha"]["public_tokens_sampled"] = 7
    made[1]["clients"]["alpha"]["calibration"] = {"n": [1], "sum": [0.5], "right": [1]}
    made[2]["personal"] = {"clients": {}, "evaluate": {"alpha": {"sum": score(10, 9)}}, "seconds": {}}
    return made


def test_a_row_for_each_round() -> None:
    rows = run_tables.round_rows(records())
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["pass@1"] for row in rows] == [pytest.approx(0.4), None, pytest.approx(0.55)]
    assert [row["clients"] for row in rows] == [0, 2, 2]
    assert rows[1]["left_out"] == 1
    assert rows[1]["tokens_sampled"] == 207
    assert rows[1]["labels_asked"] == 5
    assert rows[2]["labels_asked"] is None
    assert rows[2]["reward"] == pytest.approx(0.3)
    assert rows[2]["seconds"] == 5.5
    assert rows[0]["bytes_down"] == 1000


def test_a_row_for_each_client_evaluation_exchange_and_label() -> None:
    made = records()
    clients = run_tables.client_rows(made)
    assert [(row["round"], row["client"]) for row in clients] == [(r, c) for r in range(3) for c in ("alpha", "beta")]
    assert clients[2]["public_tokens_sampled"] == 7
    assert "calibration" not in clients[2]
    evaluations = run_tables.evaluation_rows(made)
    assert [(row["round"], row["client"], row["source"], row["personal"]) for row in evaluations] == [
        (0, "alpha", "sum", False),
        (0, "beta", "dose", False),
        (0, "beta", "sum", False),
        (2, "alpha", "sum", False),
        (2, "beta", "dose", False),
        (2, "beta", "sum", False),
        (2, "alpha", "sum", True),
    ]
    assert evaluations[0]["low"] == estimate(10, 2, 2).low
    assert (evaluations[-1]["n"], evaluations[-1]["pass@1"]) == (10, 0.9)
    assert run_tables.exchange_rows(made) == [
        {"round": 1, "exchange": 1, "client": "alpha", "sent": 4, "correct": 2},
        {"round": 1, "exchange": 1, "client": "beta", "sent": 3},
    ]
    (labels,) = run_tables.label_rows(made)
    assert (labels["client"], labels["asked"], labels["used"], labels["held"]) == ("alpha", 5, 4, 5)
    assert run_tables.left_out_rows(made) == [{"round": 1, "client": "beta", "reason": "late"}]
    assert run_tables.second_rows(made)[2] == {"round": 2, "train": 4.0, "evaluate": 1.5}


def test_without_pandas_tables_are_lists_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = fedrlvr.load_run(write_run(tmp_path / "run", records()))
    assert run.rounds == run_tables.round_rows(records())
    assert [len(table) for table in (run.clients, run.evaluations, run.exchanges, run.labels)] == [6, 7, 2, 1]
    assert [len(table) for table in (run.left_out, run.seconds)] == [1, 3]


def test_with_pandas_tables_are_frames(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    run = fedrlvr.load_run(str(write_run(tmp_path / "run", records())))
    assert isinstance(run.clients, pandas.DataFrame)
    assert list(run.evaluations.columns)[:4] == ["round", "personal", "client", "source"]
    assert run.clients.groupby("client")["reward"].max().to_dict() == {"alpha": 0.2, "beta": 0.4}
    empty = fedrlvr.load_run(write_run(tmp_path / "empty", []))
    assert empty.clients.empty


def test_a_run_of_any_state_is_read(tmp_path: Path) -> None:
    run = fedrlvr.load_run(write_run(tmp_path / "run", records(), colour={"of": "another release"}))
    assert not run.finished
    assert run.version is None
    assert "rose" not in " ".join(run.story)
    assert any("2 clients in 2 rounds" in sentence for sentence in run.story)
    with pytest.raises(ConfigError, match="colour"):
        _ = run.config
    (run.directory / "about.json").write_text('{"versions": {"fedrlvr": "0.9.9"}}', "utf-8")
    assert fedrlvr.load_run(run.directory).version == "0.9.9"
    (run.directory / "metrics.jsonl").unlink()
    fresh = fedrlvr.load_run(run.directory)
    assert fresh.records == []
    assert fresh.figures == {}


@pytest.mark.parametrize("text", [None, "{", "[]", '{"run": {}}', '{"run": 1, "train": {}}'])
def test_what_is_no_run_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        fedrlvr.load_run(tmp_path)


def test_damaged_metrics_name_the_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records())
    (run / "metrics.jsonl").write_text("nothing\n", "utf-8")
    with pytest.raises(CheckpointError, match="line 1"):
        fedrlvr.load_run(run)


def test_figures_stand_alone(tmp_path: Path) -> None:
    run = fedrlvr.load_run(write_run(tmp_path / "run", records()))
    figures = run.figures
    assert list(figures) == ["held-out", "reward", "pass@1", "response_length", "kl_to_base", "zero_variance_groups"]
    assert list(figures["reward"].names) == ["alpha", "beta"]
    for figure in figures.values():
        ElementTree.fromstring(figure.svg)
        assert "var(--" not in figure.svg
    path = figures["reward"].save(tmp_path / "reward.svg")
    assert path.read_text("utf-8") == figures["reward"]._repr_svg_()
