"""Progress of runs and sweeps, with a clock in hand."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from run_samples import run_records

from fedrlvr.reporting.observer import (
    Advised,
    EngineChosen,
    Evaluated,
    Observer,
    PersonalEnded,
    PhaseStarted,
    RoundSaved,
    RunFailed,
    RunStarted,
    StepEnded,
    SweepStarted,
)
from fedrlvr.reporting.progress import LiveProgress, PlainProgress, progress, sparkline


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


def test_the_time_left_is_that_of_steps_and_one_evaluation_to_come(clock: Clock) -> None:
    live = LiveProgress(Console(file=io.StringIO()), clock)
    try:
        play(live, clock, ["alpha"])
        assert live.left == pytest.approx(18)  # three steps of 5 s and 4 s of evaluation, less the second under way
        clock.after(100)
        assert live.left == pytest.approx(14)  # a step that takes longer than its share is not counted below nothing
    finally:
        live.close()


def test_a_resumed_run_counts_steps_done_before_but_not_their_seconds(clock: Clock) -> None:
    live = LiveProgress(Console(file=io.StringIO()), clock)
    try:
        live.notify(RunStarted("runs/x", ["alpha"], rounds=3, local_steps=4, first_round=3))
        assert (live.steps_done, live.left) == (8, None)
        live.notify(PhaseStarted(3, "train"))
        clock.after(2)
        live.notify(StepEnded(3, 1, 4, {"alpha": 1.0}, 10))
        assert (live.steps_done, live.left) == (9, pytest.approx(6))
        live.notify(RoundSaved(3, {"clients": {}}))
        assert live.left is None
    finally:
        live.close()


def test_plain_lines(clock: Clock) -> None:
    out = io.StringIO()
    plain = PlainProgress(out, clock)
    plain.notify(EngineChosen({"sampler": "a server", "attention": "packed"}))
    plain.notify(RunStarted("runs/x", ["alpha", "beta"], rounds=2, local_steps=2, first_round=0))
    for round_, seconds in enumerate((4.0, 10.0, 61.0)):
        clock.after(seconds)
        plain.notify(saved(round_))
    plain.notify(PersonalEnded({"clients": {}, "evaluate": run_records()[2]["evaluate"]}))
    plain.notify(RunFailed("its disk"))  # which the command says
    assert out.getvalue().splitlines() == [
        "sampler: a server",
        "attention: packed",
        "runs/x: 2 clients, 2 rounds",
        "round 0/2  held-out pass@1 40.0 %  4.0 s",
        "round 1/2  reward 0.150  10.0 s",
        "round 2/2  reward 0.300  held-out pass@1 55.0 %  1:01",
        "personal adapters  held-out pass@1 55.0 %",
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
        live.notify(RunStarted("runs/x", ["alpha", "beta"], rounds=2, local_steps=2, first_round=0))
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


def test_steps_after_the_last_round_are_those_of_personal_adapters(clock: Clock) -> None:
    live = LiveProgress(Console(file=io.StringIO()), clock)
    live.notify(RunStarted("runs/x", ["alpha"], rounds=2, local_steps=2, first_round=0))
    live.notify(StepEnded(3, 1, 7, {"alpha": 0.5}, 10))
    live.close()
    assert live.position == "round 2/2  personal adapters  train  step 1/7"


def test_live_display_sums_many_clients_up(clock: Clock) -> None:
    live = LiveProgress(Console(file=io.StringIO(), width=120), clock)
    try:
        play(live, clock, [f"c{i}" for i in range(17)])
        assert "reward of 17 clients  mean 1.000  lowest 0.000 (c0)  highest 2.000 (c16)" in drawn(live)
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


FIRST, SECOND = "as-given/seed-1", "as-given/seed-2"


def federation_started(federation: str, first_round: int = 0) -> RunStarted:
    return RunStarted("", ["ann"], rounds=4, local_steps=5, first_round=first_round, federation=federation)


def federation_saved(round_: int, federation: str, reward: float = 0.5) -> RoundSaved:
    record = {"round": round_, "clients": {"ann": {"reward": reward}}, "seconds": {}}
    return RoundSaved(round_, record, federation=federation)


def test_plain_lines_of_a_sweep_begin_with_the_federation() -> None:
    out = io.StringIO()
    now = 100.0
    plain = PlainProgress(out, lambda: now)
    plain.notify(SweepStarted("runs/x", federations=3, finished=1, rounds=8, local_steps=40))
    plain.notify(federation_started(FIRST))
    now += 2
    plain.notify(federation_started(SECOND))
    now += 3
    plain.notify(federation_saved(2, FIRST))
    plain.notify(federation_saved(1, SECOND, 0.25))
    plain.notify(Advised(1, "no reward", "Every reward is 0.", federation=SECOND))
    plain.notify(RunFailed("its disk", federation=SECOND))
    assert out.getvalue().splitlines() == [
        "runs/x: 3 federations, 1 of them finished before",
        "as-given/seed-1  round 2/4  reward 0.500  5.0 s",
        "as-given/seed-2  round 1/4  reward 0.250  3.0 s",
        "as-given/seed-2: advice: Every reward is 0.",
        "as-given/seed-2: failed (its disk)",
    ]


def test_the_bar_counts_steps_of_all_federations_with_those_done_before() -> None:
    out = io.StringIO()
    sweep = LiveProgress(Console(file=out, force_terminal=True, width=100))
    sweep.notify(SweepStarted("runs/[x]", federations=2, finished=0, rounds=8, local_steps=40))
    sweep.notify(federation_started(FIRST))
    sweep.notify(federation_started(SECOND, first_round=3))  # two rounds of five steps are done
    sweep.notify(federation_saved(0, FIRST))
    for step in range(1, 6):
        sweep.notify(StepEnded(1, step, 5, {}, 10, federation=FIRST))
    sweep.notify(federation_saved(1, FIRST))
    assert (sweep.steps_done, sweep.steps, sweep.position) == (15, 40, "round 3/8")
    sweep.notify(Advised(1, "no reward", "[Every] reward is 0.", federation=FIRST))
    sweep.notify(RunFailed("[no] disk", federation=SECOND))
    sweep.close()
    shown = out.getvalue()
    for part in (
        "runs/[x]: 2 federations",
        "round 3/8",
        "advice: [Every] reward is 0.",
        "as-given/seed-2: failed ([no] disk)",
    ):
        assert part in shown
