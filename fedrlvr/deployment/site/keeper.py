"""`fedrlvr site run`: keeps a SuperNode connected, and says why where it cannot.

The SuperNode is a child process (supernode.py) that reports on its link. When the link ends, this process finds out
why with the checks of `site check`, writes the reason to site.log and to the state that `site status` shows, and tries
again after a pause, for ever: certificates are renewed, keys registered and clocks set at the other side. Only what is
wrong in the organisation's own directory ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedrlvr.deployment import certificates
from fedrlvr.deployment import flower_private as flowerparts
from fedrlvr.deployment.site import check as checks
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.link import SiteLink, moment, place_of, read_link, write_link
from fedrlvr.deployment.site.socket import end_worker
from fedrlvr.deployment.site.worker import SiteLog
from fedrlvr.errors import ConfigError
from fedrlvr.output import echo
from fedrlvr.reporting.doctor import Finding

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""Pause before the next try: it doubles with each, and begins anew once a link has lasted for the longest one."""
SILENT_S = 180.0
"""Seconds without a report after which a SuperNode counts as hung and is killed. Heartbeats report every 25 s."""
TICK_S = 5.0
"""Longest sleep of the loop, which tells systemd that it lives."""
WRITE_S = 10.0
"""Seconds between two notes of when the SuperLink has answered."""
EXAMINE_S = 15.0
"""Seconds after which the reason of trouble is looked for again."""
END_S = 10.0
"""Seconds in which a SuperNode that is told to end does so; afterwards it is killed."""


class OwnFault(ConfigError):
    """Something in the organisation's own directory that no further try can mend."""


class Keeper:
    """Keeps the SuperNode of one organisation.

    command: that starts it; environment: its variables. tell: takes a line for site.log.
    """

    def __init__(self, org: Organisation, command: Sequence[str], environment: dict[str, str]) -> None:
        self.org, self.command, self.environment = org, list(command), environment
        self.tell = SiteLog(org.log)
        self.place = place_of(org)
        self.link = SiteLink("connecting", time.time(), place=self.place)
        self._child: subprocess.Popen[bytes] | None = None
        self._written, self._up, self._examined = 0.0, 0.0, 0.0

    def run(self) -> None:
        """Keep the SuperNode until this process is told to end; then end it and the worker.

        Raises:
            OwnFault: what is wrong is here, and restarting cannot mend it.
        """
        notify("READY=1")
        before = read_link(self.org)
        node = 0
        if before is not None and before.place == self.place:
            node = before.node if before.state == "connected" else 0
            self.link = replace(self.link, heard=before.heard)
        pause, reason = SHORTEST_S, "it was told to end"
        try:
            while True:
                self._up = 0.0
                self._try(node)
                node = self.link.node
                if self._up and time.monotonic() - self._up > LONGEST_S:
                    pause = SHORTEST_S
                self._wait(pause)
                pause = min(2 * pause, LONGEST_S)
        except KeyboardInterrupt:
            pass
        except OwnFault as fault:
            reason = str(fault)
            raise
        finally:
            self._end_child()
            end_worker(self.org)
            self.tell(f"site run ends: {reason}")
            self._note(SiteLink("ended", time.time(), reason, heard=self.link.heard, place=self.place))

    def _try(self, node: int) -> None:
        """One connection, from the checks before it to its end. node: a SuperNode of ours that crashed, or 0."""
        fault = diagnose(self.org, self.link.heard) or _words(checks.free_port(self.org))
        if fault is None:
            if node:
                self._deactivate(node)
            reason = self._connection()
            fault = diagnose(self.org, self.link.heard)
            if fault is None and reason == flowerparts.IN_USE:
                fault = (
                    "the SuperLink takes another SuperNode with the same key for connected: a copy of this directory "
                    "runs elsewhere, or the last SuperNode crashed less than a minute ago"
                )
            fault = fault or reason or "the SuperNode ended without a reason that Flower names"
        self._no_link(fault)

    def _no_link(self, reason: str) -> None:
        new = self.link.state != "waiting" or self.link.reason != reason
        since = self.link.since if self.link.state != "connected" and self.link.reason == reason else time.time()
        self._note(SiteLink("waiting", since, reason, self.link.node, self.link.heard, self.place))
        if new:
            self._say(f"no link to {self.org.config.superlink} since {moment(since)}: {reason}")

    def _connection(self) -> str:
        """Start the SuperNode and wait for its end, whose reason is returned; "" where it gave none."""
        self.link = replace(self.link, state="connecting" if not self.link.reason else "waiting", node=0)
        self._note(self.link)
        reports, child_end = socket.socketpair()
        with reports:
            with child_end:
                self._child = subprocess.Popen(
                    self.command,
                    stdin=child_end.fileno(),
                    env=self.environment,
                    start_new_session=True,  # Ctrl-C in a terminal is for this process alone, which passes it on
                )
            reason, silent = "", time.monotonic() + SILENT_S
            try:
                for report in self._reports(reports):
                    now = time.monotonic()
                    if report:
                        silent = now + SILENT_S
                        reason = self._take(report) or reason
                    elif now > silent:
                        self._end_child(kill=True)
                        return f"the SuperNode gave no sign of life for {SILENT_S:.0f} s and was ended"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(END_S)
                code = self._child.returncode or 0
            finally:  # before the socket is closed, whose end would be a second signal to it
                self._end_child()
        return reason or (f"the SuperNode was ended by signal {-code}" if code < 0 else "")

    def _reports(self, channel: socket.socket) -> Iterator[dict[str, Any]]:
        """What the SuperNode reports, until it is gone; an empty report each TICK_S."""
        data = b""
        while True:
            notify("WATCHDOG=1")
            ready, _, _ = select.select([channel], [], [], TICK_S)
            if ready:
                if not (new := channel.recv(1 << 16)):
                    return
                *lines, data = (data + new).split(b"\n")
                yield from map(json.loads, lines)
            else:
                yield {}

    def _take(self, report: dict[str, Any]) -> str:
        """Note a report; the reason of an end, or of trouble."""
        event, now = report["event"], time.time()
        if event == "connected":
            self._up = time.monotonic()
            self._note(SiteLink("connected", now, "", report["node"], now, self.place))
            self._say(f"connected to {self.org.config.superlink}")
        elif event == "answer" and self.link.state == "connected":
            link = replace(self.link, heard=now, reason="", since=now if self.link.reason else self.link.since)
            if self.link.reason:
                self._say(f"{self.org.config.superlink} answers again")
                self._note(link)
            self.link = link
            if time.monotonic() - self._written > WRITE_S:
                self._note(link)
        elif event == "trouble" and self.link.state == "connected":
            self._trouble(report["reason"])
        return str(report.get("reason", "")) if event == "ended" else ""

    def _trouble(self, reported: str) -> None:
        """Find out why a connected SuperLink does not answer as it should. The reason may become another."""
        if self.link.reason and time.monotonic() < self._examined + EXAMINE_S:
            return
        fault = diagnose(self.org, self.link.heard, outside_only=True) or reported
        self._examined = time.monotonic()
        if fault != self.link.reason:
            since = self.link.since if self.link.reason else time.time()
            self._note(replace(self.link, reason=fault, since=since))
            self._say(f"trouble with {self.org.config.superlink} since {moment(since)}: {fault}")

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            notify("WATCHDOG=1")
            time.sleep(min(left, TICK_S))

    def _deactivate(self, node: int) -> None:
        """Deactivate a crashed SuperNode at the SuperLink, which takes it for connected for another minute."""
        if self.org.config.insecure:
            return
        with contextlib.suppress(ConfigError, OSError):
            authority = None if self.org.root_certificates is None else self.org.root_certificates.read_bytes()
            key = certificates.read_node_key(self.org.key)
            if flowerparts.let_go(self.org.config.superlink, authority, key, node):
                self._say("the previous SuperNode crashed; the SuperLink has deactivated it")

    def _end_child(self, *, kill: bool = False) -> None:
        """End the SuperNode, and whatever it has started that outlives it."""
        child, self._child = self._child, None
        if child is None:
            return
        if not kill:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the group that start_new_session has made
        child.wait()

    def _note(self, link: SiteLink) -> None:
        self.link, self._written = link, time.monotonic()
        write_link(self.org, link)
        notify(f"STATUS={link.state}{': ' if link.reason else ''}{link.reason}")

    def _say(self, line: str) -> None:
        self.tell(line)
        echo(f"{self.org.name}: {line}", err=True)


def diagnose(org: Organisation, heard: float = 0.0, *, outside_only: bool = False) -> str | None:
    """Reason why there can be no link, in words; None if there is none.

    heard: when the SuperLink last answered, in seconds since 1970; 0 if it never did. outside_only: take the
    organisation's own directory to be right.

    Raises:
        OwnFault: the reason lies in that directory.
    """
    if not org.config.insecure:
        if not outside_only and (fault := _words(checks.key_pair(org))):
            raise OwnFault(fault)
        if fault := _words(checks.server_certificate(org.config.superlink, org.root_certificates)):
            return fault
    return _words(checks.registration(org, moment(heard) if heard else ""))


def _words(finding: Finding) -> str | None:
    return f"{finding.name}: {finding.value}. {finding.advice}" if finding.status == "problem" else None


def notify(line: str) -> None:
    """Tell systemd something of this service, where it has started it with Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(line.encode("utf-8", "replace"), "\0" + address[1:] if address[0] == "@" else address)
