"""The TensorBoard tracker, with a stand-in for tensorboard's writer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_samples import run_records

from fedrlvr.errors import MissingExtraError
from fedrlvr.reporting.observer import Observer, RoundSaved, RunStarted
from fedrlvr.reporting.trackers import make_tracker

MODULE = "torch.utils.tensorboard"


class Writer:
    """Keeps what tensorboard's SummaryWriter would write."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_every_saved_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[Writer] = []

    def open_writer(directory: str) -> Writer:
        writers.append(Writer(directory))
        return writers[-1]

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(SummaryWriter=open_writer))
    tracker = make_tracker("tensorboard", tmp_path)
    assert writers == [], "nothing is written before the run starts"
    tracker.notify(RunStarted(str(tmp_path), ["alpha"], rounds=2, local_steps=1, first_round=0))
    record = run_records()[1]
    record["server_step"] = {"learning_rate": 1.8, "norms": {"alpha": 2.0}}
    tracker.notify(RoundSaved(1, record))
    tracker.close()
    (writer,) = writers
    assert writer.directory == str(tmp_path / "tensorboard")
    assert ("alpha/reward", record["clients"]["alpha"]["reward"], 1) in writer.scalars
    assert ("server_step/learning_rate", 1.8, 1) in writer.scalars
    assert writer.closed


def test_a_tracker_that_never_started_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(SummaryWriter=Writer))
    make_tracker("tensorboard", tmp_path).close()


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(MissingExtraError, match=r"fedrlvr\[trackers\]"):
        make_tracker("tensorboard", tmp_path)


def test_no_tracker_is_the_null_observer(tmp_path: Path) -> None:
    assert type(make_tracker("none", tmp_path)) is Observer
