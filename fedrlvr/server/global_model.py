"""What the server has made of all rounds, and how much of it has to travel to whom.

    adapter   the global one, at the largest client's rank
    change    what has been added to everybody's base weights (rules that change it), and last: its newest part

Most rules send the whole adapter with every message, and clients need to remember nothing. FFA-LoRA's A and FLoRA's
new adapters are drawn from the run's seed by whoever needs them. A change of the base, and the half of the adapter
that a RoLoRA round leaves as it was, are remembered by the clients: one that is known to be up to date is sent only
what is new, anybody else all of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord

from fedrlvr.adapter import Adapter, Halves, fresh
from fedrlvr.aggregation import LoraRule, Result
from fedrlvr.aggregation.stacking import add
from fedrlvr.seeds import stream
from fedrlvr.wire.messages import ChangeKind, Coming, adapter_to_arrays


class GlobalModel:
    """The server's side of everybody's model, between rounds.

    adapter: of the largest rank. version: the round it was made in; 0 is before the first. seed: the run's.
    change, last: adapters of scale 1. held: by client the version it is known to remember.
    """

    def __init__(
        self,
        rule: LoraRule,
        adapter: Adapter,
        seed: int,
        *,
        version: int = 0,
        change: Adapter | None = None,
        last: Adapter | None = None,
        held: Mapping[str, int] | None = None,
    ) -> None:
        self.rule = rule
        self.adapter = adapter
        self.seed = seed
        self.version = version
        self.change = change
        self.last = last
        self.held = dict(held or {})
        self._encoded: dict[tuple[int, str], ArrayRecord] = {}

    @property
    def remembered(self) -> bool:
        """Whether clients remember anything of the global model."""
        return self.rule.changes_base or self.rule.alternates

    @property
    def halves(self) -> Halves:
        """What of the adapter this rule's strategy hooks are given."""
        return "B" if self.rule.freezes_a else "AB"

    def start_of(self, rank: int) -> Adapter:
        """The adapter a client of this rank begins with."""
        return self.adapter.at_rank(rank)

    def bring(
        self, client: str, rank: int, arrays: ArrayRecord
    ) -> tuple[Coming, ArrayRecord | None, ArrayRecord | None]:
        """What a message that begins something brings this client: notes, adapter and change.

        arrays: the adapter as the strategy's hooks were given it, sent where it is what this client needs.
        """
        halves, seeded = self._halves_for(client)
        kind, sent = self._change_for(client)
        coming = Coming(
            version=self.version,
            since=self.held.get(client),
            halves=halves,
            seeded=seeded,
            change=kind,
            change_rank=sent.rank if sent else 0,
            remember="adapter" if self.rule.alternates else "change" if self.rule.changes_base else "nothing",
        )
        record = None
        if halves == self.halves and rank == self.adapter.rank:
            record = arrays
        elif halves:
            record = self._encode(rank, halves)
        return coming, record, adapter_to_arrays(sent) if sent else None

    def _halves_for(self, client: str) -> tuple[Halves | None, int | None]:
        """The halves that travel, and the version of the seeded adapter that stands in for others."""
        if self.rule.freezes_a:
            return "B", 0
        if self.rule.restarts:
            return None, self.version
        if self.rule.alternates and client in self.held:
            if self.held[client] == self.version:
                return None, None
            if self.held[client] == self.version - 1:
                return self.rule.trains(self.version), None
        return "AB", None

    def _change_for(self, client: str) -> tuple[ChangeKind, Adapter | None]:
        """What the client is to do about the change of the base, and what of it travels."""
        if self.change is None:
            return "none", None
        held = self.held.get(client)
        if held == self.version or (held == self.version - 1 and self.last is None):
            return "held", None
        return ("next", self.last) if held == self.version - 1 else ("whole", self.change)

    def _encode(self, rank: int, halves: Halves) -> ArrayRecord:
        key = rank, halves
        if key not in self._encoded:
            self._encoded[key] = adapter_to_arrays(self.adapter.at_rank(rank), halves)
        return ArrayRecord(dict(self._encoded[key]))

    def whole(self) -> Adapter:
        """The model as one adapter on the original base: its rank grows with what was added to the base weights."""
        if self.change is None:
            return self.adapter
        if self.rule.restarts:  # whose adapter has just been begun, and adds nothing
            return self.change
        total = add(self.adapter, self.change)
        assert total is not None
        return total

    def answered(self, client: str) -> None:
        """The client has answered a message that brought it this version, so it remembers it."""
        if self.remembered:
            self.held[client] = self.version

    def lost(self, client: str) -> None:
        """The client did not answer as it should: nothing is known of what it remembers."""
        self.held.pop(client, None)

    def replace(self, adapter: Adapter) -> None:
        """Take this adapter in place of the one just made."""
        self.adapter = adapter
        self._encoded.clear()

    def advance(self, result: Result, round_: int) -> None:
        """Take what a round's aggregation has made."""
        rank, alpha = self.adapter.rank, self.adapter.alpha
        self.version = round_
        self.adapter = result.adapter or fresh(
            self.adapter.shapes, rank=rank, alpha=alpha, seed=stream(self.seed, "adapter", round_)
        )
        self.last = result.change
        self.change = add(self.change, result.change)
        self._encoded.clear()
