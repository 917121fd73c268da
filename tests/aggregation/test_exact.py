"""Every rule on random factors against its dense definition, and what all rules have in common."""

from __future__ import annotations

import math

import pytest
import torch
from loras import adapter, aggregated, dense, ideal, off, random_adapter, with_half

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import RULES, Result, aggregate

WEIGHTS = [3.0, 0.5, 0.0, 1.25]


def given(rule: str, *, half: str = "A", rank: int = 2) -> list[tuple[Adapter, float]]:
    """Four adapters that the rule takes, one of weight zero."""
    adapters = [random_adapter(seed, rank) for seed in range(4)]
    if rule in ("ffa", "rolora"):
        adapters = [with_half(adapter, adapters[0], half) for adapter in adapters]
    return list(zip(adapters, WEIGHTS, strict=True))


def whole(result: Result) -> dict[str, torch.Tensor]:
    """The sum of the adapter's and the change's dense updates, by layer."""
    parts = [dense(part) for part in (result.adapter, result.change)]
    return {name: parts[0][name] + parts[1][name] for name in parts[0]}


@pytest.mark.parametrize(
    ("rule", "half", "rank"),
    [
        ("ffa", "A", 2),
        ("rolora", "A", 2),
        ("rolora", "B", 2),
        ("flora", "", 2),
        ("flora", "", 5),
        ("fedex", "", 2),
        ("fedex", "", 5),
        ("flexlora", "", 9),
    ],
)
def test_exact_rules_give_the_mean_of_the_updates(rule: str, half: str, rank: int) -> None:
    pairs = given(rule, half=half, rank=rank)
    assert off(whole(aggregated(pairs, rule=rule)), ideal(pairs)) < 1e-6


def test_fedit_is_the_mean_of_each_factor_and_not_of_the_updates() -> None:
    pairs = given("fedit")
    mean = aggregated(pairs, rule="fedit").adapter
    assert mean is not None
    for name, tensor in mean.tensors():
        wanted = sum(weight / 4.75 * dict(lora.tensors())[name].double() for lora, weight in pairs)
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-7)
    assert off(dense(mean), ideal(pairs)) > 0.1


def test_fedex_begins_with_the_adapter_of_fedit() -> None:
    pairs = given("fedex")
    fedex, fedit = (aggregated(pairs, rule=rule).adapter for rule in ("fedex", "fedit"))
    assert fedex is not None
    assert fedit is not None
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(fedex.tensors(), fedit.tensors(), strict=True))


def test_fedex_loses_no_digits_where_clients_hardly_differ() -> None:
    # Differences of 1e-4 leave a residual of 1e-8, below the rounding of the products in float32.
    first = random_adapter(0)
    near = [
        first.alike(
            {n: type(f)(f.A + 1e-4 * o.layers[n].A, f.B + 1e-4 * o.layers[n].B) for n, f in first.layers.items()}
        )
        for o in (random_adapter(1), random_adapter(2), random_adapter(3))
    ]
    pairs = [(lora, weight) for lora, weight in zip(near, (1.0, 2.0, 1.5), strict=True)]
    change = aggregated(pairs, rule="fedex").change
    means = [
        {n: torch.stack([w / 4.5 * o.layers[n][half].double() for o, w in pairs]).sum(dim=0) for n in first.layers}
        for half in (0, 1)
    ]
    residual = {n: update - first.scale * (means[1][n] @ means[0][n]) for n, update in ideal(pairs).items()}
    assert off(dense(change), residual) < 1e-6


def test_ranks_of_the_changes() -> None:
    """Clients of weight zero take no room, fedex needs one client less, and no rank is above the layers' own."""
    for rule, rank, wanted in (("flora", 2, 6), ("fedex", 2, 4), ("flora", 5, 9), ("fedex", 5, 9)):
        change = aggregated(given(rule, rank=rank), rule=rule).change
        assert change is not None
        assert change.rank == change.alpha == wanted
        assert all(f.A.dtype == f.B.dtype == torch.float32 for f in change.layers.values())


@pytest.mark.parametrize("rule", RULES)
def test_one_client_gets_its_own_update_back(rule: str) -> None:
    lora = random_adapter(7)
    for pairs in ([(lora, 2.0)], [(with_half(random_adapter(8), lora, "A"), 0.0), (lora, 0.3)]):
        result = aggregated(pairs, rule=rule)
        assert off(whole(result), dense(lora)) < 1e-6
        assert (result.change is None) == (rule != "flora")


@pytest.mark.parametrize("rule", RULES)
def test_a_client_of_weight_zero_does_not_count(rule: str) -> None:
    pairs = given(rule)
    with_zero, without = (aggregated(some, rule=rule) for some in (pairs, [pairs[0], pairs[1], pairs[3]]))
    for part, other in ((with_zero.adapter, without.adapter), (with_zero.change, without.change)):
        assert (part is None) == (other is None)
        if part is not None and other is not None:
            assert all(torch.equal(x, y) for (_, x), (_, y) in zip(part.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_neither_the_order_nor_the_sum_of_weights_counts(rule: str) -> None:
    pairs = given(rule)
    turned = [(lora, 10 * weight) for lora, weight in reversed(pairs)]
    assert off(whole(aggregated(turned, rule=rule)), whole(aggregated(pairs, rule=rule))) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_nobodys_adapter_is_changed_or_handed_out_again(rule: str) -> None:
    pairs, copies = given(rule), given(rule)
    if rule in ("hetlora", "flexlora"):
        result = aggregated(pairs, rule=rule, before=pairs[0][0])
    else:
        result = aggregated(pairs, rule=rule)
    for (lora, _), (copy, _) in zip(pairs, copies, strict=True):
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(lora.tensors(), copy.tensors(), strict=True))
    made = [tensor for part in (result.adapter, result.change) if part for _, tensor in part.tensors()]
    addresses = {tensor.data_ptr() for lora, _ in pairs for _, tensor in lora.tensors()}
    assert not addresses & {tensor.data_ptr() for tensor in made}


@pytest.mark.parametrize("rule", RULES)
def test_mapping_and_stream_are_one(rule: str) -> None:
    pairs = given(rule)
    adapters = {str(at): lora for at, (lora, _) in enumerate(pairs)}
    weights = {str(at): weight for at, (_, weight) in enumerate(pairs)}
    streamed = whole(aggregated(iter(pairs), rule=rule))
    assert off(whole(aggregate(adapters, weights, rule=rule)), streamed) == 0.0


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "flora"])
def test_the_adapter_keeps_its_type(rule: str) -> None:
    halves = [
        (lora.alike({name: type(f)(f.A.bfloat16(), f.B.double()) for name, f in lora.layers.items()}), weight)
        for lora, weight in given(rule)
    ]
    mean = aggregated(halves, rule=rule).adapter
    assert mean is not None
    assert all((f.A.dtype, f.B.dtype) == (torch.bfloat16, torch.float64) for f in mean.layers.values())


# What is refused.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, -math.inf])
def test_weights_that_are_none(rule: str, weight: float) -> None:
    lora, same = random_adapter(1), random_adapter(1)
    for pairs in ([(lora, 1.0), (same, weight)], [(lora, weight), (same, 1.0)]):
        with pytest.raises(ValueError, match="finite and not negative"):
            aggregated(pairs, rule=rule)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_average(rule: str) -> None:
    lora = random_adapter(1)
    for pairs in ([], [(lora, 0.0)], [(lora, 0.0), (lora, 0.0)], [(lora, 1e308), (lora, 1e308)]):
        with pytest.raises(ValueError, match="nothing to average"):
            aggregated(pairs, rule=rule)


@pytest.mark.parametrize("rule", RULES)
def test_other_layers_or_shapes(rule: str) -> None:
    lora = random_adapter(1)
    renamed = Adapter(dict(zip(("q", "w"), lora.layers.values(), strict=True)), lora.alpha)
    fewer = Adapter({"q": lora.layers["q"]}, lora.alpha)
    turned = Adapter(dict(reversed(list(lora.layers.items()))), lora.alpha)
    longer = Adapter({**lora.layers, "v": type(lora.layers["v"])(torch.zeros(2, 7), torch.zeros(17, 2))}, lora.alpha)
    wider = Adapter({**lora.layers, "v": type(lora.layers["v"])(torch.zeros(2, 8), torch.zeros(16, 2))}, lora.alpha)
    for other in (renamed, fewer, turned, longer, wider):
        for weight in (1.0, 0.0):
            with pytest.raises(ValueError, match="one set of layers and shapes"):
                aggregated([(lora, 1.0), (other, weight)], rule=rule)


@pytest.mark.parametrize("rule", RULES)
def test_factors_that_are_none(rule: str) -> None:
    layers = random_adapter(1).layers
    broken = Adapter({**layers, "v": random_adapter(1, rank=3).layers["v"]}, 4.0)
    with pytest.raises(ValueError, match="layer v: its factors"):
        aggregated([(broken, 1.0)], rule=rule)
    with pytest.raises(ValueError, match="layer q: its factors"):
        aggregated([(adapter([[1.0, 2.0]], [[1.0, 2.0]]), 1.0)], rule=rule)
    with pytest.raises(ValueError, match="without layers"):
        aggregated([(Adapter({}, 4.0), 1.0)], rule=rule)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "flora"])
def test_other_alphas(rule: str) -> None:
    pairs = [(random_adapter(1), 1.0), (random_adapter(1, alpha=5.0), 1.0)]
    with pytest.raises(ValueError, match="one alpha only, got 4 and 5"):
        aggregated(pairs, rule=rule)


@pytest.mark.parametrize("rule", ["fedit", "ffa", "rolora", "fedex"])
def test_rules_that_cannot_mix_ranks_say_so(rule: str) -> None:
    pairs = [(random_adapter(1), 1.0), (random_adapter(2, rank=3), 1.0)]
    with pytest.raises(ValueError, match="cannot mix ranks, got 2 and 3"):
        aggregated(pairs, rule=rule)


def test_factors_that_should_be_frozen() -> None:
    lora, other = random_adapter(1), random_adapter(2)
    same_a, same_b = with_half(other, lora, "A"), with_half(other, lora, "B")
    with pytest.raises(ValueError, match=r"FFA-LoRA .* the As differ"):
        aggregated([(lora, 1.0), (same_b, 1.0)], rule="ffa")
    for pairs in ([(lora, 1.0), (other, 1.0)], [(lora, 1.0), (same_a, 1.0), (same_b, 1.0)]):
        with pytest.raises(ValueError, match=r"RoLoRA .* the As and Bs differ"):
            aggregated(pairs, rule="rolora")


def test_one_layer_that_differs_is_enough() -> None:
    lora = random_adapter(1)
    moved = Adapter({**lora.layers, "v": lora.layers["v"]._replace(A=lora.layers["v"].A * 1.0001)}, lora.alpha)
    with pytest.raises(ValueError, match="the As differ"):
        aggregated([(lora, 1.0), (moved, 1.0)], rule="ffa")


def test_an_unknown_rule() -> None:
    known = "fedit, ffa, rolora, flora, fedex, hetlora, flexlora"
    with pytest.raises(ValueError, match=f"unknown rule 'fedavg'; known: {known}"):
        aggregate({"a": random_adapter(1)}, {"a": 1.0}, rule="fedavg")
