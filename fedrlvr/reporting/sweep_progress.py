"""What `fedrlvr sweep` shows while it runs: one bar in a terminal, else one plain line a round of each federation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fedrlvr.reporting.observer import Observer, RoundSaved, RunFailed, RunStarted, StepEnded, SweepStarted
from fedrlvr.reporting.progress import PlainProgress, sweep_failure, sweep_opening

if TYPE_CHECKING:
    from rich.console import Console


def sweep_progress(quiet: bool = False) -> Observer:
    """The observer for this terminal: a bar, or plain lines if `quiet` or if standard output is no terminal."""
    if quiet or not sys.stdout.isatty():
        return PlainProgress()
    from rich.console import Console

    return LiveSweep(Console())


class LiveSweep(Observer):
    """A bar of all local steps of all federations, and the rounds done."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("elapsed,"),
            TimeRemainingColumn(), TextColumn("left"), console=console,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None)
        self.rounds_done = self.rounds = 0

    def sweep_started(self, event: SweepStarted) -> None:
        """Begin to draw."""
        self.console.print(sweep_opening(event), markup=False, highlight=False)
        self.rounds = event.rounds
        self.bar.update(self.task, total=event.local_steps)
        self.bar.start()

    def run_started(self, event: RunStarted) -> None:
        """Count the rounds that were done before."""
        rounds = max(event.first_round - 1, 0)
        self._advance(rounds * event.local_steps, rounds)

    def step_ended(self, event: StepEnded) -> None:
        """Count the step."""
        self._advance(1, 0)

    def round_saved(self, event: RoundSaved) -> None:
        """Count the round; round 0 has no steps and does not count."""
        self._advance(0, int(event.round > 0))

    def run_failed(self, event: RunFailed) -> None:
        """Say so above the bar."""
        self.console.print(sweep_failure(event), markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.bar.stop()

    def _advance(self, steps: int, rounds: int) -> None:
        self.rounds_done += rounds
        self.bar.update(self.task, advance=steps, description=f"round {self.rounds_done}/{self.rounds}")
