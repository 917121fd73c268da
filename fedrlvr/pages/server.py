"""The server of a page: its own files, errors as {"error": text}, bounded request bodies, several pages at one port.

The page's own files hold no data and need no token; everything else does (`guard.py`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from fedrlvr.errors import ConfigError, EgressError, LedgerError
from fedrlvr.pages.guard import Guard, error_response

_SHARED = Path(__file__).parent / "shared"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_JSON = 64 * 2**10
"""Largest request body in bytes, where a route has no limit of its own."""

_WAITING = 64
"""Connections that the system keeps for the server until it takes them."""
_PATIENCE = 3
"""Seconds that requests in progress get when the server is stopped."""


def page_files(
    directory: Path, index: str = "index.html", *, scripts: Collection[str] | None = None
) -> dict[str, Path]:
    """A page's own files by their address, with those that all pages share.

    index: the file at the address /; no other HTML file of the directory is served. scripts: names of the only
    JavaScript files that are served; None for all.
    """
    files = {f"/{path.name}": path for path in _SHARED.iterdir() if path.suffix in _TYPES}
    for path in sorted(directory.rglob("*")):
        unused = path.suffix == ".js" and scripts is not None and path.name not in scripts
        if path.suffix in _TYPES and path.suffix != ".html" and not unused:
            files[f"/{path.relative_to(directory).as_posix()}"] = path
    return {"/": directory / index, **files}


def guarded_app(token: str, names: Collection[str], files: Mapping[str, Path], page: str = "desk") -> FastAPI:
    """An application behind the guard that serves a page's files and answers errors as {"error": text}.

    names: host names it may be asked for by, besides loopback's. files: the page's own, by their address
    (`page_files`). page: the noun for it, in refusals.

    Raises:
        ValueError: the token is empty.
    """
    if not token:
        raise ValueError("a page without a token")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, names=names, open_paths=files, page=page)
    for kind in (LedgerError, EgressError):
        app.add_exception_handler(kind, lambda _, error: error_response(400, str(error)))
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _refused)
    for address, path in files.items():
        _serve_file(app, address, path.read_bytes(), _TYPES[path.suffix])
    return app


def _serve_file(app: FastAPI, address: str, content: bytes, media_type: str) -> None:
    @app.get(address)
    def file() -> Response:
        return Response(content, media_type=media_type)


class PageWithDesks:
    """ASGI application: a page, and under /desk/NAME/ further pages, each behind its own guard.

    desk: the page of a name, or None; whoever makes it gives it the same token.
    """

    def __init__(self, page: ASGIApp, desk: Callable[[str], ASGIApp | None]) -> None:
        self._page, self._desk = page, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the path as the page of the desk knows it."""
        if scope["type"] == "http":
            _, _, kind, *rest = f"/{scope['path']}".split("/", 4)
            if kind == "desk" and len(rest) == 2 and (app := self._desk(rest[0])) is not None:
                path = f"/{rest[1]}"
                await app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
                return
        await self._page(scope, receive, send)


# Requests.


class Body(BaseModel):
    """Base of the bodies of requests, which have the declared fields alone."""

    model_config = ConfigDict(extra="forbid", strict=True)


async def bounded_body(request: Request, most: int) -> bytes:
    """The request's body, which is read no further than its bound.

    Raises:
        HTTPException: the body is larger.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"The request is larger than {most // 1024} KiB, which is the most that is taken.")
        parts.append(part)
    return b"".join(parts)


def sent_body(model: type[BaseModel]) -> Any:
    """Parameter of a route that is the request's body. FastAPI's own reading has no bound."""

    async def read(request: Request) -> BaseModel:
        try:
            return model.model_validate(json.loads(await bounded_body(request, MOST_JSON)))
        except ValidationError as error:
            raise HTTPException(422, _explain(error.errors())) from None
        except (ValueError, RecursionError):
            raise HTTPException(422, "The request's body is not JSON in UTF-8.") from None

    return Depends(read)


def _unreadable(_: Request, error: Exception) -> Response:
    """Answer a request whose parameters or body are of the wrong kind."""
    assert isinstance(error, RequestValidationError)
    return error_response(422, _explain(error.errors()))


def _refused(_: Request, error: Exception) -> Response:
    """Answer a request that a route refuses."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail)


def _explain(errors: Any) -> str:
    # Not pydantic's own text as a whole: it quotes what was sent.
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in errors)


# The process.


def serve(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    certificate: Path | None,
    key: Path | None,
    ready: Callable[[int], None],
    ending: Callable[[], None] = lambda: None,
    page: str,
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
