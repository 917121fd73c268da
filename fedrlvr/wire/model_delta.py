"""The model delta: metadata of a message that carries less, or more, than the whole adapter.

Clients draw FFA-LoRA's A and FLoRA's new adapters from the run's seed. They remember a change of the base weights, and
the half of the adapter that a RoLoRA round leaves as it was: a client that is known to be up to date is sent only what
is new, any other client all of it. The server's side is in server/delta_model.py, the client's in
client/delta_start.py.
"""

from __future__ import annotations

from typing import Literal

from flwr.app import ConfigRecord, Message
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrlvr.adapter import Halves
from fedrlvr.wire.messages import DELTA, parsed

CHANGE = "change"
"""Name of the record with a change of the base weights."""

Keep = Literal["nothing", "adapter", "change"]


class ModelDelta(BaseModel):
    """The parts of the global model that a message carries, and the source of the other parts.

    version: the round the model was made in. since: the version that the client has to remember; None: it needs none.
    halves: of the adapter, those that travel. seeded: the version of the adapter, drawn from the run's seed, that gives
    the others; None: the client remembers them.
    change_rank: of the change of the base weights that travels; 0: none does. It is added to the change that a client
    remembers which has to remember a version.
    keep: what the client is to remember, for messages that will not bring it.
    own_halves: of the adapter, those that the client replaces by what it has trained for itself, once there is any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = Field(ge=0)
    since: int | None = Field(None, ge=0)
    halves: Halves | None = "AB"
    seeded: int | None = Field(None, ge=0)
    change_rank: int = Field(0, ge=0, le=1 << 16)
    keep: Keep = "nothing"
    own_halves: Halves | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _halves_from_nowhere(self) -> ModelDelta:
        if self.halves != "AB" and self.seeded is None and self.since is None:
            raise ValueError("halves that do not travel are seeded, or remembered since a version")
        return self

    def record(self) -> ConfigRecord:
        """The delta as a record of a message."""
        return ConfigRecord({"delta": self.model_dump_json()})


def read_delta(message: Message) -> ModelDelta:
    """Read and check the delta in a message.

    Raises:
        MessageError: there are none, or a field of them does not fit.
    """
    return parsed(message, DELTA, "delta", ModelDelta)
