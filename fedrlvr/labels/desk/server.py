"""The desk on a port: plain HTTP on this machine, TLS where there is a certificate."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from fedrlvr.errors import ConfigError

_WAITING = 64
"""Connections that the system keeps for the server until it takes them."""
_PATIENCE = 3
"""Seconds that requests in progress get when the desk is stopped."""


def serve(
    app: FastAPI, host: str, port: int, *, certificate: Path | None, key: Path | None, ready: Callable[[int], None]
) -> None:
    """Serve until interrupted. `ready` is called with the port once connections are taken; port 0 is any free one.

    No access log: its lines would hold experts' names.

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
    with _listening(host, port) as listening:
        ready(listening.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
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
            f"The desk cannot listen on {host} port {port}: {error.strerror}. Give another --port or --host, or stop "
            "what is there."
        ) from error
    return listening
