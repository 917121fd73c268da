"""The guard before every request to the SuperLink: it limits what other machines may ask.

Flower serves three interfaces on its one port. Only the Fleet API, by which SuperNodes come for messages, knows who is
asking (by registered keys). The Control API starts runs, which means code on the server, and registers keys; the
Runtime API is for the processes that Flower starts. Neither has a lock of its own in the open-source release, so they
are for this machine alone.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fedrlvr.output import logger

_log = logger("superlink")

FLEET = "/v1/fleet/"
HEALTH = "/health"
_ON_BEHALF = ("forwarded", "via", "x-forwarded-for", "x-real-ip", "origin")
"""Set by proxies, with one of which on this machine everybody's requests come from this machine; and by a browser for
what a page asks, wherever the page is from."""


class MachineGuard:
    """ASGI middleware: other machines get the Fleet API and whether the server is up, this machine gets everything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on unchanged."""
        if scope["type"] == "lifespan" or is_from_here(scope) or (scope["type"] == "http" and _open(scope["path"])):
            await self._app(scope, receive, send)
            return
        # Cut and quoted, lest a path write lines of its own into the log.
        client = scope.get("client")
        address = client[0] if client else "an unknown address"
        _log.warning("refused %s, which asked for %r: only this machine may", address, scope["path"][:200])
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        text = "Only the machine of the SuperLink may ask for this; other machines have the Fleet API."
        await JSONResponse({"error": text}, 403)(scope, receive, send)


def is_from_here(scope: Scope) -> bool:
    """Whether a program of this machine asks: from loopback, or from the very address that it asks."""
    client, server = scope.get("client"), scope.get("server")
    if not client or any(name in Headers(scope=scope) for name in _ON_BEHALF):
        return False
    client_address = _address(client[0])
    server_address = _address(server[0]) if server else None
    return client_address is not None and (client_address.is_loopback or client_address == server_address)


def _open(path: str) -> bool:
    return path == HEALTH or path.startswith(FLEET)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
