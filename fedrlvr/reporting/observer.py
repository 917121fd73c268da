"""The events of a run, and the observers that receive them.

An observer overrides `notify` and matches the events it needs. A run has a list of observers
(`fedrlvr.server.run.Server`), so a new one is a class and a line of that list. A sweep sends the same events with the
name of the federation that each of them comes from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedrlvr.output import logger

_log = logger("reporting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, in plain values.

    federation: a sweep's name for the federation; "" in a run on its own.
    """

    federation: str = ""


@dataclass(frozen=True, slots=True)
class SweepStarted(Event):
    """A sweep starts, with its arms and seeds.

    federations: of the whole sweep. finished: those of an earlier sweep, which are kept. rounds, local_steps: summed
    over the federations that are not finished.
    """

    directory: str
    federations: int
    finished: int
    rounds: int
    local_steps: int


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run starts, or resumes from its last checkpoint.

    first_round: the first round that is not done; 0 in a new run. local_steps: of each round.
    """

    directory: str
    clients: Sequence[str]
    rounds: int
    local_steps: int
    first_round: int


@dataclass(frozen=True, slots=True)
class EngineChosen(Event):
    """The model of this process is ready.

    choices: what it is computed with and why, by part, such as `sampler`.
    """

    choices: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RoundStarted(Event):
    """A round starts; round 0 only evaluates the starting adapter."""

    round: int


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """A round enters a phase: train, aggregate, evaluate, checkpoint, or after the last one personal."""

    round: int
    phase: str


@dataclass(frozen=True, slots=True)
class ClientsAsked(Event):
    """The server has sent messages to clients, and waits for their replies.

    kind: the messages' type: train, evaluate, query.respond.
    """

    round: int
    kind: str
    clients: Sequence[str]


@dataclass(frozen=True, slots=True)
class ClientAnswered(Event):
    """A client's reply has come, whether or not it can be used."""

    round: int
    client: str


@dataclass(frozen=True, slots=True)
class StepEnded(Event):
    """The clients of this process have taken a local step.

    step: from 1 to `steps`, the local steps of a round. rewards: mean by client. tokens: sampled by all of them.
    """

    round: int
    step: int
    steps: int
    rewards: Mapping[str, float]
    tokens: int


@dataclass(frozen=True, slots=True)
class ExchangeEnded(Event):
    """An exchange of public responses is over.

    record: its entry in the round's record.
    """

    round: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClientLeftOut(Event):
    """A client is left out of the rest of a round."""

    round: int
    client: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """The clients of this process have evaluated their held-out problems, so many in sum."""

    round: int
    problems: int


@dataclass(frozen=True, slots=True)
class RoundEnded(Event):
    """A round's record (its line of metrics.jsonl) is complete; the checkpoint is not written yet.

    If the checkpoint is never written, a resumed run does the round again.
    """

    round: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RoundSaved(Event):
    """A round's record, memories and checkpoint are on disk; no resumed run does the round again."""

    round: int
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Advised(Event):
    """A rule of advice holds for the first time in the run.

    rule: its name. sentence: what is wrong, and the setting to change.
    """

    round: int
    rule: str
    sentence: str


@dataclass(frozen=True, slots=True)
class PersonalEnded(Event):
    """The clients have made their personal adapters, after the last round.

    record: what belongs into the record of that round, as `personal`.
    """

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AlsoMeasured(Event):
    """The base model and the final adapter have been measured on what else matters (`evaluate.also`).

    record: what belongs into the record of the last round, as `also`.
    """

    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunEnded(Event):
    """All rounds are done and the adapter is exported.

    records: the lines of metrics.jsonl.
    """

    records: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """An error ended the run; saved rounds are kept."""

    reason: str


class Observer:
    """Ignores every event; base class of all listeners."""

    essential: bool = False
    """Whether an exception of this observer ends the run. If not, it is logged and the observer is dropped."""

    def notify(self, event: Event) -> None:
        """Handle an event; an observer matches the classes of the events it needs."""

    def close(self) -> None:
        """Release resources: the run or sweep is over, has failed or was interrupted."""


class Listeners(Observer):
    """Passes each event to a list of observers, in their order.

    An exception of an essential observer ends the run; any other observer is dropped with its first exception.
    """

    essential = True

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)

    def notify(self, event: Event) -> None:
        """Pass the event to every observer."""
        self._each(lambda observer: observer.notify(event))

    def close(self) -> None:
        """Close every observer, also after one of them failed."""
        self._each(lambda observer: observer.close())

    def _each(self, call: Callable[[Observer], None]) -> None:
        for observer in tuple(self.observers):
            try:
                call(observer)
            except Exception:
                if observer.essential:
                    raise
                name = type(observer).__name__
                _log.warning("%s failed and receives no more events; the run goes on.", name, exc_info=True)
                self.observers.remove(observer)
                with contextlib.suppress(Exception):
                    observer.close()


class Forwarder(Observer):
    """Forwards the events of one federation to the sweep's observer, with the federation's name."""

    essential = True  # the sweep's own list drops what fails

    def __init__(self, sweep: Observer, federation: str) -> None:
        self.sweep, self.federation = sweep, federation

    def notify(self, event: Event) -> None:
        """Forward the event; the sweep closes its observer."""
        self.sweep.notify(replace(event, federation=self.federation))
