"""Cells are all run, a process that fails is told of, and seconds add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cells import run_all, timed


def write(directory: str, name: str) -> None:
    if name == "bad":
        raise ValueError(name)
    (Path(directory) / name).write_text(name, "utf-8")


def test_every_cell_is_run_once_by_one_of_the_processes(tmp_path: Path) -> None:
    run_all([(str(tmp_path), name) for name in "abc"], write, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_process_that_failed_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="goes on with what is left"):
        run_all([(str(tmp_path), "bad")], write, 1)


def test_seconds_add_up_and_those_of_what_failed_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps({"cpu": 100.0, "wall": 200.0}), "utf-8")
    with timed(tmp_path):
        sum(range(10**5))
    result = json.loads(path.read_text("utf-8"))
    assert 100.0 < result["cpu"] < 110.0
    assert 200.0 < result["wall"] < 260.0
    with pytest.raises(KeyError), timed(tmp_path):
        raise KeyError
    assert json.loads(path.read_text("utf-8")) == result
