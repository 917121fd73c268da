"""Why a problem's label is wanted: what a selection says of a problem it wants to ask about."""

from __future__ import annotations

from dataclasses import dataclass

from fedrlvr.tasks.problem import Question


@dataclass(frozen=True)
class Query:
    """One problem that a step asks about.

    step, rank: when, and how much it was wanted among the step's queries; rank 1 most.
    score: what it was ranked by (S, an entropy, ...); None where nothing ranks.
    reliable: P1, where there are probes.
    majority: the majority's answer, None if no response's could be read; `votes` of the `group` responses gave it.
    responses: at most two texts that disagree, the majority's first.
    """

    question: Question
    step: int
    rank: int
    score: float | None
    reliable: float | None
    majority: str | None
    votes: int
    group: int
    responses: tuple[str, ...]
