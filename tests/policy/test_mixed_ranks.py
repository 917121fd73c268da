"""Adapters of different ranks in one cohort: each client gets what it gets alone, and padding stays zero.

Tolerances: token ids are equal; numbers and moments agree to 1e-5 of the largest, factors after a step to 1e-6 but for
at most one entry in a thousand, where the gradient is nearly zero and AdamW divides it by its own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import group_of, moved_adapter, numbers_of, same_tensors, tiny_cohort

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.optimizer import StackedAdamW
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group

RANKS = {"a": 2, "b": 4, "c": 1}
LORA = LoraConfig(rank=RANKS, alpha=8.0)
SAMPLING = SamplingConfig(group_size=3, max_new_tokens=10)
PROMPTS = {"a": ["1 + 1 =", "What is 12 + 345?"], "b": ["9 - 4"], "c": ["60 / 5", "x", "7 * 8 ="]}
SEEDS = {"a": 3, "b": 4, "c": 5}
ADVANTAGES = [1.5, -1.0, -0.5]
RATE = 2e-3


def mixed(cohort: Cohort) -> dict[str, Adapter]:
    """Each client's adapter at its own rank."""
    return {client: moved_adapter(cohort, SEEDS[client]).at_rank(rank) for client, rank in RANKS.items()}


def groups_of(cohort: Cohort, clients: Mapping[str, Any]) -> dict[str, list[Group]]:
    """The groups that the seated clients sample, with advantages."""
    ids = {client: [cohort.base.encode(prompt) for prompt in PROMPTS[client]] for client in clients}
    drawn = cohort.sample(ids, Decoding.of(SAMPLING), SEEDS)
    return {c: [group_of(*parts, ADVANTAGES) for parts in zip(ids[c], drawn[c], strict=True)] for c in clients}


def gap(adapter: Adapter, other: Adapter) -> torch.Tensor:
    """Absolute differences of all entries."""
    return torch.cat(
        [(a - b).abs().flatten() for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True)]
    )


@pytest.mark.parametrize("engine", [{}, {"decode_cache": "static"}], ids=str)
def test_a_mixed_cohort_gives_each_client_what_it_gets_alone(engine: dict[str, Any], llama: Path) -> None:
    """With an anchor elsewhere, which is padded too."""
    cohort = tiny_cohort(llama, LORA, EngineConfig(**engine))
    adapters = mixed(cohort)
    anchors = {c: moved_adapter(cohort, 9).at_rank(rank) for c, rank in RANKS.items()}
    train = TrainConfig(proximal_mu=0.1, weight_decay=0.1)

    def work(clients: Mapping[str, Adapter]) -> tuple[Any, Any, Any, Any]:
        cohort.seat(clients)
        groups = groups_of(cohort, clients)
        cohort.begin_training(train, SAMPLING, anchors={c: anchors[c] for c in clients})
        stats = cohort.learn(groups, dict.fromkeys(clients, RATE))
        return groups, stats, cohort.adapters(), cohort.moments()

    groups, stats, after, moments = work(adapters)
    for client, adapter in adapters.items():
        alone_groups, alone_stats, alone_after, alone_moments = work({client: adapter})
        for group, expected in zip(groups[client], alone_groups[client], strict=True):
            assert [r.token_ids for r in group.responses] == [r.token_ids for r in expected.responses]
        assert numbers_of(stats[client]) == pytest.approx(numbers_of(alone_stats[client]), rel=1e-5, abs=1e-5)
        assert after[client].rank == RANKS[client]
        assert float((gap(after[client], alone_after[client]) > 1e-6).float().mean()) <= 1e-3
        assert float(gap(after[client], adapter).max()) > 1e-3
        for name in ("m", "v"):
            moment, expected = moments[client][name], alone_moments[client][name]
            assert moment.shape == expected.shape
            assert float((moment - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("spans", [None, [(0, 0, 4), (1, 4, 6), (2, 6, 9)], [(1, 0, 5), (2, 5, 9)]], ids=str)
def test_a_layer_and_its_gradients_have_each_clients_own_scale(
    spans: list[tuple[int, int, int]] | None, llama: Path
) -> None:
    """Scales 8 / 2, 8 / 4 and 8 / 1 over 9 rows, against dense products of the unpadded factors. Tolerance 1e-5."""
    cohort = tiny_cohort(llama, LORA)
    adapters = mixed(cohort)
    cohort.seat(adapters)
    name = "model.layers.0.self_attn.v_proj"
    layer = cohort.stack.layers[name]
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
    weights = torch.randn(9, 16, generator=torch.Generator().manual_seed(6))
    cohort.stack.spans = spans
    output = layer(x)
    assert layer.A is not None
    assert layer.B is not None
    x_grad, a_grad, b_grad = torch.autograd.grad((output * weights).sum(), (x, layer.A, layer.B))

    parameters = [[half.clone().requires_grad_() for half in adapter.layers[name]] for adapter in adapters.values()]
    rows = []
    for i, start, end in spans or [(0, 0, 3), (1, 3, 6), (2, 6, 9)]:
        a, b = parameters[i]
        rows.append(x[start:end] @ (layer.base.weight + [4.0, 2.0, 8.0][i] * b @ a).t())
    wanted = torch.cat(rows)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
    (wanted * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x_grad, x.grad, rtol=1e-5, atol=1e-5)
    for i, (rank, (a, b)) in enumerate(zip(RANKS.values(), parameters, strict=True)):
        expected = [torch.zeros_like(half) if half.grad is None else half.grad for half in (a, b)]
        torch.testing.assert_close(a_grad[i, :rank], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b_grad[i, :, :rank], expected[1], rtol=1e-5, atol=1e-5)
        assert not a_grad[i, rank:].any()
        assert not b_grad[i, :, rank:].any()


def test_zero_components_stay_zero_in_training(llama: Path) -> None:
    cohort = tiny_cohort(llama, LORA)
    cohort.seat(mixed(cohort))
    groups = groups_of(cohort, RANKS)
    cohort.begin_training(TrainConfig(weight_decay=0.1, proximal_mu=0.5, kl_beta=0.1), SAMPLING)
    for _ in range(3):
        cohort.learn(groups, dict.fromkeys(RANKS, 0.01))
    for layer in cohort.stack.layers.values():
        assert layer.A is not None
        assert layer.B is not None
        for i, rank in enumerate(RANKS.values()):
            assert layer.A.shape[1] == 4
            assert not layer.A[i, rank:].any()
            assert not layer.B[i, :, rank:].any()
            assert layer.A[i, :rank].all()


def test_adapters_come_back_at_their_own_rank_and_alpha(llama: Path) -> None:
    """As they were seated, bit by bit: nothing is rescaled."""
    cohort = tiny_cohort(llama, LORA)
    adapters = mixed(cohort)
    adapters["b"] = Adapter(adapters["b"].layers, 3.0)
    adapters["d"] = moved_adapter(cohort, 7).at_rank(2)
    cohort.seat(adapters)
    back = cohort.adapters()
    for client, adapter in adapters.items():
        assert (back[client].rank, back[client].alpha) == (adapter.rank, adapter.alpha)
        assert back[client].layout == adapter.layout
        assert same_tensors(back[client], adapter)


def test_a_stack_is_as_wide_as_the_largest_rank_seated(llama: Path) -> None:
    cohort = tiny_cohort(llama, LORA)
    assert cohort.fresh_adapter(1).rank == 4
    adapters = mixed(cohort)
    cohort.seat({client: adapters[client] for client in "ac"})
    assert {layer.A.shape[1] for layer in cohort.stack.layers.values() if layer.A is not None} == {2}


def test_only_scales_that_differ_cost_a_product_of_their_own(llama: Path) -> None:
    cohort = tiny_cohort(llama, LORA)
    adapters = mixed(cohort)
    cohort.seat(adapters)
    assert cohort.stack.scales.each == [4.0, 2.0, 8.0]
    assert isinstance(cohort.stack.scales.all, torch.Tensor)
    cohort.seat({client: Adapter(adapter.layers, 1.5 * adapter.rank) for client, adapter in adapters.items()})
    assert cohort.stack.scales.all == 1.5


def test_under_autocast_scales_stay_each_clients_own(llama: Path) -> None:
    """Against float32: bfloat16 has eight bits."""
    cohort = tiny_cohort(llama, LORA)
    cohort.seat(mixed(cohort))
    layer = cohort.stack.layers["model.layers.0.mlp.up_proj"]
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(5))
    assert layer.A is not None
    results = []
    for rounded in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
            y = layer(x)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), layer.A)
        results.append((y.detach().float(), gradient))
    assert y.dtype == torch.bfloat16
    for result, expected in zip(results[1], results[0], strict=True):
        assert float((result - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_what_a_client_remembers_does_not_depend_on_who_else_is_seated(llama: Path) -> None:
    """Moments made in a mixed cohort go on in a cohort of one, and back, at the size of the client's own rank."""
    cohort = tiny_cohort(llama, LORA)
    adapters = mixed(cohort)
    cohort.seat(adapters)
    groups = groups_of(cohort, RANKS)
    cohort.begin_training(TrainConfig(), SAMPLING)
    cohort.learn(groups, dict.fromkeys(RANKS, RATE))
    moments = cohort.moments()
    for client, rank in RANKS.items():
        shapes = [tuple(layer.base.weight.shape) for layer in cohort.stack.layers.values()]
        assert moments[client]["m"].shape == moments[client]["v"].shape == (sum(rank * (d + k) for d, k in shapes),)
        cohort.seat({client: adapters[client]})
        cohort.begin_training(TrainConfig(), SAMPLING, {client: moments[client]})
        alone = cohort.moments()[client]
        assert all(torch.equal(alone[name], moments[client][name]) for name in ("steps", "m", "v"))
    cohort.seat(dict(reversed(adapters.items())))
    cohort.begin_training(TrainConfig(), SAMPLING, moments)
    for client, kept in cohort.moments().items():
        assert all(torch.equal(kept[name], moments[client][name]) for name in ("steps", "m", "v"))


def test_a_state_is_cut_along_the_rank_by_hand() -> None:
    """Client 0 has one of two components: the first row of A [2, 3] and the first column of B [2, 2]."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2, 3)), torch.nn.Parameter(torch.zeros(2, 2, 2))]
    optimizer = StackedAdamW(parameters, TrainConfig(), [1, 2])
    optimizer.m[0][0] = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    optimizer.m[1][0] = torch.tensor([[4.0, 0.0], [5.0, 0.0]])
    assert optimizer.state(0)["m"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(optimizer.state(1)["m"]) == 10
    other = StackedAdamW(parameters, TrainConfig(), [2, 1])
    other.restore(1, optimizer.state(0))
    assert torch.equal(other.m[0][1], optimizer.m[0][0])
    assert torch.equal(other.m[1][1], optimizer.m[1][0])
