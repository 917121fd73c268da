"""What every supervision takes and gives.

A supervision sees a step's problems as questions, without their answers. What it may know of an answer it asks the
client's ledger, and the ledger knows nothing that has not been paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

from fedrlvr.rl.samples import Group
from fedrlvr.supervision.features import Features
from fedrlvr.supervision.majority import Clusters
from fedrlvr.supervision.query import Query
from fedrlvr.tasks.problem import Question


class Ledger(Protocol):
    """A client's labels: what it knows of the answers, and nothing it has not paid for."""

    def grade(self, problem: Question, completions: Sequence[str]) -> list[float] | None:
        """The true rewards of these completions, or None if the problem has no label here."""

    def awaited(self, problem: Question) -> bool:
        """Whether the problem was asked about and has no label: nobody has answered yet, or nobody could."""

    def room(self) -> int | None:
        """How many more problems may be asked about now, whatever a step's share is; None: no limit."""

    def ask(self, query: Query) -> None:
        """Pay for a label. It may be there at once, or come when somebody has the time."""

    def remind(self, query: Query) -> None:
        """A problem whose answer is awaited was drawn again: this is its newest vote. Costs nothing."""


class Fate(Enum):
    """What becomes of a problem in a step."""

    KNOWN = "known"
    """It had a label before."""
    QUERIED = "queried"
    """Asked about in this step, whether the answer is there yet or not."""
    TRUSTED = "trusted"
    """Trained on as voted."""
    MASKED = "masked"


@dataclass(frozen=True)
class Supervised:
    """A supervision's verdict on one group.

    rewards: one per response. true: whether they are those of a label.
    multiplier: what the group's advantages are multiplied by; 0 masks the group.
    """

    rewards: list[float]
    multiplier: float = 1.0
    fate: Fate = Fate.KNOWN
    true: bool = True


@dataclass(frozen=True)
class Step:
    """One client's step of B problems.

    number: local steps the client has taken before.
    votes: each group's answers in clusters; empty where the supervision does not read them.
    features: what CARE's probes see; None where the supervision does not read hidden states.
    rng: all of the step's chance.
    """

    number: int
    groups: Sequence[Group]
    votes: Sequence[Clusters]
    features: Features | None
    rng: Random


class Supervision(Protocol):
    """Decides which labels count. Made anew for each stretch of steps of each client."""

    reads_votes: bool
    reads_states: bool

    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """Rewards, advantage multiplier and fate of each of the step's groups, in order."""

    def learn(self) -> dict[str, float]:
        """After the policy's update: learn from the labels of the step that was supervised last; losses by name."""
