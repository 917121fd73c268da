"""The corrective advantage gap: what a true label would change in a group's advantages (CARE, arXiv 2605.25864).

    CAG = || A(r_true) - A(r_pseudo) ||_2      A = (r - mean) / std, population std; all zero where std < 1e-8

The pseudo-rewards are 1 for the majority's responses. If the majority is right the gap is 0. If it is wrong, the
responses that are right lie outside it, and with p = votes / G and q = correct / G the gap is (derived here)

    sqrt(2 G (1 + sqrt(p q / ((1 - p) (1 - q)))))   0 < votes < G and 0 < correct < G
    sqrt(G)                                         one of the two has no advantages
    0                                               neither has: nobody is right and the vote is unanimous, or none

It grows with the majority's votes, so the confidently wrong are worth most; the unanimously wrong it cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SMALLEST_STD = 1e-8


def _advantages(rewards: Sequence[float]) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [0.0 if std < SMALLEST_STD else (reward - mean) / std for reward in rewards]


def corrective_advantage_gap(true_rewards: Sequence[float], pseudo_rewards: Sequence[float]) -> float:
    """The gap of one group, by its definition.

    Raises:
        ValueError: no rewards, not as many of the one kind as of the other, or one that is not finite.
    """
    if not true_rewards or len(true_rewards) != len(pseudo_rewards):
        raise ValueError(f"{len(true_rewards)} true rewards and {len(pseudo_rewards)} pseudo-rewards of one group")
    if not all(map(math.isfinite, (*true_rewards, *pseudo_rewards))):
        raise ValueError("rewards must be finite")
    return math.dist(_advantages(true_rewards), _advantages(pseudo_rewards))


def cag(group: int, votes: int, correct: int) -> float:
    """The gap where the majority is wrong; where it is right the gap is 0 and there is nothing to ask here.

    group: responses G of the problem.
    votes: how many of them are the majority's, all wrong.
    correct: how many of the others are right.

    Raises:
        ValueError: no responses, a negative count, or votes and correct responses that are more than the group.
    """
    if group < 1 or votes < 0 or correct < 0 or votes + correct > group:
        raise ValueError(f"{votes} votes and {correct} correct responses outside them do not fit a group of {group}")
    degenerate = (votes in (0, group)) + (correct in (0, group))
    if degenerate:
        return math.sqrt(group) if degenerate == 1 else 0.0
    odds = votes * correct / ((group - votes) * (group - correct))
    return math.sqrt(2 * group * (1 + math.sqrt(odds)))
