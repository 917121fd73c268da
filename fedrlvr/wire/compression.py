"""Compression of adapters below float32: a client's change with error feedback, and the server's adapter.

Up, a client rounds its change (`pack`, `unpack`):

    x = adapter - start + lost        sent = round(x)        lost' = x - sent        the server's: start + sent

What rounding loses of one round's change is added to the next one's (1-bit SGD, Seide et al. 2014; EF-SGD, arXiv
1901.09847), so nothing is lost for good: over any number of rounds what was sent is what there was to send, but for
the last `lost`. That stays with the client. The change is rounded and not the adapter, because it is the smaller.

Down, the server rounds its adapter G (`lowered`, `received`), and keeps G itself in float32:

    start = round(G)        G <- G + aggregate of (adapter - start)

Changes smaller than a step of rounding so add up in G, and nothing has to be remembered (our reading; the reverse of
what is sent up, because a client that was away has no earlier adapter to add a change to).

float16, bfloat16: 2 bytes a number. int8: 1 byte a number and one float32 scale s per layer, half and rank component,
which is a row of A [r, k] or a column of B [d, r] and so serves k or d numbers. The forms are our reading: the papers
leave open what rounds.

    s = max |row| / 127        q = round(x / s), from -127 to 127        sent = q s        |x - sent| <= s / 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors, Half, Halves
from fedrlvr.errors import AdapterError
from fedrlvr.wire.messages import adapter_to_arrays, arrays_to_adapter, by_half, decoded

Rounded = Literal["float16", "int8"]
"""Number formats of a client's change."""
Lowered = Literal["bfloat16", "int8"]
"""Number formats of an adapter that the server sends."""
Form = Literal["float16", "bfloat16", "int8"]

LARGEST: Mapping[Rounded, float] = {"float16": 65504.0, "int8": 1e38}
"""The largest change of one number that can be sent: for float16 its own, for int8 well within its scales' float32."""
STEPS = 127


def pack(
    adapter: Adapter, start: Adapter, lost: ArrayRecord | None, precision: Rounded, halves: Halves = "AB"
) -> tuple[ArrayRecord, ArrayRecord]:
    """Round a client's change; returns the message's arrays, and the rounding error to keep for the next call.

    start: the adapter the client's round began with, as the server sent it. lost: None before the first time.
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
        for name, _ in factors:
            left[name] = ends[name].float() - starts[name].float() + left[name]
            largest = float(left[name].abs().max())
            if not largest <= LARGEST[precision]:
                raise AdapterError(
                    f"{name} changed by {largest:g}, and {precision} can carry {LARGEST[precision]:g}. Set "
                    "aggregation.precision = 'float32', or a lower train.learning_rate."
                )
        arrays, values = _encoded([left[name] for name, _ in factors], half, precision)
        sent |= {f"{half}.{kind}.{start.layout}": array for kind, array in arrays.items()}
        for (name, _), value in zip(factors, values, strict=True):
            left[name] = left[name] - value
    kept = start.alike({name: Factors(left[f"{name}.A"], left[f"{name}.B"]) for name in start.layers})
    return ArrayRecord(sent), adapter_to_arrays(kept)


def unpack(arrays: ArrayRecord, start: Adapter, *, precision: Rounded, halves: Halves = "AB", place: str) -> Adapter:
    """`start` plus the change in a record, as far as it travelled.

    start: the server's adapter of the round; the client has changed what it received of it.

    Raises:
        AdapterError: other names, types or sizes than `pack` makes, bytes that are no array, scales that are negative,
            or values that are not finite.
    """
    if list(arrays) != _names(start, halves, precision):
        raise AdapterError(
            f"{place}: it is no change of this run's adapters in {precision} (names, order or shapes differ). Its "
            "organisation uses another model, other lora settings or another version of fedrlvr or transformers."
        )
    tensors = dict(start.tensors())
    for half, factors in by_half(start, halves):
        changes = _decoded(arrays, [tensor for _, tensor in factors], half, precision, start.layout, place)
        for (name, tensor), change in zip(factors, changes, strict=True):
            tensors[name] = tensor.float() + change
            if not bool(torch.isfinite(tensors[name]).all()):
                raise AdapterError(f"{place}: {name} holds values that are not finite.")
    return start.alike({name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in start.layers})


def lowered(adapter: Adapter, precision: Lowered, halves: Halves = "AB") -> ArrayRecord:
    """The server's adapter, rounded, as the arrays of a message."""
    sent: dict[str, Array] = {}
    for half, factors in by_half(adapter, halves):
        arrays, _ = _encoded([tensor.float() for _, tensor in factors], half, precision)
        sent |= {f"{half}.{kind}.{adapter.layout}": array for kind, array in arrays.items()}
    return ArrayRecord(sent)


def received(arrays: ArrayRecord, like: Adapter, *, place: str, halves: Halves = "AB") -> Adapter:
    """The adapter that a server has sent, in whichever number format it came.

    like: gives layout and the half that does not travel.

    Raises:
        AdapterError: as `arrays_to_adapter`, and for scales that are negative or not finite.
    """
    forms: tuple[Lowered, ...] = ("bfloat16", "int8")
    form = next((form for form in forms if list(arrays) == _names(like, halves, form)), None)
    if form is None:
        return arrays_to_adapter(arrays, like, place=place, halves=halves)
    tensors = dict(like.tensors())
    for half, factors in by_half(like, halves):
        values = _decoded(arrays, [tensor for _, tensor in factors], half, form, like.layout, place)
        for (name, _), value in zip(factors, values, strict=True):
            if not bool(torch.isfinite(value).all()):
                raise AdapterError(f"{place}: {name} holds values that are not finite.")
            tensors[name] = value
    return like.alike({name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in like.layers})


def _names(adapter: Adapter, halves: Halves, form: Form) -> list[str]:
    """Names of the arrays of a message in this form, in order."""
    return [f"{half}.{kind}.{adapter.layout}" for half, _ in by_half(adapter, halves) for kind in _kinds(form)]


def _kinds(form: Form) -> tuple[str, ...]:
    """The arrays of a half."""
    return ("int8", "scales") if form == "int8" else (form,)


def _encoded(numbers: Sequence[Tensor], half: Half, form: Form) -> tuple[dict[str, Array], list[Tensor]]:
    """The arrays of a half by kind, and the numbers as their reader gets them."""
    if form == "int8":
        rounded = [_to_int8(tensor, _along(half)) for tensor in numbers]
        values = [steps.float() * scale for steps, scale in rounded]
        parts = [torch.cat([part.flatten() for part in of_kind]) for of_kind in zip(*rounded, strict=True)]
    else:
        short = [tensor.to(torch.float16 if form == "float16" else torch.bfloat16) for tensor in numbers]
        values = [tensor.float() for tensor in short]
        whole = torch.cat([tensor.flatten() for tensor in short])
        parts = [whole if form == "float16" else whole.view(torch.int16)]  # numpy has no bfloat16
    return {kind: Array(part.numpy()) for kind, part in zip(_kinds(form), parts, strict=True)}, values


def _decoded(
    arrays: ArrayRecord, likes: Sequence[Tensor], half: Half, form: Form, layout: str, place: str
) -> list[Tensor]:
    """The numbers of a half, float32, in the shapes of `likes`.

    Raises:
        AdapterError: other types or sizes, bytes that are no array, or scales that are no scales.
    """
    numbers, *more = (arrays[f"{half}.{kind}.{layout}"] for kind in _kinds(form))
    what = f"{place}: its {half} factors"
    if form == "float16":
        return _read(numbers, likes, np.float16, what=what)
    if form == "bfloat16":
        return _read(numbers, likes, np.int16, what=what)
    steps = _read(numbers, likes, np.int8, what=what)
    rows = [tensor.narrow(_along(half), 0, 1) for tensor in likes]
    scales = _read(more[0], rows, np.float32, what=f"{place}: its {half} scales")
    if not all(bool(((scale >= 0) & scale.isfinite()).all()) for scale in scales):
        raise AdapterError(f"{place}: its {half} scales are not all finite and zero or more: its code is broken.")
    return [step * scale for step, scale in zip(steps, scales, strict=True)]


def _read(array: Array, likes: Sequence[Tensor], of: type[np.number[Any]], *, what: str) -> list[Tensor]:
    """An array's numbers in the shapes of `likes`; int16 are the bits of bfloat16."""
    counts = [like.numel() for like in likes]
    values = decoded(array, sum(counts), (of,), what=what)
    if of is np.int16:
        flat = torch.from_numpy(values.copy()).view(torch.bfloat16).float()
    else:
        flat = torch.from_numpy(values.astype(np.float32, copy=False))
    return [part.view(like.shape) for part, like in zip(torch.split(flat, counts), likes, strict=True)]


def _along(half: Half) -> int:
    """The dimension of a factor along which one scale serves: a rank component is a row of A and a column of B."""
    return 1 if half == "A" else 0


def _to_int8(change: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Whole numbers of the change's shape and their scales, of size 1 along one dimension."""
    scale = change.abs().amax(dim=along, keepdim=True) / STEPS
    # A row of zeros has scale 0; so has one of numbers so small that their scale is none any more.
    steps = torch.where(scale > 0, change / scale, 0.0).round().clamp(-STEPS, STEPS)
    return steps.to(torch.int8), scale
