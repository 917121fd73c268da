"""Our losses against TRL's own `GRPOTrainer._compute_loss`: same model, same tensors, same loss, same gradient.

The trainer is a real one. Each side makes its own log-probs of the same weights (TRL through its fused head, ours
through the learner's forward pass, packed), so what is compared is the whole way from tokens to gradient. Logits are
taken whole: the learner's chunked ones (tests/policy/test_logps.py) give the frozen head no gradient to compare.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from models import tiny_model
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from fedrlvr.config import EngineConfig, ModelConfig
from fedrlvr.policy.base import Base, load_base
from fedrlvr.policy.batches import Pack, Row, micro_batches
from fedrlvr.policy.forward import response_logps
from fedrlvr.rl import LOSSES, Response, policy_loss, ratio_sums

TOLERANCE = 1e-5
"""Relative, of the loss and of each parameter's gradient against the largest entry of that gradient."""
MAX_TOKENS = 11
CLIP_LOW, CLIP_HIGH = 0.1, 0.3
PROMPT_LENGTHS, RESPONSE_LENGTHS = (9, 4, 6, 9), (7, 5, 1, 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    directory = tiny_model(tmp_path_factory.mktemp("model"), "llama")
    return load_base(ModelConfig(name=str(directory), device="cpu"))


def no_reward(completions: list[Any], **_: Any) -> list[float | None]:
    """A trainer must have a reward; this one is never asked for it."""
    return [None] * len(completions)


@pytest.fixture(scope="module")
def trainer(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=4,
        num_generations=4,
        gradient_accumulation_steps=1,
        max_completion_length=MAX_TOKENS,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        temperature=0.7,
        use_bias_correction_kl=False,  # ours is the plain k3 of arXiv 2402.03300; TRL can weigh it by the ratio
        activation_checkpointing=False,
        disable_tqdm=True,
    )
    made: Any = GRPOTrainer(
        load_base(ModelConfig(name=base.name, device="cpu")).model.requires_grad_(True),
        reward_funcs=no_reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["1 + 1 ="] * 4}),
        processing_class=base.tokenizer,
    )
    made.current_gradient_accumulation_steps = 1  # set by the training loop, which is not run here
    made.model.train()
    return made


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """The inputs of TRL's loss: four responses with off-policy behaviour log-probs."""
    generator = torch.Generator().manual_seed(3)

    def ids(width: int) -> Tensor:
        return torch.randint(4, 100, (4, width), generator=generator)

    prompt_mask = (torch.arange(9).flip(0) < torch.tensor(PROMPT_LENGTHS).unsqueeze(1)).long()
    completion_mask = (torch.arange(7) < torch.tensor(RESPONSE_LENGTHS).unsqueeze(1)).long()
    return {
        "prompt_ids": ids(9) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": ids(7) * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.5, -0.4, 0.0, -0.6]),  # a loss far from zero, or float32 cancels
        "num_items_in_batch": completion_mask.sum(),
    }


def ours(base: Base, batch: dict[str, Tensor], temperature: float) -> Tensor:
    assert base.packs
    sides = zip(
        batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"], strict=True
    )
    packs = [
        Pack(0, prompt[real.bool()].tolist(), [Row(Response(tokens[there.bool()].tolist(), [], "", True), 1.0)])
        for prompt, real, tokens, there in sides
    ]
    (whole,) = micro_batches(packs, 1000, base.pad_id, base.device, packed=True, shared=True, by_length=False)
    return response_logps(base, whole, temperature, EngineConfig(response_logits=False))


def noisy(logps: Tensor, seed: int) -> Tensor:
    """Log-probs of another policy: ratios on both sides of both clip bounds, and garbage on the padding."""
    generator = torch.Generator().manual_seed(seed)
    return logps.detach() + 0.4 * torch.randn(logps.shape, generator=generator)


@pytest.mark.parametrize("kl_beta", [0.0, 0.3])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "cross_entropy"])  # no loss of GRPOTrainer
def test_loss_and_gradient_are_those_of_trl(
    loss: Any, on_policy: bool, kl_beta: float, base: Base, trainer: Any, batch: dict[str, Tensor]
) -> None:
    base.model.requires_grad_(True).zero_grad()
    logps = ours(base, batch, trainer.temperature)
    behaviour = logps.detach() if on_policy else noisy(logps, 4)
    reference = noisy(logps, 5)

    trainer.loss_type, trainer.beta = loss, kl_beta
    # TRL's CISPO has no lower bound, and its upper one is the ratio itself.
    clip_low = 0.999 if loss == "cispo" else CLIP_LOW
    trainer.epsilon_high = 1 + CLIP_HIGH if loss == "cispo" else CLIP_HIGH
    trainer.model.zero_grad()
    extra = {} if on_policy else {"old_per_token_logps": behaviour}
    expected = trainer._compute_loss(trainer.model, {**batch, **extra, "ref_per_token_logps": reference})
    expected.backward()

    value = policy_loss(
        logps,
        behaviour,
        batch["advantages"],
        batch["completion_mask"],
        loss=loss,
        clip_low=clip_low,
        clip_high=CLIP_HIGH,
        max_tokens=MAX_TOKENS,
        reference_logps_BT=reference,
        kl_beta=kl_beta,
    )
    value.backward()

    assert value.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    gradients = dict(trainer.model.named_parameters())
    for name, parameter in base.model.named_parameters():
        wanted = gradients[name].grad
        assert wanted is not None
        assert float(wanted.abs().max()) > 0, name
        gap = float((parameter.grad - wanted).abs().max() / wanted.abs().max())
        assert gap < TOLERANCE, (name, gap)


def test_the_batch_has_tokens_on_both_sides_of_both_clip_bounds(
    base: Base, trainer: Any, batch: dict[str, Tensor]
) -> None:
    """Else the comparison above would say little about the clip. TRL's own clip metrics agree with ours."""
    logps = ours(base, batch, trainer.temperature).detach()
    behaviour, mask = noisy(logps, 4), batch["completion_mask"].bool()
    ratio = torch.exp(logps - behaviour)
    up = (batch["advantages"] > 0).unsqueeze(1) & mask
    down = (batch["advantages"] < 0).unsqueeze(1) & mask
    for side in (up, down):
        assert bool((side & (ratio > 1 + CLIP_HIGH)).any())
        assert bool((side & (ratio < 1 - CLIP_LOW)).any())

    trainer.loss_type, trainer.beta, trainer.epsilon_high = "dapo", 0.0, CLIP_HIGH
    trainer._metrics["train"].clear()
    trainer._compute_loss(trainer.model, {**batch, "old_per_token_logps": behaviour})
    bounds = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH}
    sums = ratio_sums(logps, behaviour, batch["advantages"], mask, loss="dapo", **bounds)
    clipped = float(sums[:, 2].sum() / mask.sum())
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [pytest.approx(clipped, rel=1e-6)]
