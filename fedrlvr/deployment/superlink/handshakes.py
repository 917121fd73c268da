"""TLS connections to the SuperLink that fail, in its log, with the cause and what to do."""

from __future__ import annotations

import ssl
from typing import Any

from fedrlvr.output import logger

_log = logger("superlink")


def show_failed_handshakes() -> None:
    """Write failed TLS connections to the log; asyncio drops them without a word."""
    from asyncio import sslproto

    handler = getattr(sslproto.SSLProtocol, "_on_handshake_complete", None)
    if handler is None:
        _log.warning("this Python does not let TLS connections that fail be shown")
        return

    def complete(self: Any, failure: BaseException | None) -> None:
        if isinstance(failure, ssl.SSLError):
            transport = getattr(self, "_transport", None)
            peer = transport.get_extra_info("peername") if transport is not None else None
            _log.warning(
                "a TLS connection from %s failed: %s", peer[0] if peer else "unknown", handshake_reason(failure)
            )
        handler(self, failure)

    setattr(sslproto.SSLProtocol, "_on_handshake_complete", complete)  # noqa: B010  (private, so unknown to mypy)


def handshake_reason(failure: ssl.SSLError) -> str:
    """Cause of a failed TLS connection, as the server sees it."""
    reason = (failure.reason or type(failure).__name__).lower().replace("_", " ")
    if "unknown ca" in reason:
        return f"{reason}; it trusts another authority than ours: compare its ca.crt with this SuperLink's"
    if "certificate" in reason:
        return f"{reason}; it does not take this SuperLink's certificate: expired, or not for the name it asked for"
    if "http request" in reason or "wrong version" in reason:
        return f"{reason}; it does not speak TLS"
    return reason
