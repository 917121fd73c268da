"""What responses answer, and which answers are the same: what a majority is counted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedrlvr.tasks.extraction import extract
from fedrlvr.tasks.grading import canonical, same_answer
from fedrlvr.tasks.problem import Kind


def answers(completions: Sequence[str], kind: Kind) -> list[str | None]:
    """Each completion's answer as it stands there; None: there is none, or none that this kind could have."""
    found = (extract(completion, kind) for completion in completions)
    return [None if answer is None else answer if canonical(answer, kind) else None for answer in found]


def sameness(kind: Kind) -> Callable[[str, str], bool]:
    """Whether two answers, the later one first, are the same to the grader of this kind."""

    def same(later: str, first: str) -> bool:
        return same_answer(first, later, kind)

    return same
