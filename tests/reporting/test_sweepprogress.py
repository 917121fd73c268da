"""What a sweep says while it runs: a line a round of each federation, or one bar over all local steps."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedrlvr.reporting.observer import RoundSaved, RunFailed, RunStarted, StepEnded, SweepStarted
from fedrlvr.reporting.progress import PlainProgress
from fedrlvr.reporting.sweep_progress import LiveSweep, sweep_progress

FIRST, SECOND = "as-given/seed-1", "as-given/seed-2"


def started(federation: str, first_round: int = 0) -> RunStarted:
    return RunStarted("", ["ann"], rounds=4, local_steps=5, first_round=first_round, federation=federation)


def saved(round_: int, federation: str, reward: float = 0.5) -> RoundSaved:
    record = {"round": round_, "clients": {"ann": {"reward": reward}}, "seconds": {}}
    return RoundSaved(round_, record, federation=federation)


def test_plain_lines_begin_with_the_federation() -> None:
    out = io.StringIO()
    now = 100.0
    plain = PlainProgress(out, lambda: now)
    plain.notify(SweepStarted("runs/x", federations=3, finished=1, rounds=8, local_steps=40))
    plain.notify(started(FIRST))
    now += 2
    plain.notify(started(SECOND))
    now += 3
    plain.notify(saved(2, FIRST))
    plain.notify(saved(1, SECOND, 0.25))
    plain.notify(RunFailed("its disk", federation=SECOND))
    assert out.getvalue().splitlines() == [
        "runs/x: 3 federations, 1 of them finished before",
        "as-given/seed-1  round 2/4  reward 0.500  5.0 s",
        "as-given/seed-2  round 1/4  reward 0.250  3.0 s",
        "as-given/seed-2: failed (its disk)",
    ]


def test_the_bar_counts_steps_of_all_federations_with_those_done_before() -> None:
    out = io.StringIO()
    sweep = LiveSweep(Console(file=out, force_terminal=True, width=100))
    sweep.notify(SweepStarted("runs/[x]", federations=2, finished=0, rounds=8, local_steps=40))
    sweep.notify(started(FIRST))
    sweep.notify(started(SECOND, first_round=3))  # two rounds of five steps are done
    sweep.notify(saved(0, FIRST))
    for step in range(1, 6):
        sweep.notify(StepEnded(1, step, 5, {}, 10, federation=FIRST))
    sweep.notify(saved(1, FIRST))
    (bar,) = sweep.bar.tasks
    assert (bar.completed, bar.total, bar.description) == (15, 40, "round 3/8")
    sweep.notify(RunFailed("[no] disk", federation=SECOND))
    sweep.close()
    shown = out.getvalue()
    for part in ("runs/[x]: 2 federations", "round 3/8", "as-given/seed-2: failed ([no] disk)"):
        assert part in shown


def test_without_a_terminal_the_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(sweep_progress(), PlainProgress)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(sweep_progress(), LiveSweep)
    assert isinstance(sweep_progress(quiet=True), PlainProgress)
