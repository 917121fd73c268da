"""Clipped policy-gradient losses over responses: `grpo`, `dr_grpo`, `dapo`.

    rho_t = exp(logp_t - behaviour_logp_t)
    l_t   = -min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A) + kl_beta k3_t

    grpo     mean over responses of the mean over a response's tokens        (arXiv 2402.03300)
    dr_grpo  sum over tokens / (responses x longest allowed response)        (arXiv 2503.20783)
    dapo     mean over all tokens of the batch                               (arXiv 2503.14476)

1. A loss is a sum over responses divided by a normaliser. The two are separate functions, because a batch is cut
   into micro-batches and leaves out responses with zero advantage: the normaliser still counts those, so the gradient
   is the same.
2. The behaviour log-probs are those of the policy that sampled the response, so an off-policy response needs no
   special case. A coordination may still weigh the tokens of a foreign one, w_t l_t with a constant w_t, or put the
   shaped ratio p / (p + gamma) in place of rho (`coordination/ratio.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedrlvr.rl.kl import k3

Loss = Literal["grpo", "dr_grpo", "dapo"]
MOST_LOG_RATIO = 80.0
"""Beyond it a ratio overflows in float32, and its gradient is nan even where the clip takes it away."""
LOSSES: tuple[Loss, ...] = ("grpo", "dr_grpo", "dapo")


def response_losses(
    logps_BT: Tensor,
    behaviour_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    loss: Loss,
    clip_low: float,
    clip_high: float,
    reference_logps_BT: Tensor | None = None,
    kl_beta: float = 0.0,
    weights_BT: Tensor | None = None,
    shaping_B: Tensor | None = None,
) -> Tensor:
    """Each response's share [B] of the loss, before the normaliser.

    logps_BT: the policy's log-probs of the response tokens; the only argument a gradient is taken of.
    mask_BT: 1 on response tokens, 0 on padding.
    weights_BT: of tokens, not of their KL; None: 1. shaping_B: gamma of a response's shaped ratio; 0 or None: rho.

    Raises:
        ValueError: an unknown loss, or kl_beta without reference log-probs.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if kl_beta and reference_logps_BT is None:
        raise ValueError("kl_beta needs the reference log-probs")
    padding_BT = ~mask_BT.bool()
    mask_BT = mask_BT.to(logps_BT.dtype)
    # Padding is emptied before the exponential, and not by a product: whatever stands there, inf x 0 is nan.
    logps_BT = logps_BT.masked_fill(padding_BT, 0.0)
    ratio_BT = _ratio(logps_BT, behaviour_logps_BT.detach().masked_fill(padding_BT, 0.0), shaping_B)
    advantages_B1 = advantages_B.detach().to(logps_BT.dtype).unsqueeze(1)
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    tokens_BT = -torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    if weights_BT is not None:
        tokens_BT = tokens_BT * weights_BT.detach()
    if kl_beta and reference_logps_BT is not None:
        tokens_BT = tokens_BT + kl_beta * k3(logps_BT, reference_logps_BT.detach().masked_fill(padding_BT, 0.0))
    sums_B = (tokens_BT * mask_BT).sum(dim=1)
    return sums_B / mask_BT.sum(dim=1).clamp(min=1) if loss == "grpo" else sums_B


def _ratio(logps_BT: Tensor, behaviour_logps_BT: Tensor, shaping_B: Tensor | None) -> Tensor:
    """rho [B, T], or p / (p + gamma) where a response's gamma is above 0."""
    ratio_BT = torch.exp((logps_BT - behaviour_logps_BT).clamp(max=MOST_LOG_RATIO))
    if shaping_B is None:
        return ratio_BT
    gamma_B1 = shaping_B.detach().to(logps_BT.dtype).unsqueeze(1)
    policy_BT = torch.exp(logps_BT)
    # The unused branch must not be 0 / 0 either, or its gradient would be nan.
    shaped_BT = policy_BT / (policy_BT + torch.where(gamma_B1 > 0, gamma_B1, 1.0))
    return torch.where(gamma_B1 > 0, shaped_BT, ratio_BT)


def normaliser(loss: Loss, *, responses: int, tokens: int, max_tokens: int) -> float:
    """What the sum of `response_losses` over a whole batch is divided by; at least 1.

    responses, tokens: of the whole batch, responses left out for their zero advantage included.
    max_tokens: the longest allowed response, the constant of `dr_grpo`.
    """
    value = {"grpo": responses, "dr_grpo": responses * max_tokens, "dapo": tokens}[loss]
    return float(max(value, 1))


def policy_loss(
    logps_BT: Tensor,
    behaviour_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    loss: Loss,
    clip_low: float,
    clip_high: float,
    max_tokens: int | None = None,
    reference_logps_BT: Tensor | None = None,
    kl_beta: float = 0.0,
) -> Tensor:
    """The loss (a scalar) of one whole batch. `max_tokens` defaults to T.

    Raises:
        ValueError: as `response_losses`.
    """
    losses_B = response_losses(
        logps_BT,
        behaviour_logps_BT,
        advantages_B,
        mask_BT,
        loss=loss,
        clip_low=clip_low,
        clip_high=clip_high,
        reference_logps_BT=reference_logps_BT,
        kl_beta=kl_beta,
    )
    responses, width = mask_BT.shape
    tokens = int(mask_BT.sum().item())
    return losses_B.sum() / normaliser(loss, responses=responses, tokens=tokens, max_tokens=max_tokens or width)


def ratio_sums(
    logps_BT: Tensor,
    behaviour_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    shaping_B: Tensor | None = None,
) -> Tensor:
    """Per response [B, 3]: sum of the ratios, largest ratio, tokens whose clip is active. No gradient.

    A token is clipped where the clip takes its gradient away: ratio above 1 + clip_high with a positive advantage, or
    below 1 - clip_low with a negative one.
    """
    with torch.no_grad():
        ratio_BT = _ratio(logps_BT, behaviour_logps_BT, shaping_B).masked_fill(~mask_BT.bool(), 0.0)
        up_B1 = (advantages_B > 0).unsqueeze(1)
        down_B1 = (advantages_B < 0).unsqueeze(1)
        clipped_BT = (up_B1 & (ratio_BT > 1 + clip_high)) | (down_B1 & (ratio_BT < 1 - clip_low))
        clipped_B = (clipped_BT & mask_BT.bool()).sum(dim=1).to(ratio_BT.dtype)
        return torch.stack([ratio_BT.sum(dim=1), ratio_BT.amax(dim=1), clipped_B], dim=1)
