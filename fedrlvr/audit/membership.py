"""Attacks that tell training problems from others of the same kind, by the behaviour of the policy on them.

    diba       z(gain) + z(drift), with z a standardisation over all problems that are compared
    gain       the reward gain alone: who can only ask the model has no more
    drift      the policy drift alone
    loss       minus the loss on prompt and gold answer
    reference  the loss of the base model minus that loss

An attacker ranks the problems by one of these scores. `Figures` says how well it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrlvr.audit.attack_scores import Measured, auc, caught, roc, standardised
from fedrlvr.audit.behaviour import Behaviour

Score = Callable[[Sequence[Behaviour]], list[float]]
RATES = (0.01, 0.001)
"""Rates of false positives at which the rate of true positives is stated."""


def _diba(of: Sequence[Behaviour]) -> list[float]:
    gains, drifts = standardised([b.gain for b in of]), standardised([b.drift for b in of])
    return [gain + drift for gain, drift in zip(gains, drifts, strict=True)]


ATTACKS: Mapping[str, Score] = {
    "diba": _diba,
    "gain": lambda of: [b.gain for b in of],
    "drift": lambda of: [b.drift for b in of],
    "loss": lambda of: [-b.loss for b in of],
    "reference": lambda of: [b.loss_drop for b in of],
}
"""Scores of the problems by attack; higher where a problem looks like one of training."""
VIEWS: Mapping[str, Sequence[str]] = {
    "server": tuple(ATTACKS),
    "site": tuple(ATTACKS),
    "public": ("gain",),
}
"""Attacks that are open to the server, which has each client's own adapter; to another site, which has the global one;
and to the public, which can only ask the model."""


@dataclass(frozen=True)
class ProblemScores:
    """Scores of training problems and of others by one attack."""

    members: list[float]
    others: list[float]

    def joined(self, more: ProblemScores) -> ProblemScores:
        """These scores and those of other problems; each part should be standardised for itself."""
        return ProblemScores(self.members + more.members, self.others + more.others)


def problem_scores(attack: str, members: Sequence[Behaviour], others: Sequence[Behaviour]) -> ProblemScores:
    """The scores of one client's problems, standardised, so that those of several clients can be joined."""
    scores = standardised(ATTACKS[attack]([*members, *others]))
    return ProblemScores(scores[: len(members)], scores[len(members) :])


@dataclass(frozen=True)
class Figures:
    """Success of one attack: AUC, and true positives at each of `RATES`, with 95 % intervals."""

    members: int
    others: int
    auc: Measured
    caught: Sequence[Measured]

    @classmethod
    def of(cls, scores: ProblemScores) -> Figures:
        """The figures of an attack with these scores.

        Raises:
            ValueError: fewer than two problems of a side.
        """
        pair = scores.members, scores.others
        return cls(len(pair[0]), len(pair[1]), auc(*pair), [caught(*pair, rate) for rate in RATES])

    def to_json(self) -> dict[str, Any]:
        """All figures as a JSON object; no problem's own score is in it."""
        return {
            "members": self.members,
            "others": self.others,
            "auc": self.auc.to_json(),
            "true_positives": {f"{rate:g}": share.to_json() for rate, share in zip(RATES, self.caught, strict=True)},
        }


def curve(scores: ProblemScores, points: int = 50) -> list[tuple[float, float]]:
    """The ROC curve at equally spaced rates of false positives."""
    exact = roc(scores.members, scores.others)
    rates = [i / points for i in range(points + 1)]
    return [(rate, max(y for x, y in exact if x <= rate + 1e-9)) for rate in rates]
