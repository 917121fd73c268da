"""Typed samples: a response carries its own behaviour log-probs and origin, so no code has to guess them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from fedrlvr.tasks.problem import Problem, Question, WeightedReward

CORRECT = 1.0 - 1e-6
"""A response counts as correct from this reward on; a user's own reward may give less for partial credit."""


Unfinished = Literal["grade", "zero", "mask"]
"""Treatments of a response that was cut at the length limit."""


def verified(reward: float) -> float:
    """The part of a reward that decides whether the response is correct: all of it, unless it is a weighted sum."""
    return reward.verified if isinstance(reward, WeightedReward) else reward


def is_correct(reward: float) -> bool:
    """Whether a response with this reward counts as correct."""
    return verified(reward) >= CORRECT


class Origin(Enum):
    """The policy that sampled a response: the client's own or another's."""

    OWN = "own"
    FOREIGN = "foreign"


@dataclass(slots=True)
class Response:
    """One sampled answer to a problem.

    token_ids: the response's tokens, the end-of-sequence token included where it was sampled.
    logps: their log-probs under the behaviour policy at its temperature, before any top-p or top-k cut.
    text: the decoded response, without special tokens.
    finished: whether it ended by itself rather than at the length limit.
    treatment: "grade", or, of a response cut at the length limit, "zero" (reward 0) or "mask" (reward 0, and no
        gradient).
    weights: of its tokens in the loss; None: 1 (`coordination.reference` sets others).
    shaping: gamma > 0 puts p / (p + gamma) in place of the policy ratio.
    """

    token_ids: Sequence[int]
    logps: Sequence[float]
    text: str
    finished: bool
    origin: Origin = Origin.OWN
    reward: float | None = None
    weights: Sequence[float] | None = None
    shaping: float = 0.0
    treatment: Unfinished = "grade"


def withhold_unfinished(responses: Iterable[Response], treatment: Unfinished) -> None:
    """Treat responses that were cut at the length limit as `train.unfinished` says, before they are graded.

    A response that is not to be graded gives no answer: its text is emptied, so that it casts no vote and enters no
    pool, and its reward counts as 0.

    treatment: "grade", "zero" or "mask".
    """
    if treatment == "grade":
        return
    for response in responses:
        if not response.finished:
            response.text, response.treatment = "", treatment


@dataclass(slots=True)
class Group:
    """The G responses to one problem, with their advantages.

    problem: a client's own as the question that training sees; a public one with its answer.
    multiplier: what supervision lets the group's advantages count; 0 masks it.
    advantages: one per response, set by `assign_advantages`.
    """

    problem: Question | Problem
    prompt_ids: Sequence[int]
    responses: list[Response]
    multiplier: float = 1.0
    advantages: list[float] = field(default_factory=list)

    @property
    def rewards(self) -> list[float]:
        """Rewards of the responses, in order.

        Raises:
            ValueError: a response has not been graded.
        """
        rewards = [
            response.reward if response.treatment == "grade" else 0.0
            for response in self.responses
            if response.reward is not None
        ]
        if len(rewards) != len(self.responses):
            raise ValueError("a response of this group has not been graded")
        return rewards

    @property
    def texts(self) -> list[str]:
        """Texts of the responses, in order."""
        return [response.text for response in self.responses]

    @property
    def finished(self) -> list[bool]:
        """Whether each response ended by itself rather than at the length limit, in order."""
        return [response.finished for response in self.responses]

    @property
    def same_rewards(self) -> bool:
        """Whether the group has no gradient because all rewards are equal."""
        return len(set(self.rewards)) <= 1
