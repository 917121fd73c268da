"""The averages and hetlora take adapters one at a time and hold their running sum only; sums may be made in parts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from loras import aggregated, random_adapter, with_half

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import RULES

STREAMED: tuple[str, ...] = ("fedit", "ffa", "rolora", "hetlora")


def made(seed: int, rule: str) -> Adapter:
    """Adapters that share A, which all of these rules take; hetlora's have different ranks, small ones first."""
    if rule == "hetlora":
        return random_adapter(seed, rank=1 + seed // 4)
    return with_half(random_adapter(seed), random_adapter(0), "A")


@pytest.mark.parametrize("rule", STREAMED)
def test_not_more_than_two_adapters_are_alive(rule: str) -> None:
    adapters: list[weakref.ref[Adapter]] = []
    factors: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def pairs() -> Iterator[tuple[Adapter, float]]:
        nonlocal most
        for seed in range(12):
            adapter = made(seed, rule)
            adapters.append(weakref.ref(adapter))
            factors.append(weakref.ref(adapter.layers["v"].B))
            most = max(most, *(sum(ref() is not None for ref in refs) for refs in (adapters, factors)))
            yield adapter, 1.0 + seed

    aggregated(pairs(), rule=rule)
    assert len(adapters) == 12
    assert most == 2  # the last one, and the one that has just been made


@pytest.mark.parametrize("rule", [rule.name for rule in RULES.values() if rule.is_linear])
def test_averages_can_be_made_in_parts(rule: str) -> None:
    a, b, c = (made(seed, rule) for seed in range(3))
    at_once = aggregated([(a, 1.0), (b, 2.0), (c, 4.0)], rule=rule).adapter
    first = aggregated([(a, 1.0), (b, 2.0)], rule=rule).adapter
    assert first is not None
    in_parts = aggregated([(first, 3.0), (c, 4.0)], rule=rule).adapter
    assert at_once is not None
    assert in_parts is not None
    for (_, x), (_, y) in zip(at_once.tensors(), in_parts.tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_a_frozen_factor_comes_back_to_the_bit() -> None:
    adapters = [made(seed, "ffa") for seed in range(7)]
    rules: tuple[str, ...] = ("ffa", "rolora")
    for rule in rules:
        mean = aggregated([(adapter, 0.1 + at) for at, adapter in enumerate(adapters)], rule=rule).adapter
        assert mean is not None
        assert all(torch.equal(mean.layers[name].A, f.A) for name, f in adapters[0].layers.items())


def test_what_sets_the_rules_apart() -> None:
    """The table says what the aggregations do."""
    adapter, other, small = (random_adapter(seed, rank) for seed, rank in ((0, 2), (0, 2), (1, 1)))
    for name, rule in RULES.items():
        result = aggregated([(adapter, 1.0), (other, 1.0)], rule=name)
        assert (result.change is not None) == rule.changes_base
        assert (result.adapter is None) == rule.restarts
        try:
            aggregated([(adapter, 1.0), (small, 1.0)], rule=name)
            mixes = True
        except ValueError:
            mixes = False
        assert mixes == rule.mixes_ranks
