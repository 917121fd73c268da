"""The adapter: one client's LoRA factors. Plain tensors; what `policy` trains, `aggregation` averages, messages carry.

Shapes: A [r, k], B [d, r]; the layer's weight becomes W0 + (alpha / r) B A.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedrlvr.errors import AdapterError

Half = Literal["A", "B"]
Halves = Literal["AB", "A", "B"]
"""Factors of an adapter: both, or one of them."""


class Factors(NamedTuple):
    """One layer's factors: A [r, k] and B [d, r]."""

    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class Adapter:
    """LoRA factors by layer name, in the model's order, with the alpha they were trained with.

    layers: module path of each adapted linear layer in the base model -> its factors.
    alpha: the update's scale is alpha / rank.
    """

    layers: Mapping[str, Factors]
    alpha: float

    @property
    def rank(self) -> int:
        """The common rank r of all layers."""
        return int(next(iter(self.layers.values())).A.shape[0])

    @property
    def scale(self) -> float:
        """Factor of the product B A in the layer's weight: alpha / rank."""
        return self.alpha / self.rank

    def at_rank(self, rank: int) -> Adapter:
        """The same alpha with the first `rank` components only, or with zero ones added.

        B makes up for the change of scale, so what a component that stays adds to the layer's weight is unchanged.
        """
        if rank == self.rank:
            return self
        kept, more = min(rank, self.rank), max(rank - self.rank, 0)
        ratio = rank / self.rank
        return Adapter(
            {
                name: Factors(
                    torch.nn.functional.pad(a[:kept], (0, 0, 0, more)),
                    torch.nn.functional.pad(b[:, :kept] * ratio, (0, more)),
                )
                for name, (a, b) in self.layers.items()
            },
            self.alpha,
        )

    def with_alpha(self, alpha: float) -> Adapter:
        """The same update of the weights under another alpha; B makes up for the change of scale."""
        if alpha == self.alpha:
            return self
        ratio = self.alpha / alpha
        return Adapter({name: Factors(a, b * ratio) for name, (a, b) in self.layers.items()}, alpha)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Output and input size (d, k) of each layer."""
        return {name: (factors.B.shape[0], factors.A.shape[1]) for name, factors in self.layers.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every factor, named `<layer>.A` and `<layer>.B`."""
        for name, factors in self.layers.items():
            yield f"{name}.A", factors.A
            yield f"{name}.B", factors.B

    @cached_property
    def layout(self) -> str:
        """A digest of the factors' names, order and shapes: adapters of one layout can be averaged."""
        return _digest(tuple((name, tuple(tensor.shape)) for name, tensor in self.tensors()))

    def alike(self, layers: Mapping[str, Factors]) -> Adapter:
        """An adapter of these factors, whose names, order and shapes are known to be this one's."""
        other = Adapter(layers, self.alpha)
        other.__dict__["layout"] = self.layout  # a digest of names and shapes costs more than many an adapter's sum
        return other

    def flat(self) -> Tensor:
        """All numbers end to end, in float64."""
        return torch.cat([tensor.flatten() for _, tensor in self.tensors()]).double()

    def filled(self, numbers: Tensor) -> Adapter:
        """An adapter of this layout and these types with the given numbers, in the order of `flat`."""
        likes = [tensor for _, tensor in self.tensors()]
        parts = zip(torch.split(numbers, [like.numel() for like in likes]), likes, strict=True)
        tensors = iter([part.view(like.shape).to(like.dtype) for part, like in parts])
        return self.alike({name: Factors(next(tensors), next(tensors)) for name in self.layers})

    def distance(self, other: Adapter) -> float:
        """Euclidean distance of the factors from those of an adapter of the same layout."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for (_, a), (_, b) in pairs))

    def rebased(self, received: Adapter, start: Adapter) -> Adapter:
        """The adapter with its change from `received` put on top of `start`: start + (self - received)."""
        was, begins = dict(received.tensors()), dict(start.tensors())
        moved = {name: begins[name] + (tensor - was[name]) for name, tensor in self.tensors()}
        return self.alike({name: Factors(moved[f"{name}.A"], moved[f"{name}.B"]) for name in self.layers})

    @property
    def nbytes(self) -> int:
        """Bytes of all factors as they are held."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.tensors())

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], alpha: float) -> Adapter:
        """Build an adapter from the tensors that `tensors()` gave.

        Raises:
            AdapterError: a factor without its other half, or shapes that are no factors of one matrix.
        """
        layers: dict[str, Factors] = {}
        for name in tensors:
            layer, _, half = name.rpartition(".")
            if half not in ("A", "B") or f"{layer}.A" not in tensors or f"{layer}.B" not in tensors:
                raise AdapterError(f"{name!r} is not one of a pair of LoRA factors <layer>.A and <layer>.B.")
            if half == "A":
                layers[layer] = Factors(tensors[name], tensors[f"{layer}.B"])
        adapter = Adapter(layers, alpha)
        ranks = {factors.A.shape[:1] for factors in layers.values()} | {f.B.shape[1:] for f in layers.values()}
        if len(ranks) != 1 or any(f.A.dim() != 2 or f.B.dim() != 2 for f in layers.values()):
            raise AdapterError("The factors are not matrices of one common rank.")
        return adapter

    def check_like(self, other: Adapter, *, place: str) -> None:
        """Check a foreign adapter before anything is computed with it.

        Raises:
            AdapterError: other layers, another alpha, other shapes, or values that are not finite; `whose` is named.
        """
        if list(self.layers) != list(other.layers):
            strange = next(iter(set(self.layers) ^ set(other.layers)), "their order")
            raise AdapterError(
                f"{place}: its layers are not those of this run's adapters (first difference: {strange})."
            )
        if self.alpha != other.alpha:
            raise AdapterError(f"{place}: its alpha is {self.alpha:g}, but this run's lora.alpha is {other.alpha:g}.")
        for (name, tensor), (_, expected) in zip(self.tensors(), other.tensors(), strict=True):
            if tensor.shape != expected.shape:
                raise AdapterError(
                    f"{place}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(f"{place}: {name} holds values that are not finite.")


def fresh(shapes: Mapping[str, tuple[int, int]], *, rank: int, alpha: float, seed: int) -> Adapter:
    """A new adapter: A uniform in +-1/sqrt(k) as PEFT draws it, B zero, so that the model is unchanged.

    shapes: each layer's (d, k), in the model's order.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, (d, k) in shapes.items():
        bound = 1 / math.sqrt(k)
        a = torch.empty(rank, k).uniform_(-bound, bound, generator=generator)
        layers[name] = Factors(a, torch.zeros(d, rank))
    return Adapter(layers, alpha)


@lru_cache(maxsize=64)
def _digest(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    lines = "".join(f"{name} {shape}\n" for name, shape in shapes)
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()
