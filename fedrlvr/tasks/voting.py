"""Answers of responses, and their equality, by which a majority is counted.

Answers are the same if they have one key (`grading.canonical`). So a vote is an equivalence, and clusters do not depend
on the order of the responses. A gold answer accepts more than its key: a majority of `5` and one of `5 cm` are two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedrlvr.tasks.extraction import extract
from fedrlvr.tasks.grading import canonical
from fedrlvr.tasks.problem import Kind


def answers(completions: Sequence[str], kind: Kind) -> list[str | None]:
    """Each completion's answer as it stands there; None: there is none, or none that this kind could have."""
    extracted = (extract(completion, kind) for completion in completions)
    return [answer if answer is not None and canonical(answer, kind) is not None else None for answer in extracted]


def sameness(kind: Kind) -> Callable[[str, str], bool]:
    """Whether two answers have one key to the grader of this kind."""

    def same(left: str, right: str) -> bool:
        key = canonical(left, kind)
        return key is not None and key == canonical(right, kind)

    return same
