"""Adapters to aggregate, and the dense mean of their updates that rules are held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import factories
import torch
from torch import Tensor

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import Result, lora_rule

SHAPES = {"q": (9, 12), "v": (16, 7)}
"""d and k by layer; the largest min(d, k) is 9."""

Pairs = Sequence[tuple[Adapter, float]]

adapter = partial(factories.adapter_from, alpha=4.0)
random_adapter = partial(factories.random_adapter, shapes=SHAPES)


def with_half(adapter: Adapter, other: Adapter, half: str) -> Adapter:
    """`one`, with the other's A or B."""
    layers = {
        name: factors._replace(**{half: getattr(other.layers[name], half).clone()})
        for name, factors in adapter.layers.items()
    }
    return Adapter(layers, adapter.alpha)


def aggregated(pairs: Iterable[tuple[Adapter, float]], rule: str, **options: Any) -> Result:
    """The result of a rule for these pairs of adapter and weight, in a first round."""
    return lora_rule(rule).aggregation().aggregate(pairs, **options)


def dense(adapter: Adapter | None) -> dict[str, Tensor]:
    """alpha / r B A by layer, written out once more; None is no update."""
    if adapter is None:
        return {name: torch.zeros(d, k, dtype=torch.float64) for name, (d, k) in SHAPES.items()}
    rank = next(iter(adapter.layers.values())).A.shape[0]
    return {
        name: adapter.alpha / rank * torch.einsum("dr,rk->dk", b.double(), a.double())
        for name, (a, b) in adapter.layers.items()
    }


def ideal(pairs: Pairs) -> dict[str, Tensor]:
    """sum_k p_k s_k B_k A_k by layer."""
    total = sum(weight for _, weight in pairs)
    updates = [(dense(adapter), weight / total) for adapter, weight in pairs]
    return {name: sum(share * update[name] for update, share in updates) for name in updates[0][0]}  # type: ignore[misc]


def off(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative error of a layer, in Frobenius norm."""
    assert list(got) == list(wanted)
    return max(float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)
