"""What a client begins a message with: an adapter, and what has been added to its base weights.

A message that begins something brings them, or the part of them that the client does not remember (global_model.py);
one in the middle of a round goes on with what the client has. What a client remembers of the global model lies in its
own `context.state`, beside the rest of its memory, and changes only when the message has been answered.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Context

from fedrlvr.adapter import Adapter, Halves, fresh
from fedrlvr.aggregation.stacking import add
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import OWN_ADAPTER, ROUND_ADAPTER, arrays_in
from fedrlvr.errors import MessageError
from fedrlvr.seeds import stream
from fedrlvr.wire.messages import (
    ARRAYS,
    CHANGE,
    Coming,
    StretchRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    record_in,
)

HELD, HELD_ADAPTER, HELD_CHANGE = "fedrlvr.held", "fedrlvr.held.adapter", "fedrlvr.held.change"


@dataclass(frozen=True)
class Start:
    """What a client begins a message with.

    change: added to its base weights, of scale 1. keep: what it is to remember of the global model from now on.
    """

    adapter: Adapter
    change: Adapter | None = None
    keep: dict[str, ArrayRecord | ConfigRecord] = field(default_factory=dict)

    def remember(self, context: Context) -> None:
        """Keep what later messages will not bring again."""
        for name, record in self.keep.items():
            context.state[name] = record


class Reading:
    """Reads what a batch of messages brings. What several clients are sent alike is read once, and is one object."""

    def __init__(self) -> None:
        self._adapters: dict[Hashable, Adapter] = {}
        self._records: dict[Hashable, ArrayRecord] = {}
        self._likes: list[Adapter] = []  # keys speak of adapters by their ids, so these must live as long

    def start(self, request: ClientRequest) -> Start:
        """What this client begins with.

        Raises:
            MessageError: the message lacks something, or counts on what the client does not remember.
            AdapterError: an adapter that cannot be used.
        """
        asked = request.asked
        if asked.own_adapter:
            kept = arrays_in(request.context, OWN_ADAPTER)
            initial = request.client.initial
            return Start(self._adapter(kept, initial, f"{request.client.name}'s own") if kept is not None else initial)
        if request.coming is not None:
            return self._begin(request, request.coming)
        may = isinstance(asked, StretchRequest) and asked.coordination is not None
        arrays = arrays_in(request.context, ROUND_ADAPTER) if may else None
        if arrays is None:
            raise MessageError(f"{request.place}: a request without an adapter")
        change = self._held_change(request)
        return Start(self._adapter(arrays, request.client.initial, request.client.name), change)

    def _begin(self, request: ClientRequest, coming: Coming) -> Start:
        whose = f"the adapter sent to {request.client.name} in round {request.asked.round}"
        if coming.change in ("held", "next") or (coming.halves != "AB" and coming.seeded is None):
            self._check_held(request, coming)
        rest = request.client.initial
        if coming.seeded:
            seed = stream(request.asked.seed, "adapter", coming.seeded)
            whole = request.client.largest
            rest = fresh(whole.shapes, rank=whole.rank, alpha=whole.alpha, seed=seed).at_rank(rest.rank)
        elif coming.seeded is None and coming.halves != "AB":
            held = arrays_in(request.context, HELD_ADAPTER)
            if held is None:
                raise MessageError(f"{request.place}: no adapter is remembered here")
            rest = self._adapter(held, rest, request.client.name)
        adapter = rest
        if coming.halves is not None:
            arrays = record_in(request.message.content, ARRAYS, ArrayRecord)
            if arrays is None:
                raise MessageError(f"{request.place}: a request without an adapter")
            adapter = self._adapter(arrays, rest, whose, coming.halves)
        change = self._change(request, coming)
        keep: dict[str, ArrayRecord | ConfigRecord] = {}
        if coming.remember != "nothing":
            keep[HELD] = ConfigRecord({"version": coming.version, "rank": change.rank if change else 0})
        if coming.remember == "adapter":
            keep[HELD_ADAPTER] = self._record(adapter)
        if coming.remember == "change" and change is not None:
            keep[HELD_CHANGE] = self._record(change)
        return Start(adapter, change, keep)

    def _change(self, request: ClientRequest, coming: Coming) -> Adapter | None:
        if coming.change == "none":
            return None
        held = self._held_change(request) if coming.change != "whole" else None
        if coming.change == "held":
            return held
        arrays = record_in(request.message.content, CHANGE, ArrayRecord)
        if arrays is None or not 1 <= coming.change_rank <= _most(request.client.largest):
            raise MessageError(f"{request.place}: a request without the change of the base weights that it speaks of")
        whose = f"the change of the base weights sent to {request.client.name} in round {request.asked.round}"
        came = self._adapter(arrays, _of_scale_1(request.client.largest, coming.change_rank), whose)
        key = id(held), id(came)  # both are kept alive by this reading
        if key not in self._adapters:
            total = add(held, came)
            assert total is not None
            self._adapters[key] = total
        return self._adapters[key]

    def _held_change(self, request: ClientRequest) -> Adapter | None:
        record, arrays = request.context.state.get(HELD), arrays_in(request.context, HELD_CHANGE)
        rank = int(record["rank"]) if isinstance(record, ConfigRecord) else 0  # type: ignore[arg-type]
        if not rank:
            return None
        if arrays is None:
            raise MessageError(
                f"{request.client.name}: the change of the base weights is missing from what is remembered here"
            )
        return self._adapter(arrays, _of_scale_1(request.client.largest, rank), request.client.name)

    def _check_held(self, request: ClientRequest, coming: Coming) -> None:
        record = request.context.state.get(HELD)
        version = int(record["version"]) if isinstance(record, ConfigRecord) else None  # type: ignore[arg-type]
        if version is None or version != coming.since:
            known = "nothing" if version is None else f"that of round {version}"
            raise MessageError(
                f"{request.place}: the message counts on the model of round {coming.since}, "
                f"but this client remembers {known}; the server will send all of it next time"
            )

    def _adapter(self, arrays: ArrayRecord, like: Adapter, whose: str, halves: Halves = "AB") -> Adapter:
        key = (halves, like.layout, id(like) if halves != "AB" else 0, *arrays, *(a.data for a in arrays.values()))
        if key not in self._adapters:
            self._adapters[key] = arrays_to_adapter(arrays, like, whose=whose, halves=halves)
            self._likes.append(like)
        return self._adapters[key]

    def _record(self, adapter: Adapter) -> ArrayRecord:
        """The adapter's record; one object for one adapter."""
        if id(adapter) not in self._records:
            self._records[id(adapter)] = adapter_to_arrays(adapter)
        return self._records[id(adapter)]


def _of_scale_1(initial: Adapter, rank: int) -> Adapter:
    return Adapter(initial.at_rank(rank).layers, float(rank))


def _most(initial: Adapter) -> int:
    """The largest rank that a change of the base weights can need."""
    return max(min(shape) for shape in initial.shapes.values())
