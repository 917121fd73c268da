"""One factor is trained and the other frozen: it stays bit by bit as it is, and the trained one gets torch's AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import group_of, moved_adapter, same_tensors, tiny_cohort
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedrlvr.adapter import Adapter
from fedrlvr.config import SamplingConfig, TrainConfig
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.lora import Halves
from fedrlvr.policy.optimizer import StackedAdamW
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group

SAMPLING = SamplingConfig(group_size=3, max_new_tokens=10)
PROMPTS = {"a": ["1 + 1 =", "What is 12 + 345?"], "b": ["9 - 4"]}
SEEDS = {"a": 3, "b": 4}
RATES = {"a": 2e-3, "b": 5e-3}
TRAIN = TrainConfig(weight_decay=0.1, proximal_mu=0.3, max_grad_norm=0.5)
HALVES: list[Halves] = ["A", "B"]


def ready(directory: Path) -> tuple[Cohort, dict[str, Adapter], dict[str, Adapter], dict[str, list[Group]]]:
    """Two clients, their adapters, anchors elsewhere, and groups they sampled."""
    cohort = tiny_cohort(directory)
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    anchors = {client: moved_adapter(cohort, 20 + seed) for client, seed in SEEDS.items()}
    cohort.seat(adapters)
    ids = {client: [cohort.base.encode(prompt) for prompt in PROMPTS[client]] for client in SEEDS}
    drawn = cohort.sample(ids, Decoding.of(SAMPLING), SEEDS)
    groups = {
        client: [group_of(*parts, [1.5, -1.0, -0.5]) for parts in zip(ids[client], drawn[client], strict=True)]
        for client in SEEDS
    }
    return cohort, adapters, anchors, groups


def halves_of(cohort: Cohort, half: str) -> list[nn.Parameter]:
    """The stacked parameters of one factor, A or B, of every layer."""
    return cohort.stack.parameters()["AB".index(half) :: 2]


@pytest.mark.parametrize("trains", HALVES)
def test_the_frozen_half_stays_and_the_other_gets_torchs_adamw_on_it_alone(trains: Halves, llama: Path) -> None:
    """Three steps with weight decay, a pull to anchors and an active clip. Factors agree to 1e-6."""
    cohort, adapters, anchors, groups = ready(llama)
    frozen = "B" if trains == "A" else "A"
    probe, _, _, _ = ready(llama)  # the gradients of both halves, unclipped, where the cohort stands
    before = [p.detach().clone() for p in halves_of(cohort, frozen)]
    parameters = {
        c: [nn.Parameter(p[i].detach().clone()) for p in halves_of(cohort, trains)] for i, c in enumerate(SEEDS)
    }
    anchor = cohort.stack.stacked(list(anchors.values()))["AB".index(trains) :: 2]
    betas = (TRAIN.beta1, TRAIN.beta2)
    optimizers = {c: torch.optim.AdamW(parameters[c], lr=RATES[c], betas=betas, weight_decay=0.1) for c in SEEDS}
    cohort.begin_training(TRAIN, SAMPLING, anchors=anchors, trains=trains)
    for _ in range(3):
        probe.seat(cohort.adapters())
        probe.begin_training(TrainConfig(max_grad_norm=1e9), SAMPLING)
        probe.learn(groups, dict.fromkeys(SEEDS, 0.0))
        gradients = [p.grad for p in halves_of(probe, trains)]
        stats = cohort.learn(groups, RATES)
        for i, client in enumerate(SEEDS):
            for parameter, gradient, to in zip(parameters[client], gradients, anchor, strict=True):
                assert gradient is not None
                parameter.grad = gradient[i] + 0.3 * (parameter.detach() - to[i])
            norm = float(nn.utils.clip_grad_norm_(parameters[client], 0.5))
            assert norm > 0.5
            assert stats[client].grad_norm == pytest.approx(norm, rel=1e-4)
            optimizers[client].step()
            for stack, expected in zip(halves_of(cohort, trains), parameters[client], strict=True):
                torch.testing.assert_close(stack[i], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, old) for p, old in zip(halves_of(cohort, frozen), before, strict=True))
    assert all(p.grad is None for p in halves_of(cohort, frozen))
    back = cohort.adapters()
    for client, adapter in adapters.items():
        for name, factors in adapter.layers.items():
            assert torch.equal(getattr(back[client].layers[name], frozen), getattr(factors, frozen))
            assert not torch.equal(getattr(back[client].layers[name], trains), getattr(factors, trains))


@pytest.mark.parametrize("trains", HALVES)
def test_the_frozen_halfs_moments_and_count_stay_as_they_are(trains: Halves, llama: Path) -> None:
    cohort, adapters, _, groups = ready(llama)
    cohort.begin_training(TrainConfig(), SAMPLING)
    cohort.learn(groups, RATES)
    moments = cohort.moments()
    cohort.seat(adapters)
    cohort.begin_training(TrainConfig(), SAMPLING, moments, trains=trains)
    cohort.learn(groups, RATES)
    sizes = [p[0].numel() for p in cohort.stack.parameters()]
    for client, state in cohort.moments().items():
        assert state["steps"].tolist() == [2 if half == trains else 1 for half in "AB"] * (len(sizes) // 2)
        for name in ("m", "v"):
            pairs = zip(state[name].split(sizes), moments[client][name].split(sizes), strict=True)
            for half, (after, before) in zip("AB" * (len(sizes) // 2), pairs, strict=True):
                assert torch.equal(after, before) == (half != trains)


def test_all_are_trained_again_after_the_next_seating_and_by_the_next_training(llama: Path) -> None:
    cohort, adapters, _, groups = ready(llama)
    for trains, moved in (("B", "B"), ("A", "A"), ("AB", "AB")):
        cohort.begin_training(TrainConfig(), SAMPLING, trains=trains)  # type: ignore[arg-type]
        before = cohort.adapters()["a"]
        cohort.learn(groups, RATES)
        after = cohort.adapters()["a"]
        for name, factors in before.layers.items():
            assert "".join(h for h in "AB" if not torch.equal(getattr(factors, h), getattr(after.layers[name], h))) == (
                moved
            )
    cohort.begin_training(TrainConfig(), SAMPLING, trains="B")
    cohort.seat(adapters)
    assert all(parameter.requires_grad for parameter in cohort.stack.parameters())


def test_turns_with_kept_moments_are_an_adamw_of_each_half() -> None:
    """Two turns of two steps for each half: torch's optimizer of one half knows nothing of the other's steps."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 4), (3, 2)]
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    stacked = [nn.Parameter(p.detach().clone().unsqueeze(0)) for p in parameters]
    config = TrainConfig(weight_decay=0.1, beta1=0.8, beta2=0.95)
    references = [torch.optim.AdamW([p], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1) for p in parameters]
    state: dict[str, Tensor] | None = None
    for turn in range(4):
        optimizer = StackedAdamW(stacked, config, [2])
        if state is not None:
            optimizer.restore(0, state)
        for index, parameter in enumerate(stacked):
            parameter.requires_grad_(index == turn % 2)
        for _ in range(2):
            gradient = torch.randn(shapes[turn % 2], generator=generator)
            parameters[turn % 2].grad, stacked[turn % 2].grad = gradient, gradient.unsqueeze(0).clone()
            references[turn % 2].step()
            optimizer.step([0.01])
        state = optimizer.state(0)
        for stack, other in zip(stacked, parameters, strict=True):
            torch.testing.assert_close(stack[0], other, rtol=1e-6, atol=1e-7)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("mm", "bmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("trains", "wants_x", "products"),
    # The layer's own for x, then of the adapter: B^T g, and one for each gradient; B's needs no B^T g.
    [("AB", True, 5), ("A", True, 4), ("B", True, 4), ("AB", False, 3), ("A", False, 2), ("B", False, 1)],
)
@pytest.mark.parametrize("spans", [None, [(0, 0, 6)]], ids=["blocks", "spans"])
def test_a_frozen_half_costs_no_product(
    trains: Halves, wants_x: bool, products: int, spans: list[tuple[int, int, int]] | None, llama: Path
) -> None:
    cohort = tiny_cohort(llama)
    cohort.seat({"a": moved_adapter(cohort, 1)})
    layer = cohort.stack.layers["model.layers.0.mlp.up_proj"]
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(5)).requires_grad_(wants_x)
    cohort.stack.spans = spans
    assert layer.A is not None
    assert layer.B is not None
    both = torch.autograd.grad(layer(x).sum(), [layer.A, layer.B, *([x] if wants_x else [])])
    cohort.stack.train(trains)
    y = layer(x).sum()
    with Products() as seen:
        y.backward()
    assert seen.count == products
    for half, parameter, gradient in zip("AB", (layer.A, layer.B), both[:2], strict=True):
        if half in trains:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)
        else:
            assert parameter.grad is None
    if wants_x:
        assert x.grad is not None
        assert torch.equal(x.grad, both[2])


def test_seating_after_a_frozen_turn_gives_back_what_was_trained(llama: Path) -> None:
    cohort, _, _, groups = ready(llama)
    cohort.begin_training(TrainConfig(), SAMPLING, trains="B")
    cohort.learn(groups, RATES)
    after = cohort.adapters()
    cohort.seat(after)
    assert all(same_tensors(adapter, after[client]) for client, adapter in cohort.adapters().items())
