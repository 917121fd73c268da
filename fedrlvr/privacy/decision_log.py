"""The decision log of a site: one line of JSON for each decision about a reply, and for each reply that left.

    {"n": 7, "at": "2026-11-29T00:10:00Z", "decision": "allow", "kind": "adapter", "digest": SHA-256 of the bytes,
     "bytes": 327680, "by": "person Ruiz", "message": "...", "run": "...", "round": 1, "previous": SHA-256 of line 6}

Each line holds the digest of the line before it, so a line that is changed, removed or moved breaks the chain. The
file DECISIONS.head holds the number of lines and the digest of the last one, so lines that are missing at the end show
too. Whoever can write both files can forge both; only a head that was noted elsewhere (`verify`, `noted`) shows that.

A line is appended and is on disk before `append` returns. A process that is killed as it writes leaves a part of a
line; the next append leaves that part where it is and writes a line "repaired" that holds its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrlvr.errors import CheckpointError
from fedrlvr.files import atomic_text, read_json, sync, waiting_lock

FILE = "decisions.jsonl"
START = "0" * 64
"""The digest that the first line holds in the place of a line before it."""
WAIT_S = 10.0
"""Seconds to wait for the log's lock; it is held for one line."""
REPAIRED = "repaired"
"""The decision of a line that stands behind a part of a line."""
_RECENT = 1 << 18
"""Bytes at the end of the log in which a recent line is looked for first."""


@dataclass(frozen=True)
class Head:
    """End of the log: the number of its lines, and the digest of the last one."""

    lines: int = 0
    digest: str = START

    def after(self, line: bytes) -> Head:
        """Head after one more line, given without its end."""
        return Head(self.lines + 1, _digest(line))


@dataclass(frozen=True)
class Verified:
    """Result of reading the whole log.

    head: of the lines up to the first fault. fault: what is wrong, with its line; "" if nothing is. cut: bytes of a
    line at the end that was not finished.
    """

    head: Head
    fault: str = ""
    cut: int = 0


class DecisionLog:
    """The decision log in a site's state directory; several processes may append to it.

    clock: unix seconds.
    """

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = state / FILE, clock
        self.head_path = self.path.with_suffix(".head")

    def append(self, decision: str, **fields: Any) -> Head:
        """Append a line; it is on disk when this returns.

        fields: of the line, besides its number, time and the digest of the line before.

        Raises:
            CheckpointError: the log does not end as its head says, or cannot be written.
        """
        with waiting_lock(self.path.with_suffix(".lock"), WAIT_S):
            head, cut = self._end()
            before, _, last = cut.rpartition(b"\n")
            if cut and not _fault(_parsed(last), head, before):  # a whole line, without its end alone
                self._write(b"\n")
                head, cut = head.after(last), b""
            if head != self._stated():  # so that one call never puts the file further ahead than its own lines
                self._write_head(head)
            data = b""
            if cut:
                line = self._line(head, REPAIRED, {"bytes": len(cut), "digest": _digest(cut)})
                data, head = b"\n" + line + b"\n", head.after(line)
            line = self._line(head, decision, fields)
            self._write(data + line + b"\n")
            head = head.after(line)
            self._write_head(head)
            return head

    def entries(self) -> Iterator[dict[str, Any]]:
        """The lines that can be read, in order; the chain is not looked at."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                if (entry := _parsed(line)) is not None:
                    yield entry

    def last(self, decision: str, **fields: Any) -> dict[str, Any] | None:
        """The newest line of a decision with these fields; None if there is none."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in dict.fromkeys((max(0, size - _RECENT), 0)):
                file.seek(start)
                for line in reversed(file.read().split(b"\n")):
                    entry = _parsed(line) or {}
                    if all(entry.get(name) == value for name, value in {"decision": decision, **fields}.items()):
                        return entry
        return None

    def verify(self, noted: str = "") -> Verified:
        """Read the whole log, and compare it with its chain and its head.

        noted: the digest of a head that was noted elsewhere; a log that never had it is another one.
        """
        try:
            with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
                return self._verified(_walk(file, Head()), noted)
        except OSError as error:
            return Verified(Head(), f"{self.path} cannot be read ({error.strerror})")
        return self._verified(_walk([], Head()), noted)

    def _verified(self, walk: _Walk, noted: str) -> Verified:
        head, stated = walk.heads[-1], self._stated()
        cut, fault = len(walk.cut), walk.fault and f"behind line {head.lines} of {self.path}: {walk.fault}"
        if not fault and stated is None:
            fault = f"{self.head_path} is damaged"
        elif not fault and stated not in walk.ends:
            fault = f"{self.path} ends with line {head.lines}, and {self.head_path.name} states another end"
        if not fault and noted and noted not in (known.digest for known in walk.heads):
            fault = f"{self.path} never had the head {noted}, so it is another log"
        return Verified(head, fault, cut)

    def _write(self, data: bytes) -> None:
        try:
            new = not self.path.exists()
            with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.path.parent)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written ({error.strerror}).") from error

    def _write_head(self, head: Head) -> None:
        atomic_text(self.head_path, json.dumps({"lines": head.lines, "sha256": head.digest}) + "\n")

    def _line(self, head: Head, decision: str, fields: dict[str, Any]) -> bytes:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        entry = {"n": head.lines + 1, "at": at, "decision": decision, **fields, "previous": head.digest}
        return json.dumps(entry).encode()

    def _end(self) -> tuple[Head, bytes]:
        """The head that the next line follows, and a part of a line behind it.

        Raises:
            CheckpointError: the file does not end as its head says.
        """
        stated, data = self._stated(), b""
        try:
            with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _RECENT))
                data = file.read()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror}).") from error
        lines = io.BytesIO(data).readlines()
        places = [place for place, line in enumerate(lines, start=1) if stated and _digest(line[:-1]) == stated.digest]
        known = stated is not None and (places or stated == Head())
        walk = _walk(lines[places[-1] if places else 0 :], stated or Head())
        if not known or walk.fault or stated not in walk.ends:
            raise CheckpointError(
                f"{self.path} does not end as {self.head_path.name} states, so nothing leaves. `fedrlvr site log "
                "--verify` says where it was changed. Move both files away to begin a new log."
            )
        return walk.heads[-1], walk.cut

    def _stated(self) -> Head | None:
        """The head in the head file; that of an empty log where there is no file, None where it cannot be read."""
        try:
            tree = read_json(self.head_path)
            return Head(int(tree["lines"]), str(tree["sha256"]))
        except FileNotFoundError:
            return Head()
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class _Walk:
    """Lines that were read one after another.

    heads: before the first line and after each. ends: those that the head file may state. cut: a part of a line at the
    end.
    """

    heads: list[Head]
    ends: list[Head]
    cut: bytes = b""
    fault: str = ""


def _walk(lines: Iterable[bytes], head: Head) -> _Walk:
    heads, repaired, cut, fault = [head], [False], b"", ""
    for line in lines:
        entry = _parsed(line)
        if entry is None or not line.endswith(b"\n"):
            cut += line
        elif fault := _fault(entry, heads[-1], cut.removesuffix(b"\n")):
            break
        else:
            heads.append(heads[-1].after(line[:-1]))
            repaired.append(bool(cut))
            cut = b""
    # A process may have been killed before it wrote the head of its last line, and of the repair before that line.
    return _Walk(heads, heads[-3 if repaired[-2:-1] == [True] else -2 :], cut, fault)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _fault(entry: dict[str, Any] | None, head: Head, cut: bytes) -> str:
    """What is wrong with a line behind this head; cut: a part of a line between them."""
    if entry is None:
        return "it is no JSON object"
    if entry.get("n") != head.lines + 1:
        return f"its number is {entry.get('n')!r:.40}, and {head.lines + 1} is the next: lines are missing or moved"
    if entry.get("previous") != head.digest:
        return "it does not follow the line before it: one of them was changed"
    repaired = entry.get("decision") == REPAIRED
    if repaired != bool(cut) or (cut and entry.get("digest") != _digest(cut)):
        return "a part of a line stands before it that no line names" if cut else "it repairs nothing"
    return ""
