"""Every reader of foreign input raises our errors alone, in time and in bounded memory, under altered inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fuzz import Outcome, fuzz, page, quiet, readers, table
from benchmarks.fuzz_wire import Reader
from fedrlvr.errors import MessageError

INPUTS = 60
"""Of each reader; `scripts/bench fuzz` takes more."""


def test_every_reader_of_foreign_input_raises_our_errors_alone(tmp_path: Path) -> None:
    outcomes = []
    for name, reader in readers(tmp_path).items():
        with quiet():
            outcomes.append(fuzz(name, reader, INPUTS // reader.cost, seed=17))
    assert [outcome.first for outcome in outcomes if not outcome.passed] == []
    assert [text for outcome in outcomes for text in outcome.texts] == []
    assert sum(outcome.refused for outcome in outcomes) > 1000, "the inputs are altered"


def test_what_is_raised_accepted_and_slow_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Exception | None] = iter([None, None, MessageError("no"), OSError(), KeyError("\x1b"), None])

    def read(_: object) -> None:
        if (error := next(answers)) is not None:
            raise error

    outcome = fuzz("it", Reader(lambda rng: rng and rng.random(), read, (OSError,)), 5, seed=0)
    assert (outcome.inputs, outcome.accepted, outcome.refused, outcome.failed) == (5, 2, 2, 1)
    assert not outcome.passed
    assert outcome.first.startswith("input 3 of seed 0: KeyError at test_fuzz.py")
    assert "| it | 5 | 2 | 2 | 1 |" in page([outcome], "scripts/bench fuzz", 1.0)


def test_the_input_as_it_is_must_be_accepted() -> None:
    def read(_: object) -> None:
        raise MessageError("no")

    with pytest.raises(MessageError):
        fuzz("it", Reader(lambda rng: None, read), 1, seed=0)


def test_slow_and_large_do_not_pass() -> None:
    assert Outcome("it").passed
    assert not Outcome("it", slowest=1.5).passed
    assert not Outcome("it", memory=2**30).passed
    assert table([Outcome("it", slowest=0.5, memory=2_000_000)]).splitlines()[2] == "| it | 0 | 0 | 0 | 0 | 500 | 2 |"
