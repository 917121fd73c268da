"""A content as bytes: what comes out is what went in, and what is not of ours is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedrlvr.errors import MessageError
from fedrlvr.wire.serialization import MAGIC, pack, unpack


def a_content() -> RecordDict:
    arrays = ArrayRecord(
        {
            "z": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
            "a": Array(np.zeros((0,), np.int64)),
            "raw": Array("weird", (2, 0, 7), "other.kind", b"\x00\xff"),
        }
    )
    return RecordDict({"second": ConfigRecord({"k": "v"}), "arrays": arrays, "first": MetricRecord({"n": 1})})


def same(content: RecordDict, other: RecordDict) -> None:
    """Equal in names, order, types and values; -0.0 and nan too."""
    assert list(content) == list(other)
    for name, record in content.items():
        twin = other[name]
        assert type(record) is type(twin)
        assert list(record) == list(twin)
        for key, value in record.items():
            if isinstance(value, Array):
                assert vars_of(value) == vars_of(twin[key])  # type: ignore[arg-type]
            else:
                assert repr(value) == repr(twin[key])


def vars_of(array: Array) -> tuple[object, ...]:
    assert isinstance(array.data, bytes)
    return array.dtype, array.shape, array.stype, array.data


def test_order_shapes_and_bytes_are_kept() -> None:
    same(unpack(pack(a_content())), a_content())
    assert pack(unpack(pack(a_content()))) == pack(a_content())


def test_a_content_of_nothing_and_records_of_nothing() -> None:
    same(unpack(pack(RecordDict())), RecordDict())
    nothing = RecordDict({"a": ArrayRecord(), "c": ConfigRecord(), "m": MetricRecord({"none": []})})
    same(unpack(pack(nothing)), nothing)


_FLOATS = st.floats() | st.just(-0.0)
_PLAIN = [st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), _FLOATS, st.text(), st.binary()]
_VALUES = st.one_of(*_PLAIN, *(st.lists(kind, max_size=4) for kind in _PLAIN))
_NUMBERS = st.one_of(*_PLAIN[1:3], *(st.lists(kind, max_size=4) for kind in _PLAIN[1:3]))


@given(st.dictionaries(st.text(), _VALUES, max_size=5), st.dictionaries(st.text(), _NUMBERS, max_size=5))
def test_every_value_keeps_its_type(values: dict[str, Any], numbers: dict[str, Any]) -> None:
    content = RecordDict({"config": ConfigRecord(values), "metrics": MetricRecord(numbers)})
    same(unpack(pack(content)), content)


def test_bytes_that_are_cut_off_or_too_many_are_refused() -> None:
    data = pack(a_content())
    for length in range(len(data)):
        with pytest.raises(MessageError):
            unpack(data[:length])
    with pytest.raises(MessageError, match="longer than its header says"):
        unpack(data + b"\x00")


def with_header(header: Any, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return MAGIC + struct.pack(">Q", len(text)) + text + rest


def record(kind: str, *items: Any, name: Any = "r") -> list[dict[str, Any]]:
    return [{"name": name, "kind": kind, "items": list(items)}]


@pytest.mark.parametrize(
    "data",
    [
        b"FRW2" + pack(RecordDict())[4:],
        b"\x80\x04\x95\x00\x00",
        MAGIC + struct.pack(">Q", 1 << 60),
        with_header(b"[" * 100_000),
        with_header(b"\xff"),
        with_header({"r": 1}),
        with_header([1]),
        with_header([{}]),
        with_header(record("pickle")),
        with_header(record("config", name=3)),
        with_header(record("config") * 2),
        with_header(record("config", ["k", 1], ["k", 2])),
        with_header(record("config", [3, 1])),
        with_header(record("config", ["k"])),
        with_header(record("config", ["k", None])),
        with_header(record("config", ["k", [1, "a"]])),
        with_header(record("config", ["k", [[1]]])),
        with_header(record("config", ["k", {"base64": "?"}])),
        with_header(record("config", ["k", {"base64": 3}])),
        with_header(record("config", ["k", {"base64": "", "more": 1}])),
        with_header(record("config", ["k", {"pickle": ""}])),
        with_header(record("metrics", ["k", True])),
        with_header(record("metrics", ["k", "text"])),
        with_header(record("arrays", ["k", "float32", [1], "numpy.ndarray", 5]), b"1234"),
        with_header(record("arrays", ["k", "float32", [1], "numpy.ndarray", -1])),
        with_header(record("arrays", ["k", "float32", [1], "numpy.ndarray", 1.0]), b"1"),
        with_header(record("arrays", ["k", "float32", [1], "numpy.ndarray", True]), b"1"),
        with_header(record("arrays", ["k", "float32", [-1], "numpy.ndarray", 0])),
        with_header(record("arrays", ["k", "float32", ["1"], "numpy.ndarray", 0])),
        with_header(record("arrays", ["k", "float32", [1] * 33, "numpy.ndarray", 0])),
        with_header(record("arrays", ["k", "float32", 1, "numpy.ndarray", 0])),
        with_header(record("arrays", ["k", 32, [1], "numpy.ndarray", 0])),
        with_header(record("arrays", ["k", "float32", [1], None, 0])),
        with_header(record("arrays", ["k", "float32", [1], "numpy.ndarray"])),
        with_header(record("arrays", ["k", "a", [], "b", 0], ["k", "a", [], "b", 0])),
    ],
    ids=lambda data: data[12:60].decode("latin1"),
)
def test_what_is_none_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        unpack(data)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_whatever_bytes_come_nothing_else_is_raised(noise: bytes, place: int) -> None:
    data = pack(a_content())
    for hostile in (noise, MAGIC + noise, data[:place] + noise + data[place + len(noise) :]):
        try:
            unpack(hostile)
        except MessageError:
            continue


def test_what_starts_for_each_message_loads_no_model() -> None:
    program = (
        "import sys\nfrom fedrlvr.deployment.site import client_app, socket, worker\n"
        "print(sorted({'torch', 'transformers', 'pickle5', 'fedrlvr.policy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
