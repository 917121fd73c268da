"""Seam 3: how many adapters become one. Pure; a LoRA rule is one file, a client weighting is another.

`aggregate(adapters, weights, rule=...)` is a LoRA rule applied with client weights. To add a rule: write its file,
add its name to `Rule` and its function to `aggregate`, and a config section with that `type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.fedit import fedit
from fedrlvr.aggregation.fgrpo import FGRPOWeights
from fedrlvr.aggregation.weights import client_weights

Rule = Literal["fedit"]

__all__ = ["Adapter", "FGRPOWeights", "Factors", "Rule", "aggregate", "client_weights", "fedit"]


def aggregate(adapters: Mapping[str, Adapter], weights: Mapping[str, float], *, rule: Rule = "fedit") -> Adapter:
    """What every client gets next.

    adapters: by client; weights: by client, not negative, of any sum above zero.

    Raises:
        ValueError: no adapters, an unknown rule, clients that differ, or weights that cannot be normalised.
    """
    if rule != "fedit":
        raise ValueError(f"unknown rule {rule!r}; known: fedit")
    if not adapters or set(adapters) != set(weights):
        raise ValueError("give one weight for each of at least one adapter")
    return fedit((adapters[client], weights[client]) for client in adapters)
