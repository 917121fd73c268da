"""Code that may hang or take all memory, in a child process that can be killed and is replaced.

Such code is reasoning-gym's scorers, some of which hand a model's text to sympy, which a short string can keep
computing for hours; and reward functions of the user's own (`rewards.py`). Each call runs in a child with a wall limit
and a memory limit: a child that exceeds the first is killed and the next call starts another. Nothing is pickled: JSON
lines over pipes. A child that ends by itself in mid-call (out of memory, killed from outside) is replaced and asked
once more.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrlvr.errors import GradingError
from fedrlvr.output import logger

LIMIT_S = 5.0
"""Wall seconds one check may take."""
_START_S = 120.0  # importing reasoning-gym on a busy machine
_MEMORY_BYTES = 4 << 30  # of address space, most of it never touched
_CHILD = Path(__file__).with_name("_grader_child.py")
_log = logger("tasks")


class _Ended(Exception):
    """The child ended by itself."""


class ChildEnded(Exception):
    """The child ended by itself, twice over one call."""


class KillableChild:
    """One child at a time, started when first asked. Thread-safe; a forked copy starts a child of its own.

    setup: what the child serves, as `_grader_child.py` reads it. limit_s: wall seconds for one call.
    memory_bytes: of address space that the child may take; 0: no limit. what: the child's work, for messages.
    """

    def __init__(self, setup: Mapping[str, Any], *, limit_s: float, memory_bytes: int, what: str) -> None:
        self.limit_s = limit_s
        self.what = what
        self.ready: dict[str, Any] = {}
        """What the child said of itself when it had loaded what it serves."""
        self._setup, self._memory_bytes = dict(setup), memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._owner = 0
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """Process id of the living child, if there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the child, and return its whole reply.

        Raises:
            TimeoutError: there was none within the limit; the child is gone.
            ChildEnded: the child ended twice over it.
            GradingError: the child cannot be started, or cannot load what it serves.
        """
        line = json.dumps(request) + "\n"
        with self._lock:
            for _ in range(2):
                try:
                    return self._ask(line)
                except TimeoutError:
                    self._stop()
                    raise
                except _Ended:
                    self._stop()
                except BaseException:  # an interruption: the next call must not read the reply to this one
                    self._stop()
                    raise
            raise ChildEnded

    def start(self) -> None:
        """Start the child unless it lives, so that what it serves is loaded before the first call.

        Raises:
            GradingError: as `request`.
        """
        with self._lock:
            self._live()

    def close(self) -> None:
        """Kill the child; the next call starts another."""
        with self._lock:
            self._stop()

    def failure(self, reason: str) -> GradingError:
        """The error of a child that did not start."""
        return GradingError(f"The process for {self.what} did not start ({reason}).")

    def _live(self) -> subprocess.Popen[str]:
        if self._owner != os.getpid():  # after a fork the pipes belong to the parent
            self._process, self._owner = None, os.getpid()
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        return self._process

    def _ask(self, line: str) -> dict[str, Any]:
        process = self._live()
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except OSError:
            raise _Ended from None
        return self._reply(self.limit_s)

    def _start(self) -> None:
        self._stop()
        # The processor limit only serves when the parent is gone, so it leaves the wall limit room on every core.
        cpu_seconds = math.ceil(2 * self.limit_s * (os.cpu_count() or 1)) + 1
        try:
            self._process = subprocess.Popen(
                # -P: our module names shadow nothing
                [sys.executable, "-P", str(_CHILD), str(self._memory_bytes), str(cpu_seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that processes that it starts are killed with it
            )
        except OSError as error:
            raise GradingError(f"The process for {self.what} cannot be started: {error}.") from error
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_pump, args=(self._process, self._lines), daemon=True).start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(self._setup) + "\n")
            self._process.stdin.flush()
            self.ready = self._reply(_START_S)
            failed = self.ready.get("failed")
        except (OSError, TimeoutError, _Ended):
            failed = f"it ended, or said nothing within {_START_S:g} s"
        if failed:
            self._stop()
            raise self.failure(failed)

    def _reply(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if not line.endswith("\n"):  # the stream's end, perhaps in mid-line
            raise _Ended
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        _kill(process)
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # what it had not read yet
                process.stdin.close()


def _pump(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a child, and where the system has groups of processes, those that it has started."""
    with contextlib.suppress(OSError, AttributeError):  # it is gone, or there are no groups
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


class GraderChild(KillableChild):
    """The child that scores, and makes, reasoning-gym's problems.

    limit_s: wall seconds for one check.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        super().__init__(
            {"serves": "reasoning_gym"}, limit_s=limit_s, memory_bytes=_MEMORY_BYTES, what="grading by reasoning-gym"
        )

    def ask(self, request: Mapping[str, Any]) -> float:
        """The child's verdict; 0.0 if it cannot tell within the limit, or ends twice over it.

        Raises:
            GradingError: the child cannot be started, or its library cannot be imported.
        """
        return float(self.call(request).get("verdict", 0.0))

    def call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The child's whole reply, with an `error` where it raised; empty where it could not tell in time."""
        try:
            return self.request(request)
        except TimeoutError:
            _log.warning("a check by reasoning-gym took longer than %g s and counts as wrong", self.limit_s)
        except ChildEnded:
            _log.warning("a check ended reasoning-gym's process twice and counts as wrong")
        return {}

    def failure(self, reason: str) -> GradingError:
        """The error of a child that did not start, with the command that shows why."""
        return GradingError(
            f"The process that grades by reasoning-gym did not start ({reason}). Check the installation with "
            f"`{sys.executable} -c 'import reasoning_gym'`."
        )
