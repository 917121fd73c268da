"""The desk: the web page on a client's own machine where experts give labels, and what it talks to.

It shows an expert one open problem at a time, with the model's majority answer and two responses that disagree, and
writes the expert's word into the ledger before it says that it did. The page's own files hold no data and need no
token; everything else does (`access_guard.py`). What fails is answered with {"error": text}.

    GET  /api/next?expert=             {"problem": an open problem or null, "left", "open", "done"}
    GET  /api/last?expert=&back=       {"problem", "said"}: what the expert said last, or `back` words before that
    POST /api/answer                   {"problem", "expert", "verdict", "answer"} -> {"done"}
    POST /api/second                   {"problem"}: another expert is to see it too
    POST /api/release                  {"expert"}: is not looking at anything any more
    GET  /api/progress?expert=         {"client", "asked", "open", "labelled", ..., "done"}
    GET  /api/labels.csv               everything, as `spreadsheet.write_csv` writes it
    POST /api/labels.csv?expert=       a table with answers (text/csv) -> {"stored"}
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

from fedrlvr.errors import ConfigError, EgressError, LedgerError
from fedrlvr.labels.desk.access_guard import Guard, error_response
from fedrlvr.labels.ledger import AskedProblem, LabelLedger, Verdict, expert_name
from fedrlvr.labels.spreadsheet import MOST_BYTES, read_csv, write_csv

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/desk.css": ("desk.css", "text/css"),
    "/common.js": ("common.js", "text/javascript"),
    "/desk.js": ("desk.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MOST_JSON = 64 * 2**10
"""Largest request body in bytes; a table has the spreadsheet's own limit."""
LEASE = 300.0
"""Seconds for which a problem is reserved for the expert who looks at it; the page renews the reservation in time."""

_WAITING = 64
"""Connections that the system keeps for the server until it takes them."""
_PATIENCE = 3
"""Seconds that requests in progress get when the desk is stopped."""


class Body(BaseModel):
    """Base of the bodies of requests, which have the declared fields alone."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AnswerBody(Body):
    """An expert's verdict. `answer`: the right answer, or with accept the majority's as it was shown."""

    problem: str
    expert: str
    verdict: Verdict
    answer: str | None = None


class SecondBody(Body):
    """The problem that a second expert is to see."""

    problem: str


class ReleaseBody(Body):
    """The expert who stops looking at a problem."""

    expert: str


def guarded_app(token: str, names: Collection[str], files: Mapping[str, tuple[str, str]]) -> FastAPI:
    """An application behind the guard that serves a page's files and answers errors as {"error": text}.

    files: name and media type of each file of the page, by its path.

    Raises:
        ValueError: the token is empty.
    """
    if not token:
        raise ValueError("a desk without a token")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, names=names, open_paths=files)
    for kind in (LedgerError, EgressError):
        app.add_exception_handler(kind, lambda _, error: error_response(400, str(error)))
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, refused)
    for path, (name, media_type) in files.items():
        serve_file(app, path, (PAGE / name).read_bytes(), media_type)
    return app


def make_desk(
    ledger: LabelLedger,
    token: str,
    client: str,
    *,
    names: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The desk of a client's ledger.

    token: what requests must bring. client: its name, for the page. names: host names the desk may be asked for by,
    besides loopback's. clock: unix seconds.

    Raises:
        ValueError: the token is empty.
    """
    app = guarded_app(token, names, FILES)
    done = _Done(ledger)

    @app.get("/api/next")
    def next_open(expert: str) -> dict[str, Any]:
        problem = ledger.next_open(expert, at=clock(), lease=LEASE)
        count = done.count(expert)
        if problem is not None:
            return {"problem": _shown(problem), "left": problem.left, "open": problem.left, "done": count}
        return {"problem": None, "left": 0, "open": ledger.counts().open, "done": count}

    @app.get("/api/last")
    def last(expert: str, back: int = 0) -> dict[str, Any]:
        expert = expert_name(expert)
        pairs = [(opinion, entry) for entry in ledger.entries() for opinion in entry.opinions]
        pairs = sorted((p for p in pairs if p[0].expert == expert), key=lambda pair: pair[0].at, reverse=True)
        if not 0 <= back < len(pairs):
            return {"problem": None, "said": None}
        opinion, entry = pairs[back]
        return {"problem": _shown(entry), "said": {"verdict": opinion.verdict, "answer": opinion.answer}}

    @app.post("/api/answer")
    def answer(word: Annotated[AnswerBody, sent_body(AnswerBody)]) -> dict[str, int]:
        expert = expert_name(word.expert)
        ledger.answer(word.problem, word.verdict, word.answer, expert=expert, at=clock())
        return {"done": done.note(expert, word.problem, word.verdict)}

    @app.post("/api/second")
    def second(wish: Annotated[SecondBody, sent_body(SecondBody)]) -> dict[str, bool]:
        ledger.ask_second(wish.problem, at=clock())
        return {"second": True}

    @app.post("/api/release")
    def release(leaving: Annotated[ReleaseBody, sent_body(ReleaseBody)]) -> dict[str, bool]:
        ledger.release(leaving.expert)
        return {"released": True}

    @app.get("/api/progress")
    def progress(expert: str | None = None) -> dict[str, Any]:
        return {"client": client, **asdict(ledger.counts()), "done": done.count(expert) if expert else 0}

    @app.get("/api/labels.csv")
    def table() -> Response:
        file = io.StringIO(newline="")
        write_csv(ledger.entries(), file)
        named = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        return Response(file.getvalue().encode(), media_type="text/csv; charset=utf-8", headers=named)

    @app.post("/api/labels.csv")
    def take_table(table: Annotated[bytes, Depends(_sent_table)], expert: str) -> dict[str, int]:
        stored = read_csv(table, ledger, expert, clock())
        done.forget()
        return {"stored": stored}

    return app


def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    certificate: Path | None,
    key: Path | None,
    ready: Callable[[int], None],
    ending: Callable[[], None] = lambda: None,
    page: str = "desk",
) -> None:
    """Serve until interrupted. `ready` is called with the port once connections are taken; port 0 is any free one.

    ending: is called when the end is asked for, so that answers without an end can end. page: the noun for what is
    served, in errors. No access log: its lines would hold experts' names.

    Raises:
        ConfigError: host and port, or the certificate, cannot be used.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=_PATIENCE,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--certificate {certificate} and --key {key} cannot be used: {error}.") from error

    class PageServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            ending()
            super().handle_exit(sig, frame)

    with _listening(host, port, page) as listening:
        ready(listening.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):
            PageServer(config).run(sockets=[listening])


def _listening(host: str, port: int, page: str) -> socket.socket:
    """A socket that takes connections already, so that who reads the address can use it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {host} is no address of this machine: {error}.") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_WAITING)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"The {page} cannot listen on {host} port {port}: {error.strerror}. Give another --port or --host, or stop "
            "what is there."
        ) from error
    return listening


class _Done:
    """How many problems each expert has answered: counted once in the whole ledger, which may be long, then kept up."""

    def __init__(self, ledger: LabelLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._problems: dict[str, set[str]] | None = None

    def count(self, expert: str) -> int:
        with self._lock:
            return len(self._counted().get(expert_name(expert), ()))

    def note(self, expert: str, problem: str, verdict: Verdict) -> int:
        """An answer has been stored; a skip takes an earlier one back."""
        with self._lock:
            answered = self._counted().setdefault(expert, set())
            (answered.discard if verdict == "skip" else answered.add)(problem)
            return len(answered)

    def forget(self) -> None:
        with self._lock:
            self._problems = None

    def _counted(self) -> dict[str, set[str]]:
        if self._problems is None:
            self._problems = {}
            for entry in self._ledger.entries():
                for opinion in entry.opinions:
                    if opinion.verdict != "skip":
                        self._problems.setdefault(opinion.expert, set()).add(entry.problem)
        return self._problems


def _shown(asked: AskedProblem) -> dict[str, Any]:
    """What the page gets of a problem: no one's opinion, and none of what the probes think of it."""
    names = ("problem", "prompt", "kind", "source", "majority", "votes", "group", "responses")
    return {name: getattr(asked, name) for name in names}


def serve_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    """Answer a path with a file of the page."""

    @app.get(path)
    def file() -> Response:
        return Response(content, media_type=media_type)


async def _body(request: Request, most: int) -> bytes:
    """The request's body, which is read no further than its bound."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"The request is larger than {most // 1024} KiB, which is the most that is taken.")
        parts.append(part)
    return b"".join(parts)


async def _sent_table(request: Request) -> bytes:
    return await _body(request, MOST_BYTES)


def sent_body(model: type[BaseModel]) -> Any:
    """Parameter of a route that is the request's body. FastAPI's own reading has no bound."""

    async def read(request: Request) -> BaseModel:
        try:
            return model.model_validate(json.loads(await _body(request, MOST_JSON)))
        except ValidationError as error:
            raise HTTPException(422, _explain(error.errors())) from None
        except (ValueError, RecursionError):
            raise HTTPException(422, "The request's body is not JSON in UTF-8.") from None

    return Depends(read)


def unreadable(_: Request, error: Exception) -> Response:
    """Answer a request whose parameters or body are of the wrong kind."""
    assert isinstance(error, RequestValidationError)
    return error_response(422, _explain(error.errors()))


def refused(_: Request, error: Exception) -> Response:
    """Answer a request that a route refuses."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail)


def _explain(errors: Any) -> str:
    # Not pydantic's own text as a whole: it quotes what was sent.
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in errors)
