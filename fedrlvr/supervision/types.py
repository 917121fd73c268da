"""What every supervision takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedrlvr.rl.samples import Group
from fedrlvr.tasks.problem import Problem


class Ledger(Protocol):
    """A client's labels: what it knows of the answers, and nothing it has not paid for."""

    def grade(self, problem: Problem, completions: Sequence[str]) -> list[float] | None:
        """The true rewards of these completions, or None if the problem has no label here."""


@dataclass(frozen=True)
class Supervised:
    """A supervision's verdict on one group.

    rewards: one per response.
    multiplier: what the group's advantages are multiplied by; 0 masks the group.
    query: whether the problem's label should be bought.
    """

    rewards: list[float]
    multiplier: float = 1.0
    query: bool = False


class Supervision(Protocol):
    """Decides which label counts."""

    def supervise(self, group: Group, ledger: Ledger) -> Supervised:
        """Rewards, advantage multiplier and queries of one group."""
