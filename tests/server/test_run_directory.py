"""Directories of runs: each is made by one process and worked on by one at a time."""

from __future__ import annotations

import datetime
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_runs import Configs, start_command, write_toml

from fedrlvr.config import parse_config
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.files import file_lock
from fedrlvr.server import run_directory
from fedrlvr.server.run_directory import locked, new_directory, resume_command, run_id
from fedrlvr.simulation.run import resume, run


class OneSecond(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> OneSecond:
        return cls(2026, 11, 28, 13, 0, 0)


def test_directories_made_in_one_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_directory.datetime, "datetime", OneSecond)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_directory, ["trial"] * 24))
    names = ["trial-20261128-130000", *(f"trial-20261128-130000-{number}" for number in range(2, 25))]
    assert sorted(path.name for path in made) == sorted(names)
    assert all(path.is_dir() for path in made)


def test_a_directory_below_a_file_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("", "utf-8")
    with pytest.raises(CheckpointError, match="runs"):
        new_directory("trial")


def test_a_directory_is_held_once_and_an_empty_one_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "run"
    with locked(directory), pytest.raises(CheckpointError, match=r"deep/run: another process"), locked(directory):
        pytest.fail("held twice")
    assert list(tmp_path.iterdir()) == []
    with locked(directory):
        (directory / "config.json").write_text("{}", "utf-8")
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "run.lock"]
    with locked(directory):
        pass
    assert (directory / "config.json").exists()


def test_a_lock_file_that_was_deleted_locks_nobody(tmp_path: Path) -> None:
    first = file_lock(tmp_path / "lock")
    assert first is not None
    (tmp_path / "lock").unlink()
    second = file_lock(tmp_path / "lock")
    assert second is not None
    with first, second:
        assert file_lock(tmp_path / "lock") is None


def test_a_run_is_refused_while_another_holds_its_directory(configured: Configs, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(CheckpointError, match="another process is at work"):
        run(parse_config(configured(tmp_path / "run")))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_four_runs_started_at_once(
    shared: bool, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = configured(tmp_path / "run" if shared else None)
    toml = write_toml(tmp_path / "exp.toml", tree)
    outputs = [tmp_path / f"out-{number}" for number in range(4)]
    processes = [start_command(["run", str(toml), "--quiet"], out) for out in outputs]
    for process in processes:
        process.join()
    codes = sorted(process.exitcode or 0 for process in processes)
    if shared:
        assert codes == [0, 1, 1, 1]
        refused = [out.read_text("utf-8") for out in outputs if "error: " in out.read_text("utf-8")]
        assert len(refused) == 3
        assert all(re.search("another process is at work|already holds a run", text) for text in refused)
    else:
        assert codes == [0, 0, 0, 0]
        made = list((tmp_path / "runs").iterdir())
        assert len(made) == 4
        assert all((path / "report.html").exists() for path in made)


def test_a_run_of_organisations_is_never_resumed_as_a_simulation(configured: Configs, tmp_path: Path) -> None:
    """Its files stay as they are, and the error names the command that goes on with it."""
    directory = tmp_path / "a run"
    assert resume_command(directory) == f"fedrlvr run --resume '{directory}'"
    run(parse_config(configured(directory, train={"rounds": 1})))
    run_id(directory)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with pytest.raises(ConfigError, match=re.escape(f"fedrlvr federate --resume '{directory}' --superlink")):
        resume(directory, ["train.rounds=3"])
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
