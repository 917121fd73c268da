"""The server of `fedrlvr watch`: the page's own files, and what it shows as JSON.

The page's files hold no data and need no token; everything else does (`fedrlvr/pages/guard.py`). Nothing is written,
and nothing is changed: people decide at the desks (`desks.py`), which are pages of their own under /desk/. What fails
is answered with {"error": text}.

    GET /api/runs                                           the list of runs
    GET /api/desks                                          the desks that can be opened, and how much waits there
    GET /api/comparison?run=&run=&over=                     curves of several runs, and the settings that differ
    GET /api/runs/RUN                                       a run's head
    GET /api/runs/RUN/views/NAME?client=                    the data of one view; the clients to draw one by one
    GET /api/runs/RUN/cosines?round=                        cosines of the clients' changes
    GET /api/runs/RUN/responses?client=&round=&shown=&start=   a page of responses, wrong ones first
    GET /api/runs/RUN/problem?client=&problem=              the responses to one problem over the rounds
    GET /api/events                                         server-sent events: `runs` whenever something has changed
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from fedrlvr.errors import FedrlvrError
from fedrlvr.pages.server import guarded_app, page_files
from fedrlvr.reporting.comparison import Over
from fedrlvr.reporting.watch import compared_runs, views
from fedrlvr.reporting.watch.desks import Desks
from fedrlvr.reporting.watch.hub import Hub
from fedrlvr.reporting.watch.response_index import Listed
from fedrlvr.reporting.watch.run_files import shown_name
from fedrlvr.reporting.watch.watched_run import WatchedRun
from fedrlvr.version import __version__

FILES = page_files(Path(__file__).parent / "page")
POLL = 0.3
"""Seconds between two looks for something to tell the page."""
PING = 10.0
"""Seconds after which a stream of events says that it is still there."""

T = TypeVar("T")


def make_watch(hub: Hub, token: str, *, names: Collection[str] = (), desks: Desks | None = None) -> FastAPI:
    """Make the server of the page over the runs of a hub.

    token: what requests must bring. names: host names it may be asked for by, besides loopback's. desks: those that
    the page lists.

    Raises:
        ValueError: the token is empty.
    """
    app = guarded_app(token, names, FILES, "watch page")

    def of(run: str, read: Callable[[WatchedRun], T]) -> T:
        try:
            data = hub.run(run)
        except KeyError:
            raise HTTPException(404, "There is no such run any more.") from None
        with data.lock:
            try:
                return read(data)
            except KeyError:
                raise HTTPException(404, "The run has no such data.") from None

    @app.get("/api/runs")
    def runs() -> dict[str, Any]:
        return {
            "runs": [views.run_line(run) for run in hub.runs if run.loaded],
            "reading": sum(not run.loaded for run in hub.runs),
            "roots": [shown_name(str(root)) for root in hub.roots],
            "notes": hub.notes,
            "release": __version__,
        }

    @app.get("/api/desks")
    def listed_desks() -> dict[str, Any]:
        return {"desks": desks.lines() if desks is not None else []}

    @app.get("/api/comparison")
    def comparison(
        run: Annotated[list[str], Query(min_length=1, max_length=compared_runs.MOST)], over: Over = "rounds"
    ) -> dict[str, Any]:
        try:
            return compared_runs.compared([of(id_, lambda data: data.directory) for id_ in run], over)
        except FedrlvrError as error:
            raise HTTPException(422, str(error)) from None

    @app.get("/api/runs/{run}")
    def head(run: str) -> dict[str, Any]:
        return of(run, views.overview)

    @app.get("/api/runs/{run}/views/{name}")
    def view(run: str, name: str, client: Annotated[list[str] | None, Query()] = None) -> dict[str, Any]:
        return of(run, lambda data: views.view(data, name, client or ()))

    @app.get("/api/runs/{run}/cosines")
    def cosines(run: str, round: int) -> dict[str, Any]:
        return of(run, lambda data: views.cosines(data, round))

    @app.get("/api/runs/{run}/responses")
    def responses(
        run: str,
        client: str | None = None,
        round: int | None = None,
        shown: Literal["all", "wrong", "right", "ungraded"] = "all",
        start: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        return of(run, lambda data: _listed(data.responses.listed(client, round, shown, start)))

    @app.get("/api/runs/{run}/problem")
    def problem(run: str, client: str, problem: str) -> dict[str, Any]:
        return of(run, lambda data: _listed(data.responses.of_problem(client, problem)))

    @app.get("/api/events")
    def events() -> StreamingResponse:
        return StreamingResponse(changes(hub), media_type="text/event-stream")

    return app


def _listed(page: Listed) -> dict[str, Any]:
    return {"responses": page.responses, "total": page.total, "rounds": page.rounds, "notes": page.notes}


async def changes(hub: Hub) -> AsyncIterator[str]:
    """Server-sent events: the versions of the runs that have changed, at first of all, until the hub is closed."""
    sent: dict[str, int] = {}
    version, spoke = -1, 0.0
    while not hub.closed.is_set():
        if hub.version != version:
            version, now = hub.version, {run.id: run.version for run in hub.runs if run.loaded}
            changed = {id_: number for id_, number in now.items() if sent.get(id_) != number}
            sent, spoke = now, time.monotonic()
            yield f"event: runs\ndata: {json.dumps(changed)}\n\n"
        elif time.monotonic() - spoke > PING:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(POLL)
