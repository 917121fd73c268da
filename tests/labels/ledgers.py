"""Queries for tests of what stands on the ledger."""

from __future__ import annotations

from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.supervision.types import Query
from fedrlvr.tasks.problem import Kind, Question


def query(
    problem: str = "p1",
    *,
    step: int = 1,
    rank: int = 1,
    majority: str | None = "4",
    kind: Kind = "math",
    prompt: str = "What is 2 + 2?",
    responses: tuple[str, ...] = ("It is 4", "It is 5"),
    score: float | None = 2.5,
) -> Query:
    return Query(Question(prompt, problem, "sums", kind), step, rank, score, 0.75, majority, 5, 8, responses)


def same(answer: str, other: str) -> bool:
    return float(answer) == float(other)


def asked(ledger: LabelLedger, *problems: str, step: int = 1, at: float = 0.0) -> None:
    for rank, problem in enumerate(problems, start=1):
        assert ledger.ask(query(problem, step=step, rank=rank), at=at)


def given(ledger: LabelLedger, expert: str, at: float) -> str | None:
    result = ledger.next_open(expert, at=at)
    return None if result is None else result.problem
