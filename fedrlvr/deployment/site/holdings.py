"""Digests of an organisation's data, by which a change in the middle of a run is noticed.

The digest of a run's first message lies in the run's directory here. Digests never leave the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from fedrlvr.deployment.site.config import SiteConfig, TaskConfig
from fedrlvr.errors import CheckpointError, DataError, LimitError
from fedrlvr.files import atomic_text, read_json

HOLDINGS_FILE = "holdings.json"
"""The file in a run's directory that holds the digest of each task's data, by the task's name."""

_Stamp = tuple[int, int, int]
"""Size, time of change in nanoseconds, and number of a file."""


class Holdings:
    """Notices changed data. A file is read again only when its size or time has changed.

    tell: takes a line for the site's log.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._known: dict[Path, tuple[_Stamp, bytes]] = {}

    def changed(self, run: Path, name: str, task: TaskConfig, config: SiteConfig) -> bool:
        """Whether a task's files have changed since the run's last message.

        run: the run's directory. name: the task's. task: with its path resolved; one without a path never changes.

        Raises:
            LimitError: they have, and site.toml refuses changed data.
            DataError, CheckpointError: a file cannot be read, or the digest cannot be written.
        """
        if task.path is None or not task.path.exists():  # the loader says it better
            return False
        digest, digests = self.digest(task.path), _read(run / HOLDINGS_FILE)
        before = digests.get(name)
        if digest == before:
            return False
        if before is not None:
            self.tell(f"run {run.name}: the data of task {name} have changed since the run's last message")
            if config.changed_data == "refuse":
                raise LimitError(
                    f"the data of task {name} at {config.name} have changed in the middle of the run "
                    "(changed_data = 'refuse' in its site.toml)"
                )
        atomic_text(run / HOLDINGS_FILE, json.dumps({**digests, name: digest}, indent=1) + "\n")
        return before is not None

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, or of the names and contents of a directory's files.

        Raises:
            DataError: one of them cannot be read.
        """
        total = hashlib.sha256()
        try:
            for file in _files(path):
                total.update(f"{file.name}\n".encode("utf-8", "surrogateescape") + self._of_file(file))
        except OSError as error:
            raise DataError(f"{path}: a file cannot be read ({error.strerror}).") from None
        return total.hexdigest()

    def _of_file(self, file: Path) -> bytes:
        status = file.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
        if file not in self._known or self._known[file][0] != stamp:
            with file.open("rb") as opened:
                self._known[file] = stamp, hashlib.file_digest(opened, "sha256").digest()
        return self._known[file][1]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.is_file())
    else:
        yield path


def _read(file: Path) -> dict[str, str]:
    """
    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    try:
        return dict(read_json(file)) if file.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Delete it to take the data as they are now.") from None
