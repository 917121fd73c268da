"""Start of a client's work on a message with a model delta: parts that are sent, drawn and remembered. Its message is
in wire/model_delta.py.

What a client remembers of the global model lies in its own `context.state`, beside the rest of its memory, and changes
only when the message has been answered.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord

from fedrlvr.adapter import Adapter, fresh
from fedrlvr.aggregation.stacking import add
from fedrlvr.client.initial_adapter import Reading, Start
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import HELD, HELD_ADAPTER, HELD_CHANGE, KEPT_HALVES, arrays_in
from fedrlvr.errors import MessageError
from fedrlvr.seeds import stream
from fedrlvr.wire.messages import ARRAYS, adapter_to_arrays, record_in
from fedrlvr.wire.model_delta import CHANGE, ModelDelta, read_delta


def start(reading: Reading, request: ClientRequest) -> Start:
    """Starting point of a client's work on a message with a model delta.

    reading: of the batch; what several clients have alike is one object.

    Raises:
        MessageError: the message lacks something, or counts on what the client does not remember.
        AdapterError: an adapter or change that cannot be used.
    """
    if request.under_way:
        return replace(reading.start(request), change=held_change(reading, request))
    delta, change = read_delta(request.message), None
    if delta.since is not None:
        _check_held(request, delta.since)
        change = held_change(reading, request)
    adapter = _rest(reading, request, delta)
    if delta.halves is not None:
        arrays = record_in(request.message.content, ARRAYS, ArrayRecord)
        adapter = reading.sent(arrays, adapter, request, delta.halves)
    if delta.own_halves is not None and (kept := arrays_in(request.context, KEPT_HALVES)) is not None:
        adapter = reading.adapter(kept, adapter, f"what {request.client.name} keeps of its adapter", delta.own_halves)
    if delta.change_rank or CHANGE in request.message.content:
        old, new = change, _sent_change(reading, request, delta.change_rank)
        change = reading.once((id(old), id(new)), lambda: add(old, new))
    keep: dict[str, ArrayRecord | ConfigRecord] = {}
    if delta.keep != "nothing":
        keep[HELD] = ConfigRecord({"version": delta.version, "rank": change.rank if change else 0})
    for kind, name, part in (("adapter", HELD_ADAPTER, adapter), ("change", HELD_CHANGE, change)):
        if delta.keep == kind and part is not None:
            keep[name] = _record(reading, part)
    return Start(adapter, change, keep)


def _record(reading: Reading, adapter: Adapter) -> ArrayRecord:
    """The adapter's record; one object for one adapter, which is kept too, as the key holds its id."""
    record, _ = reading.once(("record", id(adapter)), lambda: (adapter_to_arrays(adapter), adapter))
    return record


def held_change(reading: Reading, request: ClientRequest) -> Adapter | None:
    """The change of the base weights that the client remembers.

    Raises:
        MessageError: the client remembers that there is one, but not which.
    """
    record, arrays = request.context.state.get(HELD), arrays_in(request.context, HELD_CHANGE)
    rank = int(record["rank"]) if isinstance(record, ConfigRecord) else 0  # type: ignore[arg-type]
    if not rank:
        return None
    if arrays is None:
        raise MessageError(f"{request.place}: the change of the base weights is missing from what is remembered here")
    return reading.adapter(arrays, of_scale_1(request.client.largest, rank), request.client.name)


def _rest(reading: Reading, request: ClientRequest, delta: ModelDelta) -> Adapter:
    """The adapter that gives the halves which do not travel."""
    initial, whole = request.client.initial, request.client.largest
    if delta.seeded:
        seed = stream(request.asked.seed, "adapter", delta.seeded)
        return fresh(whole.shapes, rank=whole.rank, alpha=whole.alpha, seed=seed).at_rank(initial.rank)
    if delta.seeded == 0 or delta.halves == "AB":
        return initial
    kept = arrays_in(request.context, HELD_ADAPTER)
    if kept is None:
        raise MessageError(f"{request.place}: no adapter is remembered here")
    return reading.adapter(kept, initial, request.client.name)


def _sent_change(reading: Reading, request: ClientRequest, rank: int) -> Adapter:
    arrays, largest = record_in(request.message.content, CHANGE, ArrayRecord), request.client.largest
    if arrays is None or not 1 <= rank <= max(min(shape) for shape in largest.shapes.values()):
        raise MessageError(f"{request.place}: a request without the change of the base weights that it announces")
    place = f"the change of the base weights sent to {request.client.name} in round {request.asked.round}"
    return reading.adapter(arrays, of_scale_1(largest, rank), place)


def _check_held(request: ClientRequest, since: int) -> None:
    record = request.context.state.get(HELD)
    version = int(record["version"]) if isinstance(record, ConfigRecord) else None  # type: ignore[arg-type]
    if version != since:
        known = "nothing" if version is None else f"that of round {version}"
        raise MessageError(
            f"{request.place}: the message counts on the model of round {since}, but this client remembers {known}; "
            "the server will send all of it next time"
        )


def of_scale_1(initial: Adapter, rank: int) -> Adapter:
    return Adapter(initial.at_rank(rank).layers, float(rank))
