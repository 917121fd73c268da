"""Reading problem files: JSON lines, streamed, or one JSON document; every error names file and line or item."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from fedrlvr.errors import DataError

LONGEST_LINE = 1_000_000
"""Bytes of the longest line a JSONL file may hold."""
LONGEST_FILE = 512 * 1024 * 1024
"""Bytes of the largest JSON document that is read as one."""


class JsonNumber(float):
    """A JSON number with a point or an exponent. It keeps its text: 0.00005 is `0.00005`, not `5e-05`."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number that `text` writes."""
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row and where it stands, for error messages: `where` is a path with its line, item or key."""

    where: str
    index: int
    data: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[DataRow]:
    """Rows of a file: one document if it ends in `.json` (a list, or an object of objects by id), else JSON lines.

    An object's key becomes its row's `id`. Rows are counted from 0 in `index`, lines from 1 in `where`.

    Raises:
        DataError: the file is missing, empty, not UTF-8, not JSON, too large, or a row is not an object.
    """
    try:
        yield from _document(path) if path.suffix == ".json" else _lines(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file. Give the path of the data set's file or directory.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _lines(path: Path) -> Iterator[DataRow]:
    index = 0
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > LONGEST_LINE:
                raise DataError(f"{where} is longer than {LONGEST_LINE:,} bytes. Put one problem on each line.")
            data = _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)
            if data is _BLANK:
                continue
            yield DataRow(where, index, _object(data, where))
            index += 1
    if not index:
        raise DataError(f"{path} is empty. Put one problem on each line, as a JSON object.")


def _document(path: Path) -> Iterator[DataRow]:
    if path.stat().st_size > LONGEST_FILE:
        raise DataError(f"{path} is larger than {LONGEST_FILE:,} bytes. Make it a .jsonl file, one problem on a line.")
    content = path.read_bytes()
    data = _parse(content, str(path))
    if data is _BLANK or not data:
        raise DataError(f"{path} is empty. It should hold a JSON list of problems.")
    if isinstance(data, dict):
        for index, (key, row) in enumerate(data.items()):
            where = f"{path}, key {key}"
            yield DataRow(where, index, {"id": key, **_object(row, where)})
    elif isinstance(data, list):
        for index, row in enumerate(data):
            where = f"{path}, item {index} (from 0)"
            yield DataRow(where, index, _object(row, where))
    else:
        raise DataError(f"{path} holds neither a list nor an object. It should hold a JSON list of problems.")


_BLANK = object()


def _parse(raw: bytes, where: str) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    if not text.strip():
        return _BLANK
    try:
        return json.loads(text, parse_float=JsonNumber)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg}, character {error.pos + 1}). Mend or remove it.") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of brackets
        raise DataError(f"{where} is not JSON that can be read. Mend or remove it.") from None


def _object(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise DataError(f"{where} is not a JSON object but {type_name(data)}. Write each problem as {{...}}.")
    return data


def text_field(row: Mapping[str, Any], names: Iterable[str], where: str) -> str:
    """The first of `names` that the row has, as stripped non-empty text.

    Raises:
        DataError: none is there, or it is not text, empty, or holds half a surrogate pair (no tokenizer takes that).
    """
    names = tuple(names)
    for name in names:
        if row.get(name) is None:
            continue
        value = row[name]
        if not isinstance(value, str):
            raise DataError(f"{where}: {name!r} is {type_name(value)}. It must be text.")
        return clean_text(value, name, where)
    raise DataError(f"{where} has no {' or '.join(repr(name) for name in names)}. Add it or remove the row.")


def answer_text(value: Any, name: str, where: str) -> str:
    """A gold answer as text: a string, or a finite number as the file writes it (but 51.0 is `51`).

    Raises:
        DataError: it is something else, or empty.
    """
    if isinstance(value, str):
        return clean_text(value, name, where)
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not finite:
        raise DataError(f"{where}: {name!r} is {type_name(value)}. The answer must be text or a finite number.")
    if isinstance(value, int) or not value:
        return str(int(value))
    text = value.text if isinstance(value, JsonNumber) else format(Decimal(repr(value)), "f")
    whole, _, decimals = text.partition(".")
    return text if decimals.strip("0") or not decimals else whole


def clean_text(value: str, name: str, where: str) -> str:
    """`value` stripped; raises DataError if nothing is left or it cannot be encoded."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name!r} holds half a surrogate pair. Mend the text's encoding.") from None
    if not value.strip():
        raise DataError(f"{where}: {name!r} is empty. Fill it in or remove the row.")
    return value.strip()


def type_name(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), type(value).__name__)
