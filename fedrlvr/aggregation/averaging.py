"""The rules that are a weighted mean of the factors: FedIT, FFA-LoRA and RoLoRA. p_k = w_k / sum_j w_j.

FedIT (arXiv 2305.05644) averages A and B separately.

    A = sum_k p_k A_k            B = sum_k p_k B_k

    Inexact: the mean of products sum_k p_k B_k A_k is not the product of means unless all clients share a factor.
    r (d + k) numbers up and down per client and layer.

FFA-LoRA (arXiv 2403.12313) freezes A, which is the same for all clients, and averages B.

    A = A_1 = ... = A_K          B = sum_k p_k B_k

    Exact, since sum_k p_k B_k A = B A. The price is half of the trained numbers: the update's rows stay in the span of
    the A that was drawn at the start. r d numbers up and down, as every client draws A itself. Noise that is added to
    B_k stays noise in the update.

RoLoRA (arXiv 2502.01755) freezes one factor in each round, in turns, and averages the other.

    rounds 1, 3, 5 ...    A = A_1 = ... = A_K        B = sum_k p_k B_k
    rounds 2, 4, 6 ...    A = sum_k p_k A_k          B = B_1 = ... = B_K

    Exact in each round, since one factor can be taken out of sum_k p_k B_k A_k. r d or r k numbers up and down, about
    half of FedIT's. Our reading: B goes first.

All three take one pass and hold one running sum, so memory does not grow with the number of clients. They are linear in
the adapters, so secure aggregation can compute them. Ranks cannot be mixed. Known, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.lora_rule import LoraAggregation, Pairs, Result, checked

PIECE = 1 << 20
"""Numbers that are summed at a time, or as many as one factor has."""


class FedIT(LoraAggregation):
    """The weighted mean of each factor, summed in float64 and returned in the first adapter's type."""

    title = "FedIT"
    frozen: tuple[int, ...] = ()
    """Factors (0: A, 1: B) of which one has to be the same for all clients; which one is seen from the adapters."""

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """Average the factors A and B, each by the client weights.

        Raises:
            ValueError: as `LoraAggregation.aggregate`, for adapters of different layers, shapes, ranks or alpha, or
                without the factor that all clients have to share.
        """
        return Result(mean(pairs, rule=self.title, frozen=self.frozen))


class FFALoRA(FedIT):
    """The shared A, and the weighted mean of B."""

    title = "FFA-LoRA"
    frozen = (0,)


class RoLoRA(FedIT):
    """The shared factor, and the weighted mean of the other."""

    title = "RoLoRA"
    frozen = (0, 1)


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
    return outline.filled(sums.div_(total))


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
    pairs = zip(adapter.layers.values(), kept, strict=True)
    return all(torch.equal(factors[half], tensor) for factors, tensor in pairs)
