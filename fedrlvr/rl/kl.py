"""The k3 estimator of KL(policy || reference) per token: exp(q - p) - (q - p) - 1, with p the policy's and q the
reference's log-prob of the sampled token. Never negative, and unbiased under samples of the policy.

The reference is the base model with the adapters off, so it costs a forward pass but no second model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def k3(logps_BT: Tensor, reference_logps_BT: Tensor) -> Tensor:
    """Per-token estimate [B, T]."""
    difference_BT = reference_logps_BT - logps_BT
    return difference_BT.exp() - difference_BT - 1
