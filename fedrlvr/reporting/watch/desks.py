"""The desks that open from the page: for each run or site below its directories, the place where people decide.

A desk gives labels that a run waits for, or approves replies that wait to leave a site. It is the same application that
`fedrlvr desk` serves, under an address of its own, and with the page's token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from fedrlvr.config import load_resolved
from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.errors import FedrlvrError
from fedrlvr.labels.desk.app import make_desk
from fedrlvr.labels.desk.approval_app import make_approval_desk
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.reporting.watch.run_files import run_id, shown_name
from fedrlvr.reporting.watch.watched_run import WatchedRun

SEARCH = 5.0
"""Shortest time in seconds between two searches for a desk that is asked for and not known."""
SITES = 3
"""Number of directories below a given one in which a site.toml is looked for."""


@dataclass(frozen=True)
class Desk:
    """A desk that can be opened. title: what is done there. place: the run's or site's directory. waiting: how many
    problems or replies wait now. application: makes the page."""

    id: str
    title: str
    place: Path
    waiting: Callable[[], int]
    application: Callable[[], ASGIApp]

    def line(self) -> dict[str, Any]:
        """The desk in the page's list; without a number where it cannot be told now."""
        try:
            waiting = self.waiting()
        except (FedrlvrError, OSError):
            waiting = None
        return {
            "address": f"desk/{self.id}/",
            "title": shown_name(self.title),
            "directory": shown_name(str(self.place)),
            "waiting": waiting,
        }


class Desks:
    """All desks of the runs and sites below some directories.

    roots: those directories. runs: the runs that the page knows. token, names: of the page, for the desks too.
    """

    def __init__(
        self, roots: Sequence[Path], runs: Callable[[], Sequence[WatchedRun]], token: str, names: Collection[str] = ()
    ) -> None:
        self._roots, self._runs, self._token, self._names = roots, runs, token, names
        self._ledgers: dict[Path, LabelLedger] = {}
        self._known: dict[str, Desk] = {}
        self._open: dict[str, ASGIApp] = {}
        self._searched = -SEARCH
        self._lock = threading.RLock()
        self._ending = ExitStack()

    def lines(self) -> list[dict[str, Any]]:
        """The desks there are now, those with something to do first."""
        with self._lock:
            self._search()
            lines = [desk.line() for desk in self._known.values()]
        return sorted(lines, key=lambda line: (-(line["waiting"] or 0), line["directory"], line["title"]))

    def application(self, id_: str) -> ASGIApp | None:
        """The page of a desk; None where there is none of this id."""
        with self._lock:
            if id_ not in self._known and time.monotonic() - self._searched >= SEARCH:
                self._search()
            if id_ not in self._open and id_ in self._known:
                self._open[id_] = self._known[id_].application()
            return self._open.get(id_)

    def close(self) -> None:
        """Close the ledgers that were opened."""
        self._ending.close()

    def _search(self) -> None:
        self._known = {desk.id: desk for desk in self._desks()}
        self._searched = time.monotonic()

    def _desks(self) -> Iterator[Desk]:
        for run in self._runs():
            if run.settings.labels_from == "desk":
                yield from self._of_run(run.directory)
        for root in self._roots:
            for file in _site_files(root, SITES):
                yield from self._of_site(file)

    def _of_run(self, directory: Path) -> Iterator[Desk]:
        try:
            settings = load_resolved(directory / "config.json")
        except FedrlvrError:
            return
        clients = ["central"] if settings.federation.arm == "central" else settings.federation.names
        for client in clients:
            yield from self._labels(settings.ledger_file(directory, client), client, directory)

    def _of_site(self, file: Path) -> Iterator[Desk]:
        try:
            site = load_site(file)
        except FedrlvrError:
            return
        yield from self._labels(site.state / "ledger.sqlite", site.name, site.directory)
        egress = site.config.egress
        if egress.approve != "none" or egress.rule is not None:
            yield self._approvals(site)

    def _labels(self, path: Path, client: str, place: Path) -> Iterator[Desk]:
        if path.is_file():
            yield Desk(
                run_id(path),
                f"Labels of {client}",
                place,
                lambda: self._ledger(path).counts().open,
                lambda: make_desk(self._ledger(path), self._token, client, names=self._names),
            )

    def _approvals(self, site: Organisation) -> Desk:
        approvals, approve = Approvals(site.state), site.config.egress.approve
        return Desk(
            run_id(site.path),
            f"What leaves {site.name}",
            site.directory,
            lambda: len(approvals.waiting()),
            lambda: make_approval_desk(approvals, self._token, site.name, approve, names=self._names),
        )

    def _ledger(self, path: Path) -> LabelLedger:
        if path not in self._ledgers:
            self._ledgers[path] = LabelLedger(path)
            self._ending.callback(self._ledgers[path].close)
        return self._ledgers[path]


def _site_files(directory: Path, deepest: int) -> Iterator[Path]:
    """Every site.toml in a directory and a few below it; symbolic links are not followed."""
    if (directory / "site.toml").is_file():
        yield directory / "site.toml"
    elif deepest:
        try:
            below = sorted(path for path in directory.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:
            return
        for path in below:
            if not path.name.startswith("."):
                yield from _site_files(path, deepest - 1)
