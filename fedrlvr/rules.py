"""The LoRA rules by name, and what sets them apart; what they compute is in aggregation/.

Apart from there so that a configuration can be checked without loading torch.
"""

from __future__ import annotations

from typing import Literal

Rule = Literal["fedit", "ffa", "rolora", "flora", "fedex", "hetlora", "flexlora"]
Half = Literal["A", "B"]
Halves = Literal["AB", "A", "B"]

AVERAGES: frozenset[Rule] = frozenset({"fedit", "ffa", "rolora"})
"""Rules that are a linear sum of what clients send: a secure sum can compute them, and a robust mean stand in."""
MIXED_RANKS: frozenset[Rule] = frozenset({"flora", "hetlora", "flexlora"})
"""Rules that take adapters of different ranks."""
CHANGES_BASE: frozenset[Rule] = frozenset({"flora", "fedex"})
"""Rules that change the base weights, for every client."""

NEW_COMPONENTS: frozenset[Rule] = frozenset({"flora", "flexlora"})
"""Rules after which an adapter's components are others than before, so that nothing kept of the old ones (optimizer
moments, what rounding lost) means anything to the new."""

FROZEN_A: frozenset[Rule] = frozenset({"ffa"})
"""Rules that never train A: everybody draws it from the run's seed, and it never travels."""
ALTERNATES: frozenset[Rule] = frozenset({"rolora"})
"""Rules that train one half a round, in turns; clients remember the other."""
RESTARTS: frozenset[Rule] = frozenset({"flora"})
"""Rules that begin each round with an adapter drawn from the run's seed, which never travels down."""


def trained(rule: Rule, round_: int) -> Halves:
    """The half of the adapter that clients train, and send, in a round; rounds count from 1.

    FFA-LoRA never trains A. RoLoRA trains B first: B starts at zero, so that A would have no gradient.
    """
    if rule in FROZEN_A:
        return "B"
    if rule in ALTERNATES:
        return "B" if round_ % 2 else "A"
    return "AB"
