"""Connection between a client app and its organisation's worker: a Unix socket that only this user can reach.

Whoever connects shows that he knows the secret in the organisation's state directory, and so does the worker. Then one
message goes each way, each two frames of bytes: a header in JSON, and a content (wire/serialization.py). Nothing is
ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import CheckpointError, ConfigError, MessageError, OverdueError, RoundError
from fedrlvr.files import is_locked, new_file, private_directory

LARGEST_FRAMES = 1 << 16, 1 << 33
"""Largest header and largest content, in bytes."""
START_S = 60.0
"""Seconds within which a worker must listen after its start."""
STOP_S = 15.0
_SECRET = 32
_LONGEST_PATH = 100
"""Bytes that the path of a Unix socket may have; the limit of some systems is 104."""
_AGAIN_S = 0.05

Frames = tuple[dict[str, Any], bytes]


def ask(org: Organisation, header: dict[str, Any], content: bytes) -> Frames:
    """Send a message to the worker and return its answer; a worker is started if none runs.

    A worker that does not answer in the site's time (message_minutes) is killed, and the next message finds another.

    Raises:
        OverdueError: it did not.
        RoundError: no worker can be started, or two have ended over this message.
        MessageError: an answer that cannot be read.
    """
    for _ in range(2):
        connection = _reach(org)
        with contextlib.suppress(EOFError, OSError), connection:  # it ended: the next has its state
            send(connection, header, content)
            if connection.poll(org.seconds):
                return receive(connection)
            end_worker(org, patience=0.0)
            raise OverdueError(
                f"{org.name}: no answer within message_minutes = {org.config.message_minutes:g} of site.toml, so the "
                "worker was ended. Does a reward function of its own hang?"
            )
    raise RoundError(f"{org.name}: the worker ended twice over one message{_last_words(org)}")


def status(org: Organisation) -> dict[str, Any] | None:
    """Status that the worker reports; None if no worker runs."""
    return _tell(org, "status")


def stop(org: Organisation) -> bool:
    """End the worker, also in the midst of a computation, and wait until it has ended. Returns whether one was running.

    Raises:
        RoundError: it does not end.
    """
    if _tell(org, "stop") is None:
        return False
    end = time.monotonic() + STOP_S
    while socket_path(org.state).exists():
        if time.monotonic() > end:
            raise RoundError(f"{org.name}: the worker does not end. Its process id is in {org.state / 'worker.lock'}.")
        time.sleep(_AGAIN_S)
    return True


def end_worker(org: Organisation, patience: float = 3.0) -> None:
    """End the worker and what it has started, if one runs: it is told to, and killed where that takes too long.

    What it must not forget is on disk. patience: seconds in which it may end by itself.
    """
    import psutil

    lock = org.state / "worker.lock"
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        if not is_locked(lock):
            return
        worker = psutil.Process(int(lock.read_text("ascii")))
        processes = [worker, *worker.children(recursive=True)]
        if patience:
            worker.terminate()
            psutil.wait_procs([worker], patience)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, STOP_S)


def send(connection: Connection, header: dict[str, Any], content: bytes) -> None:
    """Send a header and a content, as two frames.

    Raises:
        OSError: the other end is gone.
    """
    connection.send_bytes(json.dumps(header).encode())
    connection.send_bytes(content)


def receive(connection: Connection) -> Frames:
    """Receive two frames, a header and a content.

    Raises:
        EOFError, OSError: it is gone, or sends more than anybody may.
        MessageError: a header that cannot be read.
    """
    text = connection.recv_bytes(LARGEST_FRAMES[0])
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise MessageError("a frame whose header is no JSON object")
    return header, connection.recv_bytes(LARGEST_FRAMES[1])


def state_directory(org: Organisation) -> Path:
    """Make the organisation's state directory, if it is missing, and return it.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        private_directory(org.state)
    except OSError as error:
        raise CheckpointError(f"{org.state} cannot be made ({error.strerror}).") from error
    return org.state


def secret(state: Path, name: str = "worker.secret") -> bytes:
    """Secret by which client apps and the worker recognise each other; created if it is missing.

    name: of its file. "worker.secret" is what client apps and worker know each other by.

    Raises:
        CheckpointError: it can be neither read nor made, or others may read it.
    """
    path = state / name
    try:
        with contextlib.suppress(FileExistsError):  # another process was quicker: its secret it is
            if not path.exists():
                new_file(path, secrets.token_bytes(_SECRET))
        if path.stat().st_mode & 0o077:
            raise CheckpointError(f"{path} can be read by others. Delete it, and a new one is made.")
        data = path.read_bytes()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} can be neither read nor made ({error.strerror}).") from error
    if len(data) != _SECRET:
        raise CheckpointError(f"{path} does not hold {_SECRET} bytes. Delete it, and a new one is made.")
    return data


def socket_path(state: Path) -> Path:
    """Path of the worker's socket: in the state directory or, if that path is too long for a socket, in a private
    directory among temporary files.

    Raises:
        ConfigError: that directory is somebody else's, or others may enter it.
    """
    path = state / "worker.sock"
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return path
    name = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"fedrlvr-{os.getuid()}-{name}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    entry = directory.lstat()
    ours = entry.st_uid == os.getuid() and not entry.st_mode & 0o077
    if directory.is_symlink() or not directory.is_dir() or not ours:
        raise ConfigError(
            f"{directory} is not a directory that is this user's alone, as the worker's socket needs it. Remove it, or "
            "set TMPDIR to another place."
        )
    return directory / "worker.sock"


def _tell(org: Organisation, kind: str) -> dict[str, Any] | None:
    connection = _connect(org)
    if connection is None:
        return None
    with contextlib.suppress(EOFError, OSError), connection:
        send(connection, {"type": kind}, b"")
        return receive(connection)[0]
    return None


def _connect(org: Organisation) -> Connection | None:
    """A connection to the worker; None if nobody listens.

    Raises:
        RoundError: somebody listens who does not know the secret.
    """
    if not org.state.is_dir() or not (path := socket_path(org.state)).exists():
        return None
    try:
        return Client(str(path), "AF_UNIX", authkey=secret(org.state))
    except AuthenticationError:
        raise RoundError(
            f"{org.name}: who listens at {path} and this process do not have the same secret. End "
            f"the worker (its process id is in {org.state / 'worker.lock'}); the next message starts another."
        ) from None
    except (CheckpointError, ConfigError):
        raise
    except (OSError, EOFError):
        return None


def _reach(org: Organisation) -> Connection:
    """A connection to the worker, which is started if nobody listens.

    Raises:
        RoundError: it ends, or does not listen in time.
    """
    state = state_directory(org)
    end = time.monotonic() + START_S
    started: subprocess.Popen[bytes] | None = None
    while (connection := _connect(org)) is None:
        if started is not None and (code := started.poll()) not in (None, 0):
            raise RoundError(f"{org.name}: the worker ended with exit code {code} as it started{_last_words(org)}")
        if started is None or started.poll() == 0:  # 0: another had the lock, and may have been about to end
            started = _start(org, state / "worker.log")
        if time.monotonic() > end:
            raise RoundError(f"{org.name}: the worker does not listen after {START_S:.0f} s{_last_words(org)}")
        time.sleep(_AGAIN_S)
    return connection


def _start(org: Organisation, log: Path) -> subprocess.Popen[bytes]:
    try:
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "fedrlvr.deployment.site.worker", str(org.path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=org.directory,
                start_new_session=True,  # it outlives this process, and what ends that one's group
            )
    except OSError as error:
        raise RoundError(f"{org.name}: no worker can be started ({error})") from error


def _last_words(org: Organisation) -> str:
    log = org.state / "worker.log"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").splitlines()[-5:]
    except OSError:
        lines = []
    return f". Look into {log}" + (f", which ends: {' | '.join(line.strip() for line in lines)}" if lines else "")
