"""Inputs and outputs that all supervisions share.

A supervision sees a step's problems as questions, without their answers. What it may know of an answer it asks the
client's ledger, and the ledger knows nothing that has not been paid for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fedrlvr.rl.samples import Group
from fedrlvr.supervision.majority import Clusters
from fedrlvr.tasks.problem import Question

if TYPE_CHECKING:
    from torch import Tensor

    from fedrlvr.supervision.features import Features  # which needs torch

State: TypeAlias = "tuple[dict[str, Tensor], dict[str, Any]]"
"""Memory of a supervision, as tensors and as JSON."""


@dataclass(frozen=True)
class Query:
    """A question about one problem of a step, with what an expert is shown.

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


class Ledger(Protocol):
    """The labels of one client, as its supervision may see them: only those it has paid for."""

    def grade(
        self, problem: Question, completions: Sequence[str], finished: Sequence[bool] | None = None
    ) -> list[float] | None:
        """The true rewards of these completions, or None if the problem has no label here.

        finished: whether each response ended by itself; None: all did.
        """

    def awaited(self, problem: Question) -> bool:
        """Whether the problem was asked about and has no label: no expert has answered yet, or none could."""

    def used(self, problem: Question) -> bool:
        """Whether an earlier step of this run has trained on the problem's label."""

    def room(self) -> int | None:
        """Number of problems that may still be asked about now, whatever a step's share is; None: no limit."""

    def ask(self, query: Query) -> None:
        """Pay for a label. It may be there at once, or come when an expert has time."""

    def remind(self, query: Query) -> None:
        """A problem whose answer is awaited was drawn again: this is its newest vote. Costs nothing."""


class Fate(Enum):
    """Treatment of a problem in one local step."""

    KNOWN = "known"
    """The problem had a label before this step."""
    QUERIED = "queried"
    """The problem is asked about in this step, whether the answer is there yet or not."""
    TRUSTED = "trusted"
    """The problem is trained on by majority vote."""
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


class Supervision(ABC):
    """Decides which labels count. Made anew for each stretch of steps of each client.

    reads_votes, reads_states: whether a step must come with votes, and with features.
    """

    reads_votes: bool = True
    reads_states: bool = False

    @abstractmethod
    def supervise(self, step: Step, ledger: Ledger) -> list[Supervised]:
        """Rewards, advantage multiplier and fate of each of the step's groups, in order."""

    def learn(self) -> dict[str, float]:
        """Learn from the labels of the step supervised last, after the policy's update; returns losses by name."""
        return {}

    def state(self) -> State | None:
        """Memory that must outlast a stretch of steps; None where there is none."""
        return None

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Restore the memory from a state.

        Raises:
            ValueError: there is nothing to restore, or the state does not fit. Nothing has changed then.
        """
        raise ValueError(f"{type(self).__name__} remembers nothing")
