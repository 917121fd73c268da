"""What `fedrlvr sweep` shows while it runs: one bar in a terminal, else one plain line a round of each federation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from fedrlvr.config import TrainConfig
from fedrlvr.reporting.observer import Observer
from fedrlvr.reporting.progress import PlainProgress

if TYPE_CHECKING:
    from rich.console import Console


class SweepObserver:
    """Hears what a sweep tells and does nothing. Override what you want to see."""

    def started(self, directory: str, todo: Sequence[tuple[str, TrainConfig]], federations: int) -> None:
        """A sweep of so many federations begins; `todo` are those that are not finished."""

    def of(self, name: str) -> Observer:
        """Who watches one federation."""
        return Observer()

    def failed(self, name: str, error: BaseException) -> None:
        """A federation left with an error; the others go on."""

    def close(self) -> None:
        """The sweep is over."""


def sweep_progress(quiet: bool = False) -> SweepObserver:
    """The observer for this terminal: a bar, or plain lines if `quiet` or if standard output is no terminal."""
    if quiet or not sys.stdout.isatty():
        return PlainSweep()
    from rich.console import Console

    return LiveSweep(Console())


def _opening(directory: str, todo: int, federations: int) -> str:
    done = f", {federations - todo} of them finished before" if todo < federations else ""
    return f"{directory}: {federations} federation{'s' if federations > 1 else ''}{done}"


class PlainSweep(SweepObserver):
    """One line a round of each federation, for logs and pipes."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout

    def started(self, directory: str, todo: Sequence[tuple[str, TrainConfig]], federations: int) -> None:
        """Say where, and how much there is to do."""
        print(_opening(directory, len(todo), federations), file=self.out, flush=True)

    def of(self, name: str) -> Observer:
        """Lines that begin with the federation's name."""
        return _Named(name, self.out)

    def failed(self, name: str, error: BaseException) -> None:
        """Say so at once."""
        print(f"{name}: failed ({error})", file=self.out, flush=True)


class _Named(PlainProgress):
    def __init__(self, name: str, out: TextIO) -> None:
        super().__init__(out)
        self.name = name

    def started(self, directory: str, clients: list[str], rounds: int, first_round: int) -> None:
        """Note the rounds; the sweep has said where it lies."""
        self.rounds = rounds
        self._round_started = self.clock()

    def _say(self, line: str) -> None:
        super()._say(f"{self.name}  {line}")


class LiveSweep(SweepObserver):
    """A bar of all local steps of all federations, the rounds done and the last mean reward."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("elapsed,"),
            TimeRemainingColumn(), TextColumn("left"), console=console,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None)
        self.steps: dict[str, int] = {}
        self.rounds_done = self.rounds = 0

    def started(self, directory: str, todo: Sequence[tuple[str, TrainConfig]], federations: int) -> None:
        """Begin to draw."""
        self.console.print(_opening(directory, len(todo), federations), markup=False, highlight=False)
        self.steps = {name: train.local_steps for name, train in todo}
        self.rounds = sum(train.rounds for _, train in todo)
        self.bar.update(self.task, total=sum(train.rounds * train.local_steps for _, train in todo))
        self.bar.start()

    def of(self, name: str) -> Observer:
        """One that moves the bar."""
        return _Moving(self, self.steps[name])

    def moved(self, steps: int, rounds: int) -> None:
        """Local steps and rounds are done."""
        self.rounds_done += rounds
        self.bar.update(self.task, advance=steps, description=f"round {self.rounds_done}/{self.rounds}")

    def failed(self, name: str, error: BaseException) -> None:
        """Say so above the bar."""
        self.console.print(f"{name}: failed ({error})", markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.bar.stop()


class _Moving(Observer):
    def __init__(self, sweep: LiveSweep, steps: int) -> None:
        self.sweep = sweep
        self.steps = steps  # of a round

    def started(self, directory: str, clients: list[str], rounds: int, first_round: int) -> None:
        """Rounds done before count."""
        self.sweep.moved((first_round - 1) * self.steps, first_round - 1)

    def step(self, round_: int, step: int, steps: int, rewards: Mapping[str, float], tokens: int) -> None:
        """One step further."""
        self.sweep.moved(1, 0)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """One round further; the one before training has no steps and does not count."""
        self.sweep.moved(0, int(record["round"] > 0))
