"""Each of the engine's savings in training, turned off alone: the same gradient, the same numbers.

Tolerance: 1e-5 of the largest entry of a factor's gradient (float32; the same terms are added in another order). The
switches of sampling are in test_decode.py, `cohort` in tests/simulation/test_sweep.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import KINDS, group_of, moved_adapter, numbers_of, tiny_cohort

from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.policy.attention import SharedPrompts
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.forward import heads_apart
from fedrlvr.policy.learner import Learner, StepStats
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group

SAMPLING = SamplingConfig(group_size=4, max_new_tokens=10, temperature=0.8)
PROMPTS = {
    "a": ["1 + 1 =", "What is 12 + 345?", "x"],
    "b": ["A dose of 5 mg per kg for 20 kg?"],
    "c": ["9 - 4", "60 / 5"],
}
ADVANTAGES = [[1.5, -1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0], [0.7, 0.4, -1.1, 0.2]]
OFF: list[dict[str, Any]] = [
    {"skip_zero_advantage": False},
    {"shared_prefix": False},
    {"response_logits": False},
    {"by_length": False},
    {"logits_at_once": 150},  # one token at a time
    {"micro_batch_tokens": 40},
    {"shared_prefix": False, "response_logits": False, "by_length": False, "skip_zero_advantage": False},
]


def step(directory: Path, engine: EngineConfig, lora: LoraConfig | None = None) -> tuple[Cohort, dict[str, StepStats]]:
    """Three clients, one of them without any gradient in one of its groups, one step on another policy's samples."""
    cohort = tiny_cohort(directory, lora)
    ids = {client: [cohort.base.encode(prompt) for prompt in prompts] for client, prompts in PROMPTS.items()}
    cohort.seat({client: moved_adapter(cohort, 2 + i, std=0.15) for i, client in enumerate(PROMPTS)})
    drawn = cohort.sample(ids, Decoding.of(SAMPLING), {"a": 3, "b": 4, "c": 5})
    groups: dict[str, list[Group]] = {
        client: [group_of(*parts) for parts in zip(ids[client], drawn[client], ADVANTAGES, strict=False)]
        for client in PROMPTS
    }
    cohort.engine = engine
    cohort.seat({client: moved_adapter(cohort, 2 + i) for i, client in enumerate(PROMPTS)})
    cohort.begin_training(TrainConfig(max_grad_norm=1e9), SAMPLING)
    return cohort, cohort.learn(groups, dict.fromkeys(PROMPTS, 0.0))


def gradients(cohort: Cohort) -> list[torch.Tensor]:
    return [parameter.grad for parameter in cohort.stack.parameters() if parameter.grad is not None]


def assert_same(off: tuple[Cohort, dict[str, StepStats]], on: tuple[Cohort, dict[str, StepStats]]) -> None:
    assert len(gradients(on[0])) == len(gradients(off[0])) > 0
    for gradient, expected in zip(gradients(off[0]), gradients(on[0]), strict=True):
        assert float(expected.abs().max()) > 0
        assert float((gradient - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    for client in PROMPTS:
        mine_stats, stats = numbers_of(off[1][client]), numbers_of(on[1][client])
        trained = ("tokens", "mean", "clipped", "largest")  # of more tokens, nothing skipped
        for name, value in stats.items():
            if mine_stats["tokens"] == stats["tokens"] or name not in trained:
                assert mine_stats[name] == pytest.approx(value, rel=2e-5, abs=1e-6), (client, name)


@pytest.mark.parametrize("off", OFF, ids=lambda off: "-".join(off))
@pytest.mark.parametrize("kind", KINDS)
def test_a_saving_turned_off_changes_no_gradient(
    kind: str, off: dict[str, Any], model_of: Callable[[str], Path]
) -> None:
    assert_same(step(model_of(kind), EngineConfig(**off)), step(model_of(kind), EngineConfig()))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_these_share_prompts_and_make_logits_in_chunks(kind: str, model_of: Callable[[str], Path]) -> None:
    """Else the test above would compare a path with itself."""
    base = tiny_cohort(model_of(kind)).base
    assert base.packs
    assert heads_apart(base)


def test_a_model_that_caps_its_logits_and_scores_keeps_its_own_ways(model_of: Callable[[str], Path]) -> None:
    base = tiny_cohort(model_of("gemma2")).base
    assert not base.packs
    assert not base.plain_head


def test_an_adapted_head_is_not_taken_for_a_frozen_one(model_of: Callable[[str], Path]) -> None:
    lora = LoraConfig(rank=4, targets=["q_proj", "lm_head"])
    on = step(model_of("llama"), EngineConfig(), lora)
    assert not heads_apart(on[0].base)
    assert_same(step(model_of("llama"), EngineConfig(response_logits=False, shared_prefix=False), lora), on)


def test_rescored_log_probs_are_those_of_sampling(llama: Path) -> None:
    """`sampled_logps` off asks a training pass instead. Tolerance 1e-5."""
    cohort = tiny_cohort(llama)
    ids = {client: [cohort.base.encode(prompt) for prompt in prompts] for client, prompts in PROMPTS.items()}
    cohort.seat({client: moved_adapter(cohort, 2 + i) for i, client in enumerate(PROMPTS)})
    cohort.begin_training(TrainConfig(), SAMPLING)
    drawn = cohort.sample(ids, Decoding.of(SAMPLING), {"a": 3, "b": 4, "c": 5})
    before = [[list(r.logps) for r in group] for client in PROMPTS for group in drawn[client]]
    for client in PROMPTS:
        for group in drawn[client]:
            for response in group:
                response.logps = [0.0] * len(response.token_ids)
    cohort.rescore(ids, drawn)
    after = [[list(r.logps) for r in group] for client in PROMPTS for group in drawn[client]]
    for logps, other in zip(before, after, strict=True):
        for logp, expected in zip(logps, other, strict=True):
            assert logp == pytest.approx(expected, abs=1e-5)


def test_autocast_computes_in_bfloat16_and_stays_near(llama: Path) -> None:
    """Adapters and gradients stay float32 and point where the exact ones do: bfloat16 has eight bits."""
    exact, rounded = step(llama, EngineConfig(autocast="off")), step(llama, EngineConfig(autocast="bfloat16"))
    differs = False
    for gradient, expected in zip(gradients(rounded[0]), gradients(exact[0]), strict=True):
        assert gradient.dtype == torch.float32
        assert float(torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0)) > 0.95
        differs = differs or not torch.equal(gradient, expected)
    assert differs


def tokens_of(directory: Path, monkeypatch: pytest.MonkeyPatch, **off: Any) -> tuple[list[int], int]:
    """Tokens of each forward pass of a learning step, and how often the model made logits itself."""
    seen: list[int] = []
    logits = 0

    def learned(self: Learner, *args: Any) -> list[StepStats]:
        nonlocal logits

        def head(*_: Any) -> None:
            nonlocal logits
            logits += 1

        model = self.base.model
        hooks = [
            model.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel())),
            model.get_output_embeddings().register_forward_hook(head),
        ]
        stats = plain(self, *args)
        for hook in hooks:
            hook.remove()
        return stats

    plain = Learner.step
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", learned)
        step(directory, EngineConfig(**off))
    return seen, logits


def test_a_saving_turned_off_is_off(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would hold a switch that does nothing against itself."""
    seen, logits = tokens_of(llama, monkeypatch)
    assert logits == 0
    assert sum(tokens_of(llama, monkeypatch, shared_prefix=False)[0]) > 1.5 * sum(seen)
    assert sum(tokens_of(llama, monkeypatch, skip_zero_advantage=False)[0]) > 1.2 * sum(seen)
    assert tokens_of(llama, monkeypatch, response_logits=False)[1] > 0
    longest_first, _ = tokens_of(llama, monkeypatch, micro_batch_tokens=1)
    as_drawn, _ = tokens_of(llama, monkeypatch, micro_batch_tokens=1, by_length=False)
    assert longest_first == sorted(as_drawn, reverse=True)
    assert as_drawn != longest_first


def test_a_saving_in_sampling_turned_off_is_off(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sampled(**off: Any) -> tuple[int, int]:
        """Tokens of the prefill, and how often rows attended to a shared prompt."""
        cohort = tiny_cohort(llama, engine=EngineConfig(**off))
        cohort.seat({"a": moved_adapter(cohort, 2)})
        seen: list[int] = []
        shared = 0

        def attend(self: SharedPrompts, *args: Any) -> torch.Tensor:
            nonlocal shared
            shared += 1
            return plain(self, *args)

        plain = SharedPrompts.attend
        cohort.base.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel()))
        with monkeypatch.context() as patch:
            patch.setattr(SharedPrompts, "attend", attend)
            cohort.sample({"a": [cohort.base.encode("1 + 1 =")]}, Decoding.of(SAMPLING), {"a": 3})
        return seen[0], shared

    tokens, shared = sampled()
    assert shared > 0
    assert sampled(shared_cache=False) == (tokens, 0)
    assert sampled(prefill_once=False) == (SAMPLING.group_size * tokens, 0)
