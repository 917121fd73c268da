"""Train, public and test share no content."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks import Problem, check_disjoint, drop_overlap, set_aside
from fedrlvr.tasks.deal import deal


def problem(prompt: str, name: str, source: str = "s") -> Problem:
    return Problem(prompt, "1", name, source, "math")


def test_content_is_blind_to_case_and_space() -> None:
    train, test = [problem("What is 1+1?", "t1"), problem("Other", "t2")], [problem(" what  IS 1+1?\n", "x1")]
    check_disjoint(train=train[1:], public=[], test=test)
    with pytest.raises(DataError, match="train 't1' and test 'x1'"):
        check_disjoint(train=train, public=[], test=test)
    with pytest.raises(DataError, match="public 'p' and test 'x1'"):
        check_disjoint(train=[], public=[problem("What is 1+1?", "p")], test=test)
    with pytest.raises(DataError, match="train and public splits share 2 problems"):
        check_disjoint(train=train, public=train, test=[])


def test_drop_overlap_counts_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    train = [problem("a", "1"), problem("B ", "2"), problem("c", "3")]
    with caplog.at_level(logging.INFO, "fedrlvr.tasks"):
        assert [p.id for p in drop_overlap(train, [problem("b", "x")])] == ["1", "3"]
    assert caplog.messages == ["left out 1 of 3 training problems that are also held out"]
    assert drop_overlap(train, []) == train


def test_set_aside_keeps_the_sources_proportions() -> None:
    train = [
        problem(f"{source}{n}", f"{source}{n}", source)
        for source, size in (("a", 50), ("b", 30), ("c", 20))
        for n in range(size)
    ]
    rest, public = set_aside(train, 10, seed=0, setting="data.public_size")
    assert Counter(p.source for p in public) == {"a": 5, "b": 3, "c": 2}
    assert sorted(p.id for p in rest + public) == sorted(p.id for p in train)
    check_disjoint(train=rest, public=public, test=[])
    assert set_aside(train, 10, seed=0, setting="data.public_size") == (rest, public)
    assert set_aside(train, 10, seed=1, setting="data.public_size") != (rest, public)
    # 7 of 100 is 3.5, 2.1, 1.4: rounded down 3, 2, 1, and the one left goes to a
    assert Counter(p.source for p in set_aside(train, 7, seed=0, setting="data.public_size")[1]) == {
        "a": 4,
        "b": 2,
        "c": 1,
    }


def test_set_aside_takes_every_copy_of_what_it_takes() -> None:
    train = [problem("same", "1"), problem("Same", "2"), problem("other", "3")]
    for seed in range(8):
        rest, public = set_aside(train, 1, seed, setting="data.public_size")
        check_disjoint(train=rest, public=public, test=[])
        assert len(public) == 1
        assert len(rest) == (2 if public[0].id == "3" else 1)


def test_set_aside_needs_something_left() -> None:
    train = [problem("same", "1"), problem("Same", "2"), problem("other", "3")]
    with pytest.raises(DataError, match=r"data\.public_size = 2"):
        set_aside(train, 2, seed=0, setting="data.public_size")
    assert set_aside(train, 0, seed=0, setting="data.public_size") == (train, [])


def test_validation_problems_are_set_aside_and_divided_like_the_held_out_ones() -> None:
    settings = {
        "data": {"train_size": 48, "public_size": 16, "validation_size": 24, "test_size": 48},
        "federation": {"clients": ["a", "b"]},
    }
    dealt = deal(parse_config(settings))
    validation = [problem for client in dealt.clients for problem in client.validation]
    trained = [question.prompt for client in dealt.clients for question in client.train]
    assert (len(validation), len(trained), len(dealt.public)) == (24, 48, 16)
    others = {*trained, *(p.prompt for p in dealt.public), *(p.prompt for c in dealt.clients for p in c.test)}
    assert not {problem.prompt for problem in validation} & others
    for client in dealt.clients:  # whole families go to clients, whose validation problems are of the same
        assert {p.source for p in client.validation} == {p.source for p in client.test}
        assert (client.split("validation"), client.split("test")) == (client.validation, client.test)


def test_an_evaluation_of_the_validation_split_needs_such_problems_at_every_client() -> None:
    settings = {"data": {"train_size": 48, "test_size": 48}, "evaluate": {"split": "validation"}}
    with pytest.raises(DataError, match=r"data\.validation_size"):
        deal(parse_config(settings))


def test_public_problems_that_are_trained_on_join_every_clients_own() -> None:
    sizes = {"train_size": 48, "public_size": 16, "test_size": 48}
    (apart, joined) = (deal(parse_config({"data": {**sizes, "train_on_public": both}})) for both in (False, True))
    public = [problem.question for problem in apart.public]
    for before, after in zip(apart.clients, joined.clients, strict=True):
        assert [*before.train, *public] == after.train
        assert before.test == after.test
        assert {problem.answer for problem in joined.public} <= {p.answer for p in after.answers.everything()}
    with pytest.raises(ConfigError, match=r"data\.train_on_public"):
        parse_config({"data": {"train_on_public": True}})
