"""Changes that a true label makes to a group's advantages.

The corrective advantage gap (CARE, arXiv 2605.25864) is the change where the group is trained on by majority vote
without the label:

    CAG = || A(r_true) - A(r_pseudo) ||_2      A = (r - mean) / std, population std; all zero where std < 1e-8

The pseudo-rewards are 1 for the majority's responses. If the majority is right the gap is 0. If it is wrong, the
responses that are right lie outside it, and with p = votes / G and q = correct / G the gap is (derived here)

    sqrt(2 G (1 + sqrt(p q / ((1 - p) (1 - q)))))   0 < votes < G and 0 < correct < G
    sqrt(G)                                         one of the two has no advantages
    0                                               neither has: nobody is right and the vote is unanimous, or none

It grows with the majority's votes, so the confidently wrong are worth most; the unanimously wrong it cannot see.

Where a group without a label is masked, nothing is trained on the majority, and the change is || A(r_true) ||_2 (ours):

    sqrt(G)   0 < correct < G: the group is mixed and has a gradient
    0         all of its responses are right, or none is

The two disagree where the majority is right and the group is mixed (gap 0, value sqrt(G)), and where the majority is
wrong and nobody is right (gap sqrt(G), value 0). `mixed_chance` is the probability of a mixed group.
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


def mixed_chance(group: int, votes: int, reliable: float, outside: float) -> float:
    """Estimate of the probability that a group is mixed.

    group: responses G of the problem. votes: how many of them gave the majority's answer.
    reliable: P1, the probability that the majority is right. outside: sum of P2(y) over y > 0, the probability that it
        is wrong and a response outside it is right.

    If the majority is right, its `votes` responses are the right ones and the group is mixed where there are fewer of
    them than responses. If it is wrong, the group is mixed where y > 0, and never whole. These exclude each other, so
    the probabilities add up. A unanimous vote leaves nothing outside, so it is never mixed, and neither is a group
    without a vote. P1 and P2 are estimates of two probes that may contradict each other: their sum can be above 1, and
    is not cut there, since that would tie problems that can be told apart.
    """
    return reliable + outside if 0 < votes < group else 0.0
