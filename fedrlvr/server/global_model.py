"""The server's model between rounds, and what a message brings of it.

With most rules that is the whole adapter, with every message that begins something, and clients remember nothing.
Rules that save bytes or change the base weights have a model of their own (delta_model.py).
"""

from __future__ import annotations

from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.aggregation import LoraRule, Result
from fedrlvr.server.checkpoint import Checkpoint
from fedrlvr.wire.compression import Lowered, lowered, received
from fedrlvr.wire.messages import ARRAYS, adapter_to_arrays


class GlobalModel:
    """The global model, for rules that send whole adapters.

    adapter: of the largest rank. seed: the run's. down: number format in which the adapter is sent; the model keeps it
    in float32. version: the round the model was made in; 0 is before the first.
    """

    halves: Halves = "AB"
    """The halves of the adapter that the strategy's hooks are given."""

    def __init__(
        self, rule: LoraRule, adapter: Adapter, seed: int, down: Literal["float32"] | Lowered = "float32"
    ) -> None:
        self.rule = rule
        self.adapter = adapter
        self.seed = seed
        self.down = down
        self.version = 0
        self._encoded: dict[tuple[int, str], ArrayRecord] = {}
        self._received: dict[int, Adapter] = {}

    def begin_with(self, change: Adapter | None) -> None:
        """The adapter is a given one, which clients cannot draw from the run's seed.

        change: an update of scale 1 that is added to the base weights from the start.
        """
        assert change is None, "this rule leaves the base weights as they are"

    def start_of(self, rank: int, client: str = "") -> Adapter:
        """The adapter a client of this rank begins with. client: its name, where clients begin with their own."""
        return self.adapter.at_rank(rank)

    def received_by(self, client: str, rank: int) -> Adapter:
        """The adapter that a client of this rank begins with as it receives it: `start_of`, rounded where `down` is."""
        start = self.start_of(rank, client)
        if self.down == "float32":
            return start
        if rank not in self._received:
            arrays = self._encode(rank, self.halves, ArrayRecord())
            self._received[rank] = received(arrays, start, place="the adapter to be sent", halves=self.halves)
        return self._received[rank]

    def sends(self, round_: int) -> Halves:
        """Halves of the adapter that clients send in a round."""
        return self.rule.trains(round_)

    def took(self, client: str, adapter: Adapter) -> None:
        """Note the adapter that a client has sent, once it is checked."""

    def beside(self, client: str) -> Adapter | None:
        """Update of scale 1 on top of which a client's adapter comes; None: the base weights are as they were."""
        return self.updates().get("change")

    def bring(self, client: str, rank: int, arrays: ArrayRecord) -> dict[str, ArrayRecord | ConfigRecord]:
        """The records by which a message brings the model to a client.

        arrays: the adapter as the strategy's hooks were given it, sent where it is what this client needs.
        """
        return {ARRAYS: self._encode(rank, self.halves, arrays)}

    def _encode(self, rank: int, halves: Halves, arrays: ArrayRecord) -> ArrayRecord:
        if halves == self.halves and rank == self.adapter.rank and self.down == "float32":
            return arrays
        key = rank, halves
        if key not in self._encoded:
            adapter = self.adapter.at_rank(rank)
            rounded = None if self.down == "float32" else lowered(adapter, self.down, halves)
            self._encoded[key] = rounded or adapter_to_arrays(adapter, halves)
        return ArrayRecord(dict(self._encoded[key]))

    def whole(self) -> Adapter:
        """The model as one adapter on the original base weights."""
        return self.adapter

    def answered(self, client: str) -> None:
        """Note that the client answered a message that brought it this version."""

    def lost(self, client: str) -> None:
        """Note that the client did not answer properly."""

    def replace(self, adapter: Adapter) -> None:
        """Use this adapter in place of the newest one."""
        self.adapter = adapter
        self._encoded.clear()
        self._received.clear()

    def advance(self, result: Result, round_: int) -> None:
        """Take the result of a round's aggregation."""
        assert result.adapter is not None, "only a rule that restarts makes none"
        self.version = round_
        self.replace(result.adapter)

    def state(self) -> dict[str, Any]:
        """State of the model besides the adapter, as a JSON object for the checkpoint."""
        return {}

    def updates(self) -> dict[str, Adapter]:
        """Updates of scale 1, by name, that a checkpoint keeps besides the adapter."""
        return {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue with the model of a checkpoint.

        Raises:
            AttributeError, TypeError, ValueError: its state is none of this model.
        """
        self.version = checkpoint.round
        self.replace(checkpoint.adapter)
