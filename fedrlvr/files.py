"""Files and directories written as a whole, the numbered directories of rounds, and lock files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from safetensors import SafetensorError

from fedrlvr.errors import CheckpointError, ReleaseError

T = TypeVar("T")

FORMAT = 2
"""Version of the format of a round's directory. Releases up to 0.6.0 wrote none."""


def atomic_bytes(path: Path, data: bytes) -> None:
    """Replace a file as a whole; it is on disk when this returns.

    Raises:
        CheckpointError: it cannot be written; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written ({error.strerror}).") from error


def atomic_text(path: Path, text: str) -> None:
    """Replace a text file as a whole, in UTF-8; raises as `atomic_bytes`."""
    atomic_bytes(path, text.encode("utf-8"))


def new_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Make a file that is not there yet. It is whole, and of its mode from the moment it exists.

    Raises:
        FileExistsError: the file is there already, and stays as it is.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A directory to fill under another name; at the end its files are on disk and it takes the place of the old one.
    After any exception the old directory is intact, and nothing else is left.

    Raises:
        CheckpointError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(temporary, ignore_errors=True)
        cause = error.__cause__ if isinstance(error, CheckpointError) else error  # of a file written within
        raise CheckpointError(f"{path} cannot be written ({getattr(cause, 'strerror', None) or error}).") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@dataclass(frozen=True)
class RoundDirectories:
    """The directories round-0000, round-0001, ... in `root`, each with some files and a note that has their hashes.

    note: name of the file, JSON, that holds the round's number, the hashes and what else is said of the round.
    """

    root: Path
    note: str

    def path(self, round_: int) -> Path:
        """Path of the directory of a round."""
        return self.root / f"round-{round_:04d}"

    def rounds(self) -> list[int]:
        """Rounds that are there, in order."""
        names = [path.name[6:] for path in self.root.glob("round-*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def write(self, round_: int, files: Mapping[str, bytes], note: Mapping[str, Any]) -> None:
        """Write a round's directory as a whole, in the place of an older one of this round, and delete what an
        interrupted deletion left.

        Raises:
            CheckpointError: it cannot be written; other rounds are intact.
        """
        for removed in self.root.glob(".round-*.old"):
            shutil.rmtree(removed, ignore_errors=True)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        text = json.dumps({**note, "round": round_, "format": FORMAT, "sha256": hashes}, indent=1, sort_keys=True)
        with atomic_directory(self.path(round_)) as directory:
            for name, data in {**files, self.note: f"{text}\n".encode()}.items():
                (directory / name).write_bytes(data)

    def read(self, round_: int, make: Callable[[dict[str, bytes], dict[str, Any]], T], remedy: str = "") -> T:
        """Read a round's files and its note by `make`. remedy: a sentence that ends the text of an error.

        Raises:
            ReleaseError: another release of fedrlvr has written them.
            CheckpointError: they are missing, are not what was written, or `make` raises a KeyError, TypeError or
                ValueError.
        """
        directory = self.path(round_)
        try:
            note = read_json(directory / self.note)
            if not isinstance(note, dict) or note.get("round") != round_:
                raise ValueError(f"{self.note} is not of round {round_}")
            if note.get("format") != FORMAT:
                raise ReleaseError(
                    f"{directory} was written by another release of fedrlvr (0.6.0 or older), which alone can go on "
                    "with it. Install that release to finish the run, or start a new run."
                )
            files = {name: (directory / name).read_bytes() for name in note["sha256"]}
            for name, data in files.items():
                if hashlib.sha256(data).hexdigest() != note["sha256"][name]:
                    raise ValueError(f"{name} is not what was written")
            return make(files, note)
        except ReleaseError:
            raise
        except (OSError, LookupError, TypeError, ValueError, OverflowError, AttributeError, SafetensorError) as error:
            raise CheckpointError(f"{directory} is damaged ({error}). {remedy}".rstrip()) from None

    def remove(self, round_: int) -> None:
        """Delete the directory of one round. It vanishes as a whole, so that no other process reads a part of it."""
        removed = self.root / f".{self.path(round_).name}.old"
        shutil.rmtree(removed, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path(round_).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def prune(self, keep: int) -> None:
        """Delete all but the newest rounds."""
        for round_ in self.rounds()[:-keep]:
            self.remove(round_)


def read_json(path: Path) -> Any:
    """Read the value in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON in UTF-8, or is nested too deeply.
    """
    return parse_json(path.read_text("utf-8"))


def parse_json(text: str) -> Any:
    """Parse a JSON text; too deep nesting is an error.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def private_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone whatever the umask.

    A directory that is there already keeps its mode.

    Raises:
        OSError: it cannot be made.
    """
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o700)


def private_file(path: Path) -> int:
    """Make a file that is not there yet, readable by this user alone whatever the umask; its descriptor, for writing.

    Raises:
        FileExistsError: the file is there already, and stays as it is.
        OSError: it cannot be made.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def sync(path: Path) -> None:
    """Flush a file or directory to disk.

    Raises:
        OSError: the disk is full or fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_lock(path: Path) -> TextIO | None:
    """Lock a file for this process, and make it if it is missing; None if another process holds the lock.

    The lock lasts until the returned file is closed or the process ends, however it ends.

    Raises:
        OSError: the file cannot be opened.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:  # whoever held the lock has deleted the file since it was opened here
            pass
        file.close()


@contextlib.contextmanager
def waiting_lock(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a file, for which other processes are waited for.

    Raises:
        CheckpointError: another process holds it for longer than these seconds, or the file cannot be opened.
    """
    end = time.monotonic() + seconds
    try:
        while (lock := file_lock(path)) is None:
            if time.monotonic() > end:
                raise CheckpointError(f"{path}: another process has held this lock for {seconds:.0f} s.")
            time.sleep(0.05)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be locked ({error.strerror}).") from error
    with lock:
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file, as `file_lock` takes it; False where there is no such file.

    Linux lists its locks, so that looking at a file that nobody has locked never stands in the way of a process that
    is about to. Elsewhere the lock is taken for an instant, shared with others who look.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    try:
        listed = Path("/proc/locks").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return _is_locked_by_trial(path)
    inode = f":{status.st_ino}"
    fields = [line.split() for line in listed.splitlines()]
    held = any("FLOCK" in line and "->" not in line and any(field.endswith(inode) for field in line) for line in fields)
    return held and _is_locked_by_trial(path)  # a file of another file system may have the same inode number


def _is_locked_by_trial(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
