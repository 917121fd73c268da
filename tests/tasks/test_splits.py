"""Train, public and test share no content."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from fedrlvr.errors import DataError
from fedrlvr.tasks import Problem, check_disjoint, drop_overlap, take_public


def problem(prompt: str, name: str, source: str = "s") -> Problem:
    return Problem(prompt, "1", name, source, "math")


def test_content_is_blind_to_case_and_space() -> None:
    train, test = [problem("What is 1+1?", "t1"), problem("Other", "t2")], [problem(" what  IS 1+1?\n", "x1")]
    check_disjoint(train[1:], [], test)
    with pytest.raises(DataError, match="train 't1' and test 'x1'"):
        check_disjoint(train, [], test)
    with pytest.raises(DataError, match="public 'p' and test 'x1'"):
        check_disjoint([], [problem("What is 1+1?", "p")], test)
    with pytest.raises(DataError, match="train and public splits share 2 problems"):
        check_disjoint(train, train, [])


def test_drop_overlap_counts_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    train = [problem("a", "1"), problem("B ", "2"), problem("c", "3")]
    with caplog.at_level(logging.INFO, "fedrlvr.tasks"):
        assert [p.id for p in drop_overlap(train, [problem("b", "x")])] == ["1", "3"]
    assert caplog.messages == ["left out 1 of 3 training problems that are also held out"]
    assert drop_overlap(train, []) == train


def test_take_public_keeps_the_sources_proportions() -> None:
    train = [
        problem(f"{source}{n}", f"{source}{n}", source)
        for source, size in (("a", 50), ("b", 30), ("c", 20))
        for n in range(size)
    ]
    rest, public = take_public(train, 10, seed=0)
    assert Counter(p.source for p in public) == {"a": 5, "b": 3, "c": 2}
    assert sorted(p.id for p in rest + public) == sorted(p.id for p in train)
    check_disjoint(rest, public, [])
    assert take_public(train, 10, seed=0) == (rest, public)
    assert take_public(train, 10, seed=1) != (rest, public)
    # 7 of 100 is 3.5, 2.1, 1.4: rounded down 3, 2, 1, and the one left goes to a
    assert Counter(p.source for p in take_public(train, 7, seed=0)[1]) == {"a": 4, "b": 2, "c": 1}


def test_take_public_takes_every_copy_of_what_it_takes() -> None:
    train = [problem("same", "1"), problem("Same", "2"), problem("other", "3")]
    for seed in range(8):
        rest, public = take_public(train, 1, seed)
        check_disjoint(rest, public, [])
        assert len(public) == 1
        assert len(rest) == (2 if public[0].id == "3" else 1)


def test_take_public_needs_something_left() -> None:
    train = [problem("same", "1"), problem("Same", "2"), problem("other", "3")]
    with pytest.raises(DataError, match=r"2 public .* 2 different"):
        take_public(train, 2, seed=0)
    assert take_public(train, 0, seed=0) == (train, [])
