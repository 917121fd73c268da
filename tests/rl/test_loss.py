"""The losses on 2 responses x 3 tokens, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedrlvr.rl import LOSSES, k3, normaliser, policy_loss, ratio_sums, response_losses

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}

# Ratios of the policy to the behaviour policy. The second response has two tokens; the third place is padding.
RATIOS = torch.tensor([[1.0, 1.5, 0.5], [1.1, 0.5, 1.0]], dtype=torch.float64)
BEHAVIOUR = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -3.0, 0.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -2.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
# Response 1, A = 1:   min(1, 1), min(1.5, 1.3), min(0.5, 0.8)       = 1, 1.3, 0.5       loss sum -2.8
# Response 2, A = -2:  min(-2.2, -2.2), min(-1.0, 0.8 x -2 = -1.6)   = -2.2, -1.6        loss sum +3.8
SUMS = (-2.8, 3.8)
BY_HAND = {
    "grpo": (-2.8 / 3 + 3.8 / 2) / 2,  # mean over responses of the mean over tokens
    "dr_grpo": (-2.8 + 3.8) / (2 * 3),  # responses x longest
    "dapo": (-2.8 + 3.8) / 5,  # all tokens
    # All tokens' -clip(ratio) A logp: clipped ratios 1, 1.3, 0.8 and 1.1, 0.8; logp is BEHAVIOUR + ln ratio.
    "cispo": (
        1.0
        + 1.3 * (2 - math.log(1.5))
        + 0.8 * (0.5 + math.log(2))
        - 2.2 * (1 - math.log(1.1))
        - 1.6 * (3 + math.log(2))
    )
    / 5,
    # All tokens' -A logp, without a ratio or clip.
    "cross_entropy": (3.5 - math.log(1.5) + math.log(2) - 2 * (1 - math.log(1.1)) - 2 * (3 + math.log(2))) / 5,
}


def logps() -> Tensor:
    return (BEHAVIOUR + RATIOS.log()).requires_grad_()


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_by_hand(loss: Any) -> None:
    value = policy_loss(logps(), BEHAVIOUR, ADVANTAGES, MASK, loss=loss, **CLIP)
    assert value.item() == pytest.approx(BY_HAND[loss], rel=1e-12)


def test_dr_grpo_is_divided_by_the_longest_allowed_response() -> None:
    value = policy_loss(logps(), BEHAVIOUR, ADVANTAGES, MASK, loss="dr_grpo", max_tokens=50, **CLIP)
    assert value.item() == pytest.approx(1.0 / (2 * 50), rel=1e-12)


def test_the_clip_takes_the_gradient_away_where_it_is_active_and_nowhere_else() -> None:
    # d loss / d logp = -ratio x A / 5, but zero for ratio 1.5 with A > 0 and ratio 0.5 with A < 0.
    policy = logps()
    policy_loss(policy, BEHAVIOUR, ADVANTAGES, MASK, loss="dapo", **CLIP).backward()
    expected = torch.tensor([[-1.0, 0.0, -0.5], [2.2, 0.0, 0.0]], dtype=torch.float64) / 5
    torch.testing.assert_close(policy.grad, expected)


def test_a_ratio_on_the_wrong_side_of_the_clip_is_not_clipped() -> None:
    # A ratio far above 1 with A < 0 must be brought down, one far below 1 with A > 0 brought up: both keep a gradient.
    policy = torch.tensor([[5.0], [0.1]], dtype=torch.float64).log().requires_grad_()
    zeros, ones = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1)
    advantages = torch.tensor([-1.0, 1.0])
    policy_loss(policy, zeros, advantages, ones, loss="grpo", **CLIP).backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[5.0 / 2], [-0.1 / 2]], dtype=torch.float64))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    policy = BEHAVIOUR.clone().requires_grad_()
    policy_loss(policy, BEHAVIOUR, ADVANTAGES, MASK, loss="dapo", **CLIP).backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [[-0.2, -0.2, -0.2], [0.4, 0.4, 0.0]]


def test_kl_by_hand() -> None:
    # A reference at half the policy's probability on one token: exp(q - p) - (q - p) - 1 = 0.5 + ln 2 - 1.
    policy = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    reference = policy - torch.tensor([[math.log(2), 0.0]], dtype=torch.float64)
    expected = 0.5 + math.log(2) - 1
    assert k3(policy, reference)[0].tolist() == pytest.approx([expected, 0.0], abs=1e-15)
    value = policy_loss(
        policy,
        policy,
        torch.zeros(1),
        torch.ones(1, 2),
        loss="dapo",
        reference_logps_BT=reference,
        kl_beta=0.1,
        **CLIP,
    )
    assert value.item() == pytest.approx(0.1 * expected / 2, rel=1e-12)


def test_k3_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 1000, generator=generator, dtype=torch.float64) * 3
    assert bool((k3(p, q) >= 0).all())
    assert k3(p, p).tolist() == [0.0] * 1000


@pytest.mark.parametrize("garbage", [1e4, -1e4, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("loss", LOSSES)
def test_padding_does_not_leak(loss: Any, garbage: float) -> None:
    def run(fill: float) -> tuple[Tensor, Tensor, Tensor]:
        padding = ~MASK.bool()
        policy = logps().detach().masked_fill(padding, fill).requires_grad_()
        behaviour = BEHAVIOUR.masked_fill(padding, -fill)
        reference = (BEHAVIOUR - 0.1).masked_fill(padding, fill)
        value = policy_loss(
            policy, behaviour, ADVANTAGES, MASK, loss=loss, reference_logps_BT=reference, kl_beta=0.2, **CLIP
        )
        value.backward()
        assert policy.grad is not None
        return value.detach(), policy.grad, ratio_sums(policy, behaviour, ADVANTAGES, MASK, loss=loss, **CLIP)

    for clean, dirty in zip(run(0.0), run(garbage), strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("loss", LOSSES)
def test_leaving_out_zero_advantage_responses_gives_the_same_gradient(loss: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (6, 4)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    behaviour = start + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([4, 1, 3, 2, 4, 2])
    mask = (torch.arange(4) < lengths.unsqueeze(1)).long()
    advantages = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 2.0], dtype=torch.float64)

    whole = start.clone().requires_grad_()
    full = policy_loss(whole, behaviour, advantages, mask, loss=loss, max_tokens=9, **CLIP)
    full.backward()

    part = start.clone().requires_grad_()
    kept = advantages != 0
    sums = response_losses(part[kept], behaviour[kept], advantages[kept], mask[kept], loss=loss, **CLIP)
    less = sums.sum() / normaliser(loss, responses=6, tokens=16, max_tokens=9)
    less.backward()
    torch.testing.assert_close(less, full)
    torch.testing.assert_close(part.grad, whole.grad)


def test_the_normaliser_by_hand() -> None:
    sizes = {"responses": 4, "tokens": 30, "max_tokens": 10}
    assert [normaliser(loss, **sizes) for loss in ("grpo", "dr_grpo", "dapo")] == [4.0, 40.0, 30.0]
    assert [normaliser(loss, responses=0, tokens=0, max_tokens=10) for loss in LOSSES] == [1.0] * len(LOSSES)


def test_gradients_reach_the_policy_only() -> None:
    policy, behaviour, advantages = logps(), BEHAVIOUR.clone().requires_grad_(), ADVANTAGES.clone().requires_grad_()
    reference = BEHAVIOUR.clone().requires_grad_()
    policy_loss(
        policy, behaviour, advantages, MASK, loss="grpo", reference_logps_BT=reference, kl_beta=0.5, **CLIP
    ).backward()
    assert policy.grad is not None
    assert behaviour.grad is advantages.grad is reference.grad is None


def test_a_response_without_tokens_costs_nothing() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    sums = response_losses(logps(), BEHAVIOUR, ADVANTAGES, mask, loss="grpo", **CLIP)
    assert sums.tolist() == pytest.approx([-2.8 / 3, 0.0])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss .* 'ppo'"):
        policy_loss(logps(), BEHAVIOUR, ADVANTAGES, MASK, loss="ppo", **CLIP)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(logps(), BEHAVIOUR, ADVANTAGES, MASK, loss="grpo", kl_beta=0.1, **CLIP)


def test_ratio_sums_by_hand() -> None:
    # Clipped: ratio 1.5 above 1.3 with A > 0; ratio 0.5 below 0.8 with A < 0. The 0.5 with A > 0 is not.
    sums = ratio_sums(logps(), BEHAVIOUR, ADVANTAGES, MASK, loss="dapo", **CLIP)
    expected = torch.tensor([[3.0, 1.5, 1.0], [1.6, 1.1, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(sums, expected)
    assert not sums.requires_grad
    without = ratio_sums(logps(), BEHAVIOUR, torch.zeros(2), MASK, loss="dapo", **CLIP)
    assert without[:, 2].tolist() == [0.0, 0.0]


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    # d loss / d logp = -clip(ratio) A / 5 for every token: ratios 1, 1.3, 0.8 with A = 1; 1.1, 0.8 with A = -2.
    policy = logps()
    policy_loss(policy, BEHAVIOUR, ADVANTAGES, MASK, loss="cispo", **CLIP).backward()
    expected = torch.tensor([[-1.0, -1.3, -0.8], [2.2, 1.6, 0.0]], dtype=torch.float64) / 5
    torch.testing.assert_close(policy.grad, expected)


def test_cispo_counts_every_ratio_outside_the_bounds() -> None:
    # 1.5 and 0.5 of the first response, 0.5 of the second, whatever the advantage.
    for advantages in (ADVANTAGES, -ADVANTAGES, torch.zeros(2)):
        sums = ratio_sums(logps(), BEHAVIOUR, advantages, MASK, loss="cispo", **CLIP)
        assert sums[:, 2].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_that_would_overflow_has_a_finite_gradient(advantage: float) -> None:
    """A behaviour log-prob of -200 makes the ratio exp(199): no sampled token has it, but a message may say so."""
    logps_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss = policy_loss(
        logps_BT,
        torch.tensor([[-200.0, -2.0]]),
        torch.tensor([advantage]),
        torch.ones(1, 2),
        loss="dapo",
        clip_low=0.2,
        clip_high=0.2,
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert logps_BT.grad is not None
    # The first token is clipped (or beyond the bound); the second, at a ratio of 1, has -A / 2 as always.
    assert logps_BT.grad.tolist() == [[0.0, pytest.approx(-advantage / 2)]]
