"""Swap rules: other clients' correct responses to public problems replace some of a client's own (PubSwap, arXiv
2604.12160).

With c own correct responses, W the own incorrect ones and P the others' correct ones to the same problem:

    balanced  m = min(max(0, ceil(G / 2) - c), |W|, |P|); m random members of W take m draws from P
    random    the same m; any m of the G slots take them, correct or not
    full      m = min(|W|, |P|); as many of W as there are draws
    none      m = 0: steps on public problems without any exchange of responses

Known: incorrect responses are replaced by others' correct ones, and a group is brought towards half correct, where the
variance p (1 - p) of a binary reward is largest. Our reading: the formulas, that draws are uniform and without
replacement, and the two ablations, of which nothing but the names could be read.

1. A group that is all correct stays as it is under every rule: correct for correct would change no reward.
2. `full` makes a group all correct where the pool is rich enough, and such a group has no gradient: it learns from
   hard problems only.

A new rule is one more entry of `SWAP_RULES`; configuration, server and clients ask the entry.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedrlvr.rl.samples import CORRECT


@dataclass(frozen=True)
class SwapRule:
    """The properties of one swap rule, for configuration, server and clients.

    most(correct, group): how many of others' responses a group can take that has so many correct ones; never more than
        its incorrect ones.
    any_slot: correct responses may be replaced as well as incorrect ones.
    trades: responses travel between clients.
    """

    most: Callable[[int, int], int]
    any_slot: bool = False
    trades: bool = True


def _to_half(correct: int, group: int) -> int:
    return min(max(0, -(-group // 2) - correct), group - correct)


SWAP_RULES = {
    "balanced": SwapRule(_to_half),
    "random": SwapRule(_to_half, any_slot=True),
    "full": SwapRule(lambda correct, group: group - correct),
    "none": SwapRule(lambda correct, group: 0, trades=False),
}
"""Every rule, by its name in `coordination.swap`."""


def wanted(correct: int, group: int, rule: str) -> int:
    """Number of other clients' responses that a group of this size takes, given its number of correct ones.

    Raises:
        ValueError: an unknown rule, or more correct responses than there are.
    """
    if rule not in SWAP_RULES:
        raise ValueError(f"rule must be one of {', '.join(SWAP_RULES)}, got {rule!r}")
    if not 0 <= correct <= group:
        raise ValueError(f"{correct} correct responses of {group}")
    return SWAP_RULES[rule].most(correct, group)


def swap(
    own_rewards_PG: Sequence[Sequence[float]],
    pool: Sequence[Sequence[Any]],
    *,
    rule: str = "balanced",
    rng: random.Random,
) -> list[dict[int, int]]:
    """Choose slots of the client's groups and the pool's entries that replace them: {slot: entry} for each problem.

    own_rewards_PG: rewards of the client's own responses; correct is a reward of 1.
    pool: for each problem, what others gave that is correct; only how much there is matters here.

    Raises:
        ValueError: as `wanted`, or a pool of another number of problems.
    """
    if len(pool) != len(own_rewards_PG):
        raise ValueError(f"a pool of {len(pool)} problems for groups of {len(own_rewards_PG)}")
    swaps = []
    for rewards_G, entries in zip(own_rewards_PG, pool, strict=True):
        group = len(rewards_G)
        wrong = [slot for slot, reward in enumerate(rewards_G) if reward < CORRECT]
        count = min(wanted(group - len(wrong), group, rule), len(entries))
        slots = rng.sample(range(group) if SWAP_RULES[rule].any_slot else wrong, count)
        swaps.append(dict(zip(slots, rng.sample(range(len(entries)), count), strict=True)))
    return swaps
