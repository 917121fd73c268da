"""What `fedrlvr run` shows while it runs: a live display in a terminal, else one plain line a round."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from fedrlvr.reporting import units
from fedrlvr.reporting.observer import (
    Evaluated,
    Observer,
    PhaseStarted,
    RoundSaved,
    RunFailed,
    RunStarted,
    StepEnded,
    SweepStarted,
)
from fedrlvr.reporting.scores import evaluations, mean_reward
from fedrlvr.reporting.tables import final_table, holdings_table, scores_table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["LiveProgress", "Pace", "PlainProgress", "final_table", "holdings_table", "progress", "scores_table"]

MOST_CLIENTS = 8
"""With more clients than this the display sums them up."""
_HISTORY = 24  # rewards drawn per client, one per local step
_BARS = "▁▂▃▄▅▆▇█"

Clock = Callable[[], float]


def progress(quiet: bool = False) -> Observer:
    """The observer for this terminal: live, or plain lines if `quiet` or if standard output is no terminal."""
    if quiet or not sys.stdout.isatty():
        return PlainProgress()
    from rich.console import Console

    return LiveProgress(Console())


class Pace:
    """How fast a run goes and how long it still takes, from what it has done so far.

    What is left is the local steps to come at the mean seconds of those done, and the evaluations to come (one after
    the last round; more if rounds before it were evaluated) at theirs.
    """

    def __init__(self, rounds: int, first_round: int, clock: Clock = time.monotonic) -> None:
        self.rounds = rounds
        self.clock = clock
        self.started = clock()
        self.round = first_round - 1
        self.phase_name = ""
        self.step_number = 0
        self.steps = 0
        self.tokens = 0
        self._phase_started = self.started
        self._train_seconds = 0.0  # of the steps counted in _steps_done
        self._last_step = self.started
        self._steps_done = 0
        self._evaluations: list[float] = []
        self._rounds_done = 0
        self._rounds_evaluated = 0

    def phase(self, round_: int, name: str) -> None:
        """The round enters a phase."""
        if round_ != self.round:
            self.step_number = 0
        self.round, self.phase_name = round_, name
        self._phase_started = self._last_step = self.clock()

    def step(self, step: int, steps: int, tokens: int) -> None:
        """A local step is done; `tokens` were sampled in it."""
        now = self.clock()
        self._train_seconds += now - self._last_step
        self._last_step = now
        self._steps_done += 1
        self.step_number, self.steps = step, steps
        self.tokens += tokens

    def evaluated(self) -> None:
        """An evaluation is done."""
        self._evaluations.append(self.clock() - self._phase_started)
        self._rounds_evaluated += self.round > 0

    def round_done(self) -> None:
        """The round is complete."""
        self.step_number, self.phase_name = 0, ""
        self._rounds_done += self.round > 0
        self.round += 1

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens sampled, by the seconds of the local steps (sampling, grading and learning)."""
        return self.tokens / self._train_seconds if self._train_seconds else None

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end; None before the first local step."""
        if not self._steps_done:
            return None
        rounds = self.rounds - self.round + 1
        steps = max(rounds * self.steps - self.step_number, 0)
        per_step = self._train_seconds / self._steps_done
        seconds = steps * per_step
        if rounds > 0 and self._evaluations:
            share = self._rounds_evaluated / self._rounds_done if self._rounds_done else 0.0
            seconds += max(1.0, share * rounds) * sum(self._evaluations) / len(self._evaluations)
        if self.phase_name == "train" and self.step_number < self.steps:  # the step under way has taken its part
            seconds -= min(self.clock() - self._last_step, per_step)
        return max(seconds, 0.0)

    @property
    def done(self) -> float:
        """Part of the run's local steps that is done, 0 to 1."""
        if not self.rounds:
            return 0.0
        within = self.step_number / self.steps if self.steps else 0.0
        return min((max(self.round - 1, 0) + within) / self.rounds, 1.0)


class PlainProgress(Observer):
    """One line a round, for logs and pipes; in a sweep it begins with the federation's name."""

    def __init__(self, out: TextIO | None = None, clock: Clock = time.monotonic) -> None:
        self.out = out or sys.stdout
        self.clock = clock
        self._rounds: dict[str, int] = {}  # by federation
        self._round_started: dict[str, float] = {}

    def sweep_started(self, event: SweepStarted) -> None:
        """Say where, and how much there is to do."""
        self._print(sweep_opening(event))

    def run_started(self, event: RunStarted) -> None:
        """Say where, and how much there is to do, unless the sweep has said it."""
        self._rounds[event.federation] = event.rounds
        self._round_started[event.federation] = self.clock()
        if event.federation:
            return
        again = f", going on with round {event.first_round}" if event.first_round > 1 else ""
        clients = f"{len(event.clients)} client{'s' if len(event.clients) > 1 else ''}"
        rounds = f"{event.rounds} round{'s' if event.rounds > 1 else ''}"
        self._print(f"{event.directory}: {clients}, {rounds}{again}")

    def round_saved(self, event: RoundSaved) -> None:
        """Say the round's reward, pass@1 if it was evaluated, and seconds."""
        now = self.clock()
        parts = [event.federation] if event.federation else []
        parts.append(f"round {event.round}/{self._rounds[event.federation]}")
        reward = mean_reward(event.record)
        if reward is not None:
            parts.append(f"reward {reward:.3f}")
        for overall, _ in evaluations([event.record]).values():
            parts.append(f"held-out pass@1 {units.percent(overall.mean)}")
        parts.append(units.duration(now - self._round_started[event.federation]))
        self._round_started[event.federation] = now
        self._print("  ".join(parts))

    def run_failed(self, event: RunFailed) -> None:
        """Say so at once in a sweep, whose other federations go on."""
        if event.federation:
            self._print(sweep_failure(event))

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


def sweep_opening(event: SweepStarted) -> str:
    """The line at the start of a sweep."""
    before = f", {event.finished} of them finished before" if event.finished else ""
    return f"{event.directory}: {event.federations} federation{'s' if event.federations > 1 else ''}{before}"


def sweep_failure(event: RunFailed) -> str:
    """The line about a federation that failed."""
    return f"{event.federation}: failed ({event.reason})"


class LiveProgress(Observer):
    """Round, phase, step, reward by client, tokens a second, elapsed and left; redrawn in place."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        from rich.live import Live

        self.clock = clock
        self.directory = ""
        self.pace = Pace(0, 1, clock)
        self.rewards: dict[str, deque[float]] = {}
        self.pass_at_1: list[tuple[int, float]] = []
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4)

    def run_started(self, event: RunStarted) -> None:
        """Begin to draw."""
        self.directory = event.directory
        self.pace = Pace(event.rounds, max(event.first_round, 1), self.clock)
        self.rewards = {client: deque(maxlen=_HISTORY) for client in event.clients}
        self._live.start()

    def phase_started(self, event: PhaseStarted) -> None:
        """Note the phase."""
        self.pace.phase(event.round, event.phase)

    def step_ended(self, event: StepEnded) -> None:
        """Note the step's rewards."""
        self.pace.step(event.step, event.steps, event.tokens)
        for client, reward in event.rewards.items():
            self.rewards.setdefault(client, deque(maxlen=_HISTORY)).append(reward)

    def evaluated(self, event: Evaluated) -> None:
        """Note how long it took."""
        self.pace.evaluated()

    def round_saved(self, event: RoundSaved) -> None:
        """Note the round's pass@1."""
        self.pass_at_1 += [(round_, overall.mean) for round_, (overall, _) in evaluations([event.record]).items()]
        self.pace.round_done()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()

    def render(self) -> RenderableType:
        """What is drawn now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        pace = self.pace
        over = pace.round > pace.rounds
        where = f"round {min(pace.round, pace.rounds)}/{pace.rounds}"
        if not over and pace.phase_name:
            where += f"  {pace.phase_name}"
            if pace.phase_name == "train" and pace.steps:
                where += f"  step {pace.step_number}/{pace.steps}"
        speed = pace.tokens_per_second
        times = [
            f"{units.count(speed)} tokens/s" if speed is not None else None,
            f"{units.clock(pace.elapsed)} elapsed",
            f"about {units.clock(pace.left)} left" if not over and pace.left is not None else None,
        ]
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=pace.done, width=24)
        head.add_row(Text(where, style="bold"), bar, Text(" · ".join(t for t in times if t)))
        lines: list[RenderableType] = [Text(self.directory, style="dim"), head, self._rewards()]
        if self.pass_at_1:
            shown = self.pass_at_1 if len(self.pass_at_1) <= 6 else [self.pass_at_1[0], *self.pass_at_1[-5:]]
            curve = "  ".join(f"round {round_} {units.percent(value)}" for round_, value in shown)
            lines.append(Text(f"held-out pass@1  {curve}"))
        return Group(*lines)

    def _rewards(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        last = {client: history[-1] for client, history in self.rewards.items() if history}
        if not last:
            return Text("reward: none yet", style="dim")
        if len(self.rewards) > MOST_CLIENTS:
            lowest, highest = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
            return Text(
                f"reward of {len(last)} clients  mean {sum(last.values()) / len(last):.3f}  lowest {last[lowest]:.3f} "
                f"({lowest})  highest {last[highest]:.3f} ({highest})"
            )
        low = min(min(history) for history in self.rewards.values() if history)
        high = max(max(history) for history in self.rewards.values() if history)
        table = Table.grid(padding=(0, 2))
        for client, history in self.rewards.items():
            if history:
                table.add_row(Text(client), f"{history[-1]:.3f}", Text(sparkline(history, low, high), style="cyan"))
        return table


def sparkline(values: deque[float] | list[float], low: float, high: float) -> str:
    """A character for each value, from the lowest bar at `low` to the highest at `high`."""
    span = high - low
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] if span > 0 else _BARS[0] for value in values)
