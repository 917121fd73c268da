"""The server's model where clients keep a part of their adapter for themselves: FedSA-LoRA and FedALT.

There is no whole adapter that all clients share, so each message brings a part, and the client adds its own
(wire/model_delta.py, client/delta_start.py).
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.aggregation import LoraRule
from fedrlvr.aggregation.personal import PersonalMethod, mean_of_others
from fedrlvr.server.checkpoint import Checkpoint
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.wire.messages import ARRAYS, DELTA, adapter_to_arrays
from fedrlvr.wire.model_delta import CHANGE, ModelDelta

_OWN = "own."
"""Begins the name of a client's adapter among the updates of a checkpoint."""


class PersonalModel(GlobalModel):
    """Base of the models whose clients keep halves of their adapter.

    given: whether clients cannot draw the first adapter from the run's seed, so that every message brings it.
    """

    def __init__(self, rule: LoraRule, adapter: Adapter, seed: int, method: PersonalMethod) -> None:
        super().__init__(rule, adapter, seed)
        self.method = method
        self.first = adapter_to_arrays(adapter)
        self.given = False

    def begin_with(self, change: Adapter | None) -> None:
        """Send clients the first adapter, which they cannot draw."""
        super().begin_with(change)
        self.given = True

    def sends(self, round_: int) -> Halves:
        """Halves that clients send, of the two that train."""
        return self.method.sends


class SharedHalfModel(PersonalModel):
    """FedSA-LoRA: A is averaged and sent to all clients; the B of this adapter is that of the first one."""

    halves: Halves = "A"

    def bring(self, client: str, rank: int, arrays: ArrayRecord) -> dict[str, ArrayRecord | ConfigRecord]:
        """The shared half; the client adds its own, or at the start that of the first adapter."""
        halves: Halves = "AB" if self.given else self.method.sends
        delta = ModelDelta(version=self.version, halves=halves, seeded=0, own_halves=self.method.keeps)
        return {DELTA: delta.record(), ARRAYS: self._encode(rank, halves, arrays)}


class OthersModel(PersonalModel):
    """FedALT: each client's own adapter, as it last sent it; a client is sent the mean of the others'.

    The mean of all is the adapter of this model, which no client is sent.
    """

    def __init__(self, rule: LoraRule, adapter: Adapter, seed: int, method: PersonalMethod) -> None:
        super().__init__(rule, adapter, seed, method)
        self.initial = adapter
        self.clients: dict[str, Adapter] = {}
        """Adapters that clients have sent, by client."""

    def start_of(self, rank: int, client: str = "") -> Adapter:
        """The adapter that a client begins with: its own last one, or the first."""
        return self.clients.get(client, self.initial)

    def took(self, client: str, adapter: Adapter) -> None:
        """Keep the adapter that a client has sent, for the mean that the others are sent."""
        self.clients = dict(sorted({**self.clients, client: adapter}.items()))

    def beside(self, client: str) -> Adapter | None:
        """The mean of the other clients' adapters as an update of scale 1; None before any has been sent."""
        return mean_of_others(self.clients, client)

    def bring(self, client: str, rank: int, arrays: ArrayRecord) -> dict[str, ArrayRecord | ConfigRecord]:
        """The mean of the others' adapters, frozen; the client goes on from its own adapter."""
        others = self.beside(client)
        delta = ModelDelta(
            version=self.version,
            halves="AB" if self.given else None,
            seeded=0,
            change_rank=others.rank if others else 0,
            own_halves=self.method.keeps,
        )
        records: dict[str, ArrayRecord | ConfigRecord] = {DELTA: delta.record()}
        if self.given:
            records[ARRAYS] = self.first
        if others is not None:
            records[CHANGE] = adapter_to_arrays(others)
        return records

    def updates(self) -> dict[str, Adapter]:
        """The clients' adapters, for the checkpoint."""
        return {f"{_OWN}{client}": adapter for client, adapter in self.clients.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue with the clients' adapters of a checkpoint."""
        self.clients = {
            name.removeprefix(_OWN): Adapter(update.layers, self.initial.alpha)
            for name, update in sorted(checkpoint.updates.items())
            if name.startswith(_OWN)
        }
        super().restore(checkpoint)
