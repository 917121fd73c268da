"""A message's content as bytes, between the client app and its worker and for what a worker keeps of its replies.

    FRW1 | length of the header, 8 bytes | header, JSON | the arrays' data, end to end

Not Flower's own serialisation, which is private to it and for a network; and not pickle, which runs what it reads.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrlvr.errors import MessageError

MAGIC = b"FRW1"
LARGEST_HEADER = 1 << 28
"""Bytes: public problems of `publicmessages.MAX_PROBLEMS` characters may take six each."""
_LENGTH = struct.Struct(">Q")
_START = len(MAGIC) + _LENGTH.size
_SCALARS = (bool, int, float, str, bytes)
_MOST_DIMENSIONS = 32


def pack(content: RecordDict) -> bytes:
    """The bytes of a content.

    Raises:
        MessageError: a record that is none of Flower's, or one larger than any we know.
    """
    records: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = []
            for key, array in record.items():
                arrays.append([key, array.dtype, list(array.shape), array.stype, len(array.data)])
                blobs.append(array.data)
            records.append({"name": name, "kind": "arrays", "items": arrays})
        elif isinstance(record, ConfigRecord | MetricRecord):
            kind = "config" if isinstance(record, ConfigRecord) else "metrics"
            records.append({"name": name, "kind": kind, "items": [[key, _told(v)] for key, v in record.items()]})
        else:
            raise MessageError(f"a record of type {type(record).__name__}, which no message of ours has")
    header = json.dumps(records).encode()
    if len(header) > LARGEST_HEADER:
        raise MessageError(f"a content with {len(header)} bytes besides its arrays, more than {LARGEST_HEADER}")
    return b"".join([MAGIC, _LENGTH.pack(len(header)), header, *blobs])


def unpack(data: bytes) -> RecordDict:
    """The content in these bytes.

    Raises:
        MessageError: they are not what `pack` makes.
    """
    if len(data) < _START or data[: len(MAGIC)] != MAGIC:
        raise MessageError("bytes that are no content of a message")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > LARGEST_HEADER or _START + length > len(data):
        raise MessageError("a content that is cut off in its header")
    try:
        records = json.loads(data[_START : _START + length])
        content, end = _records(records, memoryview(data), _START + length)
    except MessageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MessageError(f"a content with a header that cannot be used ({type(error).__name__})") from None
    if end != len(data):
        raise MessageError("a content that is longer than its header says")
    return content


def _records(records: Any, data: memoryview, start: int) -> tuple[RecordDict, int]:
    """The records of a header, and where their data ends."""
    if not isinstance(records, list):
        raise MessageError("a content without a list of records")
    content = RecordDict()
    for item in records:
        name, kind, items = _text(item["name"]), item["kind"], item["items"]
        if name in content:
            raise MessageError("a content with two records of one name")
        record: ArrayRecord | ConfigRecord | MetricRecord
        if kind == "arrays":
            record = ArrayRecord()
            for key, dtype, shape, stype, size in items:
                if type(size) is not int or not 0 <= size <= len(data) - start:
                    raise MessageError("a content that is cut off in its arrays")
                fits = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
                if not fits or any(type(side) is not int or side < 0 for side in shape):
                    raise MessageError("a content with an array of impossible shape")
                blob = bytes(data[start : start + size])
                _put(record, key, Array(_text(dtype), tuple(shape), _text(stype), blob))
                start += size
        elif kind in ("config", "metrics"):
            record = ConfigRecord() if kind == "config" else MetricRecord()
            for key, value in items:
                _put(record, key, _value(value))
        else:
            raise MessageError("a content with a record of unknown kind")
        content[name] = record
    return content, start


def _put(record: ArrayRecord | ConfigRecord | MetricRecord, key: Any, value: Any) -> None:
    if key in record:
        raise MessageError("a content with two entries of one name")
    record[_text(key)] = value  # Flower's records check the types of what they are given


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise MessageError("a content whose names are no texts")
    return value


def _told(value: Any) -> Any:
    """A value in JSON; bytes as an object, of which Flower's records have no other."""
    if isinstance(value, list):
        return [_told(item) for item in value]
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if not isinstance(value, _SCALARS):
        raise MessageError(f"a value of type {type(value).__name__}, which no message of ours has")
    return value


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if isinstance(plain, dict):
        if list(plain) != ["base64"]:
            raise MessageError("a content with a value of unknown kind")
        try:
            return base64.b64decode(_text(plain["base64"]), validate=True)
        except binascii.Error:
            raise MessageError("a content with bytes that are not base64") from None
    if not isinstance(plain, _SCALARS):
        raise MessageError("a content with a value of unknown kind")
    return plain
