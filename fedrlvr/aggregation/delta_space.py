"""The change of an adapter in a round, as the server's step measures and adds it, in one of two spaces.

`factors`    the numbers of A and B, each by itself
`products`   the weights s B A, held in factors that are never multiplied out:
             B_k A_k - B A = [B_k - B, B] [A_k; A_k - A], which loses no digits where the two are close

A change is a mapping of tensors by the factor's name (`Delta`); in `products` a layer's two factors are of scale 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedrlvr.aggregation.lora_rule import Delta, StepSpace

if TYPE_CHECKING:
    from torch import Tensor

    from fedrlvr.adapter import Adapter, Halves

# torch is imported where something is computed, so that a configuration is checked without it.


class Space(ABC):
    """Representation of a change of the model, with the operations that a server step needs."""

    @abstractmethod
    def change(self, adapter: Adapter, start: Adapter, halves: Halves) -> Delta:
        """`adapter` minus `start` in float64. halves: what trained in the round."""

    @abstractmethod
    def gram(self, changes: Sequence[Delta]) -> Tensor:
        """[n, n]: the inner products of n changes, in float64."""

    @abstractmethod
    def total(self, terms: Sequence[tuple[Delta, float]]) -> Delta:
        """The weighted sum of at least one change, with the names and order of the first."""


class FactorSpace(Space):
    """Changes of the factors A and B."""

    def change(self, adapter: Adapter, start: Adapter, halves: Halves) -> Delta:
        """Change of the factors in the trained halves alone."""
        pairs = zip(adapter.tensors(), start.tensors(), strict=True)
        return {name: new.double() - old.double() for (name, new), (_, old) in pairs if name[-1] in halves}

    def gram(self, changes: Sequence[Delta]) -> Tensor:
        """Inner products of changes of the factors, [n, n] in float64."""
        import torch

        products = torch.zeros(len(changes), len(changes), dtype=torch.float64)
        for name in changes[0]:
            rows = torch.stack([change[name].flatten().double() for change in changes])
            products += rows @ rows.T
        return products

    def total(self, terms: Sequence[tuple[Delta, float]]) -> Delta:
        """Weighted sum of changes of the factors, in float64."""
        total = {name: tensor.double() * terms[0][1] for name, tensor in terms[0][0].items()}
        for change, weight in terms[1:]:
            for name, tensor in total.items():
                tensor.add_(change[name].double(), alpha=weight)
        return total


class ProductSpace(Space):
    """Changes of the weights s B A."""

    def change(self, adapter: Adapter, start: Adapter, halves: Halves) -> Delta:
        """Change of the products B A, as factors of twice the adapter's rank."""
        import torch

        factors: dict[str, Tensor] = {}
        for name, (a, b) in adapter.layers.items():
            old_a, old_b = start.layers[name].A.double(), start.layers[name].B.double()
            factors[f"{name}.A"] = torch.cat([a.double(), a.double() - old_a])
            factors[f"{name}.B"] = torch.cat([b.double() - old_b, old_b], dim=1) * adapter.scale
        return factors

    def gram(self, changes: Sequence[Delta]) -> Tensor:
        """Inner products of changes of the products: <B1 A1, B2 A2> is the sum of (B1^T B2) * (A1 A2^T)."""
        import torch

        products = torch.zeros(len(changes), len(changes), dtype=torch.float64)
        for name in (name for name in changes[0] if name.endswith(".A")):
            a_s = torch.cat([change[name].double() for change in changes])
            b_s = torch.cat([change[f"{name[:-1]}B"].double() for change in changes], dim=1)
            ranks = torch.tensor([len(change[name]) for change in changes])
            owner = torch.eye(len(changes), dtype=torch.float64).repeat_interleave(ranks, dim=0)
            products += owner.T @ ((b_s.T @ b_s) * (a_s @ a_s.T)) @ owner
        return products

    def total(self, terms: Sequence[tuple[Delta, float]]) -> Delta:
        """Weighted sum of changes of the products, in float32, of a rank that is at most the largest min(d, k)."""
        from fedrlvr.aggregation.stacking import compact, of_delta, stack

        return dict(compact(stack((of_delta(change), weight) for change, weight in terms)).tensors())


SPACES: dict[StepSpace, type[Space]] = {"factors": FactorSpace, "products": ProductSpace}
