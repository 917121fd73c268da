"""What an organisation remembers of a run, on its own disk: its memory after each round, and the reply it gave with it.

    state/runs/<run>/clients/<name>/round-0007/   a memory, as the local engine writes it (server/checkpoint.py)

The number there counts what was written; which round a memory is of stands in it. So a newer one never replaces an
older in place: a kill at any moment leaves the one before, or the new one with the reply that was made with it. A
server may go back to a round that was done; then the newest memory of an earlier round is gone on from, and those of
rounds done again go when the new one is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from fedrlvr.errors import CheckpointError
from fedrlvr.server.checkpoint import Checkpoints

KEPT = 2
"""Rounds."""
NOTHING = -1
"""The origin of a memory that a round began without one."""
_NOTE, _REPLY = "fedrlvr.deployment", "fedrlvr.deployment.reply"


@dataclass(frozen=True)
class _Kept:
    """A memory on disk: the round it is of, the message whose answer left it, and the round it was made from."""

    number: int
    round: int
    message: str
    origin: int


@dataclass(frozen=True)
class Found:
    """A memory to compute with, and the round whose memory its own round began with."""

    state: RecordDict
    origin: int


class States:
    """A client's memories of one run.

    root: of the run. warn: takes a line about what is not as it should be.
    """

    def __init__(self, root: Path, client: str, warn: Callable[[str], None]) -> None:
        self.client = client
        self.warn = warn
        self._root = root / "clients" / client
        self._files = Checkpoints(root, keep=1 << 30)  # which go is decided here
        self._notes: dict[int, _Kept | None] = {}

    def reply_to(self, message: str) -> bytes | None:
        """The reply that was made to this very message before, if it is still kept."""
        for kept in reversed(self._all()):
            if kept.message == message and (state := self._load(kept)) is not None:
                record = state[_REPLY]
                assert isinstance(record, ArrayRecord)
                return bytes(record["reply"].numpy().tobytes())
        return None

    def begin(self, round_: int) -> Found:
        """What to begin a round with: the newest memory of an earlier one."""
        kept = self._kept()
        if (found := self._newest(one for one in kept if one.round < round_)) is not None:
            return found
        # Only later rounds are kept: either nothing was before them, or it is not kept any more.
        if kept and kept[0].origin != NOTHING and (found := self._newest(kept[:1])) is not None:
            self.warn(
                f"round {round_} begins with the memory of round {kept[0].round}: the server went further back than "
                f"the {KEPT} rounds that are kept here"
            )
            return found
        return Found(RecordDict(), NOTHING)

    def go_on(self, round_: int) -> Found:
        """What to go on with in the middle of a round: its own memory, or an empty one."""
        return self._same(round_) or Found(RecordDict(), NOTHING)

    def look(self, round_: int) -> Found:
        """What to evaluate with in a round: its own memory, or the newest of an earlier one."""
        earlier = (one for one in self._kept() if one.round < round_)
        return self._same(round_) or self._newest(earlier) or Found(RecordDict(), NOTHING)

    def save(self, round_: int, found: Found, context: Context, message: str, reply: bytes) -> None:
        """Write the memory that answering a message has left, and the reply; then drop what is not needed any more.

        found: what the answer was computed from.

        Raises:
            CheckpointError: it cannot be written; what was there is intact.
        """
        number = max((*self._numbers(), 0)) + 1
        state = RecordDict(dict(context.state.items()))
        note = _Kept(number, round_, message, found.origin)
        state[_NOTE] = ConfigRecord({"round": round_, "message": message, "origin": found.origin})
        state[_REPLY] = ArrayRecord({"reply": Array(np.frombuffer(reply, np.uint8).copy())})
        self._files.save_memories(number, {self.client: Context(context.run_id, context.node_id, {}, state, {})})
        self._notes[number] = note
        wanted = {one.number for one in self._kept()[-KEPT:]}
        for old in self._numbers():
            if old not in wanted:
                shutil.rmtree(self._root / f"round-{old:04d}", ignore_errors=True)
                self._notes.pop(old, None)

    def _same(self, round_: int) -> Found | None:
        for one in self._kept():
            if one.round == round_ and (state := self._plain(one)) is not None:
                return Found(state, one.origin)
        return None

    def _newest(self, some: Iterable[_Kept]) -> Found | None:
        for one in reversed(list(some)):
            if (state := self._plain(one)) is not None:
                return Found(state, one.round)
        return None

    def _kept(self) -> list[_Kept]:
        """Memories that count, by round: of what was written, those with no newer one of the same or an earlier
        round."""
        found: list[_Kept] = []
        for one in reversed(self._all()):
            if not found or one.round < found[-1].round:
                found.append(one)
        return found[::-1]

    def _all(self) -> list[_Kept]:
        """All memories on disk that can be read, in the order in which they were written."""
        for number in self._numbers():
            if number not in self._notes:
                self._notes[number] = self._note(number)
        return [one for number in self._numbers() if (one := self._notes[number]) is not None]

    def _numbers(self) -> list[int]:
        names = [path.name[6:] for path in self._root.glob("round-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def _note(self, number: int) -> _Kept | None:
        state = self._read(number)
        note = state.get(_NOTE) if state is not None else None
        if not isinstance(note, ConfigRecord) or not isinstance(state and state.get(_REPLY), ArrayRecord):
            return None
        round_, origin = int(note["round"]), int(note["origin"])  # type: ignore[arg-type]
        return _Kept(number, round_, str(note["message"]), origin)

    def _plain(self, kept: _Kept) -> RecordDict | None:
        """A memory as the client code left it."""
        state = self._load(kept)
        if state is not None:
            del state[_NOTE], state[_REPLY]
        return state

    def _load(self, kept: _Kept) -> RecordDict | None:
        state = self._read(kept.number)
        if state is None:
            self._notes[kept.number] = None
        return state

    def _read(self, number: int) -> RecordDict | None:
        try:
            return self._files.load_memory(number, self.client)
        except CheckpointError as error:
            self.warn(f"a memory that cannot be read is passed over: {str(error).split('. Delete')[0]}")
            return None


def begin_run(runs: Path, run: str, keep: int) -> Path:
    """The directory of a run, made if it is not there; then the oldest beyond `keep` go.

    Raises:
        CheckpointError: it cannot be made.
    """
    directory = runs / run
    try:
        new = not directory.is_dir()
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)  # by this the newest are told from the oldest
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be made ({error.strerror}).") from error
    if new:
        others = [path for path in runs.iterdir() if path.is_dir() and path != directory]
        for path in sorted(others, key=_age)[: max(0, len(others) + 1 - keep)]:
            shutil.rmtree(path, ignore_errors=True)
    return directory


def _age(directory: Path) -> float:
    with contextlib.suppress(OSError):
        return directory.stat().st_mtime
    return 0.0
