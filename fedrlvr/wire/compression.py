"""Compression of a client's change below float32: rounding with error feedback.

    x = adapter - start + lost        sent = round(x)        lost' = x - sent        the server's: start + sent

What rounding loses of one round's change is added to the next one's (1-bit SGD, Seide et al. 2014; EF-SGD, arXiv
1901.09847), so nothing is lost for good: over any number of rounds what was sent is what there was to send, but for
the last `lost`. That stays with the client. The change is rounded and not the adapter, because it is the smaller.

float16: 2 bytes a number. int8: 1 byte a number and one float32 scale s per layer, half and rank component, which is
a row of A [r, k] or a column of B [d, r] and so serves k or d numbers. The two forms are our reading: the papers leave
open what rounds.

    s = max |row| / 127        q = round(x / s), from -127 to 127        sent = q s        |x - sent| <= s / 2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors, Halves
from fedrlvr.errors import AdapterError
from fedrlvr.wire.messages import adapter_to_arrays, arrays_to_adapter, by_half, decoded

Rounded = Literal["float16", "int8"]

LARGEST: Mapping[Rounded, float] = {"float16": 65504.0, "int8": 1e38}
"""The largest change of one number that can be sent: for float16 its own, for int8 well within its scales' float32."""
STEPS = 127


def pack(
    adapter: Adapter, start: Adapter, lost: ArrayRecord | None, precision: Rounded, halves: Halves = "AB"
) -> tuple[ArrayRecord, ArrayRecord]:
    """Round a client's change; returns the message's arrays, and the rounding error to keep for the next call.

    start: the adapter the client's round began with, as the server has it. lost: None before the first time.
    halves: what travels; what was lost of the other half earlier stays lost, to be made up for when that half travels.

    Raises:
        AdapterError: adapters of different layouts, values that are not finite, a change too large for the precision,
            or a `lost` of another layout.
    """
    adapter.check_like(start, place="the adapter to be sent")
    ends, starts = dict(adapter.tensors()), dict(start.tensors())
    left = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in starts.items()}
    if lost is not None:
        left = dict(arrays_to_adapter(lost, start, place="what rounding lost of earlier changes").tensors())
    sent: dict[str, Array] = {}
    for half, factors in by_half(start, halves):
        numbers: list[Tensor] = []
        scales: list[Tensor] = []
        for name, _ in factors:
            change = ends[name].float() - starts[name].float() + left[name]
            largest = float(change.abs().max())
            if not largest <= LARGEST[precision]:
                raise AdapterError(
                    f"{name} changed by {largest:g}, and {precision} can carry {LARGEST[precision]:g}. Set "
                    "aggregation.precision = 'float32', or a lower train.learning_rate."
                )
            if precision == "float16":
                rounded = change.half()
                left[name] = change - rounded.float()
            else:
                rounded, scale = _to_int8(change, _along(half))
                left[name] = change - rounded.float() * scale
                scales.append(scale.flatten())
            numbers.append(rounded.flatten())
        for kind, parts in zip(_kinds(precision), (numbers, scales), strict=False):
            sent[f"{half}.{kind}.{start.layout}"] = Array(torch.cat(parts).numpy())
    kept = start.alike({name: Factors(left[f"{name}.A"], left[f"{name}.B"]) for name in start.layers})
    return ArrayRecord(sent), adapter_to_arrays(kept)


def unpack(arrays: ArrayRecord, start: Adapter, *, precision: Rounded, halves: Halves = "AB", place: str) -> Adapter:
    """The adapter a client ended with, as far as it travelled: `start` plus the change in a record.

    Raises:
        AdapterError: other names, types or sizes than `pack` makes, bytes that are no array, scales that are negative,
            or values that are not finite.
    """
    if list(arrays) != [f"{half}.{kind}.{start.layout}" for half in halves for kind in _kinds(precision)]:
        raise AdapterError(
            f"{place}: it is no change of this run's adapters in {precision} (names, order or shapes differ). Its "
            "organisation uses another model, other lora settings or another version of fedrlvr or transformers."
        )
    tensors = dict(start.tensors())
    for half, factors in by_half(start, halves):
        likes = [tensor for _, tensor in factors]
        numbers, *more = (arrays[f"{half}.{kind}.{start.layout}"] for kind in _kinds(precision))
        if precision == "float16":
            changes = _read(numbers, likes, np.float16, what=f"{place}: its {half} factors")
        else:
            steps = _read(numbers, likes, np.int8, what=f"{place}: its {half} factors")
            rows = [tensor.narrow(_along(half), 0, 1) for tensor in likes]
            scales = _read(more[0], rows, np.float32, what=f"{place}: its {half} scales")
            if not all(bool(((scale >= 0) & scale.isfinite()).all()) for scale in scales):
                raise AdapterError(
                    f"{place}: its {half} scales are not all finite and zero or more: its code is broken."
                )
            changes = [step * scale for step, scale in zip(steps, scales, strict=True)]
        for (name, tensor), change in zip(factors, changes, strict=True):
            tensors[name] = tensor.float() + change
            if not bool(torch.isfinite(tensors[name]).all()):
                raise AdapterError(f"{place}: {name} holds values that are not finite.")
    return start.alike({name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in start.layers})


def _kinds(precision: Rounded) -> tuple[str, ...]:
    """The arrays of a half."""
    return ("float16",) if precision == "float16" else ("int8", "scales")


def _read(array: Array, likes: list[Tensor], of: type[np.number[Any]], *, what: str) -> list[Tensor]:
    """An array's numbers in the shapes of `likes`."""
    counts = [like.numel() for like in likes]
    flat = torch.from_numpy(decoded(array, sum(counts), (of,), what=what).astype(np.float32, copy=False))
    return [part.view(like.shape) for part, like in zip(torch.split(flat, counts), likes, strict=True)]


def _along(half: str) -> int:
    """The dimension of a factor along which one scale serves: a rank component is a row of A and a column of B."""
    return 1 if half == "A" else 0


def _to_int8(change: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Whole numbers of the change's shape and their scales, of size 1 along one dimension."""
    scale = change.abs().amax(dim=along, keepdim=True) / STEPS
    # A row of zeros has scale 0; so has one of numbers so small that their scale is none any more.
    steps = torch.where(scale > 0, change / scale, 0.0).round().clamp(-STEPS, STEPS)
    return steps.to(torch.int8), scale
