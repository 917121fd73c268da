"""How `scripts/bench fuzz` alters valid inputs: JSON trees, Flower's records, bytes and lines of text.

Alterations know the structure: they flip a value's type, put an extreme in its place, cut, nest, repeat, rename. Random
bytes alone would be refused by the first check and never reach the second.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

NUMBERS = (0, -1, 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e38, 1e308, -1e308)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b]0;x\x07\u202e\u200b\r\n",
    "\ud800",
    "\u0430",
    "=1+1",
    "'",
    '"',
    "../../etc/passwd",
    "/",
    "." * 300,
    "[" * 5000,
    "{" * 5000,
    "9" * 5000,
    "a" * 70_000,
    "1e999",
    "-",
    "null",
    "{}",
    "\\boxed{" * 200,
    "^".join("9" * 30),
)
ODD = (None, True, False, [], {}, [[]], [None], {"": None}, b"", b"\xff" * 9)
KINDS = ("<i8", "<u8", "<i4", "<f2", "<f4", "<f8", "?", "<U3", ">f4", "<c8", "|V4", "<M8[s]")


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are changed, cut off, there twice or in front."""
    out = bytearray(data)
    for _ in range(rng.randint(0, 4)):
        if out:
            out[rng.randrange(len(out))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    at = rng.randrange(len(out) + 1)
    to = rng.randrange(len(out) + 1)
    return bytes(rng.choice([out, out[:at], out[at:], out + out[at:], out[:at] + out[to:], b"\xef\xbb\xbf" + out]))


def text_of(text: str, rng: random.Random) -> str:
    """A text of which a part is another."""
    at = rng.randrange(len(text) + 1)
    extreme = rng.choice(TEXTS)
    mangled = scrambled(text.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
    return rng.choice([mangled, extreme, text[:at] + extreme + text[at:], text[:at], text * 2, text.swapcase()])


def value_of(value: Any, rng: random.Random, *, is_json: bool = True) -> Any:
    """Another value, of the same type or not."""
    if rng.random() < 0.15:
        odd = copy.deepcopy(rng.choice(ODD))
        return odd if not is_json or not isinstance(odd, bytes) else None
    if isinstance(value, str) and rng.random() < 0.7:
        return text_of(value, rng)
    if isinstance(value, list) and value and rng.random() < 0.6:
        longer = [copy.deepcopy(rng.choice(value)) for _ in range(rng.choice([0, 1, len(value) + 1, 600]))]
        return rng.choice([longer, value[:-1], [*value, rng.choice(NUMBERS)], [value]])
    number = rng.choice([*NUMBERS, *NOT_FINITE])
    return rng.choice([number, number, -number, str(number)[:50], [number], rng.choice(TEXTS), {"x": number}])


def tree_of(tree: Any, rng: random.Random) -> Any:
    """A copy of a JSON tree of which one to three values or keys are others."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        holders = [node for node in _nodes(tree) if isinstance(node, dict | list) and node]
        if not holders:
            return value_of(tree, rng)
        holder = rng.choice(holders)
        key: Any = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        action = rng.random()
        if action < 0.1:
            del holder[key]
        elif action < 0.2 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif action < 0.25:
            deep: Any = holder[key]
            for _ in range(rng.choice([3, 20, 100])):
                deep = rng.choice([[deep], {"x": deep}])
            holder[key] = deep
        else:
            holder[key] = value_of(holder[key], rng)
    return tree


def _nodes(tree: Any) -> list[Any]:
    nodes = [tree]
    for node in nodes:
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return nodes


def json_of(tree: Any, rng: random.Random) -> str:
    """The JSON of an altered tree, whose text is altered too now and then, or nested far too deeply."""
    text = json.dumps(tree_of(tree, rng), ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.03:
        deep = rng.choice(["[" * 100_000 + "]" * 100_000, "[" * 100_000, '{"x":' * 50_000])
        head, colon, _ = text.partition(":")
        return rng.choice([deep, head + colon + deep + "}"])
    return text if rng.random() < 0.8 else text_of(text, rng)


def array_of(array: Array, rng: random.Random) -> Array:
    """Another array: other bytes, shape or type; or an archive, an object array or none at all."""
    shape = rng.choice([array.shape, (rng.choice([0, 1, 2**40, -1]),), (), (1,) * 40, array.shape * 2])
    action = rng.random()
    if action < 0.3:
        return Array(array.dtype, shape, array.stype, scrambled(array.data, rng))
    if action < 0.4:
        archive = io.BytesIO()
        np.savez(archive, a=np.zeros(3, np.float32))
        return Array(array.dtype, array.shape, array.stype, archive.getvalue())
    if action < 0.5:
        return Array(rng.choice(TEXTS)[:30], shape, rng.choice(["numpy.ndarray", *TEXTS])[:30], array.data)
    count = int(np.prod(array.shape)) if all(0 <= n < 10**6 for n in array.shape) else 1
    with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError, OverflowError):
        values = np.full(rng.choice([count, count, 1, 0]), rng.choice([0, -1, 1, 2**31 - 1, 1e38, np.nan, np.inf, -2]))
        return Array(values.astype(rng.choice([*KINDS, array.dtype])))
    return Array(np.zeros(count, rng.choice(KINDS)))


def records_of(body: RecordDict, rng: random.Random) -> RecordDict:
    """A content of which values, keys or whole records are others. It is altered in place."""
    for _ in range(rng.randint(1, 3)):
        if not len(body):
            break
        name = rng.choice(list(body))
        record = body[name]
        action = rng.random()
        if action < 0.05 or not record:
            body[name] = rng.choice([ConfigRecord(), MetricRecord(), ArrayRecord()])
            continue
        if action < 0.1:
            body[rng.choice(TEXTS)] = body.pop(name)
            continue
        key = rng.choice(list(record))
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # Flower's own records do not take that
            if action < 0.2:
                del record[key]
            elif action < 0.3:
                record[rng.choice(TEXTS)] = record[key]  # type: ignore[index]
            elif isinstance(record, ArrayRecord):
                record[key] = array_of(record[key], rng)
            else:
                record[key] = value_of(record[key], rng, is_json=False)  # type: ignore[assignment]
    return body


def json_in(body: RecordDict, name: str, key: str, rng: random.Random) -> RecordDict:
    """A content whose JSON under a key is altered; or the content itself, now and then."""
    if rng.random() < 0.2:
        return records_of(body, rng)
    record = body[name]
    assert isinstance(record, ConfigRecord)
    record[key] = json_of(json.loads(str(record[key])), rng)
    return body
