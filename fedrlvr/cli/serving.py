"""Options and checks of the commands that serve a web page: desk and watch."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.errors import ConfigError
from fedrlvr.hosts import WILDCARDS, is_loopback
from fedrlvr.output import echo

SHORTEST_TOKEN = 16
NETWORK = "Other machines"
"""Heading of the options for pages that other machines reach."""

Host = Annotated[
    str, typer.Option(help="Address to listen on; the default admits this machine only.", rich_help_panel=NETWORK)
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--name", help="A further name by which browsers reach the page; may be repeated.", rich_help_panel=NETWORK
    ),
]
Certificate = Annotated[Path | None, typer.Option(help="TLS certificate chain (PEM).", rich_help_panel=NETWORK)]
Key = Annotated[Path | None, typer.Option(help="TLS private key (PEM).", rich_help_panel=NETWORK)]


@dataclass(frozen=True)
class Address:
    """The address that a page listens on, and the names under which browsers reach it."""

    host: str
    names: Sequence[str]
    certificate: Path | None
    key: Path | None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--certificate requires --key, and --key requires --certificate.")

    @property
    def all_names(self) -> list[str]:
        """Every name by which the page is reached; one that listens on all addresses, by the machine's name."""
        return [socket.gethostname() if self.host in WILDCARDS else self.host, *self.names]

    def link(self, port: int, token: str) -> str:
        """The address that a person opens. The token stands behind the #, which no browser sends."""
        name = self.names[0] if self.names else self.all_names[0]
        shown = f"[{name}]" if ":" in name else name
        return f"{'http' if self.certificate is None else 'https'}://{shown}:{port}/#token={token}"

    def warn(self, page: str, what: str) -> None:
        """Say where other machines can read what travels. page, what: nouns for the page and for what travels."""
        if not is_loopback(self.host) and self.certificate is None:
            echo(
                f"warning: other machines reach the {page} on {self.host}, and {what} and the token travel "
                "unencrypted. Give --certificate and --key, or let only a proxy with TLS reach it.",
                err=True,
            )


def check_token(token: str | None, variable: str) -> None:
    """Check the form of a token that was given.

    Raises:
        ConfigError: it is too short, or cannot stand in an address.
    """
    if token is not None and (len(token) < SHORTEST_TOKEN or not re.fullmatch(r"[A-Za-z0-9._~-]+", token)):
        raise ConfigError(
            f"The token (--token or {variable}) needs at least {SHORTEST_TOKEN} characters, of letters, digits, -._~. "
            "Leave it out for a new one."
        )
