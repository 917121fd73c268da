"""The weighted mean of factors, summed as they come: what FedIT, FFA-LoRA, RoLoRA and FedEx-LoRA have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.pairs import Pairs, checked

PIECE = 1 << 20
"""Numbers that are summed at a time, or as many as one factor has."""


def mean(pairs: Pairs, *, rule: str, frozen: tuple[int, ...] = ()) -> Adapter:
    """The mean of each factor, summed in float64 and returned in the first one's type. One sum is held, no adapters.

    frozen: 0 for A, 1 for B; if not empty, one of these must be the same for all, to the bit. It comes back to the
        bit from float32 and narrower types, and the first adapter's is held to compare with.

    Raises:
        ValueError: what `checked` refuses, or adapters that share none of `frozen`.
    """
    sums: Tensor | None = None
    outline: Adapter | None = None
    total = 0.0
    shared: dict[int, list[Tensor]] = {}
    for adapter, weight in checked(pairs, rule=rule):
        if outline is None:
            outline = _outline(adapter)
            shared = {half: [factors[half] for factors in adapter.layers.values()] for half in frozen}
        shared = {half: kept for half, kept in shared.items() if _same(adapter, half, kept)}
        if frozen and not shared:
            halves = " and ".join("AB"[half] + "s" for half in frozen)
            raise ValueError(f"{rule} needs a factor that is the same for all, but the {halves} differ")
        if weight == 0:
            continue
        if sums is None:
            sums = torch.zeros(sum(tensor.numel() for _, tensor in adapter.tensors()), dtype=torch.float64)
        at = 0
        for piece in _pieces(adapter):
            sums[at : at + len(piece)].add_(piece, alpha=weight)
            at += len(piece)
        total += weight
    assert outline is not None
    assert sums is not None
    likes = [tensor for _, tensor in outline.tensors()]
    parts = torch.split(sums.div_(total), [like.numel() for like in likes])
    means = iter([part.view(like.shape).to(like.dtype) for part, like in zip(parts, likes, strict=True)])
    return outline.alike({name: Factors(next(means), next(means)) for name in outline.layers})


def _pieces(adapter: Adapter) -> Iterator[Tensor]:
    """The adapter's numbers end to end, in pieces: few sums cost less than hundreds of small ones, and a sum's types
    are made alike in a copy, which is not to be of everything."""
    tensors: list[Tensor] = []
    size = 0
    for _, tensor in adapter.tensors():
        tensors.append(tensor.flatten())
        size += tensor.numel()
        if size >= PIECE:
            yield torch.cat(tensors)
            tensors, size = [], 0
    if tensors:
        yield torch.cat(tensors)


def _outline(adapter: Adapter) -> Adapter:
    """Names, shapes and types without values, so that the values can go."""
    return adapter.alike({name: Factors(a.to("meta"), b.to("meta")) for name, (a, b) in adapter.layers.items()})


def _same(adapter: Adapter, half: int, kept: list[Tensor]) -> bool:
    return all(torch.equal(factors[half], one) for factors, one in zip(adapter.layers.values(), kept, strict=True))
