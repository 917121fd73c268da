"""Conversion of a message's content to bytes, for the way between client app and worker and for a worker's files.

    FRW1 | length of the header, 8 bytes | header, JSON | the arrays' data, end to end

Not Flower's own serialisation, which is private to it and for a network; and not pickle, which runs what it reads.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Annotated, Any, Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter

from fedrlvr.errors import MessageError

MAGIC = b"FRW1"
LARGEST_HEADER = 1 << 28
"""Largest header in bytes: public problems of `public_messages.MAX_PROBLEMS` characters may take six each."""
_LENGTH = struct.Struct(">Q")
_START = len(MAGIC) + _LENGTH.size
_SCALARS = (bool, int, float, str, bytes)


class _Arrays(BaseModel):
    """The header of an ArrayRecord. items: key, dtype, shape, stype and bytes of each array."""

    kind: Literal["arrays"]
    name: str
    items: list[tuple[str, str, Annotated[tuple[NonNegativeInt, ...], Field(max_length=32)], str, NonNegativeInt]]


class _Values(BaseModel):
    """A ConfigRecord or MetricRecord. items: key and value."""

    kind: Literal["config", "metrics"]
    name: str
    items: list[tuple[str, Any]]


_HEADER = TypeAdapter(list[Annotated[_Arrays | _Values, Field(discriminator="kind")]])


def pack(content: RecordDict) -> bytes:
    """Convert the content of a message to bytes.

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
            records.append({"name": name, "kind": kind, "items": [[key, _plain(v)] for key, v in record.items()]})
        else:
            raise MessageError(f"a record of type {type(record).__name__}, which no message of ours has")
    header = json.dumps(records).encode()
    if len(header) > LARGEST_HEADER:
        raise MessageError(f"a content with {len(header)} bytes besides its arrays, more than {LARGEST_HEADER}")
    return b"".join([MAGIC, _LENGTH.pack(len(header)), header, *blobs])


def unpack(data: bytes) -> RecordDict:
    """Convert bytes back to the content of a message.

    Raises:
        MessageError: they are not what `pack` makes.
    """
    if len(data) < _START or data[: len(MAGIC)] != MAGIC:
        raise MessageError("bytes that are no content of a message")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    at = _START + length
    if length > LARGEST_HEADER or at > len(data):
        raise MessageError("a content that is cut off in its header")
    content = RecordDict()
    try:
        for header in _HEADER.validate_json(data[_START:at], strict=True):
            record: ArrayRecord | ConfigRecord | MetricRecord
            if isinstance(header, _Arrays):
                record = ArrayRecord()
                for key, dtype, shape, stype, size in header.items:
                    _put(record, key, Array(dtype, shape, stype, data[at : at + size]))
                    at += size
            else:
                record = ConfigRecord() if header.kind == "config" else MetricRecord()
                for key, value in header.items:
                    _put(record, key, _value(value))
            _put(content, header.name, record)
    except MessageError:
        raise
    except (ValueError, TypeError) as error:  # pydantic's, and Flower's own checks of types
        raise MessageError(f"a content with a header that cannot be used ({type(error).__name__})") from None
    if at != len(data):
        raise MessageError("a content that is cut off in its arrays, or longer than its header says")
    return content


def _put(record: Any, key: str, value: Any) -> None:
    if key in record:
        raise MessageError("a content with two entries of one name")
    record[key] = value


def _plain(value: Any) -> Any:
    """A value in JSON; bytes as an object, of which Flower's records have no other."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
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
        return base64.b64decode(plain["base64"], validate=True)
    return plain  # Flower's records check the types of what they are given
