"""The files that `fedrlvr watch` reads: they grow, shrink and are replaced; the state of a run, and its directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from run_samples import score
from watched import CLIENTS, everything, line, response, round_record, write_responses, write_run

from fedrlvr.files import file_lock, is_locked
from fedrlvr.reporting.absence import FAILED_WORDS, LATE_WORDS, NOT_CONNECTED, WITHHELD_WORDS, Standing, absence
from fedrlvr.reporting.watch import json_lines
from fedrlvr.reporting.watch.json_lines import JsonLines
from fedrlvr.reporting.watch.run_files import LONGEST_NAME, RunState, read_settings, run_directories, shown_name
from fedrlvr.reporting.watch.watched_run import WatchedRun


class Taker:
    """Values of a file as they are taken, and how often it was begun anew."""

    def __init__(self, path: Path) -> None:
        self.values: list[Any] = []
        self.places: list[tuple[int, int]] = []
        self.resets = 0
        self.lines = JsonLines(path, self.take, self.reset)

    def take(self, value: Any, offset: int, length: int) -> None:
        self.values.append(value["n"])
        self.places.append((offset, length))

    def reset(self) -> None:
        self.values, self.places = [], []
        self.resets += 1


def put(path: Path, text: str | bytes, mode: str = "ab") -> None:
    with path.open(mode) as file:
        file.write(text.encode() if isinstance(text, str) else text)


def test_lines_are_taken_once_and_a_part_of_a_line_waits_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    taker = Taker(path)
    assert not taker.lines.read()  # no file yet
    put(path, '{"n": 1}\n{"n": 2}\n{"n"')
    assert taker.lines.read()
    assert taker.values == [1, 2]
    assert not taker.lines.read()
    put(path, ": 3")
    assert taker.lines.read()
    assert taker.values == [1, 2]
    put(path, '}\n{"n": 4}\n')
    taker.lines.read()
    assert taker.values == [1, 2, 3, 4]
    assert taker.resets == 0
    data = path.read_bytes()
    assert [json.loads(data[a : a + n])["n"] for a, n in taker.places] == [1, 2, 3, 4]
    assert taker.lines.notes == []


@pytest.mark.parametrize("how", ["replaced", "shortened", "rewritten", "longer"])
def test_a_file_that_is_another_one_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "f.jsonl", tmp_path / "g.jsonl"
    put(path, '{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    taker = Taker(path)
    taker.lines.read()
    if how == "replaced":  # as a resumed run does with metrics.jsonl
        put(other, '{"n": 1}\n')
        other.replace(path)
    elif how == "shortened":  # as it does with responses.jsonl
        os.truncate(path, 9)
    elif how == "rewritten":
        put(path, '{"n": 7}\n{"n": 8}\n{"n": 9}\n', "wb")
        os.utime(path, (1, 1))
    else:
        put(path, '{"n": 7}\n{"n": 8}\n{"n": 9}\n{"n": 10}\n', "wb")
    assert taker.lines.read()
    assert taker.values == {"rewritten": [7, 8, 9], "longer": [7, 8, 9, 10]}.get(how, [1])
    assert taker.resets == 1


def test_a_file_that_vanishes_is_forgotten_and_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    put(path, '{"n": 1}\n')
    taker = Taker(path)
    taker.lines.read()
    path.unlink()
    assert taker.lines.read()
    assert (taker.values, taker.lines.read()) == ([], False)
    put(path, '{"n": 5}\n')
    taker.lines.read()
    assert taker.values == [5]


def test_lines_that_are_no_records_are_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "LONGEST", 100)
    monkeypatch.setattr(json_lines, "_BLOCK", 64)
    path = tmp_path / "f.jsonl"
    put(path, b'{"n": 1}\nno json\n\xff\xfe\n[1]\n' + b'{"n": "' + b"x" * 500 + b'"}\n\n{"n": 2}\n' + b"[" * 90 + b"\n")
    taker = Taker(path)
    taker.lines.read()
    assert taker.values == [1, 2]
    first, second, third, more = taker.lines.notes
    assert "line 2 " in first
    assert "line 3 " in second
    assert "line 4 " in third
    assert "2 more" in more
    data = path.read_bytes()
    assert [json.loads(data[a : a + n])["n"] for a, n in taker.places] == [1, 2]
    put(path, '{"n": 3}\n')
    taker.lines.read()
    assert taker.values == [1, 2, 3]


def test_half_of_a_surrogate_pair_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    put(path, '{"n": "\\ud800"}\n')
    taker = Taker(path)
    taker.lines.read()
    assert taker.values == ["\ud800"]


# Standings.


@pytest.mark.parametrize(
    ("reason", "standing"),
    [
        (f"round 3: {LATE_WORDS} 60 s from ann", Standing.LATE),
        (f"round 3, ann: {WITHHELD_WORDS} (too few)", Standing.WITHHELD),
        (f"round 3, ann: {FAILED_WORDS} ({NOT_CONNECTED})", Standing.NOT_CONNECTED),
        (f"round 3, ann: {FAILED_WORDS} (no memory; {LATE_WORDS} 1 s)", Standing.FAILED),
        (f"round 3, ann: the adapter has 3 tensors, {LATE_WORDS} 4", Standing.REFUSED),
        ("anything else", Standing.REFUSED),
    ],
)
def test_a_reason_stands_for_one_kind_of_absence(reason: str, standing: Standing) -> None:
    assert absence(reason) is standing


# A run.


def test_a_run_is_followed_round_by_round(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], rounds=3)
    data = WatchedRun(run)
    assert data.refresh()
    assert (data.done, data.clients, data.state) == (None, list(CLIENTS), RunState.INTERRUPTED)
    for round_ in range(4):
        put(run / "metrics.jsonl", line(round_record(round_)))
        assert data.refresh()
        assert data.done == round_
        assert not data.refresh()
    assert data.version == 5
    assert sorted(data.evaluated) == [0, 2]
    assert data.client_scores[2] == dict.fromkeys(CLIENTS, 8 / 20)
    (run / "adapter").mkdir()
    data.refresh()
    assert data.state is RunState.FINISHED


def test_a_resumed_run_drops_the_rounds_that_it_does_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", everything(4))
    data = WatchedRun(run)
    data.refresh()
    assert (data.done, len(data.absences), data.absent_rounds["cyd"]) == (4, 3, 2)
    write_run(tmp_path / "other", everything(4)[:3])
    (tmp_path / "other" / "metrics.jsonl").replace(run / "metrics.jsonl")
    assert data.refresh()
    assert (data.done, len(data.absences), data.absent_rounds["cyd"]) == (2, 1, 1)
    assert len(data.exchanges) == len(data.steps) == 2


def test_a_round_that_is_no_record_changes_nothing_and_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0), round_record(1)])
    bad: list[Any] = [
        round_record(1),
        {"round": "2"},
        round_record(2, clients=[]) | {"clients": {"ann": {"reward": "high"}}},
        round_record(2) | {"clients": {"ann": {"reward": {}}}},
        round_record(2) | {"evaluate": {"ann": {"sum": {"n": 1}}}},
        round_record(2) | {"evaluate": {"ann": {"sum": score(20, 40, 100)}}},
        round_record(2) | {"server_step": 7},
        round_record(2) | {"left_out": ["ann"]},
        round_record(2) | {"seconds": {"train": None}},
        round_record(2) | {"clients": {"ann": {"reward": 10**400}}},
        [],
        None,
    ]
    put(run / "metrics.jsonl", "".join(line(record) for record in bad))
    data = WatchedRun(run)
    data.refresh()
    assert (data.done, len(data.means), data.table.shape) == (1, 2, (2, 3))
    assert len(data.absences) == len(data.steps) == 0
    assert f"{len(bad) - 3} more" in data.notes[-1]
    put(run / "metrics.jsonl", line(round_record(2)))
    data.refresh()
    assert data.done == 2


def test_a_run_is_under_way_while_its_lock_is_held(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0), round_record(1)], rounds=4)
    now = (run / "metrics.jsonl").stat().st_mtime + 2.0
    data = WatchedRun(run, clock=lambda: now)
    data.refresh()
    assert (data.state, data.left, data.under_way) == (RunState.INTERRUPTED, None, None)
    lock = file_lock(run / "run.lock")
    assert lock is not None
    with lock:
        assert data.refresh()
        assert data.state is RunState.RUNNING
        assert data.round_seconds == 5.0
        assert data.under_way == pytest.approx(2.0)
        assert data.left == pytest.approx(3 * 5.0 - 2.0)
        (run / "adapter").mkdir()  # of a shorter run, which goes on
        data.refresh()
        assert data.state is RunState.RUNNING
    assert data.refresh()
    assert data.state is RunState.INTERRUPTED


def test_looking_at_a_lock_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lock"
    assert not is_locked(path)
    assert not path.exists()
    lock = file_lock(path)
    assert lock is not None
    with lock:
        assert is_locked(path)
        monkeypatch.setattr("fedrlvr.files.Path", lambda _: tmp_path / "missing")  # a system that lists no locks
        assert is_locked(path)
    assert not is_locked(path)
    again = file_lock(path)
    assert again is not None
    again.close()


def test_runs_are_found_below_the_given_directories(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one", [round_record(0)])
    arm = write_run(tmp_path / "runs" / "sweep" / "arm" / "seed-0", [round_record(0)])
    write_run(run / "alone", [round_record(0)])  # a part of its run
    site = tmp_path / "site" / "state" / "runs" / "123"
    write_responses(site, "clinic", [response()])
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "site")
    (tmp_path / "runs" / ".hidden").mkdir()
    (tmp_path / "runs" / "empty").mkdir()
    assert list(run_directories([tmp_path / "runs", run])) == [run, arm]
    assert list(run_directories([tmp_path / "site"])) == [site]
    data = WatchedRun(site)
    data.refresh()
    assert data.state is RunState.ELSEWHERE


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"run": 3, "train": {"rounds": "4"}}', '{"federation": {"clients": {}}}']
)
def test_settings_of_another_kind_are_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    settings = read_settings(tmp_path)
    assert (settings.name, settings.rounds, settings.clients) == ("", None, ())


def test_a_name_is_printable_and_short() -> None:
    assert shown_name("a\x1b\u202eb") == "a\\x1b\\u202eb"
    assert len(shown_name("x" * 10**6)) == LONGEST_NAME
