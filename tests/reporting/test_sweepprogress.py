"""What a sweep says while it runs: a line a round of each federation, or one bar over all local steps."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fedrlvr.config import TrainConfig
from fedrlvr.reporting.sweepprogress import LiveSweep, PlainSweep, sweep_progress

PLANNED = [(name, TrainConfig(rounds=4, local_steps=5)) for name in ("as-given/seed-1", "as-given/seed-2")]


def record(round_: int) -> dict[str, Any]:
    return {"round": round_, "clients": {"ann": {"reward": 0.5}}, "seconds": {}}


def test_plain_lines_begin_with_the_federation() -> None:
    out = io.StringIO()
    sweep = PlainSweep(out)
    sweep.started("runs/x", PLANNED, 3)
    one = sweep.of("as-given/seed-1")
    one.started("runs/x/as-given/seed-1", ["ann"], 4, 1)
    one.round_done(record(2))
    sweep.failed("as-given/seed-2", ValueError("its disk"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "runs/x: 3 federations, 1 of them finished before"
    assert lines[1].startswith("as-given/seed-1  round 2/4  reward 0.500  ")
    assert lines[2] == "as-given/seed-2: failed (its disk)"
    assert len(lines) == 3


def test_the_bar_counts_steps_of_all_federations_with_those_done_before() -> None:
    out = io.StringIO()
    sweep = LiveSweep(Console(file=out, force_terminal=True, width=100))
    sweep.started("runs/[x]", PLANNED, 2)
    one, other = (sweep.of(name) for name, _ in PLANNED)
    one.started("", ["ann"], 4, 1)
    other.started("", ["ann"], 4, 3)  # two rounds of five steps are done
    one.round_done(record(0))
    for _ in range(5):
        one.step(1, 1, 5, {}, 10)
    one.round_done(record(1))
    (bar,) = sweep.bar.tasks
    assert (bar.completed, bar.total, bar.description) == (15, 40, "round 3/8")
    sweep.failed("as-given/seed-2", ValueError("[no] disk"))
    sweep.close()
    shown = out.getvalue()
    for part in ("runs/[x]: 2 federations", "round 3/8", "as-given/seed-2: failed ([no] disk)"):
        assert part in shown


def test_without_a_terminal_the_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(sweep_progress(), PlainSweep)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(sweep_progress(), LiveSweep)
    assert isinstance(sweep_progress(quiet=True), PlainSweep)
