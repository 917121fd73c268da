"""A frozen change of the base weights, against models whose weights were changed by hand.

Tolerances: token ids are equal; a layer's output and gradients agree to 1e-5 of the largest entry, those of a whole
model to 1e-4 (float32: a sum of two products rounds otherwise than a product with a sum).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import group_of, moved_adapter, numbers_of, same_tensors, tiny_cohort
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import EngineConfig, SamplingConfig, TrainConfig
from fedrlvr.errors import AdapterError
from fedrlvr.policy import lora
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.learner import StepStats
from fedrlvr.policy.lora import Change, _parts
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group, Response, k3

SAMPLING = SamplingConfig(group_size=3, max_new_tokens=10)
PROMPTS = {"a": ["1 + 1 =", "What is 12 + 345?"], "b": ["9 - 4"], "c": ["60 / 5", "x", "7 * 8 ="], "d": ["2"]}
SEEDS = {"a": 3, "b": 4, "c": 5, "d": 6}
ADVANTAGES = [1.5, -1.0, -0.5]
FEDERATIONS = {"a": "one", "b": "one", "c": "none", "d": "two"}


def change_of(cohort: Cohort, seed: int, rank: int, scale: float = 1.0) -> Adapter:
    """A change of every adapted layer, about as large as what an adapter adds."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in cohort.stack.layers.items():
        d, k = layer.base.weight.shape
        a = torch.randn(rank, k, generator=generator) * 0.3
        layers[name] = Factors(a, torch.randn(d, rank, generator=generator) * 0.2 * rank**-0.5)
    return Adapter(layers, alpha=scale * rank)


def by_hand(cohort: Cohort, change: Adapter | None) -> Cohort:
    """The cohort with the change in its base weights."""
    for name, (a, b) in (change.layers if change else {}).items():
        assert change is not None
        cohort.stack.layers[name].base.weight.data += change.scale * (b @ a)
    return cohort


def ids_of(cohort: Cohort, clients: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    return {client: [cohort.base.encode(prompt) for prompt in PROMPTS[client]] for client in clients}


def work(
    cohort: Cohort, adapters: Mapping[str, Adapter], changes: Mapping[str, Adapter] | None = None
) -> tuple[dict[str, list[list[Response]]], dict[str, StepStats], dict[str, list[Tensor]]]:
    """Samples, one step's numbers, and its gradients by client."""
    cohort.seat(adapters, changes)
    ids = ids_of(cohort, adapters)
    drawn = cohort.sample(ids, Decoding.of(SAMPLING), SEEDS)
    cohort.begin_training(TrainConfig(max_grad_norm=1e9), SAMPLING)
    groups = {c: [group_of(*parts, ADVANTAGES) for parts in zip(ids[c], drawn[c], strict=True)] for c in adapters}
    stats = cohort.learn(groups, dict.fromkeys(adapters, 0.0))
    gradients = [p.grad for p in cohort.stack.parameters() if p.grad is not None]
    return drawn, stats, {client: [g[i] for g in gradients] for i, client in enumerate(adapters)}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (actual - expected).abs().max().item() <= tolerance * expected.abs().max().item()


def flat(groups: list[list[Response]]) -> list[Response]:
    return [response for group in groups for response in group]


def assert_as_by_hand(directory: Path, rank: int, engine: EngineConfig, clients: str = "abcd") -> None:
    cohort = tiny_cohort(directory, engine=engine)
    federations = {"one": change_of(cohort, 1, rank), "two": change_of(cohort, 2, rank, scale=0.5)}
    changes = {c: federations[FEDERATIONS[c]] for c in clients if FEDERATIONS[c] in federations}
    adapters = {client: moved_adapter(cohort, SEEDS[client]) for client in clients}
    drawn, stats, gradients = work(cohort, adapters, changes)
    plain, _, _ = work(cohort, adapters)
    for client, adapter in adapters.items():
        alone = by_hand(tiny_cohort(directory, engine=engine), changes.get(client))
        their_drawn, their_stats, their_gradients = work(alone, {client: adapter})
        for response, expected in zip(flat(drawn[client]), flat(their_drawn[client]), strict=True):
            assert response.token_ids == expected.token_ids
            assert response.logps == pytest.approx(expected.logps, abs=1e-4)
        assert (drawn[client] != plain[client]) == (client in changes)
        assert numbers_of(stats[client]) == pytest.approx(numbers_of(their_stats[client]), rel=1e-4, abs=1e-5)
        assert stats[client].ratios.largest == pytest.approx(1.0, abs=1e-3)  # the training pass has the change too
        assert len(gradients[client]) == len(their_gradients[client]) > 0
        for gradient, other in zip(gradients[client], their_gradients[client], strict=True):
            assert_near(gradient, other, 1e-4)


@pytest.mark.parametrize("rank", [2, 32], ids=["factors", "dense"])
@pytest.mark.parametrize("engine", [{}, {"shared_prefix": False}, {"decode_cache": "static"}], ids=str)
def test_clients_of_two_federations_get_what_a_model_changed_by_hand_gives(
    rank: int, engine: dict[str, Any], llama: Path
) -> None:
    assert_as_by_hand(llama, rank, EngineConfig(**engine))


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma2"])
def test_so_do_those_of_models_with_biases_and_without_packing(kind: str, model_of: Callable[[str], Path]) -> None:
    assert_as_by_hand(model_of(kind), 2, EngineConfig(), "acd")


def test_so_does_a_client_alone(llama: Path) -> None:
    assert_as_by_hand(llama, 2, EngineConfig(), "a")


def test_recomputed_activations_have_the_change_too(llama: Path) -> None:
    cohorts = [tiny_cohort(llama, checkpointing=checkpointing) for checkpointing in (False, True)]
    change, adapter = change_of(cohorts[0], 1, 2), moved_adapter(cohorts[0], 3)
    (_, _, plain), (_, _, saving) = (work(cohort, {"a": adapter}, {"a": change}) for cohort in cohorts)
    for gradient, expected in zip(saving["a"], plain["a"], strict=True):
        assert_near(gradient, expected)


@pytest.mark.parametrize("rank", [2, 32], ids=["factors", "dense"])
@pytest.mark.parametrize(
    "spans",
    [None, [(0, 0, 4), (1, 4, 6), (2, 6, 11), (3, 11, 12)], [(1, 0, 5), (3, 5, 12)], [(0, 2, 4), (1, 5, 6), (3, 8, 9)]],
    ids=["blocks", "spans", "some clients", "some rows"],
)
def test_a_layer_and_its_gradients_against_the_dense_sum(
    rank: int, spans: list[tuple[int, int, int]] | None, llama: Path
) -> None:
    """Four clients, 12 rows. Rows that are nobody's have the base weight alone."""
    cohort = tiny_cohort(llama)
    first, second = change_of(cohort, 1, rank), change_of(cohort, 2, rank, scale=0.5)
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    cohort.seat(adapters, {"a": first, "b": first, "d": second})
    name = "model.layers.1.mlp.up_proj"
    layer = cohort.stack.layers[name]
    assert layer.A is not None
    assert layer.B is not None
    x = torch.randn(12, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
    weights = torch.randn(12, 48, generator=torch.Generator().manual_seed(6))
    cohort.stack.spans = spans
    output = layer(x)
    ours = torch.autograd.grad((output * weights).sum(), (x, layer.A, layer.B))

    rows = []
    owner = {r: i for i, start, end in spans or [(i, 3 * i, 3 * i + 3) for i in range(4)] for r in range(start, end)}
    for r in range(12):
        weight = layer.base.weight
        if r in owner:
            change = [first, first, None, second][owner[r]]
            weight = weight + 2.0 * layer.B[owner[r]] @ layer.A[owner[r]]  # alpha 8, rank 4
            if change is not None:
                weight = weight + change.scale * change.layers[name].B @ change.layers[name].A
        rows.append(weight @ x[r])
    wanted = torch.stack(rows)
    assert_near(output, wanted)
    for a, b in zip(ours, torch.autograd.grad((wanted * weights).sum(), (x, layer.A, layer.B)), strict=True):
        assert_near(a, b)


def test_neighbours_of_one_change_are_one_product() -> None:
    first, second = (Change(Factors(torch.ones(1, 4), torch.ones(4, 1)), 1.0, torch.device("cpu")) for _ in range(2))
    assert _parts([first, first, None, first, second], None, 10) == [(first, 0, 4), (first, 6, 8), (second, 8, 10)]
    assert _parts([first, first, second], [(0, 0, 3), (1, 3, 9), (2, 9, 11)], 11) == [(first, 0, 9), (second, 9, 11)]
    assert _parts([first, first, second], [(0, 0, 3), (1, 4, 9)], 11) == [(first, 0, 3), (first, 4, 9)]
    assert _parts([None, first], [(0, 0, 3)], 3) == []


def test_a_federations_change_is_held_once_in_its_smaller_form(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    change, same = change_of(cohort, 1, 2), change_of(cohort, 1, 2)
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    cohort.seat(adapters, {"a": change, "c": same, "d": change})
    for layer in cohort.stack.layers.values():
        assert layer.changes is not None
        a, b, c, d = layer.changes
        assert a is d
        assert b is None
        assert c is not a  # equal, but another object
    # d k = 4 x 4 = 16 numbers, factors r (d + k) = 8 or 16.
    shapes = {
        r: [tuple(m.shape) for m in Change(Factors(torch.ones(r, 4), torch.ones(4, r)), 0.5, torch.device("cpu")).at(t)]
        for r, t in ((1, torch.float32), (2, torch.bfloat16))
    }
    assert shapes == {1: [(1, 4), (4, 1)], 2: [(4, 4)]}


def test_what_is_seated_is_a_copy(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    change, adapter = change_of(cohort, 1, 2), moved_adapter(cohort, 3)
    ids = ids_of(cohort, "a")
    cohort.seat({"a": adapter}, {"a": change})
    before = cohort.sample(ids, Decoding.of(SAMPLING), SEEDS)
    for factors in change.layers.values():
        factors.A.zero_()
        factors.B.zero_()
    assert cohort.sample(ids, Decoding.of(SAMPLING), SEEDS) == before


def test_the_reference_policy_has_no_change(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    ids = torch.tensor([cohort.base.encode("1 + 1 =")])
    with torch.no_grad():
        original = cohort.base.model(ids).logits
        cohort.seat({"a": cohort.fresh_adapter(1)}, {"a": change_of(cohort, 1, 2)})
        assert float((cohort.base.model(ids).logits - original).abs().max()) > 0.1
        with cohort.stack.off():
            assert torch.equal(cohort.base.model(ids).logits, original)


def test_the_distance_to_the_base_counts_the_change(llama: Path) -> None:
    """The adapter is fresh, so all of the distance is the change's."""
    cohort, original = tiny_cohort(llama), tiny_cohort(llama)
    cohort.seat({"a": cohort.fresh_adapter(1)}, {"a": change_of(cohort, 1, 2)})
    cohort.begin_training(TrainConfig(), SAMPLING)
    ids = ids_of(cohort, "a")
    drawn = cohort.sample(ids, Decoding.of(SAMPLING), SEEDS)["a"]
    groups: list[Group] = [group_of(*parts, ADVANTAGES) for parts in zip(ids["a"], drawn, strict=True)]
    values = []
    for group in groups:
        for response in group.responses[:2]:
            tokens = list(response.token_ids)
            with torch.no_grad():
                logits = original.base.model(torch.tensor([[*group.prompt_ids, *tokens]])).logits
            logps = logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(dim=1)
            values.append(k3(torch.tensor(response.logps), logps[torch.arange(len(tokens)), tokens]))
    expected = float(torch.cat(values).mean())
    assert expected > 0.01
    assert cohort.kl_to_base({"a": groups})["a"] == pytest.approx(expected, rel=1e-3)


def test_under_autocast_the_change_is_made_in_bfloat16_and_serves_sampling_and_training(llama: Path) -> None:
    engine = EngineConfig(autocast="bfloat16")
    cohort = tiny_cohort(llama, engine=engine)
    change, adapter = change_of(cohort, 1, 2), moved_adapter(cohort, 3)
    _, stats, gradients = work(cohort, {"a": adapter}, {"a": change})
    (held,) = next(iter(cohort.stack.layers.values())).changes or []
    assert held is not None
    assert {matrix.dtype for matrix in held.at(torch.bfloat16)} == {torch.bfloat16}
    assert held.at(torch.bfloat16) is held.at(torch.bfloat16)
    assert stats["a"].ratios.mean == pytest.approx(1.0, abs=0.05)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(5))
    name, layer = next(iter(cohort.stack.layers.items()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    factors, added = adapter.layers[name], change.layers[name]
    dense = layer.base.weight + 2.0 * factors.B @ factors.A + added.B @ added.A
    assert_near(rounded.float(), x @ dense.t(), 0.02)
    assert all(g.dtype == torch.float32 and bool(g.any()) for g in gradients["a"])


def test_the_next_seating_forgets_the_change_and_without_one_nothing_is_added(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = tiny_cohort(llama)
    adapters = {client: moved_adapter(cohort, SEEDS[client]) for client in "ab"}
    before, _, gradients = work(cohort, adapters)
    work(cohort, adapters, {"b": change_of(cohort, 1, 2)})

    def never(*args: Any) -> Tensor:
        raise AssertionError("a product for no change")

    monkeypatch.setattr(lora, "changed", never)
    for changes in (None, {}):
        after, _, others = work(cohort, adapters, changes)
        assert after == before
        assert all(torch.equal(*pair) for c in "ab" for pair in zip(gradients[c], others[c], strict=True))


def test_adapters_are_given_back_without_the_change(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    adapter = moved_adapter(cohort, 1)
    cohort.seat({"a": adapter}, {"a": change_of(cohort, 1, 2)})
    assert same_tensors(cohort.adapters()["a"], adapter)


def test_a_change_that_fits_no_adapted_layer_is_an_error_that_names_it(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    adapter = moved_adapter(cohort, 1)
    cohort.seat({"a": adapter})
    for name, width in (("lm_head", 32), ("model.layers.0.mlp.up_proj", 31)):
        foreign = Adapter({name: Factors(torch.ones(1, width), torch.ones(48, 1))}, 1.0)
        with pytest.raises(AdapterError, match=name):
            cohort.seat({"b": adapter}, {"b": foreign})
    assert cohort.clients == ["a"]
