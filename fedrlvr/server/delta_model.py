"""The server's model for rules that save bytes or change the base weights (wire/model_delta.py): it decides which
tensors each client still needs.

change    the update that has been added to every client's base weights, of scale 1
last      its newest part
held      by client, the version that the client is known to remember
"""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord

from fedrlvr.adapter import Adapter, Halves, fresh
from fedrlvr.aggregation import LoraRule, Result
from fedrlvr.aggregation.stacking import add
from fedrlvr.seeds import stream
from fedrlvr.server.checkpoint import Checkpoint
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.wire.messages import ARRAYS, DELTA, adapter_to_arrays
from fedrlvr.wire.model_delta import CHANGE, Keep, ModelDelta


class DeltaModel(GlobalModel):
    """The global model, whose parts each client draws from the seed, remembers, or is sent."""

    def __init__(self, rule: LoraRule, adapter: Adapter, seed: int) -> None:
        super().__init__(rule, adapter, seed)
        self.halves = "B" if rule.freezes_a else "AB"
        self.keep: Keep = "adapter" if rule.alternates else "change" if rule.changes_base else "nothing"
        self.change: Adapter | None = None
        self.last: Adapter | None = None
        self.held: dict[str, int] = {}

    def begin_with(self, change: Adapter | None) -> None:
        """Send what clients cannot draw: both halves of the adapter, and the change."""
        self.halves, self.change = "AB", change

    def bring(self, client: str, rank: int, arrays: ArrayRecord) -> dict[str, ArrayRecord | ConfigRecord]:
        """Records of a message: the model delta, with the tensors of adapter and change that the client still needs."""
        rule, held = self.rule, self.held.get(client)
        behind = None if held is None or held < self.version - 1 else self.version - held
        halves: Halves | None = "AB"
        seeded, sent = None, self.change if behind is None else self.last if behind else None
        if rule.freezes_a:
            halves, seeded = self.halves, 0 if self.halves == "B" else None
        elif rule.restarts:
            halves, seeded = None, self.version
        elif rule.alternates and behind is not None:
            halves = rule.trains(self.version) if behind else None
        delta = ModelDelta(
            version=self.version,
            since=held if behind is not None and (rule.alternates or self.change) else None,
            halves=halves,
            seeded=seeded,
            change_rank=sent.rank if sent else 0,
            keep=self.keep,
        )
        records: dict[str, ArrayRecord | ConfigRecord] = {DELTA: delta.record()}
        if halves:
            records[ARRAYS] = self._encode(rank, halves, arrays)
        if sent:
            records[CHANGE] = adapter_to_arrays(sent)
        return records

    def whole(self) -> Adapter:
        """The model as one adapter on the original base weights: its rank grows with the change of these."""
        if self.change is None:
            return self.adapter
        if self.rule.restarts:  # the adapter has just been begun, and adds nothing
            return self.change
        total = add(self.adapter, self.change)
        assert total is not None
        return total

    def answered(self, client: str) -> None:
        """Note that the client remembers this version, since it answered the message that brought it."""
        if self.keep != "nothing":
            self.held[client] = self.version

    def lost(self, client: str) -> None:
        """Forget which version the client remembers, since it did not answer properly."""
        self.held.pop(client, None)

    def advance(self, result: Result, round_: int) -> None:
        """Take the result of a round's aggregation."""
        self.version = round_
        self.last, self.change = result.change, add(self.change, result.change)
        shapes, rank, alpha = self.adapter.shapes, self.adapter.rank, self.adapter.alpha
        self.replace(result.adapter or fresh(shapes, rank=rank, alpha=alpha, seed=stream(self.seed, "adapter", round_)))

    def state(self) -> dict[str, Any]:
        """Version of the model that each client remembers."""
        return {} if self.keep == "nothing" else {"held": self.held}

    def updates(self) -> dict[str, Adapter]:
        """`change` and `last`, where there are any."""
        return {name: update for name, update in (("change", self.change), ("last", self.last)) if update is not None}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: model, change and the clients' versions."""
        self.held = {str(client): int(version) for client, version in checkpoint.strategy.get("held", {}).items()}
        self.change, self.last = (checkpoint.updates.get(name) for name in ("change", "last"))
        super().restore(checkpoint)
