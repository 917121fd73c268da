"""A LoRA rule aggregates the clients' adapters into one. `RULES` is the table of all rules by name.

To add a rule, with state or without: write one file with a subclass of `LoraAggregation`, and add one entry to `RULES`.
Configuration, server and clients ask the entry's properties, so nothing else names a rule.

This module needs no torch, so that a configuration is checked without it. An entry's file is imported when a run
starts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

if TYPE_CHECKING:
    from torch import Tensor

    from fedrlvr.adapter import Adapter, Halves

Pairs = Iterable[tuple["Adapter", float]]
"""Adapters with their weights, one client after another."""
Delta = Mapping[str, "Tensor"]
"""A change of an adapter, by the names of its factors (delta_space.py)."""
StepSpace = Literal["factors", "products"]
"""Space in which a server step scales the change: the factors A and B, or their products."""


@dataclass(frozen=True)
class Result:
    """The outcome of one aggregation: an adapter, a change of the base weights, or both.

    adapter: the next global adapter, at the result's rank; None: every client restarts from a fresh adapter.
    change: an update that is added to every client's base weights W0, as factors of scale 1 (alpha = rank); None: the
        base weights stay as they are.
    """

    adapter: Adapter | None
    change: Adapter | None = None


@dataclass(frozen=True)
class ServerUpdate:
    """The update U = of_mean D + of_memory V of the global model, D being the round's mean change (server_step.py).

    memory: V; None: zero.
    """

    of_mean: float
    of_memory: float = 0.0
    memory: Delta | None = None


class LoraAggregation(ABC):
    """The computation of a rule, and its state between rounds. One object serves one run."""

    @abstractmethod
    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """Aggregate (adapter, weight) pairs, which are taken one at a time and once.

        pairs: weights are not negative and of any sum above zero. Values are not checked: a caller that gets adapters
            from other parties checks them before (`Adapter.check_like`).
        rank: of the result where ranks are mixed; None: the largest given.
        before: the round's adapter at that rank.

        Raises:
            ValueError: no adapters, a weight that is negative or not finite, weights whose sum is zero or not finite,
                or adapters that the rule cannot aggregate.
        """

    def state(self) -> dict[str, Tensor]:
        """Tensors that the rule remembers between rounds, for the checkpoint. A rule without a state has none."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` gave, after a checkpoint is read.

        Raises:
            ValueError: a state of another rule.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but was given {', '.join(sorted(state))}")


class ProductAggregation(LoraAggregation):
    """Base of the rules whose entry has server_step = "products"."""

    @abstractmethod
    def stepped(self, pairs: Pairs, update: ServerUpdate, *, rank: int, before: Adapter) -> Result:
        """The round's model moved by `update`.

        before: the round's adapter, of this rank; a client of a lower rank began with the first of its components.

        Raises:
            ValueError: as `aggregate`.
        """


@dataclass(frozen=True)
class LoraRule:
    """The properties of one LoRA rule, for configuration, server and clients.

    name: the rule's name in a configuration.
    implementation: the subclass of `LoraAggregation`, as "module.Class" within `fedrlvr.aggregation`.
    turns: the halves of the adapter that clients train and send in rounds 1, 2, ...; after the last the first follows.
    is_linear: the result is a linear sum of the adapters, so that a secure sum can compute it and a robust mean replace
        it.
    mixes_ranks: the rule takes adapters of different ranks.
    changes_base: the rule adds an update to the base weights of every client.
    restarts: every round begins with a fresh adapter, drawn from the run's seed.
    server_step: what a server step scales the mean change of (server_step.py); None: the rule has none. With "factors"
        the rule's result is the weighted mean of the factors; with "products" it is a `ProductAggregation`.
    new_components: an adapter's components after a round are not those before it, so that optimizer moments and
        rounding errors of the old components do not apply to the new ones.
    """

    name: str
    implementation: str
    turns: tuple[Halves, ...] = ("AB",)
    is_linear: bool = False
    mixes_ranks: bool = False
    changes_base: bool = False
    restarts: bool = False
    new_components: bool = False
    server_step: StepSpace | None = None

    def trains(self, round_: int) -> Halves:
        """The half of the adapter that clients train and send in a round; rounds count from 1."""
        return self.turns[(round_ - 1) % len(self.turns)]

    @property
    def freezes_a(self) -> bool:
        """Whether A is never trained: each client draws it from the run's seed, and it never travels."""
        return all(halves == "B" for halves in self.turns)

    @property
    def alternates(self) -> bool:
        """Whether the trained half changes from round to round."""
        return len(set(self.turns)) > 1

    @property
    def sends_whole_adapter(self) -> bool:
        """Whether every round begins with the adapter that the last one made, sent whole, on the original base."""
        return not (self.freezes_a or self.alternates or self.restarts or self.changes_base)

    def aggregation(self) -> LoraAggregation:
        """A new aggregation by this rule, for one run."""
        module, name = self.implementation.rsplit(".", 1)
        return cast("LoraAggregation", getattr(import_module(f"fedrlvr.aggregation.{module}"), name)())


RULES: dict[str, LoraRule] = {
    rule.name: rule
    for rule in (
        LoraRule("fedit", "averaging.FedIT", is_linear=True, server_step="factors"),
        LoraRule("ffa", "averaging.FFALoRA", turns=("B",), is_linear=True, server_step="factors"),
        # B first: it is zero at the start, so that A would have no gradient.
        LoraRule("rolora", "averaging.RoLoRA", turns=("B", "A"), is_linear=True, server_step="factors"),
        LoraRule("flora", "flora.FLoRA", mixes_ranks=True, changes_base=True, restarts=True, new_components=True),
        LoraRule("fedex", "fedex.FedExLoRA", changes_base=True, server_step="products"),
        LoraRule("hetlora", "hetlora.HetLoRA", mixes_ranks=True),
        LoraRule("flexlora", "flexlora.FlexLoRA", mixes_ranks=True, new_components=True, server_step="products"),
    )
}


def lora_rule(name: str) -> LoraRule:
    """Look up a LoRA rule by its name.

    Raises:
        ValueError: there is none; the text names all.
    """
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}; known: {', '.join(RULES)}")
    return RULES[name]


class Shape(NamedTuple):
    """Alpha and each layer's name, d and k, which adapters of different ranks have in common."""

    alpha: float
    layers: tuple[tuple[str, int, int], ...]


def shape(adapter: Adapter) -> Shape:
    """An adapter's shape apart from its rank.

    Raises:
        ValueError: no layers, or factors that are not of one rank.
    """
    if not adapter.layers:
        raise ValueError("an adapter without layers")
    for name, (a, b) in adapter.layers.items():
        if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == adapter.rank:
            raise ValueError(f"layer {name}: its factors are not matrices of the adapter's rank")
    return Shape(
        adapter.alpha, tuple((name, int(b.shape[0]), int(a.shape[1])) for name, (a, b) in adapter.layers.items())
    )


def checked(
    pairs: Pairs, *, rule: str, mixed_ranks: bool = False, mixed_alphas: bool = False
) -> Iterator[tuple[Adapter, float]]:
    """Check (adapter, weight) pairs one at a time and pass them on; only the first adapter's shape is kept in memory.

    Raises:
        ValueError: no adapters, a weight that is negative or not finite, weights whose sum is zero or not finite, or
            adapters that differ in what `rule` (its name, for the message) needs alike.
    """
    first: Shape | None = None
    rank = 0
    total = 0.0
    for adapter, weight in pairs:
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights must be finite and not negative, got {weight}")
        layout = shape(adapter)
        if first is None:
            first, rank = layout, adapter.rank
        if layout.layers != first.layers:
            raise ValueError(f"{rule} takes adapters of one set of layers and shapes only")
        if layout.alpha != first.alpha and not mixed_alphas:
            raise ValueError(f"{rule} takes adapters of one alpha only, got {first.alpha:g} and {layout.alpha:g}")
        if adapter.rank != rank and not mixed_ranks:
            raise ValueError(f"{rule} cannot mix ranks, got {rank} and {adapter.rank}")
        total += weight
        yield adapter, weight
    if not 0 < total < math.inf:
        raise ValueError("there is nothing to average: no adapters, or their weights sum to zero or to no number")


def check_before(before: Adapter, like: Shape, rank: int) -> None:
    """Check the round's adapter, whose components fill up a result of `rank`.

    Raises:
        ValueError: other layers, shapes or alpha, or another rank.
    """
    if shape(before) != like or before.rank != rank:
        raise ValueError(f"`before` must have the layers and alpha of the others, and the result's rank {rank}")
