"""Files written as a whole, and lock files."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TextIO

from fedrlvr.errors import CheckpointError


def atomic_text(path: Path, text: str) -> None:
    """Replace a text file as a whole; it is on disk when this returns.

    Raises:
        CheckpointError: it cannot be written; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written ({error.strerror}).") from error


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
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
