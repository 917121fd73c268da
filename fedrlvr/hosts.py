"""Host names and addresses: the names of this machine, and `host:port` in its parts."""

from __future__ import annotations

import ipaddress

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on at every interface, and the loopback address by which this machine then connects."""


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address and with or without brackets, is this machine itself."""
    host = host.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of `host:port`.

    Raises:
        ValueError: the address has another form, or the port is not between 1 and 65535.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError("write host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
