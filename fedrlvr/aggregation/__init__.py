"""Seam 3: how many adapters become one. Pure; a LoRA rule is one file, a client weighting is another.

`aggregate(adapters, weights, rule=...)` is a LoRA rule applied with client weights. `lora_rule` has the interface of a
rule, the table of all rules, and how to add one.

What rules share: `lora_rule` (checks of what is given), `averaging` (the running mean), `stacking` (sums of updates in
factored form). What can replace a mean of adapters: `robust`. How much a client counts: `client_weights`.

Nothing here imports torch before a rule is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedrlvr.aggregation.client_weights import FGRPOWeights, client_weights
from fedrlvr.aggregation.lora_rule import RULES, LoraAggregation, LoraRule, Result, lora_rule

if TYPE_CHECKING:
    from fedrlvr.adapter import Adapter

__all__ = [
    "RULES",
    "FGRPOWeights",
    "LoraAggregation",
    "LoraRule",
    "Result",
    "aggregate",
    "client_weights",
    "lora_rule",
]


def aggregate(adapters: Mapping[str, Adapter], weights: Mapping[str, float], *, rule: str = "fedit") -> Result:
    """Aggregate the clients' adapters by a rule without a history.

    adapters: by client; weights: by client, not negative, of any sum above zero.

    Raises:
        ValueError: no adapters, an unknown rule, clients that differ, weights that cannot be normalised, or adapters
            that the rule cannot aggregate.
    """
    if not adapters or set(adapters) != set(weights):
        raise ValueError("give one weight for each of at least one adapter")
    return lora_rule(rule).aggregation().aggregate((adapters[client], weights[client]) for client in adapters)
