"""Reinforcement learning, pure: advantages, losses, typed samples. Tensors and plain values in, values out.

Shape suffixes used throughout: P problems, G responses of a group, B responses of a batch, T response tokens.
"""

from fedrlvr.rl.advantage import assign_advantages, group_advantages
from fedrlvr.rl.loss import LOSSES, k3, normaliser, policy_loss, ratio_sums, response_losses
from fedrlvr.rl.samples import CORRECT, Group, Origin, Response, is_correct, verified, withhold_unfinished

__all__ = [
    "CORRECT",
    "LOSSES",
    "Group",
    "Origin",
    "Response",
    "assign_advantages",
    "group_advantages",
    "is_correct",
    "k3",
    "normaliser",
    "policy_loss",
    "ratio_sums",
    "response_losses",
    "verified",
    "withhold_unfinished",
]
