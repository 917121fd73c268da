"""One optimizer step: the gradient against plain autograd, and what must not change it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import group_of, largest_gap, moved_adapter, numbers_of, same_tensors, tiny_cohort

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, SamplingConfig, TrainConfig
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.learner import KL_RESPONSES, StepStats
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import LOSSES, Group, k3, policy_loss

PROMPTS = ["1 + 1 =", "What is 12 + 345?", "9 - 4"]
ADVANTAGES = [[1.5, -1.0, -0.5], [0.0, 0.0, 0.0], [0.7, 0.0, -1.1]]
SAMPLING = SamplingConfig(group_size=3, max_new_tokens=10, temperature=0.8)
RATE = 1e-3


def ready(
    directory: Path, train: TrainConfig, *, micro_batch_tokens: int = 1 << 20, checkpointing: bool = False
) -> tuple[Cohort, dict[str, list[Group]]]:
    """One client, its adapter moved, with samples of another policy: off-policy groups, one of zero advantage."""
    engine = EngineConfig(micro_batch_tokens=micro_batch_tokens)
    cohort = tiny_cohort(directory, engine=engine, checkpointing=checkpointing)
    ids = [cohort.base.encode(prompt) for prompt in PROMPTS]
    cohort.seat({"a": moved_adapter(cohort, 2, std=0.15)})
    drawn = cohort.sample({"a": ids}, Decoding.of(SAMPLING), {"a": 3})["a"]
    groups = [group_of(*parts) for parts in zip(ids, drawn, ADVANTAGES, strict=True)]
    cohort.seat({"a": moved_adapter(cohort, 2)})
    cohort.begin_training(train, SAMPLING)
    return cohort, {"a": groups}


def gradients(cohort: Cohort) -> list[torch.Tensor]:
    """Each factor's gradient as the last step left it (clipped)."""
    return [p.grad.clone() for p in cohort.stack.parameters() if p.grad is not None]


def step(cohort: Cohort, groups: dict[str, list[Group]], rate: float = RATE) -> StepStats:
    return cohort.learn(groups, {"a": rate})["a"]


def reference_logps(cohort: Cohort, group: Group, index: int, *, adapters: bool = True) -> torch.Tensor:
    """One response alone, unpadded."""
    tokens = list(group.responses[index].token_ids)
    cohort.stack.enabled = adapters
    logits = cohort.base.model(torch.tensor([[*group.prompt_ids, *tokens]])).logits
    cohort.stack.enabled = True
    logps = torch.log_softmax(logits[0, len(group.prompt_ids) - 1 : -1] / SAMPLING.temperature, dim=-1)
    return logps.gather(1, torch.tensor([tokens]).T).squeeze(1)


@pytest.mark.parametrize("kl_beta", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_the_whole_batch(loss: Any, kl_beta: float, llama: Path) -> None:
    """Every response on its own through the model, all of them in `policy_loss`, and autograd."""
    cohort, groups = ready(llama, TrainConfig(loss=loss, kl_beta=kl_beta, max_grad_norm=1e9))
    pad = torch.nn.utils.rnn.pad_sequence
    pairs = [(group, i) for group in groups["a"] for i in range(3)]
    logps = pad([reference_logps(cohort, group, i) for group, i in pairs], batch_first=True)
    behaviour = pad([torch.tensor(group.responses[i].logps) for group, i in pairs], batch_first=True)
    mask = pad([torch.ones(len(group.responses[i].token_ids)) for group, i in pairs], batch_first=True)
    with torch.no_grad():
        off = pad([reference_logps(cohort, group, i, adapters=False) for group, i in pairs], batch_first=True)
    value = policy_loss(
        logps,
        behaviour,
        torch.tensor([group.advantages[i] for group, i in pairs]),
        mask,
        loss=loss,
        clip_low=0.2,
        clip_high=0.2,
        max_tokens=SAMPLING.max_new_tokens,
        reference_logps_BT=off,
        kl_beta=kl_beta,
    )
    wanted = torch.autograd.grad(value, cohort.stack.parameters())

    stats = step(cohort, groups)
    assert stats.loss == pytest.approx(value.item(), abs=1e-5)
    norm = math.sqrt(sum(float(g.square().sum()) for g in wanted))
    assert stats.grad_norm == pytest.approx(norm, rel=1e-4)
    for gradient, expected in zip(gradients(cohort), wanted, strict=True):
        assert float((gradient - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("kl_beta", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_do_not_change_the_step(loss: Any, kl_beta: float, llama: Path) -> None:
    """Tolerance 1e-5 of the largest entry: the same terms are added in another order."""
    train = TrainConfig(loss=loss, kl_beta=kl_beta)
    whole, groups = ready(llama, train)
    stats = step(whole, groups)
    for budget in (1, 60):  # one response at a time, and two
        cut, _ = ready(llama, train, micro_batch_tokens=budget)
        cut_stats = step(cut, groups)
        assert numbers_of(cut_stats) == pytest.approx(numbers_of(stats), rel=1e-5, abs=1e-6)
        for gradient, expected in zip(gradients(cut), gradients(whole), strict=True):
            assert float((gradient - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("loss", LOSSES)
def test_leaving_zero_advantage_responses_out_does_not_change_the_gradient(loss: Any, llama: Path) -> None:
    """With a KL weight too small to matter all responses are run, without one those of zero advantage are not."""
    less, groups = ready(llama, TrainConfig(loss=loss))
    more, _ = ready(llama, TrainConfig(loss=loss, kl_beta=1e-12))
    less_stats, more_stats = step(less, groups), step(more, groups)
    lengths = [[len(r.token_ids) for r in group.responses] for group in groups["a"]]
    assert more_stats.ratios.tokens == sum(map(sum, lengths))
    assert less_stats.ratios.tokens == sum(lengths[0]) + lengths[2][0] + lengths[2][2]
    assert less_stats.loss == pytest.approx(more_stats.loss, abs=1e-6)
    for gradient, expected in zip(gradients(less), gradients(more), strict=True):
        assert float((gradient - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_without_any_advantage_nothing_moves_unless_there_is_a_kl_term(llama: Path) -> None:
    still, groups = ready(llama, TrainConfig())
    for group in groups["a"]:
        group.advantages = [0.0, 0.0, 0.0]
    before = still.adapters()["a"]
    stats = step(still, groups)
    assert (stats.ratios.tokens, stats.grad_norm, stats.loss) == (0, 0.0, 0.0)
    assert math.isnan(stats.ratios.clipped)
    assert same_tensors(still.adapters()["a"], before)

    pulled, _ = ready(llama, TrainConfig(kl_beta=0.5))
    stats = step(pulled, groups)
    assert stats.ratios.tokens == sum(len(r.token_ids) for group in groups["a"] for r in group.responses)
    assert stats.grad_norm > 0
    assert stats.loss > 0
    assert not same_tensors(pulled.adapters()["a"], before)


def test_ratio_statistics(llama: Path) -> None:
    cohort, groups = ready(llama, TrainConfig(clip_low=0.05, clip_high=0.1))
    ratios, clipped = [], 0
    with torch.no_grad():
        for group in groups["a"]:
            for i, advantage in enumerate(group.advantages):
                ratio = torch.exp(reference_logps(cohort, group, i) - torch.tensor(group.responses[i].logps))
                if advantage:
                    ratios.append(ratio)
                    clipped += int((ratio > 1.1).sum() if advantage > 0 else (ratio < 0.95).sum())
    flat = torch.cat(ratios)
    stats = step(cohort, groups)
    assert stats.ratios.mean == pytest.approx(float(flat.mean()), rel=1e-4)
    assert stats.ratios.largest == pytest.approx(float(flat.max()), rel=1e-4)
    assert stats.ratios.clipped == clipped / len(flat)
    assert clipped > 0


def test_on_policy_ratios_are_one(llama: Path) -> None:
    cohort, groups = ready(llama, TrainConfig())
    drawn = cohort.sample({"a": [g.prompt_ids for g in groups["a"]]}, Decoding.of(SAMPLING), {"a": 4})["a"]
    fresh = [group_of(g.prompt_ids, responses, g.advantages) for g, responses in zip(groups["a"], drawn, strict=True)]
    stats = step(cohort, {"a": fresh})
    assert stats.ratios.mean == pytest.approx(1.0, abs=1e-5)
    assert stats.ratios.largest == pytest.approx(1.0, abs=1e-4)
    assert stats.ratios.clipped == 0.0


def test_a_step_makes_rewarded_responses_likelier(llama: Path) -> None:
    cohort, groups = ready(llama, TrainConfig())
    good_and_bad = [reference_logps(cohort, groups["a"][0], i).detach().sum() for i in (0, 1)]
    for _ in range(3):
        step(cohort, groups)
    after = [reference_logps(cohort, groups["a"][0], i).detach().sum() for i in (0, 1)]
    assert after[0] > good_and_bad[0]
    assert after[1] < good_and_bad[1]


def test_the_proximal_gradient_by_hand(llama: Path) -> None:
    """Without advantages only (mu / 2) || adapter - anchor ||^2 is left, and its gradient is mu times the distance."""
    mu = 0.25
    cohort, groups = ready(llama, TrainConfig(proximal_mu=mu, max_grad_norm=1e9))
    for group in groups["a"]:
        group.advantages = [0.0, 0.0, 0.0]
    distances = []
    with torch.no_grad():
        for index, parameter in enumerate(cohort.stack.parameters()):
            distances.append(0.01 * (index + 1) * torch.ones_like(parameter))
            parameter.add_(distances[-1])
    stats = step(cohort, groups)
    for gradient, distance in zip(gradients(cohort), distances, strict=True):
        torch.testing.assert_close(gradient, mu * distance, rtol=1e-4, atol=1e-7)
    norm = mu * math.sqrt(sum(float(d.square().sum()) for d in distances))
    assert stats.grad_norm == pytest.approx(norm, rel=1e-4)


def test_fedprox_starts_as_fedavg_and_then_stays_closer_to_the_rounds_adapter(llama: Path) -> None:
    def run(mu: float, steps: int) -> Adapter:
        cohort, groups = ready(llama, TrainConfig(proximal_mu=mu))
        for _ in range(steps):
            step(cohort, groups, rate=0.01)
        return cohort.adapters()["a"]

    start = ready(llama, TrainConfig())[0].adapters()["a"]
    assert same_tensors(run(0.0, 1), run(5.0, 1))  # at the anchor the pull is zero
    assert largest_gap(run(0.0, 6), start) > largest_gap(run(50.0, 6), start)
    assert largest_gap(run(0.0, 6), run(1e-9, 6)) < 1e-5  # FedAvg is its limit at mu = 0


@pytest.mark.parametrize("kl_beta", [0.0, 0.4])
def test_gradient_checkpointing_gives_the_same_step(kl_beta: float, llama: Path) -> None:
    plain, groups = ready(llama, TrainConfig(kl_beta=kl_beta))
    saving, same_groups = ready(llama, TrainConfig(kl_beta=kl_beta), checkpointing=True)
    assert groups == same_groups  # sampling is not touched by it
    assert numbers_of(step(saving, groups)) == pytest.approx(numbers_of(step(plain, groups)), rel=1e-6, abs=1e-7)
    for gradient, expected in zip(gradients(saving), gradients(plain), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    assert not saving.base.model.training


def test_kl_to_base_is_the_mean_k3_of_the_first_responses(llama: Path) -> None:
    cohort, groups = ready(llama, TrainConfig())
    values = []
    with torch.no_grad():
        for group in groups["a"]:
            for i, response in enumerate(group.responses[:KL_RESPONSES]):
                off = reference_logps(cohort, group, i, adapters=False)
                values.append(k3(torch.tensor(response.logps), off))
    expected = float(torch.cat(values).mean())
    assert expected > 0.01
    assert cohort.kl_to_base(groups)["a"] == pytest.approx(expected, rel=1e-3)
    assert cohort.kl_to_base({"a": []})["a"] == 0.0
    assert [group.advantages for group in groups["a"]] == ADVANTAGES


def test_kl_to_base_of_a_fresh_adapter_is_zero(llama: Path) -> None:
    cohort, groups = ready(llama, TrainConfig())
    cohort.seat({"a": cohort.fresh_adapter(1)})
    cohort.begin_training(TrainConfig(), SAMPLING)
    drawn = cohort.sample({"a": [g.prompt_ids for g in groups["a"]]}, Decoding.of(SAMPLING), {"a": 4})["a"]
    fresh = [group_of(g.prompt_ids, responses, [0.0] * 3) for g, responses in zip(groups["a"], drawn, strict=True)]
    assert cohort.kl_to_base({"a": fresh})["a"] == pytest.approx(0.0, abs=1e-6)
