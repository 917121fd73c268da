"""Progress with a clock in hand."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from run_samples import run_records

from fedrlvr.reporting.observer import Evaluated, Observer, PhaseStarted, RoundSaved, RunFailed, RunStarted, StepEnded
from fedrlvr.reporting.progress import LiveProgress, Pace, PlainProgress, progress, sparkline


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def saved(round_: int) -> RoundSaved:
    return RoundSaved(round_, run_records()[round_])


def play(observer: Observer, clock: Clock, clients: list[str]) -> None:
    """Round 0 takes 4 s; round 1 of 2 has two steps of 5 s and is in its second one's first second."""
    observer.notify(RunStarted("runs/x", clients, rounds=2, local_steps=2, first_round=0))
    observer.notify(PhaseStarted(0, "evaluate"))
    clock.after(4)
    observer.notify(Evaluated(0, 40))
    observer.notify(saved(0))
    observer.notify(PhaseStarted(1, "train"))
    clock.after(5)
    observer.notify(StepEnded(1, 1, 2, {name: i / 8 for i, name in enumerate(clients)}, 1000))
    clock.after(1)


def test_pace_counts_steps_and_evaluations_to_come(clock: Clock) -> None:
    pace = Pace(2, 1, clock)
    pace.phase(0, "evaluate")
    clock.after(4)
    pace.evaluated()
    pace.round_done()
    assert pace.left is None
    assert pace.tokens_per_second is None
    pace.phase(1, "train")
    clock.after(5)
    pace.step(1, 2, 1000)
    # Three steps of 5 s and the last evaluation of 4 s.
    assert pace.left == pytest.approx(19)
    assert pace.tokens_per_second == pytest.approx(200)
    assert pace.done == pytest.approx(0.25)
    clock.after(1)
    assert pace.left == pytest.approx(18)
    clock.after(100)  # a step that takes longer than its share is not counted below nothing
    assert pace.left == pytest.approx(14)
    assert pace.elapsed == pytest.approx(110)


def test_pace_expects_as_many_evaluations_as_there_were(clock: Clock) -> None:
    pace = Pace(4, 1, clock)
    for round_ in (1, 2):
        pace.phase(round_, "train")
        clock.after(10)
        pace.step(1, 1, 10)
        pace.phase(round_, "evaluate")
        clock.after(3)
        pace.evaluated()
        pace.round_done()
    assert pace.left == pytest.approx(2 * 10 + 2 * 3)
    assert pace.done == pytest.approx(0.5)


def test_pace_after_the_last_round_and_after_a_resume(clock: Clock) -> None:
    pace = Pace(3, 3, clock)
    assert pace.done == pytest.approx(1 / 3)  # rounds before were done by the run this one goes on with
    pace.phase(3, "train")
    assert pace.done == pytest.approx(2 / 3)
    clock.after(2)
    pace.step(1, 1, 10)
    pace.round_done()
    assert pace.left == 0
    assert pace.done == 1


def test_plain_lines(clock: Clock) -> None:
    out = io.StringIO()
    plain = PlainProgress(out, clock)
    plain.notify(RunStarted("runs/x", ["alpha", "beta"], rounds=2, local_steps=2, first_round=0))
    for round_, seconds in enumerate((4.0, 10.0, 61.0)):
        clock.after(seconds)
        plain.notify(saved(round_))
    plain.notify(RunFailed("its disk"))  # which the command says
    assert out.getvalue().splitlines() == [
        "runs/x: 2 clients, 2 rounds",
        "round 0/2  held-out pass@1 40.0 %  4.0 s",
        "round 1/2  reward 0.150  10.0 s",
        "round 2/2  reward 0.300  held-out pass@1 55.0 %  1:01",
    ]
    plain.notify(RunStarted("runs/x", ["alpha"], rounds=5, local_steps=2, first_round=3))
    assert out.getvalue().splitlines()[-1] == "runs/x: 1 client, 5 rounds, going on with round 3"


def test_plain_lines_are_flushed_at_once() -> None:
    class Pipe(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    pipe = Pipe()
    plain = PlainProgress(pipe)
    plain.notify(RunStarted("runs/x", ["alpha"], rounds=5, local_steps=2, first_round=0))
    plain.notify(saved(1))
    assert pipe.flushed == 2


def drawn(live: LiveProgress) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(live.render())
    return out.getvalue()


def test_live_display(clock: Clock) -> None:
    screen = io.StringIO()
    live = LiveProgress(Console(file=screen, width=120), clock)
    try:
        assert "reward: none yet" in drawn(live)
        play(live, clock, ["alpha", "beta"])
        text = drawn(live)
        for part in ("runs/x", "round 1/2  train  step 1/2", "200 tokens/s", "0:10 elapsed", "about 0:18 left"):
            assert part in text
        assert "alpha  0.000" in text
        assert "beta   0.125" in text
        assert "held-out pass@1  round 0 40.0 %" in text
        live.notify(saved(1))
        live.notify(PhaseStarted(2, "train"))
        live.notify(StepEnded(2, 2, 2, {"alpha": 1.0, "beta": 0.5}, 10))
        live.notify(saved(2))
        text = drawn(live)
        assert "round 2/2" in text
        assert "left" not in text
        assert "round 2 55.0 %" in text
    finally:
        live.close()
    live.close()  # a second time does no harm


def test_live_display_sums_many_clients_up(clock: Clock) -> None:
    live = LiveProgress(Console(file=io.StringIO(), width=120), clock)
    try:
        play(live, clock, [f"c{i}" for i in range(9)])
        assert "reward of 9 clients  mean 0.500  lowest 0.000 (c0)  highest 1.000 (c8)" in drawn(live)
    finally:
        live.close()


def test_no_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(progress(), PlainProgress)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(progress(quiet=True), PlainProgress)
    assert isinstance(progress(), LiveProgress)


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0], 0.0, 1.0) == "▁▅█"
    assert sparkline([0.3, 0.3], 0.3, 0.3) == "▁▁"
