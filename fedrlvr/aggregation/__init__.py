"""Seam 3: how many adapters become one. Pure; a LoRA rule is one file, a client weighting is another.

`aggregate(adapters, weights, rule=...)` is a LoRA rule applied with client weights. To add a rule: write its file, a
function of (adapter, weight) pairs that gives a `Result` and checks what it takes with `pairs.checked`; add its name to
`fedrlvr.rules`, there also to the sets that are true of it, and its function to `_RULES` here, or to `_RULES_TO_A_RANK`
if it takes `rank` and `before`.

What rules share: `pairs` (the checks), `mean` (the running sum), `stacking` (sums of updates in factored form).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.fedex import fedex
from fedrlvr.aggregation.fedit import fedit
from fedrlvr.aggregation.ffa import ffa
from fedrlvr.aggregation.fgrpo import FGRPOWeights
from fedrlvr.aggregation.flexlora import flexlora
from fedrlvr.aggregation.flora import flora
from fedrlvr.aggregation.hetlora import hetlora
from fedrlvr.aggregation.pairs import Pairs
from fedrlvr.aggregation.result import Result
from fedrlvr.aggregation.rolora import rolora
from fedrlvr.aggregation.stacking import add, compact, stack, update
from fedrlvr.aggregation.weights import client_weights
from fedrlvr.rules import AVERAGES, CHANGES_BASE, MIXED_RANKS, Rule

__all__ = [
    "AVERAGES",
    "CHANGES_BASE",
    "MIXED_RANKS",
    "Adapter",
    "FGRPOWeights",
    "Factors",
    "Result",
    "Rule",
    "add",
    "aggregate",
    "aggregate_stream",
    "client_weights",
    "compact",
    "fedex",
    "fedit",
    "ffa",
    "flexlora",
    "flora",
    "hetlora",
    "rolora",
    "stack",
    "update",
]

_RULES: dict[str, Callable[[Pairs], Result]] = {
    "fedit": fedit,
    "ffa": ffa,
    "rolora": rolora,
    "flora": flora,
    "fedex": fedex,
}
_RULES_TO_A_RANK = {"hetlora": hetlora, "flexlora": flexlora}


def aggregate(adapters: Mapping[str, Adapter], weights: Mapping[str, float], *, rule: Rule = "fedit") -> Result:
    """What every client gets next.

    adapters: by client; weights: by client, not negative, of any sum above zero.

    Raises:
        ValueError: no adapters, an unknown rule, clients that differ, weights that cannot be normalised, or adapters
            that the rule cannot put together.
    """
    if not adapters or set(adapters) != set(weights):
        raise ValueError("give one weight for each of at least one adapter")
    return aggregate_stream(((adapters[client], weights[client]) for client in adapters), rule=rule)


def aggregate_stream(pairs: Pairs, *, rule: Rule, rank: int | None = None, before: Adapter | None = None) -> Result:
    """`aggregate` of (adapter, weight) pairs, which are taken one at a time and once.

    The averages and hetlora hold one running sum whatever the number of pairs; the others hold all adapters.
    Values are taken as they are: whoever gets adapters from others checks them before (`Adapter.check_like`).

    rank, before: for hetlora and flexlora, the result's rank and the round's adapter at that rank, from which come
        components that this round's clients do not give. Other rules have no use for them.

    Raises:
        ValueError: as `aggregate`.
    """
    if rule in _RULES_TO_A_RANK:
        return _RULES_TO_A_RANK[rule](pairs, rank=rank, before=before)
    if rule in _RULES:
        return _RULES[rule](pairs)
    raise ValueError(f"unknown rule {rule!r}; known: {', '.join([*_RULES, *_RULES_TO_A_RANK])}")
