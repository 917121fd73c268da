"""The note of the round that is under way: who has answered, who has not, and that nothing of it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from watched import round_record, write_run

from fedrlvr.files import file_lock
from fedrlvr.reporting.observer import (
    ClientAnswered,
    ClientLeftOut,
    ClientsAsked,
    PhaseStarted,
    RoundEnded,
    RoundStarted,
    StepEnded,
)
from fedrlvr.reporting.under_way import FILE, UnderWay, UnderWayNote, read_under_way
from fedrlvr.reporting.watch import views
from fedrlvr.reporting.watch.watched_run import WatchedRun


def test_the_note_says_who_has_not_answered_yet(tmp_path: Path) -> None:
    clock = [100.0]
    note = UnderWayNote(tmp_path, clock=lambda: clock[0])
    assert read_under_way(tmp_path) is None
    for event in (
        RoundStarted(3),
        PhaseStarted(3, "train"),
        ClientsAsked(3, "train", ["ann", "bob", "cyd"]),
        ClientAnswered(3, "bob"),
        ClientLeftOut(3, "cyd", "late"),
    ):
        note.notify(event)
    now = read_under_way(tmp_path)
    assert now == UnderWay(3, "train", 0, 0, ["ann", "bob", "cyd"], ["bob"], ["cyd"], 100.0)
    assert now.waiting == ["ann"]
    note.notify(ClientsAsked(3, "evaluate", ["ann", "bob"]))
    assert note.now.waiting == ["ann", "bob"]
    note.notify(RoundStarted(4))
    assert read_under_way(tmp_path) == UnderWay(4)
    note.close()
    note.close()
    assert list(tmp_path.iterdir()) == []


def test_local_steps_alone_do_not_renew_it_all_the_time(tmp_path: Path) -> None:
    clock = [100.0]
    note = UnderWayNote(tmp_path, clock=lambda: clock[0])
    note.notify(PhaseStarted(1, "train"))
    for step, seconds in ((1, 0.1), (2, 0.2), (3, 0.9), (4, 1.0)):
        clock[0] = 100 + seconds
        note.notify(StepEnded(1, step, 4, {"ann": 0.5}, 10))
    written = read_under_way(tmp_path)
    assert written is not None
    assert written.step == 3
    before = (tmp_path / FILE).stat().st_mtime_ns
    note.notify(RoundEnded(1, {}))
    assert (tmp_path / FILE).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"round": "3"}', '{"asked": "ann"}', '{"answered": [1]}', '{"since": "now"}']
)
def test_a_note_of_another_kind_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_under_way(tmp_path) is None


def test_the_page_shows_it_only_while_the_run_is_under_way(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0), round_record(1)])
    note = UnderWayNote(run, clock=lambda: 50.0)
    note.notify(RoundStarted(2))
    note.notify(ClientsAsked(2, "train", ["ann", "bob"]))
    note.notify(ClientAnswered(2, "ann"))
    data = WatchedRun(run, clock=lambda: 57.0)
    data.refresh()
    assert views.overview(data)["now"] is None  # a killed run has left it
    lock = file_lock(run / "run.lock")
    assert lock is not None
    with lock:
        data.refresh()
        now = views.overview(data)["now"]
        assert (now["asked"], now["answered"], now["waiting"], now["waits"]) == (2, 1, ["bob"], 7.0)
        version = data.version, data.data_version
        note.notify(ClientAnswered(2, "bob"))
        assert data.refresh()
        assert (data.version, data.data_version) == (version[0] + 1, version[1])
        tree = json.loads((run / FILE).read_text())
        (run / FILE).write_text(json.dumps({**tree, "round": 0}))
        data.refresh()
        assert views.overview(data)["now"] is None  # of a round that has ended
