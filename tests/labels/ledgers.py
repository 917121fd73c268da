"""Queries for tests of what stands on the ledger."""

from __future__ import annotations

from fedrlvr.supervision.query import Query
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
