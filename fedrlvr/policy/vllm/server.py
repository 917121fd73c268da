"""A vLLM server that this process starts and ends, and the directory that both see.

The server listens on a socket in that directory, which only this user can enter; no port is opened. Its environment
variables forbid usage statistics and, where the model is a directory, any request to a hub.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from fedrlvr.errors import SamplerError
from fedrlvr.output import logger
from fedrlvr.policy.vllm.http import VllmHttp

_log = logger("policy")
SHARED_MEMORY = Path("/dev/shm")
START_S = 1800.0
"""Wall seconds within which a server must be ready; one that ends before is noticed at once."""
_LOOK_S, _END_S, _DYING_S = 0.2, 10.0, 5.0
_LOG_LINES, _LOG_TEXT = 12, 1500
_LAUNCH = Path(__file__).parent / "launch.py"


class SharedDirectory:
    """A directory that only this user can enter, removed with this object or at the end of the process.

    parent: None is shared memory, or where there is none, the system's directory of temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Make the directory.

        Raises:
            SamplerError: it cannot be made.
        """
        if parent is None and SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
            parent = SHARED_MEMORY
        try:
            self.path = Path(tempfile.mkdtemp(prefix="fedrlvr-vllm-", dir=parent))
        except OSError as error:
            raise SamplerError(
                f"engine.vllm_adapters: no directory can be made in {parent} ({error.strerror}). Name one that this "
                "user may write to."
            ) from None
        self._end = weakref.finalize(self, _remove, self.path, os.getpid())

    def remove(self) -> None:
        """Remove the directory with what is in it."""
        self._end()


class StartedServer:
    """A vLLM server of this process. It ends with this object or with the process, however that ends.

    python: of the environment of vLLM. arguments: of vLLM's API server, without its socket. threads: of the processor.
    offline: whether the model is on this machine, so that nothing may be fetched.
    """

    def __init__(self, python: Path, arguments: Sequence[str], *, threads: int, offline: bool) -> None:
        self.python, self.arguments, self.threads, self.offline = python, list(arguments), threads, offline
        self._process: subprocess.Popen[bytes] | None = None
        self._http: VllmHttp | None = None
        self._directory: SharedDirectory | None = None
        self._end: weakref.finalize[..., StartedServer] | None = None

    @property
    def directory(self) -> Path | None:
        """Directory of the server's socket and log, removed when the server or this process ends."""
        return None if self._directory is None else self._directory.path

    @property
    def pid(self) -> int | None:
        """Process id of the server while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def ready(self) -> VllmHttp:
        """The server, started unless it lives.

        Raises:
            SamplerError: as `_start`.
        """
        if self._http is None or self.pid is None:
            self._http = self._start()
        return self._http

    def _start(self) -> VllmHttp:
        """Start the server and wait until it is ready.

        Raises:
            SamplerError: it cannot be started, or ended or was not ready in time; the text has the end of its log.
        """
        self.stop()
        directory = SharedDirectory()
        socket, log = directory.path / "socket", directory.path / "server.log"
        arguments = [*self.arguments, "--uds", str(socket)]
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [str(self.python), "-P", str(_LAUNCH), str(directory.path), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment(self.threads, offline=self.offline),
                    cwd=directory.path,
                    start_new_session=True,  # so that what it starts ends with it, and Ctrl-C reaches this process only
                )
        except OSError as error:
            raise SamplerError(
                f"engine.vllm_python: {self.python} cannot be run ({error.strerror}). Name the Python of an "
                "environment that has vLLM, such as vllm/bin/python (docs/vllm.md)."
            ) from None
        self._process, self._directory = process, directory
        self._end = weakref.finalize(self, _end, process, os.getpid())
        http, started = VllmHttp("http://localhost", socket=socket), time.monotonic()
        while not http.healthy():
            ended = process.poll() is not None
            if ended or time.monotonic() - started > START_S:
                what = "ended before it was ready" if ended else f"was not ready within {START_S:.0f} s"
                text = failure(log)
                self.stop()
                raise SamplerError(
                    f"The vLLM server of {self.python} {what}. {text} Correct engine.vllm_python or "
                    "engine.vllm_arguments, or set engine.sampler = 'loop'."
                )
            time.sleep(_LOOK_S)
        _log.info("a vLLM server is ready after %.0f s", time.monotonic() - started)
        return http

    def dying(self) -> bool:
        """Whether the server has ended, or ends within some seconds: it closes itself after an error of its engine. One
        that could not be started is not dying."""
        if self._process is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_S)
        return self._process.poll() is not None

    def keep_log(self) -> str:
        """Path of a copy of the server's log, for this user alone: it may hold prompts, so no message quotes it."""
        if self._directory is None:
            return "lost, for no server was started"
        try:
            return _kept((self._directory.path / "server.log").read_text("utf-8", "replace"))
        except OSError as error:
            return f"lost ({error.strerror})"

    def stop(self) -> None:
        """End the server, if there is one."""
        if self._end is not None:
            self._end()
        self._process = self._end = self._http = None


def environment(threads: int, *, offline: bool) -> dict[str, str]:
    """The environment variables of a server: those of this process, but for what would reach its Python or a network.

    What is set already of vLLM's own stays. threads: of OpenMP, which vLLM otherwise binds to all cores.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for name in ("VIRTUAL_ENV", "VLLM_API_KEY"):
        kept.pop(name, None)
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    fixed = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if offline:
        fixed |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return defaults | kept | fixed


def failure(log: Path) -> str:
    """The end of a server's log in one line, and where the whole log has been copied to."""
    try:
        text = log.read_text("utf-8", "replace")
    except OSError:
        return "It wrote no log."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "It wrote nothing to its log."
    end = " | ".join(lines[-_LOG_LINES:])[-_LOG_TEXT:]
    return f"The end of its log, all of which is in {_kept(text)}: {end}."


def _kept(text: str) -> str:
    """Path of a file of this user alone that a log is copied to."""
    handle, copy = tempfile.mkstemp(prefix="fedrlvr-vllm-", suffix=".log")
    with open(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return copy


def _remove(directory: Path, owner: int) -> None:
    if owner == os.getpid():  # and not in a fork of it
        shutil.rmtree(directory, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a server and the processes that it has started."""
    if owner != os.getpid():
        return
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()  # launch.py then ends the group
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    with contextlib.suppress(OSError):  # the group is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
