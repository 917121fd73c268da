"""under-way.json in a run's directory: the round that is under way, who has answered, and who has not yet.

metrics.jsonl gets a line when a round ends; until then `fedrlvr watch` shows what stands here. The file is there while
a process is at work on the run, and what a kill has left of it says nothing about the run any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from fedrlvr.reporting.observer import (
    ClientAnswered,
    ClientLeftOut,
    ClientsAsked,
    Event,
    Observer,
    PhaseStarted,
    RoundStarted,
    StepEnded,
)

FILE = "under-way.json"
LEAST_SECONDS = 0.5
"""Seconds for which a note stays before a local step alone renews it."""


@dataclass
class UnderWay:
    """The part of a run that no line of metrics.jsonl tells of yet.

    step: of `steps` local steps, the last that is done; 0 before the first, and where clients compute elsewhere.
    asked: clients whose replies the server waits for, or waited for last. answered: those whose replies have come.
    left_out: clients that are left out of the round. since: unix seconds at which they were asked.
    """

    round: int = 0
    phase: str = ""
    step: int = 0
    steps: int = 0
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    since: float = 0.0

    @property
    def waiting(self) -> list[str]:
        """Clients that have been asked, and have neither answered nor been left out."""
        return [client for client in self.asked if client not in self.answered and client not in self.left_out]


_UNDER_WAY = TypeAdapter(UnderWay)


class UnderWayNote(Observer):
    """Keeps the note up to date, and deletes it at the end.

    clock: unix seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self.now = directory / FILE, UnderWay()
        self._clock = clock
        self._written = 0.0

    def notify(self, event: Event) -> None:
        """Write down what an event changes in the round.

        Raises:
            OSError: the note cannot be written.
        """
        now = self.now
        match event:
            case RoundStarted():
                self.now = UnderWay(event.round)
            case PhaseStarted():
                now.round, now.phase, now.step = event.round, event.phase, 0
            case ClientsAsked():
                now.asked, now.answered, now.since = list(event.clients), [], self._clock()
            case ClientAnswered():
                now.answered.append(event.client)
            case ClientLeftOut():
                now.left_out.append(event.client)
            case StepEnded():
                now.step, now.steps = event.step, event.steps
                if self._clock() - self._written < LEAST_SECONDS:
                    return
            case _:
                return
        self._write()

    def _write(self) -> None:
        """Replace the note as a whole. It need not outlast a power cut, so nothing waits for the disk."""
        temporary = self.path.with_name(f".{FILE}.tmp")
        temporary.write_text(json.dumps(asdict(self.now)), "utf-8")
        os.replace(temporary, self.path)
        self._written = self._clock()

    def close(self) -> None:
        """Delete the note, since nothing is under way any more."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def read_under_way(directory: Path) -> UnderWay | None:
    """The note in a run's directory; None if there is none, or it is of another kind."""
    try:
        return _UNDER_WAY.validate_json((directory / FILE).read_bytes(), strict=True)
    except (OSError, ValueError):
        return None
