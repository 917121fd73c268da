"""Files written as a whole, and lock files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fedrlvr.errors import CheckpointError
from fedrlvr.files import RoundDirectories, atomic_directory, atomic_text, file_lock, new_file


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


def fill(directory: Path) -> None:
    (directory / "half").write_text("x", "utf-8")
    raise OSError(28, "No space left on device")


def test_a_directory_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for text in ("old", "new"):
        with atomic_directory(path) as directory:
            (directory / "part").mkdir()
            (directory / "part" / "file").write_text(text, "utf-8")
    with (
        pytest.raises(CheckpointError, match=r"adapter cannot be written \(No space left"),
        atomic_directory(path) as other,
    ):
        fill(other)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]
    assert (path / "part" / "file").read_text("utf-8") == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_directory_that_is_given_up_half_way_leaves_the_old_one_too(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "adapter"
    path.mkdir()

    def given_up(directory: Path) -> None:
        (directory / "part").touch()
        raise error

    with pytest.raises(error), atomic_directory(path) as other:
        given_up(other)
    assert [file.name for file in tmp_path.rglob("*")] == ["adapter"]


def test_a_new_file_never_replaces_one_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    new_file(path, b"first")
    with pytest.raises(FileExistsError):
        new_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_directories_of_rounds_are_listed_in_order_and_pruned(tmp_path: Path) -> None:
    directories = RoundDirectories(tmp_path, "note.json")
    for round_ in (10, 2, 10_000):
        directories.write(round_, {"data": b"x" * round_}, {"said": round_})
    (tmp_path / "round-x").mkdir()
    assert directories.rounds() == [2, 10, 10_000]
    assert directories.read(10, lambda files, note: (len(files["data"]), note["said"])) == (10, 10)
    directories.prune(2)
    assert directories.rounds() == [10, 10_000]


def test_a_lock_is_held_once_until_it_is_closed(tmp_path: Path) -> None:
    lock = file_lock(tmp_path / "lock")
    assert lock is not None
    with lock:
        assert file_lock(tmp_path / "lock") is None
    again = file_lock(tmp_path / "lock")
    assert again is not None
    again.close()
