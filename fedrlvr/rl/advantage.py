"""Group-relative advantages of the G responses to one problem (GRPO, arXiv 2402.03300).

    A_j = (r_j - mean(r)) / (std(r) + eps)        over the G responses of one problem, population std
    A_j =  r_j - mean(r)                          without the std (Dr. GRPO, arXiv 2503.20783)

1. The population standard deviation is used, so that a group that is exactly half correct has advantages +1 and -1.
2. A group whose rewards are all equal gets exactly zero, not rounding noise divided by eps: such a group has no
   gradient and its forward and backward pass can be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedrlvr.rl.samples import Group

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-6


def group_advantages(rewards_PG: Tensor, scale_by_std: bool = True, eps: float = EPS) -> Tensor:
    """Advantages [P, G] of rewards [P, G], in the rewards' floating type.

    Raises:
        ValueError: fewer than two responses a group, not two dimensions, or a reward that is not finite.
    """
    if rewards_PG.dim() != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"rewards must be [problems, responses >= 2], got {tuple(rewards_PG.shape)}")
    rewards_PG = rewards_PG if rewards_PG.is_floating_point() else rewards_PG.float()
    if not bool(rewards_PG.isfinite().all()):
        raise ValueError("rewards must be finite")
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if scale_by_std:
        centred_PG = centred_PG / (rewards_PG.std(dim=1, keepdim=True, correction=0) + eps)
    same_P1 = rewards_PG.amax(dim=1, keepdim=True) == rewards_PG.amin(dim=1, keepdim=True)
    return centred_PG.masked_fill(same_P1, 0.0)


def assign_advantages(groups: Sequence[Group], *, scale_by_std: bool = True) -> None:
    """Set each graded group's advantages: those of its rewards, times its multiplier, and 0 for masked responses.

    Groups are of one size.

    Raises:
        ValueError: as `group_advantages`, or a response that has not been graded.
    """
    import torch  # here, so that the configuration can read the names of the losses without it

    if not groups:
        return
    rewards_PG = torch.tensor([group.rewards for group in groups], dtype=torch.float64)
    for group, row in zip(groups, group_advantages(rewards_PG, scale_by_std).tolist(), strict=True):
        group.advantages = [
            0.0 if response.treatment == "mask" else group.multiplier * advantage
            for response, advantage in zip(group.responses, row, strict=True)
        ]
