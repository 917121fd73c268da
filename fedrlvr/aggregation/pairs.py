"""The (adapter, weight) pairs that every rule takes, checked as they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fedrlvr.adapter import Adapter

Pairs = Iterable[tuple[Adapter, float]]


class Shape(NamedTuple):
    """What adapters of different ranks have in common: alpha, and each layer's name, d and k."""

    alpha: float
    layers: tuple[tuple[str, int, int], ...]


def shape(adapter: Adapter) -> Shape:
    """An adapter's shape apart from its rank.

    Raises:
        ValueError: no layers, or factors that are not of one rank.
    """
    if not adapter.layers:
        raise ValueError("an adapter without layers")
    for name, (a, b) in adapter.layers.items():
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == adapter.rank:
            raise ValueError(f"layer {name}: its factors are not matrices of the adapter's rank")
    return Shape(
        adapter.alpha, tuple((name, int(b.shape[0]), int(a.shape[1])) for name, (a, b) in adapter.layers.items())
    )


def checked(
    pairs: Pairs, *, rule: str, mixed_ranks: bool = False, mixed_alphas: bool = False
) -> Iterator[tuple[Adapter, float]]:
    """The same pairs, one at a time; of those that went by, only the first one's shape is kept.

    Raises:
        ValueError: no adapters, a weight that is negative or not finite, weights whose sum is zero or not finite, or
            adapters that differ in what `rule` (its name, for the message) needs alike.
    """
    first: Shape | None = None
    rank = 0
    total = 0.0
    for adapter, weight in pairs:
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights must be finite and not negative, got {weight}")
        this = shape(adapter)
        if first is None:
            first, rank = this, adapter.rank
        if this.layers != first.layers:
            raise ValueError(f"{rule} takes adapters of one set of layers and shapes only")
        if this.alpha != first.alpha and not mixed_alphas:
            raise ValueError(f"{rule} takes adapters of one alpha only, got {first.alpha:g} and {this.alpha:g}")
        if adapter.rank != rank and not mixed_ranks:
            raise ValueError(f"{rule} cannot mix ranks, got {rank} and {adapter.rank}")
        total += weight
        yield adapter, weight
    if not 0 < total < math.inf:
        raise ValueError("there is nothing to average: no adapters, or their weights sum to zero or to no number")


def check_before(before: Adapter, like: Shape, rank: int) -> None:
    """Check the round's adapter, whose components fill up a result of `rank`.

    Raises:
        ValueError: other layers, shapes or alpha, or another rank.
    """
    if shape(before) != like or before.rank != rank:
        raise ValueError(f"`before` must have the layers and alpha of the others, and the result's rank {rank}")
