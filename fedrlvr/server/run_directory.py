"""The directory of a run or a sweep: made so that no other process has it, and locked while work on it is under way."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path

from fedrlvr.config import Config
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.files import RoundDirectories, atomic_text, file_lock

LOCK = "run.lock"
"""The lock file of a directory. The file stays; only an open one locks."""

STATE_FILE = "state.json"
"""The note in a checkpoint's directory."""
ALONE_DIRECTORY = "alone"
"""The directory, in that of a run, of the run that trains its clients alone; `alone-0.5` at half the learning rate."""
RUN_ID_FILE = "run-id"
"""The file that says what a run with organisations on their own machines is called in messages."""


def is_deployed(directory: Path) -> bool:
    """Whether a directory holds a run whose clients are organisations on their own machines."""
    return (directory / RUN_ID_FILE).exists()


def resume_command(directory: Path) -> str:
    """The command that goes on with the run in a directory, for a message to the user."""
    place = shlex.quote(str(directory))
    if is_deployed(directory):
        return f"fedrlvr federate --resume {place} --superlink SUPERLINK"
    return f"fedrlvr run --resume {place}"


def check_local(directory: Path) -> None:
    """Check that the clients of the run in a directory are on this machine.

    Raises:
        ConfigError: they are organisations on their own machines; the text names the command that goes on with the run.
    """
    if is_deployed(directory):
        raise ConfigError(
            f"{directory}: the clients of this run are organisations on their own machines. Go on with it by "
            f"`{resume_command(directory)}`, where SUPERLINK is the directory of `fedrlvr superlink init`."
        )


def run_id(directory: Path) -> str:
    """Identifier in messages of the run in a directory, whose clients are organisations on their own machines: the
    directory's name and a random part, made when the run starts.

    Raises:
        CheckpointError: the file cannot be read or written, or holds something else.
    """
    path = directory / RUN_ID_FILE
    if not path.exists():
        plain = re.sub(r"[^A-Za-z0-9_-]", "-", directory.name)[:60] or "run"
        atomic_text(path, f"{plain}-{uuid.uuid4().hex[:12]}\n")
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from None
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text):
        raise CheckpointError(f"{path} does not hold a run's id. Restore it, or start a new run.")
    return text


def personal_directory(run: Path, client: str) -> Path:
    """Directory of a client's personal adapter in PEFT's format, where a run has one; in a deployment it lies at the
    client, under the directory of the run there."""
    return run / "clients" / client / "personal"


def new_directory(name: str) -> Path:
    """Make runs/<name>-<date>-<time>, with -2, -3, ... where another process has made that name first.

    Raises:
        CheckpointError: the directory cannot be made.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    plain = Path("runs") / f"{name}-{stamp}"
    for number in itertools.count(1):
        directory = plain if number == 1 else plain.with_name(f"{plain.name}-{number}")
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir()
        except FileExistsError:
            if directory.parent.is_dir():
                continue
            raise CheckpointError(f"{directory} cannot be made: {directory.parent} is a file.") from None
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be made ({error.strerror}).") from error
        return directory
    raise AssertionError("unreachable")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory of a run, made if it is missing; it is removed again if nothing was written into it.

    Raises:
        CheckpointError: another process is at work in the directory, or it cannot be written.
    """
    made = [path for path in directory.parents if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = file_lock(directory / LOCK)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written ({error.strerror}).") from error
    if lock is None:
        raise CheckpointError(
            f"{directory}: another process is at work on this run. Wait until it has ended, end it (in a deployment "
            "it is called flwr-serverapp), or give another run.directory."
        )
    with lock:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [path.name for path in directory.iterdir()] == [LOCK]:
                    (directory / LOCK).unlink()
                    for path in (directory, *made):
                        path.rmdir()


def check_unused(directory: Path) -> None:
    """Check that a directory holds no run yet.

    Raises:
        ConfigError: the directory holds a run already.
    """
    if (directory / "config.json").exists():
        raise ConfigError(f"{directory} already holds a run. Go on with --resume, or give another run.directory.")


def checkpoint_directories(run: Path) -> RoundDirectories:
    """Directories of the server's checkpoints of a run, one for each round."""
    return RoundDirectories(run / "checkpoints", STATE_FILE)


def check_rounds(directory: Path, config: Config) -> None:
    """Check that a run has done no more rounds than train.rounds.

    Raises:
        ConfigError: the run in the directory has done more rounds than train.rounds.
    """
    done = max(checkpoint_directories(directory).rounds(), default=0)
    if config.train.rounds < done:
        raise ConfigError(f"train.rounds = {config.train.rounds}: {directory} has done {done} rounds already.")
