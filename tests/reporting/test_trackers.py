"""Trackers: what they are given, what is an error at the start, what is one warning later, and what their own libraries
read back."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from run_samples import numbers, run_records

from fedrlvr.config import parse_config
from fedrlvr.config.sections import RunConfig
from fedrlvr.errors import ConfigError, MissingExtraError
from fedrlvr.reporting import trackers
from fedrlvr.reporting.observer import AlsoMeasured, PersonalEnded, RoundSaved, RunStarted
from fedrlvr.reporting.trackers import Numbers, Tracker, check_trackers, flatten, make_trackers, mlflow_name, plain_name

KINDS = ("tensorboard", "mlflow", "trackio", "wandb")


class Writer:
    """Keeps what a tracker is given. fails: calls from now on that raise."""

    def __init__(self) -> None:
        self.opened: list[str | None] = []
        self.rounds: list[tuple[int, Numbers]] = []
        self.closed = 0
        self.fails = 0

    def _attempt(self) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("nobody answers\nat this address")

    def open(self, known: str | None) -> str:
        self._attempt()
        self.opened.append(known)
        return known or "first"

    def write(self, round_: int, numbers: Numbers) -> None:
        self._attempt()
        self.rounds.append((round_, numbers))

    def close(self) -> None:
        self.closed += 1


def started(directory: Path, first_round: int = 0) -> RunStarted:
    return RunStarted(str(directory), ["alpha", "beta"], rounds=3, local_steps=1, first_round=first_round)


def tracker_of(directory: Path, writer: Writer, earlier: Sequence[dict[str, Any]] = ()) -> Tracker:
    return Tracker("wandb", writer, directory, lambda _: earlier)


def test_every_saved_round_is_written_in_order(tmp_path: Path) -> None:
    writer = Writer()
    tracker = tracker_of(tmp_path, writer)
    assert writer.opened == [], "nothing is written before the run starts"
    tracker.notify(started(tmp_path))
    for record in run_records():
        tracker.notify(RoundSaved(record["round"], record))
    tracker.notify(PersonalEnded({"clients": {"alpha": {"reward": 0.9}}, "seconds": {}}))
    tracker.notify(AlsoMeasured({"before": {"text": {"tokens": 8, "loss": 2.5}}, "after": {"text": {"loss": 2.0}}}))
    tracker.close()
    assert [round_ for round_, _ in writer.rounds] == [0, 1, 2, 2, 2]
    assert writer.rounds[1][1]["beta/reward"] == 0.2
    assert writer.rounds[3][1] == {"personal/alpha/reward": 0.9}
    assert writer.rounds[4][1]["also/before/text/loss"] == 2.5
    assert writer.closed == 1


def test_a_tracker_that_never_started_closes(tmp_path: Path) -> None:
    writer = Writer()
    tracker_of(tmp_path, writer).close()
    assert (writer.opened, writer.closed) == ([], 0)


def test_what_is_flattened() -> None:
    record = run_records()[2]
    record["server_step"] = {"learning_rate": 1.8, "norms": {"alpha": 2.0}}
    record["exchanges"] = [{"exchange": 1, "pool": 3, "clients": {"alpha": {"sent": 4, "why": "text"}}}]
    result = dict(flatten(record))
    assert result["alpha/reward"] == record["clients"]["alpha"]["reward"]
    assert result["server_step/learning_rate"] == 1.8
    assert "server_step/norms" not in result
    assert (result["exchange-1/pool"], result["alpha/exchange-1/sent"]) == (3, 4)
    assert "alpha/exchange-1/why" not in result
    assert result["beta/evaluate/dose"] == 0.6  # 12 of 20
    assert result["held-out/pass@1"] == pytest.approx((10 / 20 + 12 / 20) / 2)  # the mean of sum and dose
    assert result["seconds/train"] == 4.0


def test_a_tracker_that_cannot_be_reached_is_one_warning_and_gets_its_rounds_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer()
    tracker = tracker_of(tmp_path, writer)
    tracker.notify(started(tmp_path))
    writer.fails = 3
    with caplog.at_level(logging.WARNING, "fedrlvr.reporting"):
        for record in run_records(rounds=3):
            tracker.notify(RoundSaved(record["round"], record))
    (warning,) = caplog.records
    assert "wandb" in warning.getMessage()
    assert "nobody answers" in warning.getMessage()
    assert "at this address" not in warning.getMessage(), "one line"
    assert [round_ for round_, _ in writer.rounds] == [0, 1, 2, 3]


def test_a_tracker_that_cannot_be_opened_is_opened_later(tmp_path: Path) -> None:
    writer = Writer()
    writer.fails = 1
    tracker = tracker_of(tmp_path, writer)
    tracker.notify(started(tmp_path))
    tracker.notify(RoundSaved(0, run_records()[0]))
    assert writer.opened == [None]
    assert [round_ for round_, _ in writer.rounds] == [0]


def test_few_rounds_wait_and_the_oldest_are_dropped(tmp_path: Path) -> None:
    writer = Writer()
    writer.fails = 1000
    tracker = tracker_of(tmp_path, writer)
    tracker.notify(started(tmp_path))
    for round_ in range(trackers.MOST_WAITING + 5):
        tracker.notify(RoundSaved(round_, {"round": round_, "clients": {}, "seconds": {}}))
    writer.fails = 0
    tracker.close()
    assert [round_ for round_, _ in writer.rounds] == list(range(5, trackers.MOST_WAITING + 5))


def test_a_resumed_run_continues_the_tracker_s_run_and_brings_what_it_lacks(tmp_path: Path) -> None:
    writer = Writer()
    tracker = tracker_of(tmp_path, writer)
    tracker.notify(started(tmp_path))
    records = run_records(rounds=3)
    for record in records[:2]:
        tracker.notify(RoundSaved(record["round"], record))
    # The process is killed after round 2 was saved and before the tracker had it.
    second = Writer()
    tracker = tracker_of(tmp_path, second, records[:3])
    tracker.notify(started(tmp_path, first_round=3))
    tracker.notify(RoundSaved(3, records[3]))
    assert second.opened == ["first"]
    assert [round_ for round_, _ in second.rounds] == [2, 3]


@pytest.mark.parametrize("text", ["", "{", '{"run": "first"}', '{"run": "first", "round": "x"}'])
def test_a_damaged_note_starts_a_new_run_with_all_rounds(tmp_path: Path, text: str) -> None:
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "wandb.json").write_text(text, "utf-8")
    writer = Writer()
    tracker = tracker_of(tmp_path, writer, run_records()[:2])
    tracker.notify(started(tmp_path, first_round=2))
    assert [round_ for round_, _ in writer.rounds] == [0, 1]


# What is wrong is an error at the start, which names the setting and the extra.


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_package_the_error_names_setting_and_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers._PACKAGES, kind, "no_such_package_anywhere")
    with pytest.raises(MissingExtraError, match=rf"run\.trackers.*fedrlvr\[{kind}\]"):
        check_trackers(RunConfig(trackers=[kind]))


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_tracker.py").write_text("raise ImportError('no library')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers._PACKAGES, "wandb", "broken_tracker")
    with pytest.raises(MissingExtraError, match=r"run\.trackers.*no library"):
        make_trackers(RunConfig(trackers=["wandb"]), tmp_path, lambda _: [])


def test_no_tracker_imports_and_writes_nothing(tmp_path: Path) -> None:
    assert make_trackers(RunConfig(), tmp_path, lambda _: []) == []
    assert list(tmp_path.iterdir()) == []


def test_settings_that_are_refused() -> None:
    for run, words in (
        ({"trackers": ["wandb", "wandb"]}, "twice"),
        ({"mlflow_uri": "http://127.0.0.1:1"}, "run.mlflow_uri has no effect"),
        ({"trackers": ["mlflow"], "mlflow_uri": "http://me:key@127.0.0.1:1"}, "MLFLOW_TRACKING_USERNAME"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_config({"run": run})


def test_names() -> None:
    assert mlflow_name("a-1/pass@1") == "a-1/pass_at_1"
    assert mlflow_name("a/evaluate/x y.z:1") == "a/evaluate/x y.z:1"
    assert mlflow_name("a/evaluate/x*y") != mlflow_name("a/evaluate/x+y"), "two names are never one"
    assert mlflow_name("a/evaluate/x*y").startswith("a/evaluate/x_y-")
    assert plain_name("my run: 3/4") == "my-run-3-4"
    assert plain_name("///") == "fedrlvr"


# What the packages' own libraries read back. `scripts/test --all` has those of the extra `test`.


Made = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Writes rounds 0 and 1 to a tracker, and after a resume round 2, beside names that MLflow does not take."""

    def write(kind: str) -> Path:
        pytest.importorskip(kind, reason=f"needs the extra {kind}: pip install 'fedrlvr[{kind}]'")
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
        directory = tmp_path / "run"
        directory.mkdir()
        records = run_records()
        records[1]["clients"]["alpha"] = numbers(0.1, secret="a prompt in place of a number")
        settings = RunConfig(name="my runs", seed=3, trackers=[kind])
        for first, last in ((0, 2), (2, 3)):
            (tracker,) = make_trackers(settings, directory, lambda _: records[:2])
            tracker.notify(started(directory, first_round=first))
            for record in records[first:last]:
                tracker.notify(RoundSaved(record["round"], record))
            tracker.close()
            assert not tracker._warned
        everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"a prompt in place" not in everything
        return directory

    return write


@pytest.mark.slow
def test_tensorboard_reads_back_what_was_written(written: Made) -> None:
    directory = written("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    rewards = [(point.step, round(point.value, 6)) for point in events.Scalars("beta/reward")]
    assert rewards == [(1, 0.2), (2, 0.4)]
    assert [point.step for point in events.Scalars("held-out/pass@1")] == [0, 2]


@pytest.mark.slow
def test_mlflow_reads_back_what_was_written(written: Made) -> None:
    directory = written("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{directory / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("my runs")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run, seed 3"
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "beta/reward")] == [
        (1, 0.2),
        (2, 0.4),
    ]
    assert "alpha/pass_at_1" in run.data.metrics
    assert run.data.params == {}
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.slow
def test_an_mlflow_server_that_cannot_be_reached_is_an_error_at_the_start(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow: pip install 'fedrlvr[mlflow]'")
    settings = RunConfig(trackers=["mlflow"], mlflow_uri="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"run\.mlflow_uri.*extra mlflow"):
        make_trackers(settings, tmp_path, lambda _: [])


@pytest.mark.slow
def test_trackio_reads_back_what_was_written(written: Made) -> None:
    directory = written("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((directory / "trackers" / "trackio.json").read_text("utf-8"))["run"]
    rows = SQLiteStorage.get_logs("my-runs", name)
    assert [(row["step"], row["beta/reward"]) for row in rows if "beta/reward" in row] == [(1, 0.2), (2, 0.4)]


def test_trackio_stays_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    with pytest.raises(ConfigError, match=r"run\.trackers.*TRACKIO_SPACE_ID"):
        trackers.TrackioWriter(tmp_path, RunConfig(trackers=["trackio"]))


@pytest.mark.slow
def test_the_offline_file_of_wandb_holds_the_names(written: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "machine-of-ours")
    machine = os.uname().nodename
    monkeypatch.setenv("WANDB_MODE", "online")  # the setting of a user's shell sends nothing
    directory = written("wandb")
    number = json.loads((directory / "trackers" / "wandb.json").read_text("utf-8"))["run"]
    files = sorted((directory / "wandb").glob(f"offline-run-*/run-{number}.wandb"))
    assert 1 <= len(files) <= 2, "one file for each start, of one run; starts within a second share a directory"
    data = b"".join(path.read_bytes() for path in files)
    assert b"machine-of-ours" not in data
    assert len(machine) < 4 or machine.encode() not in data, "a name of a few letters is found in anything"
    assert str(directory).encode() not in data
    assert b"beta/reward" in data
    assert b"held-out/pass@1" in data
    assert b"my-runs" in data
