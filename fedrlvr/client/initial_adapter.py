"""Start of a client's work on a message: an adapter, and the change of its base weights.

A message that begins something brings the adapter; one in the middle of a round continues with the client's own. What a
message brings with notes is put together in delta_start.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import OWN_ADAPTER, ROUND_ADAPTER, arrays_in
from fedrlvr.errors import MessageError
from fedrlvr.wire.compression import received
from fedrlvr.wire.messages import ARRAYS, StretchRequest, record_in

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """Starting point of a client's work on one message.

    change: added to its base weights, of scale 1. keep: what the client is to remember of the global model, by name.
    """

    adapter: Adapter
    change: Adapter | None = None
    keep: dict[str, ArrayRecord | ConfigRecord] = field(default_factory=dict)

    def remember(self, context: Context) -> None:
        """Keep the parts of the global model that later messages will not bring again."""
        for name, record in self.keep.items():
            context.state[name] = record


class Reading:
    """Reads the contents of a batch of messages. Contents that are the same for several clients are read once."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def start(self, request: ClientRequest) -> Start:
        """Starting point of a client's work on a message without a model delta.

        Raises:
            MessageError: there is no adapter.
            AdapterError: an adapter that cannot be used.
        """
        asked, client, content = request.asked, request.client, request.message.content
        if asked.own_adapter:
            kept = arrays_in(request.context, OWN_ADAPTER)
            return Start(client.initial if kept is None else self.adapter(kept, client.initial, f"{client.name}'s own"))
        if not request.under_way:
            return Start(self.sent(record_in(content, ARRAYS, ArrayRecord), client.initial, request))
        in_a_round = isinstance(asked, StretchRequest) and asked.coordination is not None
        arrays = arrays_in(request.context, ROUND_ADAPTER) if in_a_round else None
        if arrays is None:
            raise MessageError(f"{request.place}: a request without an adapter")
        return Start(self.adapter(arrays, client.initial, client.name))

    def sent(self, arrays: ArrayRecord | None, like: Adapter, request: ClientRequest, halves: Halves = "AB") -> Adapter:
        """The adapter in a message; the half that does not travel is that of `like`.

        Raises:
            MessageError: there is none. AdapterError: it cannot be used.
        """
        if arrays is None:
            raise MessageError(f"{request.place}: a request without an adapter")
        return self.adapter(
            arrays, like, f"the adapter sent to {request.client.name} in round {request.asked.round}", halves
        )

    def adapter(self, arrays: ArrayRecord, like: Adapter, place: str, halves: Halves = "AB") -> Adapter:
        """The adapter in a record; equal records give one object.

        Raises:
            AdapterError: it cannot be used.
        """
        key = (halves, like.layout, id(like) if halves != "AB" else 0, *arrays, *(a.data for a in arrays.values()))
        # `like` is kept too: a key holds its id, and so must not outlive it.
        adapter, _ = self.once(key, lambda: (received(arrays, like, place=place, halves=halves), like))
        return adapter

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Result of `make`, computed once for a key in this batch."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made
