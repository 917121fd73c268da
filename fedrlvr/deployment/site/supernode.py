"""The SuperNode of `site run`, in a process of its own that reports on its link (keeper.py).

    python -P -m fedrlvr.deployment.site.supernode ARGUMENTS      (those of flower-supernode)

Its standard input is a socket to `site run`: reports go out on it as lines of JSON, and its end means that `site run`
is gone, also by kill -9; this process then ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from fedrlvr.deployment.flower_private import run_supernode
from fedrlvr.output import logger

_ANSWERS_S = 5.0
"""Seconds between two reports that the SuperLink answers."""


class Reports:
    """Reports to `site run`, each an event with its fields."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._last, self._sent = "", 0.0

    def __call__(self, event: str, **fields: Any) -> None:
        """Send one report, but not every one that the SuperLink answers. A `site run` that is gone gets none."""
        with self._lock, contextlib.suppress(OSError):
            now = time.monotonic()
            if event == self._last == "answer" and now - self._sent < _ANSWERS_S:
                return
            self._last, self._sent = event, now
            self._channel.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")


def main(arguments: list[str]) -> None:
    """Run the SuperNode until it is told to end, or its link ends."""
    # A duplicate that children do not inherit: a child that outlives this process must not keep the socket open.
    channel = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_end_with_parent, args=(channel,), daemon=True).start()
    reports = Reports(channel)
    try:
        run_supernode(arguments, reports)
    except Exception as error:
        logger("deployment").exception("Flower's SuperNode failed")
        reports("ended", reason=f"Flower's SuperNode failed ({type(error).__name__}: {error})")
        os._exit(1)  # the thread of Flower's interface would keep the process


def _end_with_parent(channel: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while channel.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
