"""All runs of the page, followed in the background: a thread looks for runs and reads what is new in their files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fedrlvr.output import logger
from fedrlvr.reporting.watch.run_files import MOST_RUNS, RunState, run_directories, run_id
from fedrlvr.reporting.watch.watched_run import WatchedRun

_log = logger("watch")

LOOK = 1.0
"""Seconds between two looks at the files of the runs."""
SEARCH = 5.0
"""Seconds between two searches for new runs."""
IDLE_LOOKS = 10
"""Number of looks of which only one is at runs that have ended."""


class Hub:
    """The runs at and below some directories.

    make: makes the data of a run's directory.
    """

    def __init__(self, roots: Sequence[Path], make: Callable[[Path], WatchedRun] = WatchedRun) -> None:
        self.roots = [root.absolute() for root in roots]
        self.version = 0
        self.closed = threading.Event()
        self._make = make
        self._runs: dict[str, WatchedRun] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def runs(self) -> list[WatchedRun]:
        """The runs that are known, those that changed last first."""
        with self._lock:
            runs = list(self._runs.values())
        return sorted(runs, key=lambda run: (run.state is not RunState.RUNNING, -run.changed_at, str(run.directory)))

    @property
    def notes(self) -> list[str]:
        """Sentences on what is not shown."""
        if len(self._runs) < MOST_RUNS:
            return []
        return [f"Only {MOST_RUNS:,} runs are shown. Name a directory with fewer: fedrlvr watch DIR."]

    def run(self, id_: str) -> WatchedRun:
        """A run by its id, with what is in its files now.

        Raises:
            KeyError: there is no such run.
        """
        with self._lock:
            run = self._runs[id_]
        if not run.loaded:
            self._refresh(run)
        return run

    def search(self) -> None:
        """Look for runs that are new, and forget those whose directory is gone."""
        there = {run_id(directory): directory for directory in run_directories(self.roots)}
        with self._lock:
            before = self._runs.keys()
            if before != there.keys():
                self._runs = {id_: self._runs.get(id_) or self._make(directory) for id_, directory in there.items()}
                self.version += 1

    def look(self, *, idle: bool = True) -> None:
        """Read what is new in the runs' files. idle: also of those that have ended or are on the server; one that was
        interrupted may go on at any moment."""
        for run in self.runs:
            if self.closed.is_set():
                return
            if idle or run.state in (RunState.RUNNING, RunState.INTERRUPTED) or not run.loaded:
                self._refresh(run)

    def _refresh(self, run: WatchedRun) -> None:
        try:
            changed = run.refresh()
        except Exception as error:  # one run's files must not end the page for all others
            _log.error("%s cannot be read (%s)", run.directory, type(error).__name__)
            run.loaded = True
            return
        if changed:
            with self._lock:
                self.version += 1

    # The thread.

    def start(self) -> None:
        """Follow the runs in a thread, until `close`."""
        self.search()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        looks = 0
        while not self.closed.is_set():
            self.look(idle=looks % IDLE_LOOKS == 0 or looks < 2)
            looks += 1
            self.closed.wait(LOOK)
            if looks % round(SEARCH / LOOK) == 0:
                self.search()

    def close(self) -> None:
        """End the thread, and every stream of events."""
        self.closed.set()
