"""The server of `fedrlvr watch`: the page's own files, and what it shows as JSON.

The page's files hold no data and need no token; everything else does (`access_guard.py`). Nothing is written, and
nothing is changed. What fails is answered with {"error": text}.

    GET /api/runs                                           the list of runs
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
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from fedrlvr.labels.desk.access_guard import Guard
from fedrlvr.labels.desk.app import refused, serve_file, unreadable
from fedrlvr.reporting.watch import views
from fedrlvr.reporting.watch.hub import Hub
from fedrlvr.reporting.watch.response_index import Listed
from fedrlvr.reporting.watch.run_files import shown_name
from fedrlvr.reporting.watch.watched_run import WatchedRun
from fedrlvr.version import __version__

PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {
    "/" if path.name == "index.html" else f"/{path.relative_to(PAGE).as_posix()}": path
    for path in sorted(PAGE.rglob("*"))
    if path.suffix in _TYPES
}
"""The page's own files by their address."""
POLL = 0.3
"""Seconds between two looks for something to tell the page."""
PING = 10.0
"""Seconds after which a stream of events says that it is still there."""

T = TypeVar("T")


def make_watch(hub: Hub, token: str, *, names: Collection[str] = ()) -> FastAPI:
    """Make the server of the page over the runs of a hub.

    token: what requests must bring. names: host names it may be asked for by, besides loopback's.

    Raises:
        ValueError: the token is empty.
    """
    if not token:
        raise ValueError("a page without a token")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, names=names, open_paths=FILES, page="watch page")
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, refused)
    for address, path in FILES.items():
        serve_file(app, address, path.read_bytes(), _TYPES[path.suffix])

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
