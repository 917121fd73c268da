"""An organisation's memory of a run, on its own disk: its state after each round, and the reply that went with it.

    state/runs/<run>/clients/<name>/round-0007/  a memory as a simulation keeps it (server/checkpoint.py), and the reply

The number there counts what was written; which round a memory is of stands in its note. So a newer one never replaces
an older in place: a kill at any moment leaves the one before, or the new one with the reply that was made with it. A
server may go back to a round that was done; then the newest memory of an earlier round is gone on from, and those of
rounds done again go when the new one is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from fedrlvr.errors import CheckpointError, ReleaseError
from fedrlvr.server.checkpoint import MEMORY, memory_directories
from fedrlvr.wire.serialization import pack, unpack

KEPT = 2
"""Number of newest rounds whose memory is kept."""
NOTHING = -1
"""The origin of a memory that a round began without one."""
REPLY = "reply.packed"


@dataclass(frozen=True)
class Saved:
    """A memory on disk: the round it is of, the message whose answer left it, and the round it was made from."""

    number: int
    round: int
    message: str
    origin: int


@dataclass(frozen=True)
class Past:
    """A memory to compute with, and the round whose memory its own round began with."""

    state: RecordDict
    origin: int


class RoundStates:
    """A client's memories of one run.

    root: of the run. warn: takes a line about what is not as it should be.
    """

    def __init__(self, root: Path, client: str, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._directories = memory_directories(root, client)
        self._notes: dict[int, Saved | None] = {}

    def reply_to(self, message: str) -> bytes | None:
        """Reply that was made to this same message before, if it is still kept."""
        for saved in reversed(self._all()):
            if saved.message == message and (files := self._read(saved.number)) is not None:
                return files[REPLY]
        return None

    def begin(self, round_: int) -> Past:
        """Memory to begin a round with: the newest one of an earlier round."""
        kept = self._kept()
        if (past := self._newest(saved for saved in kept if saved.round < round_)) is not None:
            return past
        # Only later rounds are kept: either nothing was before them, or it is not kept any more.
        if kept and kept[0].origin != NOTHING and (past := self._newest(kept[:1])) is not None:
            self.warn(
                f"round {round_} begins with the memory of round {kept[0].round}: the server went further back than "
                f"the {KEPT} rounds that are kept here"
            )
            return past
        return Past(RecordDict(), NOTHING)

    def go_on(self, round_: int) -> Past:
        """Memory to continue a round with: its own, or an empty one."""
        return self._same(round_) or Past(RecordDict(), NOTHING)

    def look(self, round_: int) -> Past:
        """Memory to evaluate a round with: its own, or the newest of an earlier round."""
        earlier = (saved for saved in self._kept() if saved.round < round_)
        return self._same(round_) or self._newest(earlier) or Past(RecordDict(), NOTHING)

    def save(self, round_: int, past: Past, context: Context, message: str, reply: bytes) -> None:
        """Write the memory after a message, with the reply; then delete memories that are no longer needed.

        past: what the answer was computed from.

        Raises:
            CheckpointError: it cannot be written; what was there is intact.
        """
        number = max((*self._directories.rounds(), 0)) + 1
        note = {"of": round_, "message": message, "origin": past.origin}
        self._directories.write(number, {MEMORY: pack(context.state), REPLY: reply}, note)
        self._notes[number] = Saved(number, round_, message, past.origin)
        wanted = {saved.number for saved in self._kept()[-KEPT:]}
        for old in set(self._directories.rounds()) - wanted:
            self._directories.remove(old)
            self._notes.pop(old, None)

    def _same(self, round_: int) -> Past | None:
        for saved in self._kept():
            if saved.round == round_ and (state := self._state(saved)) is not None:
                return Past(state, saved.origin)
        return None

    def _newest(self, memories: Iterable[Saved]) -> Past | None:
        for saved in reversed(list(memories)):
            if (state := self._state(saved)) is not None:
                return Past(state, saved.round)
        return None

    def _kept(self) -> list[Saved]:
        """Memories that count, by round: of what was written, those with no newer one of the same or an earlier
        round."""
        kept: list[Saved] = []
        for saved in reversed(self._all()):
            if not kept or saved.round < kept[-1].round:
                kept.append(saved)
        return kept[::-1]

    def _all(self) -> list[Saved]:
        """All memories on disk that can be read, in the order in which they were written."""
        numbers = self._directories.rounds()
        for number in numbers:
            if number not in self._notes:
                self._read(number)
        return [saved for number in numbers if (saved := self._notes[number]) is not None]

    def _state(self, saved: Saved) -> RecordDict | None:
        files = self._read(saved.number)
        return None if files is None else unpack(files[MEMORY])

    def _read(self, number: int) -> dict[str, bytes] | None:
        """The files of a memory, whose note is remembered; None if it cannot be read."""

        def remembered(files: dict[str, bytes], note: Mapping[str, Any]) -> dict[str, bytes]:
            self._notes[number] = Saved(number, int(note["of"]), str(note["message"]), int(note["origin"]))
            return {name: files[name] for name in (MEMORY, REPLY)}

        self._notes[number] = None
        try:
            return self._directories.read(number, remembered)
        except ReleaseError:
            raise
        except CheckpointError as error:
            self._notes[number] = None
            self.warn(f"a memory that cannot be read is passed over: {error}")
            return None


def begin_run(runs: Path, run: str, keep: int) -> Path:
    """Make the directory of a run, if it is missing, and delete the oldest runs beyond `keep`.

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
