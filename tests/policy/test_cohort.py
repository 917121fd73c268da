"""The cohort: a client gets from a stack of four what it gets alone, and nobody else's data moves it.

Tolerances: token ids are equal; losses, gradients, gradient norms and log-probs agree to 1e-5 (float32: other shapes
and other neighbours round otherwise). Updated factors, and the numbers of the step after them, agree to 1e-4, a
twentieth of a step, but for at most one entry in a thousand: AdamW divides a gradient by its own size, so where it is
nearly zero its rounding counts. Where the batch has the same shape, a client's update does not depend on the others'
data at all: equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from models import KINDS, end_at, group_of, largest_gap, moved_adapter, numbers_of, same_tensors, tiny_cohort

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.learner import StepStats
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group, Response

TOLERANCE = 1e-5
ADAPTER_TOLERANCE = 1e-4
PROMPTS = {
    "a": ["1 + 1 =", "What is 12 + 345?", "9 - 4"],
    "b": ["A dose of 5 mg per kg for a child of 20 kg is how many mg?"],
    "c": ["7 * 8 =", "60 / 5", "What is left of 17 by 5?", "x"],
    "d": ["Convert 3 g to mg.", "2"],
}
SEEDS = {"a": 11, "b": 12, "c": 13, "d": 14}
DECODING = Decoding(responses=4, max_new_tokens=12)
TRAIN = TrainConfig(learning_rate=2e-3, local_steps=2, clip_low=0.1, clip_high=0.2)
SAMPLING = SamplingConfig(group_size=4, max_new_tokens=12)

Drawn = dict[str, list[list[Response]]]
Moments = dict[str, dict[str, torch.Tensor]]


def encoded(cohort: Cohort, prompts: Mapping[str, Sequence[str]] = PROMPTS) -> dict[str, list[list[int]]]:
    return {client: [cohort.base.encode(prompt) for prompt in texts] for client, texts in prompts.items()}


def groups_of(cohort: Cohort, drawn: Drawn, scale: Mapping[str, float] | None = None) -> dict[str, list[Group]]:
    """Every group with advantages; the second one of a client has none, the last one's are larger."""
    ids = encoded(cohort)
    groups = {}
    for client, drawn_groups in drawn.items():
        factor = (scale or {}).get(client, 1.0)
        groups[client] = [
            group_of(ids[client][p], responses, [0.0] * 4 if p == 1 else [1.5 * factor, -1.0, 0.0, -0.5 - p])
            for p, responses in enumerate(drawn_groups)
        ]
    return groups


def two_steps(
    cohort: Cohort, adapters: Mapping[str, Adapter], scale: Mapping[str, float] | None = None
) -> tuple[Drawn, list[dict[str, StepStats]], dict[str, Adapter], Moments]:
    """Sample, and take two optimizer steps on the same samples; the second is off-policy. Moments are the first's."""
    cohort.seat(adapters)
    ids = encoded(cohort)
    drawn = cohort.sample({client: ids[client] for client in adapters}, DECODING, SEEDS)
    cohort.begin_training(TRAIN, SAMPLING)
    groups = groups_of(cohort, drawn, scale)
    rates = dict.fromkeys(adapters, TRAIN.learning_rate)
    stats = [cohort.learn(groups, rates)]
    moments = cohort.moments()
    stats.append(cohort.learn(groups, rates))
    return drawn, stats, cohort.adapters(), moments


def share_beyond(tolerance: float, adapter: Adapter, other: Adapter) -> float:
    """Share of the entries that differ by more."""
    gaps = [(a - b).abs().flatten() for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True)]
    return float((torch.cat(gaps) > tolerance).float().mean())


def with_more_ends(cohort: Cohort) -> Cohort:
    """A quarter of all tokens ends a response, so that lengths differ and rows leave the batch."""
    end_at(cohort, frozenset(range(2, 27)))
    return cohort


@pytest.mark.parametrize("kind", KINDS)
def test_four_stacked_clients_get_what_each_gets_alone(kind: str, model_of: Callable[[str], Path]) -> None:
    cohort = with_more_ends(tiny_cohort(model_of(kind)))
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    drawn, stats, updated, moments = two_steps(cohort, adapters)
    for client, adapter in adapters.items():
        alone_drawn, alone_stats, alone_updated, alone_moments = two_steps(cohort, {client: adapter})
        for group, other in zip(drawn[client], alone_drawn[client], strict=True):
            assert [r.token_ids for r in group] == [r.token_ids for r in other]
            assert [r.finished for r in group] == [r.finished for r in other]
            for response, expected in zip(group, other, strict=True):
                assert response.logps == pytest.approx(expected.logps, abs=TOLERANCE)
        for step, alone_step, tolerance in zip(stats, alone_stats, (TOLERANCE, ADAPTER_TOLERANCE), strict=True):
            assert numbers_of(step[client]) == pytest.approx(
                numbers_of(alone_step[client]), rel=tolerance, abs=tolerance
            )
            assert step[client].grad_norm > 0
        assert share_beyond(ADAPTER_TOLERANCE, updated[client], alone_updated[client]) <= 1e-3
        assert largest_gap(updated[client], adapter) > 1e-3
        # After one step the first moments are the gradients, clipped to norm 1, times 1 - beta1.
        for key, moment in moments[client].items():
            if key.startswith("m."):
                gap = float((moment - alone_moments[client][key]).abs().max())
                assert gap < TOLERANCE * float(moment.abs().max()) + 1e-9, key
    lengths = {len(r.token_ids) for drawn_groups in drawn.values() for responses in drawn_groups for r in responses}
    assert len(lengths) > 4  # or the test would not have met rows that end early


def test_the_order_of_clients_does_not_matter(llama: Path) -> None:
    cohort = with_more_ends(tiny_cohort(llama))
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    drawn, _, updated, _ = two_steps(cohort, adapters)
    turned_drawn, _, turned, _ = two_steps(cohort, dict(reversed(adapters.items())))
    for client in adapters:
        assert [[r.token_ids for r in g] for g in drawn[client]] == [
            [r.token_ids for r in g] for g in turned_drawn[client]
        ]
        assert largest_gap(updated[client], turned[client]) < ADAPTER_TOLERANCE


def test_changing_one_clients_rewards_changes_only_its_update(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    _, _, before, _ = two_steps(cohort, adapters)
    _, _, after, _ = two_steps(cohort, adapters, {"b": 3.0})
    assert largest_gap(before["b"], after["b"]) > 1e-4
    for client in ("a", "c", "d"):
        assert same_tensors(before[client], after[client])


def test_changing_one_clients_prompts_changes_only_its_samples(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    cohort.seat({client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()})
    ids = encoded(cohort)
    before = cohort.sample(ids, DECODING, SEEDS)
    other = {**ids, "c": [list(reversed(row)) for row in ids["c"]]}
    after = cohort.sample(other, DECODING, SEEDS)
    assert [r.token_ids for r in before["c"][0]] != [r.token_ids for r in after["c"][0]]
    for client in ("a", "b", "d"):
        assert before[client] == after[client]


def test_changing_one_clients_seed_changes_only_its_samples(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    cohort.seat({client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()})
    before = cohort.sample(encoded(cohort), DECODING, SEEDS)
    after = cohort.sample(encoded(cohort), DECODING, {**SEEDS, "a": 99})
    assert before["a"] != after["a"]
    assert all(before[client] == after[client] for client in ("b", "c", "d"))


def test_a_client_without_prompts_draws_nothing_and_is_not_moved(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    adapters = {"a": moved_adapter(cohort, 1), "b": moved_adapter(cohort, 2)}
    cohort.seat(adapters)
    ids = encoded(cohort)
    drawn = cohort.sample({"a": ids["a"]}, DECODING, SEEDS)
    assert drawn["b"] == []
    cohort.begin_training(TRAIN, SAMPLING)
    stats = cohort.learn({**groups_of(cohort, {"a": drawn["a"]}), "b": []}, {"a": 0.1, "b": 0.1})
    assert stats["b"].ratios.tokens == 0
    assert stats["b"].grad_norm == 0
    assert stats["b"].ratios.mean != stats["b"].ratios.mean  # nan: nothing was trained
    after = cohort.adapters()
    assert same_tensors(after["b"], adapters["b"])
    assert not same_tensors(after["a"], adapters["a"])


def test_adapters_come_back_as_they_were_seated_and_are_copies(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    adapter = moved_adapter(cohort, 1)
    cohort.seat({"a": adapter, "b": cohort.fresh_adapter(2)})
    back = cohort.adapters()["a"]
    assert same_tensors(back, adapter)
    next(iter(back.layers.values())).A.zero_()
    assert same_tensors(cohort.adapters()["a"], adapter)


def test_a_fresh_adapter_leaves_the_model_as_it_is_and_has_a_seed(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    ids = torch.tensor([cohort.base.encode("1 + 1 =")])
    with torch.no_grad():
        plain = cohort.base.model(ids).logits
        cohort.seat({"a": cohort.fresh_adapter(3)})
        assert torch.equal(cohort.base.model(ids).logits, plain)
    assert same_tensors(cohort.fresh_adapter(3), cohort.fresh_adapter(3))
    assert not same_tensors(cohort.fresh_adapter(3), cohort.fresh_adapter(4))
    for name, factors in cohort.fresh_adapter(3).layers.items():
        inner = cohort.stack.layers[name].base.in_features
        assert 0.5 * inner**-0.5 < float(factors.A.abs().max()) <= inner**-0.5


def test_optimizer_state_is_kept_across_seatings(llama: Path) -> None:
    """Two steps in one go equal a step, then a new cohort that is given adapters and moments, then a step."""
    cohort = tiny_cohort(llama)
    adapters = {client: moved_adapter(cohort, seed) for client, seed in SEEDS.items()}
    drawn, _, whole, _ = two_steps(cohort, adapters)
    groups, rates = groups_of(cohort, drawn), dict.fromkeys(SEEDS, TRAIN.learning_rate)

    cohort.seat(adapters)
    cohort.begin_training(TRAIN, SAMPLING)
    cohort.learn(groups, rates)
    halfway, moments = cohort.adapters(), cohort.moments()
    again = tiny_cohort(llama)
    # Another order of seats: moments go by client, not by seat.
    again.seat(dict(reversed(halfway.items())))
    again.begin_training(TRAIN, SAMPLING, moments)
    again.learn(groups, rates)
    for client, adapter in again.adapters().items():
        assert largest_gap(adapter, whole[client]) < ADAPTER_TOLERANCE

    again.seat(halfway)
    again.begin_training(TRAIN, SAMPLING)  # without the moments the second step is another one
    again.learn(groups, rates)
    assert all(largest_gap(adapter, whole[client]) > 5e-4 for client, adapter in again.adapters().items())


def test_sampling_goes_on_after_training_with_the_new_adapter(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    _, _, updated, _ = two_steps(cohort, {"a": moved_adapter(cohort, 1)})
    ids = encoded(cohort)
    after = cohort.sample({"a": ids["a"]}, DECODING, SEEDS)
    afresh = tiny_cohort(llama)
    afresh.seat(updated)
    assert afresh.sample({"a": ids["a"]}, DECODING, SEEDS) == after


def test_learning_before_begin_training_is_an_error(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    cohort.seat({"a": cohort.fresh_adapter(0)})
    with pytest.raises(ModelError, match="begin_training first"):
        cohort.learn({"a": []}, {"a": 0.1})


def test_targets_by_name_and_all_linear(llama: Path) -> None:
    named = tiny_cohort(llama, LoraConfig(rank=2, targets=["q_proj", "v_proj"]))
    assert {name.rpartition(".")[2] for name in named.stack.layers} == {"q_proj", "v_proj"}
    assert len(named.stack.layers) == 4
    everything = tiny_cohort(llama)
    assert len(everything.stack.layers) == 2 * 7
    assert "lm_head" not in everything.stack.layers


def test_an_unknown_target_is_an_error_that_names_those_there_are(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"nonsense.* q_proj, up_proj, v_proj"):
        tiny_cohort(llama, LoraConfig(targets=["q_proj", "nonsense"]))


def test_a_model_is_adapted_once(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    with pytest.raises(ModelError, match="already"):
        Cohort(cohort.base, LoraConfig(), EngineConfig())
