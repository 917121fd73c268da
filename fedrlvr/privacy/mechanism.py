"""The Gaussian mechanism on a client's change of its adapter: clip the whole, then add noise.

    change = adapter - start                      over all factors that are sent, end to end
    sent   = start + change min(1, C / ||change||) + C z n,        n standard normal

C is the clip and z the noise multiplier. The norm is that of all factors together; a norm for each layer would have the
sensitivity of all layers. What cannot be clipped, since it is not finite, is replaced by no change.

Normal numbers come from the operating system's generator, by the method of Box and Muller in float64, and each is half
the sum of four: from the bits of a single one much of its origin can be computed back (Holohan and Braghin, arXiv
2107.10138). A seeded generator would not do: whoever knows some changes, such as those of frozen factors, sees its
numbers, and could compute the rest. Numbers are rounded to float32 after the sum; that floating-point numbers are no
real ones (Mironov, 2012) is not made up for otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedrlvr.adapter import Adapter, Halves

Normal = Callable[[int], Tensor]
"""Gives so many standard normal numbers, float64 [n]."""
_SUMMED = 4
_AT_ONCE = 1 << 20
"""Numbers drawn at once, which bounds the memory."""


def system_normal(count: int) -> Tensor:
    """Standard normal numbers from the operating system's secure generator, float64 [count]."""
    parts = [_half_sums(min(_AT_ONCE, count - start)) for start in range(0, count, _AT_ONCE)]
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, dtype=torch.float64)


def _half_sums(count: int) -> np.ndarray:
    pairs = -(-count * _SUMMED // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), dtype="<u8").reshape(2, pairs) >> np.uint64(11)
    radius = np.sqrt(-2.0 * np.log((bits[0] + 1.0) * 2.0**-53))  # of a number above 0 and up to 1
    angle = bits[1] * (2.0**-53 * 2.0 * math.pi)
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[: count * _SUMMED].reshape(_SUMMED, count).sum(axis=0) / math.sqrt(_SUMMED)


def clipped_change(change: Tensor, clip: float) -> Tensor:
    """A change, float64 [n], of at most the norm `clip`; zeros in place of one that is not finite."""
    norm = float(change.norm())
    if not math.isfinite(norm):
        return torch.zeros_like(change)
    return change * min(1.0, clip / norm) if norm else change


def noised(
    adapter: Adapter, start: Adapter, *, clip: float, noise: float, halves: Halves, normal: Normal = system_normal
) -> Adapter:
    """The adapter as it may leave: `start` with the clipped change and noise in the halves that are sent.

    adapter, start: of one layout. noise: standard deviation as a multiple of the clip.
    """
    ends, starts = dict(adapter.tensors()), dict(start.tensors())
    sent = [name for name in starts if name.rpartition(".")[2] in halves]
    change = torch.cat([(ends[name].double() - starts[name].double()).flatten() for name in sent])
    change = clipped_change(change, clip) + clip * noise * normal(change.numel())
    parts = torch.split(change, [starts[name].numel() for name in sent])
    moved = {
        name: (starts[name].double() + part.view(starts[name].shape)).to(starts[name].dtype)
        for name, part in zip(sent, parts, strict=True)
    }
    return Adapter.from_tensors({**starts, **moved}, start.alpha)
