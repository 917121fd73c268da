"""Files written as a whole, and lock files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedrlvr.errors import CheckpointError
from fedrlvr.files import atomic_text, file_lock


def test_a_file_is_synced_before_it_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "page.html"
    synced: list[str] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        synced.append(path.read_text("utf-8") if path.exists() else "")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    for text in ("old", "new: ä"):
        atomic_text(path, text)
    assert synced == ["", "old"]
    assert path.read_text("utf-8") == "new: ä"
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    atomic_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"page\.html .*No space left"):
        atomic_text(path, "new")
    assert path.read_text("utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_lock_is_held_once_until_it_is_closed(tmp_path: Path) -> None:
    lock = file_lock(tmp_path / "lock")
    assert lock is not None
    with lock:
        assert file_lock(tmp_path / "lock") is None
    again = file_lock(tmp_path / "lock")
    assert again is not None
    again.close()
