"""An organisation's worker: one process that holds the model and answers one message after another.

    python -m fedrlvr.deployment.site.worker SITE_TOML

A client app starts it when none is there (socket.py). It ends when it had nothing to do for `idle_minutes`, when it is
told to, or when it is killed: what it must not forget is on disk. It listens before it loads anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, NoReturn

from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.deployment.site.socket import Frames, receive, secret, send, socket_path, state_directory
from fedrlvr.errors import FedrlvrError, MessageError, printable
from fedrlvr.files import file_lock
from fedrlvr.output import logger

_log = logger("deployment")

Answer = Callable[[dict[str, Any], bytes], Frames]


@dataclass
class _Waiting:
    """A message whose client app waits for the answer."""

    header: dict[str, Any]
    content: bytes
    done: threading.Event = field(default_factory=threading.Event)
    reply: Frames = ({}, b"")


class SiteLog:
    """Log of an organisation's requests and answers: lines of plain text, each with its time (UTC)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        """Write a line. A disk that is full loses lines, never an answer."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{now} {printable(' '.join(line.split()))}\n")


class Worker:
    """Listens for messages, and answers one at a time.

    tell: takes a line for the site's log.
    """

    def __init__(self, org: Organisation, tell: Callable[[str], None]) -> None:
        self.org, self.tell = org, tell
        self.path = socket_path(org.state)
        self.secret = secret(org.state)
        self._messages: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._open: list[_Waiting] = []
        self._busy: str | None = None
        self._busy_since: float | None = None
        self._began = time.time()
        self._models: Callable[[], list[str]] = list
        self.path.unlink(missing_ok=True)  # of one that was killed; the lock says that none is alive
        self._listener = Listener(str(self.path), "AF_UNIX", backlog=32)
        threading.Thread(target=self._listen, daemon=True).start()

    def serve(self, answer: Answer, models: Callable[[], list[str]]) -> None:
        """Answer messages until none has come for `idle_minutes`.

        models: those in memory.
        """
        self._models = models
        while True:
            try:
                waiting = self._messages.get(timeout=self.org.config.idle_minutes * 60)
            except queue.Empty:
                return
            self._busy = f"{waiting.header.get('message_type')} of round {waiting.header.get('group_id')}"
            self._busy_since = time.time()
            waiting.reply = answer(waiting.header, waiting.content)
            self._busy = self._busy_since = None
            waiting.done.set()

    def end(self, why: str, *, again: bool = False) -> NoReturn:
        """End the process at once, also in the midst of a computation.

        again: who waits for an answer sees the connection break and asks another worker; else he is told.
        """
        reason = f"failed at {self.org.name}: its worker was told to end"
        waiting = [] if again else [message for message in list(self._open) if not message.done.is_set()]
        for message in waiting:
            message.reply = ({"ok": False, "kind": "failed", "reason": reason}, b"")
            message.done.set()
        until = time.monotonic() + 2.0
        while any(message in self._open for message in waiting) and time.monotonic() < until:
            time.sleep(0.01)
        self.tell(f"the worker ends: {why}")
        self.path.unlink(missing_ok=True)
        logging.shutdown()
        os._exit(0)  # which any thread may do

    def _listen(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError as error:  # too many open files, say; closing the listener ends the process anyway
                _log.warning("a connection was not taken: %s", error)
                time.sleep(0.1)
                continue
            # Each has its own thread, so that a stranger who says nothing keeps nobody waiting.
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: Connection) -> None:
        try:
            with connection:
                deliver_challenge(connection, self.secret)
                answer_challenge(connection, self.secret)
                header, content = receive(connection)
                if header.get("type") == "status":
                    send(connection, self._status(), b"")
                elif header.get("type") == "stop":
                    send(connection, {"ok": True}, b"")
                elif header.get("type") == "message":
                    self._wait(connection, header, content)
                else:
                    raise MessageError("a frame of unknown type")
        except AuthenticationError:
            _log.warning("a connection without the secret was turned away")
            return
        except (EOFError, OSError, MessageError) as error:
            _log.warning("a connection was lost: %s", str(error) or type(error).__name__)
            return
        if header["type"] == "stop":
            self.end("it was told to")

    def _wait(self, connection: Connection, header: dict[str, Any], content: bytes) -> None:
        waiting = _Waiting(header, content)
        self._open.append(waiting)
        try:
            self._messages.put(waiting)
            waiting.done.wait()
            send(connection, *waiting.reply)
        finally:
            self._open.remove(waiting)

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "began": self._began,
            "busy": self._busy,
            "busy_since": self._busy_since,
            "waiting": max(0, len(self._open) - (self._busy is not None)),
            "models": self._models(),
            "idle_minutes": self.org.config.idle_minutes,
        }


def main(site_toml: Path | str) -> None:
    """Run the worker of an organisation, unless one runs already.

    Raises:
        ConfigError: the organisation's configuration cannot be used.
        CheckpointError: its state directory cannot be written.
    """
    org = load_site(site_toml)
    os.umask(0o077)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    lock = file_lock(state_directory(org) / "worker.lock")
    if lock is None:
        return  # another is there, or about to be
    lock.truncate(0)
    with contextlib.suppress(OSError):  # a disk that is full: the lock holds without a number in it
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    tell = SiteLog(org.log)
    worker = Worker(org, tell)
    signal.signal(signal.SIGTERM, lambda *_: worker.end("it was terminated"))
    tell(f"a worker begins (process {os.getpid()})")
    from fedrlvr.deployment.site.handler import Answering  # torch, and what stands on it

    answering = Answering(org, tell)
    worker.serve(answering.reply, lambda: list(answering.models))
    worker.end(f"nothing was asked for {org.config.idle_minutes:g} minutes", again=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except FedrlvrError as error:
        sys.exit(str(error))
