"""Token weights and the shaped ratio, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedrlvr.rl import LOSSES, ratio_sums, response_losses

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3}

# As in test_loss.py: the second response has two tokens, the third place is padding.
RATIOS = torch.tensor([[1.0, 1.5, 0.5], [1.1, 0.5, 1.0]], dtype=torch.float64)
BEHAVIOUR = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -3.0, 0.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -2.0], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
WEIGHTS = torch.tensor([[2.0, 3.0, 0.25], [0.5, 4.0, 9.0]], dtype=torch.float64)


def leaf() -> Tensor:
    return (BEHAVIOUR + RATIOS.log()).requires_grad_()


def probabilities(*rows: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """A leaf of log-probs."""
    return torch.tensor(rows, dtype=dtype).log().requires_grad_()


def losses(policy: Tensor, behaviour: Tensor = BEHAVIOUR, loss: Any = "dapo", **more: Any) -> Tensor:
    return response_losses(policy, behaviour, ADVANTAGES, MASK, loss=loss, **CLIP, **more)


def test_weights_scale_a_tokens_loss_and_gradient() -> None:
    # Token losses -1, -1.3 (clipped), -0.5 and 2.2, 1.6 (clipped), times 2, 3, 0.25 and 0.5, 4.
    policy = leaf()
    sums = losses(policy, weights_BT=WEIGHTS)
    sums.sum().backward()
    assert sums.tolist() == pytest.approx([-2 - 3.9 - 0.125, 1.1 + 6.4], rel=1e-12)
    # Gradients -1, 0, -0.5 and 2.2, 0.
    expected = torch.tensor([[-2.0, 0.0, -0.125], [1.1, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(policy.grad, expected)


def test_weights_do_not_change_what_grpo_divides_by() -> None:
    sums = losses(leaf(), loss="grpo", weights_BT=WEIGHTS)
    assert sums.tolist() == pytest.approx([-6.025 / 3, 7.5 / 2], rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_leave_the_kl_alone(loss: Any) -> None:
    kl: dict[str, Any] = {"reference_logps_BT": BEHAVIOUR - 0.4, "kl_beta": 0.3}

    def gradient(**more: Any) -> tuple[Tensor, Tensor]:
        policy = leaf()
        sums = losses(policy, loss=loss, **more)
        (made,) = torch.autograd.grad(sums.sum(), policy)
        return sums.detach(), made

    for weights in (WEIGHTS, torch.zeros(2, 3)):
        both, weighted = gradient(weights_BT=weights, **kl), gradient(weights_BT=weights)
        plain_both, plain = gradient(**kl), gradient()
        for i in range(2):  # the loss, then the gradient
            torch.testing.assert_close(both[i] - weighted[i], plain_both[i] - plain[i])
            assert float((both[i] - weighted[i]).abs().max()) > 0.01


def test_weights_of_one_change_nothing() -> None:
    assert torch.equal(losses(leaf(), weights_BT=torch.ones(2, 3)), losses(leaf()))


def test_weights_on_padding_are_not_looked_at() -> None:
    garbage = WEIGHTS.masked_fill(~MASK.bool(), 1e30)
    assert torch.equal(losses(leaf(), weights_BT=garbage), losses(leaf(), weights_BT=WEIGHTS))


def test_the_shaped_ratio_by_hand() -> None:
    # p = 0.3, gamma = 0.1, A = 2: ratio 0.3 / 0.4 = 0.75, below 1 - 0.2 but free because A > 0.
    # Loss -1.5; gradient -A gamma p / (p + gamma)^2 = -2 x 0.03 / 0.16 = -0.375.
    policy = probabilities([0.3])
    value = response_losses(
        policy,
        torch.tensor([[-3.0]]),  # not looked at
        torch.tensor([2.0]),
        torch.ones(1, 1),
        loss="dapo",
        shaping_B=torch.tensor([0.1], dtype=torch.float64),
        **CLIP,
    )
    value.sum().backward()
    assert policy.grad is not None
    assert value.item() == pytest.approx(-1.5, rel=1e-12)
    assert policy.grad.item() == pytest.approx(-0.375, rel=1e-12)


@pytest.mark.parametrize(
    ("probability", "gamma", "ratio", "slope"),
    [
        (0.1, 0.1, 0.5, 0.25),  # 0.01 / 0.04, the steepest there is
        (0.9, 0.1, 0.9, 0.09),  # 0.09 / 1
        (0.01, 0.1, 1 / 11, 10 / 121),  # 0.001 / 0.0121
        (0.5, 0.5, 0.5, 0.25),
        (0.6, 0.2, 0.75, 0.1875),  # 0.12 / 0.64
    ],
)
def test_shaped_ratios_and_their_slopes_by_hand(probability: float, gamma: float, ratio: float, slope: float) -> None:
    policy = probabilities([probability])
    shaping = torch.tensor([gamma], dtype=torch.float64)
    ones = torch.ones(1, 1)
    value = response_losses(policy, 0 * ones, ones[0], ones, loss="grpo", shaping_B=shaping, **CLIP)
    value.sum().backward()
    assert policy.grad is not None
    assert -value.item() == pytest.approx(ratio, rel=1e-12)
    assert -policy.grad.item() == pytest.approx(slope, rel=1e-12)


def test_a_shaped_ratio_is_clipped_like_any() -> None:
    # A = -1: 0.75 is below 0.8 and loses its gradient, 0.9 is not: 0.09 / 1.
    policy = probabilities([0.3, 0.9])
    args: tuple[Tensor, Tensor, Tensor] = (torch.zeros(1, 2), -torch.ones(1), torch.ones(1, 2))
    shaping = torch.tensor([0.1], dtype=torch.float64)
    value = response_losses(policy, *args, loss="dapo", shaping_B=shaping, **CLIP)
    value.sum().backward()
    assert value.item() == pytest.approx(0.8 + 0.9, rel=1e-12)
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, 0.09]], dtype=torch.float64))


def test_ratio_sums_of_shaped_responses_by_hand() -> None:
    # 0.75 and 0.9, clipped below 0.8 only with A < 0; the last response has one token and no shaping: 1.4 > 1.3.
    policy = probabilities([0.3, 0.9], [0.3, 0.9], [0.7, 0.9]).detach()
    behaviour = torch.tensor([[0.01, 0.02], [0.01, 0.02], [0.5, 0.3]], dtype=torch.float64).log()
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]])
    shaping = torch.tensor([0.1, 0.1, 0.0], dtype=torch.float64)
    sums = ratio_sums(policy, behaviour, torch.tensor([1.0, -1.0, 1.0]), mask, loss="dapo", shaping_B=shaping, **CLIP)
    expected = torch.tensor([[1.65, 0.9, 0.0], [1.65, 0.9, 1.0], [1.4, 1.4, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(sums, expected)


def test_a_response_without_shaping_is_as_it_would_be_alone() -> None:
    shaping = torch.tensor([0.0, 0.2], dtype=torch.float64)
    policy, plain = leaf(), leaf()
    sums, wanted = losses(policy, shaping_B=shaping), losses(plain)
    sums.sum().backward()
    wanted.sum().backward()
    assert policy.grad is not None
    assert plain.grad is not None
    assert torch.equal(sums[0], wanted[0])
    assert torch.equal(policy.grad[0], plain.grad[0])
    assert not torch.equal(policy.grad[1], plain.grad[1])

    unshaped = losses(leaf(), shaping_B=torch.zeros(2))
    assert torch.equal(unshaped, losses(leaf()))
    stats = ratio_sums(leaf(), BEHAVIOUR, ADVANTAGES, MASK, loss="dapo", shaping_B=shaping, **CLIP)
    assert torch.equal(stats[0], ratio_sums(leaf(), BEHAVIOUR, ADVANTAGES, MASK, loss="dapo", **CLIP)[0])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_probs_give_no_nan(dtype: torch.dtype, advantage: float) -> None:
    """Both rows see the same tokens, one shaped. e^-120 is 0 in float32, so neither branch may divide it by nothing."""
    policy = torch.tensor([[-40.0, -120.0, 0.0, -40.0, 0.0]] * 2, dtype=dtype).requires_grad_()
    behaviour = torch.tensor([[-40.0, -40.0, -40.0, 0.0, 0.0], [0.0] * 5], dtype=dtype)
    mask = torch.ones(2, 5)
    advantages = torch.full((2,), advantage, dtype=dtype)
    shaping = torch.tensor([0.0, 0.1], dtype=dtype)
    sums = response_losses(policy, behaviour, advantages, mask, loss="dapo", shaping_B=shaping, **CLIP)
    sums.sum().backward()
    assert policy.grad is not None
    assert bool(torch.isfinite(sums).all())
    assert bool(torch.isfinite(policy.grad).all())
    stats = ratio_sums(policy, behaviour, advantages, mask, loss="dapo", shaping_B=shaping, **CLIP)
    assert bool(torch.isfinite(stats).all())
    if advantage > 0:  # ratios 1, e^-80, e^40 (clipped), e^-40, 1, and shaped 0, 0, 1 / 1.1, 0, 1 / 1.1
        assert sums.tolist() == pytest.approx([-1 - 1.3 - 1, -2 / 1.1], rel=1e-6)
        assert policy.grad[0].tolist() == pytest.approx([-1.0, 0.0, 0.0, 0.0, -1.0], abs=1e-6)
        assert policy.grad[1].tolist() == pytest.approx([0.0, 0.0, -0.1 / 1.21, 0.0, -0.1 / 1.21], abs=1e-6)


def test_garbage_on_padding_does_not_reach_a_shaped_response() -> None:
    def run(fill: float) -> tuple[Tensor, Tensor]:
        policy = leaf().detach().masked_fill(~MASK.bool(), fill).requires_grad_()
        sums = losses(policy, shaping_B=torch.tensor([0.1, 0.1]), weights_BT=WEIGHTS)
        sums.sum().backward()
        assert policy.grad is not None
        return sums.detach(), policy.grad

    for clean, dirty in zip(run(0.0), run(float("nan")), strict=True):
        assert torch.equal(clean, dirty)


def test_gradients_reach_neither_weights_nor_shaping() -> None:
    weights, shaping = WEIGHTS.clone().requires_grad_(), torch.tensor([0.1, 0.0]).requires_grad_()
    policy = leaf()
    losses(policy, weights_BT=weights, shaping_B=shaping).sum().backward()
    assert policy.grad is not None
    assert weights.grad is shaping.grad is None
