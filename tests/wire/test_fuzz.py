"""Valid messages, altered at random by a fixed seed: every reader of foreign input raises our errors and no others."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_adapter, make_request, random_adapter
from fakes import scores_reply, train_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrlvr.coordination import Sent
from fedrlvr.errors import FedrlvrError
from fedrlvr.tasks import Problem
from fedrlvr.wire import compression, serialization
from fedrlvr.wire.messages import (
    DELTA,
    PROBES,
    TrainRequest,
    arrays_to_adapter,
    content,
    probes_record,
    read_calibrations,
    read_numbers,
    read_probes,
    read_request,
    read_scores,
    record_in,
)
from fedrlvr.wire.model_delta import ModelDelta, read_delta
from fedrlvr.wire.public_messages import (
    PUBLIC,
    RESPONSES,
    STAMP,
    Stamp,
    problems_record,
    read_problems,
    read_responses,
    read_stamp,
    responses_record,
    stamp_record,
)

INPUTS = 150
"""Of each reader."""
NUMBERS = (0, -1, 1, 2**31, 2**62, -(2**63), 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"))
TEXTS = ("", "\x00", "\x1b[2J", "[" * 5000, "{}", "null", "1e999", "\u202e", '{"round": 1e400}')
LIKE = random_adapter(0)


def message(body: RecordDict) -> Any:
    """What readers see of a message; Flower makes one within a run alone."""
    return SimpleNamespace(content=body, metadata=SimpleNamespace(message_type="train"))


def calibrated() -> RecordDict:
    reply = train_reply(1.0)
    columns = {"p1_n": [1] * 10, "p1_sum": [0.5] * 10, "p1_right": [1] * 10}
    reply["metrics"] = MetricRecord({"num-examples": 1, **columns})
    return reply


def rounded() -> RecordDict:
    return RecordDict({"arrays": compression.pack(random_adapter(1), LIKE, None, "int8")[0]})


def arrays_in(body: RecordDict, name: str = "arrays") -> ArrayRecord:
    """The arrays of a content, as its readers are given them: none where the record is of another kind."""
    return record_in(body, name, ArrayRecord) or ArrayRecord()


STAMPED = Stamp(model="m", tokenizer="t", temperature=1.0, round=1, exchange=1)
SENT = [Sent(0, (1, 2), (-0.5, -0.1), 1), Sent(1, (3,), (0.0,), 0)]
READERS: dict[str, tuple[Callable[[], RecordDict], Callable[[RecordDict], Any]]] = {
    "numbers": (lambda: train_reply(1.0, reward=0.5), lambda b: read_numbers(message(b), whose="w")),
    "calibrations": (calibrated, lambda b: read_calibrations(message(b), whose="w")),
    "scores": (
        lambda: scores_reply(["s", "t"], [1, 2], [1.0, 1.5], [1.0, 1.25]),
        lambda b: read_scores(message(b), whose="w"),
    ),
    "adapter": (lambda: train_reply(1.0), lambda b: arrays_to_adapter(arrays_in(b), make_adapter(), whose="w")),
    "change": (rounded, lambda b: compression.unpack(arrays_in(b), LIKE, precision="int8", whose="w")),
    "probes": (
        lambda: RecordDict({PROBES: probes_record(torch.ones(4))}),
        lambda b: read_probes(arrays_in(b, PROBES), None, whose="w"),
    ),
    "responses": (
        lambda: RecordDict({RESPONSES: responses_record(SENT, 27)}),
        lambda b: read_responses(b.get(RESPONSES), most=8, max_tokens=4, logps=True),
    ),
    "stamp": (lambda: RecordDict({STAMP: stamp_record(STAMPED)}), read_stamp),
    "problems": (
        lambda: RecordDict({PUBLIC: problems_record([Problem("q", "A", "p", "s", "exact")], "notice")}),
        lambda b: read_problems(b, 4),
    ),
    "request": (lambda: content(make_request()), lambda b: read_request(message(b), TrainRequest)),
    "delta": (lambda: RecordDict({DELTA: ModelDelta(version=1).record()}), lambda b: read_delta(message(b))),
    "bytes": (lambda: train_reply(1.0), lambda b: serialization.unpack(serialization.pack(b))),
}


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are changed, cut off or there twice."""
    copy = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if copy:
            copy[rng.randrange(len(copy))] = rng.randrange(256)
    at = rng.randrange(len(copy) + 1)
    return bytes(rng.choice([copy, copy[:at], copy + copy[at:]]))


def other(value: Any, rng: random.Random) -> Any:
    """Another value, of this kind or not."""
    if isinstance(value, Array):
        shape = rng.choice([value.shape, (rng.choice([0, 1, 2**40]),), (), (1, 1)])
        arrays = [np.zeros(rng.randint(0, 20), kind) for kind in ("<i8", "<u8", "<f4", "<f8", "?", "<U3")]
        whole = Array(rng.choice(arrays))
        return rng.choice([Array(value.dtype, shape, value.stype, scrambled(value.data, rng)), whole])
    if isinstance(value, str):
        text = scrambled(value.encode(), rng).decode("utf-8", "replace")
        return rng.choice([text, text, rng.choice(TEXTS), b"", 1, [1], ["a"]])
    return rng.choice([rng.choice(NUMBERS), [rng.choice(NUMBERS)], [1] * rng.randint(0, 20), []])


def altered(body: RecordDict, rng: random.Random) -> RecordDict:
    """A content of which a few values, keys or records are others."""
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(body))
        record = body[name]
        if rng.random() < 0.05 or not record:
            body[name] = rng.choice([ConfigRecord(), MetricRecord(), ArrayRecord()])
            continue
        key = rng.choice(list(record))
        with contextlib.suppress(TypeError, ValueError):  # what Flower's own records do not take cannot arrive
            value = other(record[key], rng)
            if rng.random() < 0.1:
                del record[key]
            else:
                record[rng.choice([key, key, key, "\x1b[31m"])] = value  # type: ignore[index]
    return body


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_raises_our_errors_alone(reader: str) -> None:
    make, read = READERS[reader]
    rng = random.Random(f"17 {reader}")
    read(make())
    refused = []
    for _ in range(INPUTS):
        body = altered(make(), rng)
        try:
            read(body)
        except FedrlvrError as error:
            refused.append(str(error))
    assert all(text.isprintable() for text in refused)
    assert refused or reader in ("stamp", "bytes"), "the inputs are altered"


def test_scrambled_bytes_of_a_content_raise_our_errors_alone() -> None:
    rng = random.Random(17)
    data = serialization.pack(train_reply(1.0, reward=0.5))
    for _ in range(INPUTS):
        with contextlib.suppress(FedrlvrError):
            serialization.unpack(scrambled(data, rng))
