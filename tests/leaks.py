"""A detector of private text in messages and files: any part of a secret, as text or as token ids, in any record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ConfigRecord, Message, RecordDict

PART = 12
"""Characters, or token ids, that count as a leak. Random ones of this length do not occur by chance."""
TYPES = ("<u1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8")
"""Number types whose bytes are searched for token ids."""


@dataclass
class Secrets:
    """The texts and token ids that must not leave a client."""

    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)

    def needles(self) -> Iterator[tuple[bytes, str]]:
        """(bytes to look for, what they are), for the first, the middle and the last part of every secret."""
        for text in self.texts:
            for part in _parts(text):
                yield part.encode("utf-8"), f"text {part!r}"
                yield json.dumps(part)[1:-1].encode("utf-8"), f"text {part!r} in JSON"
        for ids in self.ids:
            for some in _parts(ids):
                yield ",".join(map(str, some)).encode(), f"ids {some} in JSON"
                for kind in TYPES:
                    if kind != "<u1" or max(some) < 256:
                        yield np.array(some, kind).tobytes(), f"ids {some} as {kind}"


def _parts(secret: Sequence) -> list:  # type: ignore[type-arg]
    if len(secret) < PART:
        return []
    starts = sorted({0, (len(secret) - PART) // 2, len(secret) - PART})
    return [secret[start : start + PART] for start in starts]


def searchable(contents: Iterable[RecordDict]) -> bytes:
    """Everything that is in these records, names too, as bytes: arrays as they are, the rest as text and as numbers."""
    pieces: list[bytes] = []
    for content in contents:
        for name, record in content.items():
            pieces.append(name.encode())
            for key, value in record.items():
                pieces.append(key.encode())
                if isinstance(value, Array):
                    pieces += [value.data, str(value.shape).encode(), value.dtype.encode()]
                elif isinstance(value, bytes):
                    pieces.append(value)
                elif isinstance(value, list) and value and isinstance(value[0], bytes):
                    pieces += [item for item in value if isinstance(item, bytes)]
                else:
                    pieces.append(value.encode() if isinstance(value, str) else b"")
                    pieces.append(json.dumps(value, separators=(",", ":")).encode())
    return b"\0".join(pieces)


def leaks(secrets: Secrets, haystack: bytes) -> list[str]:
    """The secrets that these bytes contain."""
    needles = list(secrets.needles())
    if not needles or len(haystack) < PART:
        return []
    # Only where a needle's first bytes stand, by pairs: thousands of needles in megabytes take seconds otherwise.
    data = np.frombuffer(haystack, np.uint8).astype(np.uint16)
    pairs = data[:-1] | data[1:] << 8
    heads = np.array([np.frombuffer(needle[:PART], "<u2") for needle, _ in needles])
    places = np.arange(len(data) - PART + 1)
    for at in range(heads.shape[1]):
        known = np.zeros(2**16, bool)
        known[heads[:, at]] = True
        places = places[known[pairs[places + 2 * at]]]
    begins = {haystack[place : place + PART] for place in places.tolist()}
    return sorted({what for needle, what in needles if needle[:PART] in begins and needle in haystack})


def contents(messages: Iterable[Message]) -> list[RecordDict]:
    """The contents of messages that have one; an error's reason counts as text."""
    result = []
    for message in messages:
        if message.has_content():
            result.append(message.content)
        elif message.has_error():
            result.append(RecordDict({"error": ConfigRecord({"reason": message.error.reason or ""})}))
    return result
