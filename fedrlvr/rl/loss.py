"""Policy-gradient losses over responses: one entry of `LOSSES` each.

    rho_t = exp(logp_t - behaviour_logp_t)
    l_t   = -surrogate(rho_t, logp_t, A) + kl_beta k3_t

    ordinary clip    min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A)
    CISPO            sg(clip(rho_t, 1 - clip_low, 1 + clip_high)) A logp_t         (sg: no gradient)

    grpo     ordinary clip, mean over responses of the mean over a response's tokens    (arXiv 2402.03300)
    dr_grpo  ordinary clip, sum over tokens / (responses x longest allowed response)    (arXiv 2503.20783)
    dapo     ordinary clip, mean over all tokens of the batch                           (arXiv 2503.14476)
    cispo    CISPO, mean over all tokens of the batch                                    (arXiv 2506.13585)

    cross_entropy    A logp_t without a ratio, mean over all tokens of the batch: with A = 1 the masked cross entropy of
                     given responses, whose gradient is that of the others at A = 1 and rho = 1

1. A loss is a sum over responses divided by a normaliser. The two are separate functions, because a batch is cut
   into micro-batches and leaves out responses with zero advantage: the normaliser still counts those, so the gradient
   is the same.
2. The behaviour log-probs are those of the policy that sampled the response, so an off-policy response needs no
   special case. A coordination may still weigh the tokens of a foreign one, w_t l_t with a constant w_t, or put the
   shaped ratio p / (p + gamma) in place of rho (`coordination/ratio.py`).
3. CISPO's authors set no lower bound; clip_low close to 1 comes to that.

The configuration takes the names of the losses from here, and must not load torch: this package has only tensors that
it is given, so it calls their methods and imports torch for types alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

MOST_LOG_RATIO = 80.0
"""Largest log-ratio. A larger one overflows in float32, and its gradient is nan even where the clip removes it."""


def k3(logps_BT: Tensor, reference_logps_BT: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) per token [B, T]: exp(q - p) - (q - p) - 1.

    p, q: the policy's and the reference's log-prob of the sampled token. Never negative, and unbiased under samples of
    the policy. The reference is the base model with the adapters off: a forward pass, but no second model.
    """
    difference_BT = reference_logps_BT - logps_BT
    return difference_BT.exp() - difference_BT - 1


class Bounds(NamedTuple):
    """The range a ratio is clipped to."""

    low: float
    high: float


class BatchSize(NamedTuple):
    """Responses and tokens of a whole batch, and the longest allowed response in tokens."""

    responses: int
    tokens: int
    max_tokens: int


def token_ratio(logps_BT: Tensor, behaviour_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """rho [B, T] of each token."""
    return (logps_BT - behaviour_logps_BT).clamp(max=MOST_LOG_RATIO).exp()


def clipped_objective(ratio_BT: Tensor, logps_BT: Tensor, advantages_B1: Tensor, bounds: Bounds) -> Tensor:
    """PPO's surrogate (arXiv 1707.06347): the lesser of the ratio's and the clipped ratio's product with A."""
    return (ratio_BT * advantages_B1).minimum(ratio_BT.clamp(*bounds) * advantages_B1)


def without_gradient(ratio_BT: Tensor, advantages_B1: Tensor, bounds: Bounds) -> Tensor:
    """Tokens whose gradient PPO's clip takes away: ratio above the bounds with A > 0, or below them with A < 0."""
    return ((advantages_B1 > 0) & (ratio_BT > bounds.high)) | ((advantages_B1 < 0) & (ratio_BT < bounds.low))


@dataclass(frozen=True)
class Loss:
    """The parts of one policy-gradient loss, as functions.

    divisor(batch): what the sum over a batch is divided by.
    mean_of_tokens: a response counts with the mean over its tokens instead of their sum.
    ratio(logps_BT, behaviour_logps_BT, mask_BT): rho [B, T], of log-probs that are 0 on padding.
    surrogate(ratio_BT, logps_BT, advantages_B1, bounds): what is maximised [B, T].
    clipped(ratio_BT, advantages_B1, bounds): whether a token counts as clipped [B, T], for the clip fraction.
    """

    divisor: Callable[[BatchSize], int]
    mean_of_tokens: bool = False
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor] = token_ratio
    surrogate: Callable[[Tensor, Tensor, Tensor, Bounds], Tensor] = clipped_objective
    clipped: Callable[[Tensor, Tensor, Bounds], Tensor] = without_gradient


LOSSES: dict[str, Loss] = {
    "grpo": Loss(divisor=lambda batch: batch.responses, mean_of_tokens=True),
    "dr_grpo": Loss(divisor=lambda batch: batch.responses * batch.max_tokens),
    "dapo": Loss(divisor=lambda batch: batch.tokens),
    "cispo": Loss(
        divisor=lambda batch: batch.tokens,
        surrogate=lambda ratio, logps, advantages, bounds: ratio.clamp(*bounds).detach() * advantages * logps,
        clipped=lambda ratio, advantages, bounds: (ratio < bounds.low) | (ratio > bounds.high),
    ),
    "cross_entropy": Loss(
        divisor=lambda batch: batch.tokens,
        ratio=lambda logps, behaviour, mask: mask.to(logps.dtype),
        surrogate=lambda ratio, logps, advantages, bounds: advantages * logps,
        clipped=lambda ratio, advantages, bounds: ratio < 0,
    ),
}
"""Every loss, by its name in `train.loss`."""


def response_losses(
    logps_BT: Tensor,
    behaviour_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    loss: str,
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
    parts = _loss(loss)
    if kl_beta and reference_logps_BT is None:
        raise ValueError("kl_beta needs the reference log-probs")
    padding_BT = ~mask_BT.bool()
    mask_BT = mask_BT.to(logps_BT.dtype)
    # Padding is emptied before the exponential, and not by a product: whatever stands there, inf x 0 is nan.
    logps_BT = logps_BT.masked_fill(padding_BT, 0.0)
    behaviour_logps_BT = behaviour_logps_BT.detach().masked_fill(padding_BT, 0.0)
    ratio_BT = _shaped(parts.ratio(logps_BT, behaviour_logps_BT, ~padding_BT), logps_BT, shaping_B)
    advantages_B1 = advantages_B.detach().to(logps_BT.dtype).unsqueeze(1)
    tokens_BT = -parts.surrogate(ratio_BT, logps_BT, advantages_B1, Bounds(1 - clip_low, 1 + clip_high))
    if weights_BT is not None:
        tokens_BT = tokens_BT * weights_BT.detach()
    if kl_beta and reference_logps_BT is not None:
        tokens_BT = tokens_BT + kl_beta * k3(logps_BT, reference_logps_BT.detach().masked_fill(padding_BT, 0.0))
    sums_B = (tokens_BT * mask_BT).sum(dim=1)
    return sums_B / mask_BT.sum(dim=1).clamp(min=1) if parts.mean_of_tokens else sums_B


def normaliser(loss: str, *, responses: int, tokens: int, max_tokens: int) -> float:
    """Divisor of the sum of `response_losses` over a whole batch; at least 1.

    responses, tokens: of the whole batch, responses left out for their zero advantage included.
    max_tokens: the longest allowed response, the constant of `dr_grpo`.

    Raises:
        ValueError: an unknown loss.
    """
    return float(max(_loss(loss).divisor(BatchSize(responses, tokens, max_tokens)), 1))


def policy_loss(
    logps_BT: Tensor,
    behaviour_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    loss: str,
    clip_low: float,
    clip_high: float,
    max_tokens: int | None = None,
    **options: Any,
) -> Tensor:
    """The loss (a scalar) of one whole batch. `max_tokens` defaults to T; `options` are those of `response_losses`.

    Raises:
        ValueError: as `response_losses`.
    """
    options |= {"loss": loss, "clip_low": clip_low, "clip_high": clip_high}
    losses_B = response_losses(logps_BT, behaviour_logps_BT, advantages_B, mask_BT, **options)
    responses, width = mask_BT.shape
    tokens = int(mask_BT.sum().item())
    return losses_B.sum() / normaliser(loss, responses=responses, tokens=tokens, max_tokens=max_tokens or width)


def ratio_sums(
    logps_BT: Tensor,
    behaviour_logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    loss: str,
    clip_low: float,
    clip_high: float,
    shaping_B: Tensor | None = None,
) -> Tensor:
    """Per response [B, 3]: sum of the ratios, largest ratio, tokens whose clip is active. No gradient.

    Raises:
        ValueError: an unknown loss.
    """
    parts = _loss(loss)
    real_BT = mask_BT.bool()
    logps_BT, behaviour_logps_BT = (
        each_BT.detach().masked_fill(~real_BT, 0.0) for each_BT in (logps_BT, behaviour_logps_BT)
    )
    ratio_BT = _shaped(parts.ratio(logps_BT, behaviour_logps_BT, real_BT), logps_BT, shaping_B)
    clipped_BT = parts.clipped(ratio_BT, advantages_B.unsqueeze(1), Bounds(1 - clip_low, 1 + clip_high))
    ratio_BT = ratio_BT.masked_fill(~real_BT, 0.0)
    sums_B3 = ratio_BT.new_empty(len(ratio_BT), 3)
    sums_B3[:, 0], sums_B3[:, 1] = ratio_BT.sum(dim=1), ratio_BT.amax(dim=1)
    sums_B3[:, 2] = (clipped_BT & real_BT).sum(dim=1)
    return sums_B3


def _loss(name: str) -> Loss:
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    return LOSSES[name]


def _shaped(ratio_BT: Tensor, logps_BT: Tensor, shaping_B: Tensor | None) -> Tensor:
    """The ratios, with p / (p + gamma) in their place where a response's gamma is above 0."""
    if shaping_B is None:
        return ratio_BT
    gamma_B1 = shaping_B.detach().to(logps_BT.dtype).unsqueeze(1)
    policy_BT = logps_BT.exp()
    # The unused branch must not be 0 / 0 either, or its gradient would be nan.
    shaped_BT = policy_BT / (policy_BT + gamma_B1.masked_fill(gamma_B1 <= 0, 1.0))
    return shaped_BT.where(gamma_B1 > 0, ratio_BT)
