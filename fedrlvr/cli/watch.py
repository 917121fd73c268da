"""`fedrlvr watch`: a live page over running and finished runs."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.serving import SHORTEST_TOKEN, Address, Certificate, Host, Key, Names, check_token
from fedrlvr.errors import ConfigError
from fedrlvr.files import new_file, private_directory
from fedrlvr.output import echo

TOKEN = "FEDRLVR_WATCH_TOKEN"


def watch(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR]...", help="Runs, sweeps, sites, or directories that hold some; by default runs/."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8766,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN, show_envvar=True, help="Secret that admits a browser; by default this user's, kept in a file."
        ),
    ] = None,
    host: Host = "127.0.0.1",
    name: Names = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Serve a live page over runs: curves, clients, costs, advice, and the responses on this machine.

    Where a run asks people for labels, or a site lets people approve what leaves, the page opens their desks. Prints
    the page's address; Ctrl-C ends it. Runs do not depend on it.
    """
    roots = [path.expanduser() for path in directories or [Path("runs")]]
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root}: there is no such directory. Name one that holds runs: fedrlvr watch DIR.")
    address = Address(host, name or [], certificate, key)
    check_token(token, TOKEN)
    secret = token or kept_token()

    from fedrlvr.pages.server import PageWithDesks, serve
    from fedrlvr.reporting.watch.app import make_watch
    from fedrlvr.reporting.watch.desks import Desks
    from fedrlvr.reporting.watch.hub import Hub

    hub = Hub(roots)
    desks = Desks(hub.roots, lambda: hub.runs, secret, address.all_names)

    def ready(bound: int) -> None:
        echo(f"Watching {', '.join(map(str, roots))}")
        echo(f"  {address.link(bound, secret)}")
        hub.start()
        people = " answer problems, approve what leaves," if desks.lines() else ""
        echo(f"Anybody with this address can{people} read runs and responses. Ctrl-C closes the page.")
        address.warn("watch page", "numbers, responses")
        sys.stdout.flush()

    try:
        serve(
            PageWithDesks(make_watch(hub, secret, names=address.all_names, desks=desks), desks.application),
            host,
            port,
            certificate=certificate,
            key=key,
            ready=ready,
            ending=hub.close,
            page="watch page",
        )
    finally:
        hub.close()
        desks.close()
    echo("The page is closed; runs go on.")


def token_file() -> Path:
    """The file of this user's token, so that an open page finds the server again after its restart."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return home / "fedrlvr" / "watch-token"


def kept_token() -> str:
    """This user's token, made when it is first needed; a new one at each start where no file can be kept."""
    import secrets

    path = None
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = token_file()
        if (kept := _read(path)) is not None:
            return kept
    fresh = secrets.token_urlsafe(24)
    with contextlib.suppress(OSError):
        if path is not None:
            private_directory(path.parent)
            path.unlink(missing_ok=True)
            new_file(path, fresh.encode("ascii"))
    return fresh


def _read(path: Path) -> str | None:
    """A token that only this user can have read or written; None otherwise."""
    try:
        status = path.stat()
        text = path.read_text("ascii").strip()
    except FileNotFoundError:
        return None
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return text if private and re.fullmatch(rf"[A-Za-z0-9_-]{{{SHORTEST_TOKEN},100}}", text) else None
