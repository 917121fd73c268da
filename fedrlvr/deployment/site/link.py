"""State of an organisation's link to the SuperLink: `site run` writes it, `site status` and the next start read it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import CheckpointError, printable
from fedrlvr.files import atomic_text, is_locked, read_json

State = Literal["connecting", "connected", "waiting", "ended"]
QUIET_S = 90.0
"""Seconds without any answer of the SuperLink after which a connected link counts as lost. Heartbeats come every 25."""


@dataclass(frozen=True)
class SiteLink:
    """State of the link that `site run` keeps.

    state: "waiting" is the pause before the next try. since: when the state or its reason began, in seconds since 1970.
    reason: why there is no link. node: the SuperLink's number of this SuperNode. heard: when it last answered.
    place: the machine and directory of the `site run` that wrote it (`place_of`).
    """

    state: State
    since: float
    reason: str = ""
    node: int = 0
    heard: float = 0.0
    place: str = ""

    @property
    def alive(self) -> bool:
        """Whether the SuperLink has answered lately, and as it should."""
        return self.state == "connected" and not self.reason and time.time() - self.heard < QUIET_S


def link_file(org: Organisation) -> Path:
    """File that holds the state of the link."""
    return org.state / "link.json"


def lock_file(org: Organisation) -> Path:
    """File that `site run` locks, with its process id."""
    return org.state / "site.lock"


def running(org: Organisation) -> int | None:
    """Process id of this organisation's `site run`, if one runs."""
    if not is_locked(lock_file(org)):
        return None
    with contextlib.suppress(OSError, ValueError):
        return int(lock_file(org).read_text("ascii"))
    return 0


def read_link(org: Organisation) -> SiteLink | None:
    """The state that was written last; None if there is none that can be read."""
    try:
        return SiteLink(**read_json(link_file(org)))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(org: Organisation) -> bool:
    """Whether `site run` runs, and the SuperLink has answered it lately."""
    link = read_link(org)
    return running(org) is not None and link is not None and link.alive


def write_link(org: Organisation, link: SiteLink) -> None:
    """Write the state. A disk that is full keeps the old one."""
    with contextlib.suppress(CheckpointError):
        atomic_text(link_file(org), json.dumps(asdict(link)) + "\n")


def place_of(org: Organisation) -> str:
    """Name of this machine and directory. A copied directory has another one."""
    status = org.state.stat()
    return f"{socket.gethostname()}:{status.st_dev}:{status.st_ino}:{os.getuid()}"


def said_of(org: Organisation) -> str:
    """The link in words, for `site status`."""
    pid, link = running(org), read_link(org)
    if pid is None:
        ended = f"; it ended at {moment(link.since)}: {link.reason}" if link and link.reason else ""
        return f"SuperNode does not run{ended}"
    runs = f"site run is process {pid}"
    if link is None:
        return f"{runs}; it has only just started"
    if link.state == "connected" and link.reason:
        return f"{runs}; connected, but with trouble since {moment(link.since)}: {printable(link.reason)}"
    if link.alive:
        return f"{runs}; connected since {moment(link.since)}"
    if link.state == "connected":
        return f"{runs}; no link: the SuperLink has not answered since {moment(link.heard)}"
    if link.state == "connecting":
        return f"{runs}; connecting since {moment(link.since)}"
    return f"{runs}; no link since {moment(link.since)}: {printable(link.reason)}"


def moment(seconds: float) -> str:
    """A time since 1970 as site.log writes it (UTC)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
