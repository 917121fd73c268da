"""The guard before every request to a page of ours, the desk or that of `fedrlvr watch`: it checks host name and token,
and sets the browser's security headers.

A page from elsewhere can make a browser talk to an address of its own choosing under its own name (DNS rebinding), so
a name that nobody gave this page is refused. All but the page's own files, which hold no data, needs the token.
Nothing here or in the log repeats what a request or an answer said.
"""

from __future__ import annotations

import re
import secrets
import traceback
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedrlvr.errors import printable
from fedrlvr.hosts import LOOPBACK
from fedrlvr.output import logger

_log = logger("desk")

_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(?::[0-9]*)?")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that refuses requests without the right host name or token.

    names: host names it answers to, besides loopback's. open_paths: what needs no token. page: the noun for what it
    guards, in refusals.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, names: Collection[str], open_paths: Collection[str], page: str = "desk"
    ) -> None:
        self._app, self._token, self._page = app, token.encode(), page
        self._names = {*LOOPBACK, *map(_plain, names)}
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers added."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            # An error's text may quote a problem or an answer; where it happened does not.
            where = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
            if begun:
                raise RuntimeError("the answer broke off") from None
            message = f"The {self._page} failed ({type(error).__name__}); its log says where."
            await error_response(500, message)(scope, receive, answer)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        name = _plain(hosts[0]) if len(hosts) == 1 else ""
        if name not in self._names:
            return error_response(
                421,
                f"This {self._page} does not go by the name {name[:80]!r}. Use the address it printed at its start, or "
                "start it with --name and this one.",
            )
        if scope["path"] in self._open:
            return None
        scheme, _, given = ", ".join(headers.getlist("authorization")).partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._token):
            return None
        where = f"Open the address the {self._page} printed at its start."
        refused = error_response(401, f"The token is missing or wrong. {where}")
        refused.headers["WWW-Authenticate"] = "Bearer"
        return refused


def error_response(status: int, text: str) -> JSONResponse:
    """Response to a refused request: the JSON {"error": text}."""
    return JSONResponse({"error": printable(text)}, status)


def _plain(host: str) -> str:
    """A host as in a Host header or an option, without port, brackets, a last dot, or capitals."""
    parts = _HOST.fullmatch(host.strip().lower())
    return (parts["six"] or parts["name"] if parts else host).removesuffix(".")
