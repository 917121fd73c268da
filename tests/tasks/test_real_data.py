"""Every row of the published files: its gold answer scores 1.0, or it is listed here with the reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrlvr.tasks import check_disjoint, drop_overlap, grade, grader_for, load, validate

Find = Callable[[str], Path]

# (rows loaded as train, as test, different sources of both)
SIZES = {
    "gsm8k": (7473, 1319, 1),
    "math": (7470, 500, 7),
    "svamp": (806, 194, 4),
    "medqa": (1272, 1273, 3),
    "medmcqa": (3327, 856, 21),
    "pubmedqa": (500, 500, 3),
}
# The rows that cannot be used, counted from 0, of all 7,474: no answer (null twice, empty twice).
UNUSABLE = "math_train.json: skipped 4 rows without an answer (counted from 0): 886, 1009, 5328, 5330"


@pytest.mark.parametrize("name", SIZES)
def test_every_gold_answer_scores(name: str, real_data: Find, caplog: pytest.LogCaptureFixture) -> None:
    directory = real_data(name)
    with caplog.at_level(logging.INFO, "fedrlvr.tasks"):
        train, test = (load(name, directory, split) for split in ("train", "test"))
    assert (len(train), len(test), len({p.source for p in train + test})) == SIZES[name]
    for problems in (train, test):
        result = validate(problems, grader_for(None), attacked=10)
        print(name, result.checked, "checked;", result.failures)
        assert result.failures == []
    skipped = [message.rpartition("/")[2] for message in caplog.messages]
    print(skipped)
    assert skipped == ([UNUSABLE] if name == "math" else [])
    check_disjoint(train=train, public=[], test=test)
    assert drop_overlap(train, test) == train


def test_gsm8k_worked_answers_are_right_as_completions(real_data: Find) -> None:
    directory = real_data("gsm8k")
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (directory / f"{split}.jsonl").read_text("utf-8").splitlines()]
        golds = [p.answer for p in load("gsm8k", directory, split)]
        scores = [grade(row["answer"], gold, "math") for row, gold in zip(rows, golds, strict=True)]
        assert sum(scores) == len(rows)
        shuffled = [grade(row["answer"], gold, "math") for row, gold in zip(rows[1:], golds, strict=False)]
        assert sum(shuffled) / len(shuffled) < 0.05  # another problem's answer is right only by chance


def test_math_worked_solutions_are_right_as_completions(real_data: Find) -> None:
    file = real_data("math") / "math500_test.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    wrong = [row["unique_id"] for row in rows if grade(row["solution"], row["answer"], "math") == 0.0]
    print(wrong)
    assert wrong == []


def test_svamp_equations_are_right_as_completions(real_data: Find) -> None:
    problems = [p for split in ("train", "test") for p in load("svamp", real_data("svamp"), split)]
    wrong = [p.id for p in problems if grade(p.response, p.answer, "math") == 0.0]
    assert wrong == []  # the box holds the published answer, also where the equation has another value (chal-680)


def test_the_letter_is_the_option_that_the_files_call_right(real_data: Find) -> None:
    for split, file in (("train", "dev_mediq.jsonl"), ("test", "test.jsonl")):
        rows = [json.loads(line) for line in (real_data("medqa") / file).read_text("utf-8").splitlines()]
        for row, problem in zip(rows, load("medqa", real_data("medqa"), split), strict=True):
            assert f"\n{problem.answer}. {row['answer'].strip()}" in problem.prompt
