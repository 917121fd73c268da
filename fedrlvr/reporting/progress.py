"""Progress of a run or a sweep: a live display in a terminal, else one plain line a round."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TextIO

from fedrlvr.output import console as new_console
from fedrlvr.output import echo
from fedrlvr.reporting import units
from fedrlvr.reporting.observer import (
    Advised,
    EngineChosen,
    Evaluated,
    Event,
    Observer,
    PersonalEnded,
    PhaseStarted,
    RoundSaved,
    RunFailed,
    RunStarted,
    StepEnded,
    SweepStarted,
)
from fedrlvr.reporting.scores import evaluations, mean_of, mean_reward
from fedrlvr.reporting.tables import MOST_CLIENTS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_HISTORY = 24  # rewards drawn per client, one per local step
_BARS = "▁▂▃▄▅▆▇█"


def progress(quiet: bool = False) -> Observer:
    """The observer for this terminal: live, or plain lines if `quiet` or if standard output is no terminal."""
    if quiet or not sys.stdout.isatty():
        return PlainProgress()

    return LiveProgress(new_console())


class PlainProgress(Observer):
    """One line a round, for logs and pipes; in a sweep it begins with the federation's name."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out or sys.stdout
        self.clock = clock
        self._rounds: dict[str, int] = {}  # by federation
        self._round_started: dict[str, float] = {}

    def notify(self, event: Event) -> None:
        """Print a line at the start, for each saved round, for advice, and in a sweep for a federation that failed."""
        match event:
            case SweepStarted():
                self._print(sweep_opening(event))
            case RunStarted():
                self._rounds[event.federation] = event.rounds
                self._round_started[event.federation] = self.clock()
                if not event.federation:
                    again = f", going on with round {event.first_round}" if event.first_round > 1 else ""
                    clients, rounds = _number(len(event.clients), "client"), _number(event.rounds, "round")
                    self._print(f"{event.directory}: {clients}, {rounds}{again}")
            case EngineChosen():
                for line in choice_lines(event):
                    self._print(line)
            case RoundSaved():
                self._print("  ".join(self._round(event)))
            case Advised():
                self._print(advice_line(event))
            case PersonalEnded():
                self._print("  ".join(personal_line(event)))
            case RunFailed() if event.federation:  # the command itself reports the failure of a single run
                self._print(sweep_failure(event))

    def _round(self, event: RoundSaved) -> Iterable[str]:
        """The round's reward, pass@1 if it was evaluated, and seconds."""
        if event.federation:
            yield event.federation
        yield f"round {event.round}/{self._rounds[event.federation]}"
        reward = mean_reward(event.record)
        if reward is not None:
            yield f"reward {reward:.3f}"
        elif (loss := mean_of(event.record, "loss")) is not None:  # of given responses
            yield f"loss {loss:.3f}"
        if (held_out := mean_of(event.record, "held_out_loss")) is not None:
            yield f"held-out loss {held_out:.3f}"
        for overall, _ in evaluations([event.record]).values():
            yield f"held-out pass@1 {units.percent(overall.mean)}"
        now = self.clock()
        yield units.duration(now - self._round_started[event.federation])
        self._round_started[event.federation] = now

    def _print(self, line: str) -> None:
        echo(line, file=self.out)


def personal_line(event: PersonalEnded) -> Iterable[str]:
    """The parts of the line about the personal adapters: their clients, and pass@1 if it was measured."""
    if event.federation:
        yield event.federation
    yield "personal adapters"
    for overall, _ in evaluations([{"round": 0, **event.record}]).values():
        yield f"held-out pass@1 {units.percent(overall.mean)}"


def sweep_opening(event: SweepStarted) -> str:
    """The line at the start of a sweep."""
    before = f", {event.finished} of them finished before" if event.finished else ""
    return f"{event.directory}: {_number(event.federations, 'federation')}{before}"


def sweep_failure(event: RunFailed) -> str:
    """The line about a federation that failed."""
    return f"{event.federation}: failed ({event.reason})"


def choice_lines(event: EngineChosen) -> list[str]:
    """A line for each part that this process computes with."""
    return [f"{part}: {choice}" for part, choice in event.choices.items()]


def advice_line(event: Advised) -> str:
    """The line of a rule of advice, once a run."""
    return f"{event.federation}{': ' if event.federation else ''}advice: {event.sentence}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


class LiveProgress(Observer):
    """A bar over all local steps, tokens a second, elapsed and left; redrawn in place.

    A single run also has its phase and step, and the reward by client. The time left is that of the local steps to come
    at the mean seconds of those done, and one evaluation that takes as long as the latest.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        self.clock = clock
        self.title = self.position = ""
        self.rounds = self.rounds_done = 0
        self.steps = self.steps_done = self.steps_timed = self.tokens = 0
        self.step_seconds = self.evaluation_seconds = 0.0
        self.started = self.lap_started = clock()
        self.rewards: dict[str, deque[float]] = {}  # by client; of a single run, like pass@1 by round
        self.pass_at_1: dict[int, float] = {}
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4)

    def notify(self, event: Event) -> None:
        """Update the live display by an event of the run."""
        match event:
            case SweepStarted():
                self._begin(sweep_opening(event), event.rounds, event.local_steps)
            case RunStarted():
                if not event.federation:
                    self._begin(event.directory, event.rounds, event.rounds * event.local_steps)
                    self.rewards = {client: deque(maxlen=_HISTORY) for client in event.clients}
                before = max(event.first_round - 1, 0)
                self.rounds_done += before
                self.steps_done += before * event.local_steps
            case EngineChosen():
                for line in choice_lines(event):
                    self._live.console.print(line, markup=False, highlight=False)
            case PhaseStarted():
                self._lap()
                self._locate(event, event.round, event.phase)
            case StepEnded():
                self.step_seconds += self._lap()
                self.steps_timed += 1
                self.steps_done += 1
                self.tokens += event.tokens
                self._locate(event, event.round, f"train  step {event.step}/{event.steps}")
                for client, reward in () if event.federation else event.rewards.items():
                    self.rewards[client].append(reward)
            case Evaluated():
                self.evaluation_seconds = self._lap()
            case RoundSaved():
                self.rounds_done += event.round > 0
                self._locate(event, event.round)
                if not event.federation:
                    self.pass_at_1 |= {n: overall.mean for n, (overall, _) in evaluations([event.record]).items()}
            case Advised():
                self._live.console.print(advice_line(event), style="yellow", markup=False, highlight=False)
            case RunFailed() if event.federation:
                self._live.console.print(sweep_failure(event), markup=False, highlight=False)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()

    def _begin(self, title: str, rounds: int, steps: int) -> None:
        self.title, self.rounds, self.steps = title, rounds, steps
        self._live.start()

    def _locate(self, event: Event, round_: int, phase: str = "") -> None:
        """Set the position: of a single run its round and phase, of a sweep the rounds done."""
        done, phase = (self.rounds_done, "") if event.federation else (round_, phase)
        if done > self.rounds:  # personal adapters come after the last round
            done, phase = self.rounds, f"personal adapters  {phase}"
        self.position = f"round {done}/{self.rounds}  {phase}".rstrip()

    def _lap(self) -> float:
        """Seconds since the last phase, step or evaluation."""
        before, self.lap_started = self.lap_started, self.clock()
        return self.lap_started - before

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end; None before the first local step and after the last round."""
        if not self.steps_timed or self.rounds_done >= self.rounds:
            return None
        step = self.step_seconds / self.steps_timed
        steps = max(self.steps - self.steps_done, 0)
        current = step if steps else self.evaluation_seconds
        return steps * step + self.evaluation_seconds - min(self.clock() - self.lap_started, current)

    def render(self) -> RenderableType:
        """The live display as it should look now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        left = self.left
        times = [f"{units.count(self.tokens / self.step_seconds)} tokens/s"] if self.step_seconds else []
        times += [f"{units.clock(self.clock() - self.started)} elapsed"]
        times += [f"about {units.clock(left)} left"] if left is not None else []
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self.steps, 1), completed=self.steps_done, width=24)
        head.add_row(Text(self.position, style="bold"), bar, Text(" · ".join(times)))
        lines: list[RenderableType] = [Text(self.title, style="dim"), head]
        if self.rewards:
            lines.append(self._rewards())
        if self.pass_at_1:
            first, *later = self.pass_at_1.items()
            curve = "  ".join(f"round {n} {units.percent(value)}" for n, value in (first, *later[-5:]))
            lines.append(Text(f"held-out pass@1  {curve}"))
        return Group(*lines)

    def _rewards(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        histories = {client: history for client, history in self.rewards.items() if history}
        if not histories:
            return Text("reward: none yet", style="dim")
        if len(self.rewards) > MOST_CLIENTS:
            last = {client: history[-1] for client, history in histories.items()}
            lowest, highest = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
            return Text(
                f"reward of {len(last)} clients  mean {sum(last.values()) / len(last):.3f}  lowest {last[lowest]:.3f} "
                f"({lowest})  highest {last[highest]:.3f} ({highest})"
            )
        low, high = min(map(min, histories.values())), max(map(max, histories.values()))
        table = Table.grid(padding=(0, 2))
        for client, history in histories.items():
            table.add_row(Text(client), f"{history[-1]:.3f}", Text(sparkline(history, low, high), style="cyan"))
        return table


def sparkline(values: deque[float] | list[float], low: float, high: float) -> str:
    """A character for each value, from the lowest bar at `low` to the highest at `high`."""
    span = high - low
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] if span > 0 else _BARS[0] for value in values)
