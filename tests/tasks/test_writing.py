"""Problems written as one's own file are the same problems when they are read."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fedrlvr.errors import DataError
from fedrlvr.tasks import Problem, load
from fedrlvr.tasks.own import read_own, write_own

PROBLEMS = [
    Problem("2 + 3?", "5", "a", "sums", "math"),
    Problem("Which? A) é B) no\nAnswer:", "A", "b", "quiz", "choice", {"hint": [1, 2]}),
    Problem("Is it?", "maybe", "c", "quiz", "yes_no_maybe"),
]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_own(tmp_path / "ann" / "train.jsonl", PROBLEMS)
    write_own(tmp_path / "ann" / "test.jsonl", PROBLEMS[:1])
    assert read_own(tmp_path / "ann" / "train.jsonl", "exact") == PROBLEMS
    assert load("jsonl", tmp_path / "ann", "train") == PROBLEMS
    assert load("jsonl", tmp_path / "ann", "test") == PROBLEMS[:1]


def test_a_problem_without_an_answer_stays_one(tmp_path: Path) -> None:
    open_ones = [Problem("2 + 2?", "", "d", "sums", "math")]
    write_own(tmp_path / "train.jsonl", open_ones)
    assert read_own(tmp_path / "train.jsonl", "math", unlabelled=True) == open_ones


def test_the_file_is_its_owners_alone_and_info_is_there_only_where_there_is_some(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_own(path, PROBLEMS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert ["info" in row for row in rows] == [False, True, False]
    assert "é" in path.read_text("utf-8")


def test_nothing_is_overwritten_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_own(tmp_path / "train.jsonl", PROBLEMS)
    with pytest.raises(DataError, match=r"train\.jsonl exists already"):
        write_own(tmp_path / "train.jsonl", PROBLEMS[:1])
    assert read_own(tmp_path / "train.jsonl", "math") == PROBLEMS
    with pytest.raises(DataError, match="cannot be written"):
        write_own(tmp_path / "train.jsonl" / "below.jsonl", PROBLEMS)
