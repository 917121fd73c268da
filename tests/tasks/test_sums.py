"""The generated task `sums`: right answers, splits that share no sum, and an error where there are too few."""

from __future__ import annotations

import pytest

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks import grader_for, load, wrap

SIZES = {"train": 7806, "test": 1995}
"""All sums of numbers from 1 to 99."""


def test_answers_are_the_sums_and_the_grader_takes_them() -> None:
    reward = grader_for(None)
    for problem in load("sums", None, "train", size=300):
        first, second = map(int, problem.prompt.removesuffix("=").split("+"))
        assert int(problem.answer) == first + second
        assert reward(wrap(problem.answer, problem.kind), problem) == 1.0
        assert reward(wrap(str(first + second + 1), problem.kind), problem) == 0.0


def test_half_of_the_numbers_have_one_digit() -> None:
    numbers = [number for problem in load("sums", None, "train", size=200) for number in problem.prompt[:-1].split("+")]
    assert 150 < sum(len(number) == 1 for number in numbers) < 250


def test_no_sum_is_in_both_splits_and_every_sum_is_in_one() -> None:
    everything = {f"{a}+{b}=" for a in range(1, 100) for b in range(1, 100)}
    splits = [{problem.prompt for problem in load("sums", None, split, size=size)} for split, size in SIZES.items()]
    assert not splits[0] & splits[1]
    assert splits[0] | splits[1] == everything


def test_the_seed_draws_sums_and_their_order() -> None:
    first, again, other = (
        [problem.id for problem in load("sums", None, "test", size=50, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 50


def test_more_sums_than_there_are_and_unknown_options_are_refused() -> None:
    with pytest.raises(DataError, match="sums"):
        load("sums", None, "train", size=SIZES["train"] + 1)
    with pytest.raises(ConfigError, match="digits"):
        load("sums", None, "train", size=1, digits=3)
    with pytest.raises(ConfigError, match="sums"):
        load("sums", "there.jsonl", "train", size=1)
