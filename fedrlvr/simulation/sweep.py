"""Many federations on one cohort: the engine of `fedrlvr sweep`.

Federations whose model, adapters and engine agree are rows of one cohort; others come one group after the other. Each
is a run of its own, with its own directory, server and clients; only the computation of their messages is shared.

A federation's loop waits for its replies, so each has a thread. They take turns: one runs at a time, until it hands in
messages or ends, and while everybody waits the main thread computes all messages at once. So the order of everything
is fixed, and nothing needs to be safe for threads.
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message

from fedrlvr.client.app import CohortApp
from fedrlvr.client.request import ClientRequest, batches
from fedrlvr.config import Config
from fedrlvr.config.prompt import RUN_WIDE
from fedrlvr.errors import ConfigError, FedrlvrError, RoundError
from fedrlvr.files import atomic_text
from fedrlvr.machine import description
from fedrlvr.policy.choices import choices
from fedrlvr.reporting.observer import EngineChosen, Forwarder, Listeners, Observer, RunFailed, SweepStarted
from fedrlvr.reporting.sweep_table import ArmLine, tabulate, to_json, to_markdown
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.run_directory import locked
from fedrlvr.simulation.run import Federation, Wrap, new_cohort, settled
from fedrlvr.simulation.sweep_plan import Plan, Planned
from fedrlvr.version import __version__

Failures = dict[str, BaseException]
"""Error that ended a federation, by the federation's name."""
_MOST_NAMED = 5  # of the federations that failed for one reason


@dataclass(frozen=True)
class SweepResult:
    """Results of a finished sweep, with the failures.

    lines: the table, an arm each. about: command, date, seeds, machine, version. failures: by federation.
    """

    directory: Path
    lines: list[ArmLine]
    about: dict[str, Any]
    failures: Failures

    def check(self) -> None:
        """Check that none of the federations failed.

        Raises:
            RoundError: federations failed; the text names them and says why. Where all failed for one reason, that.
        """
        if not self.failures:
            return
        first = next(iter(self.failures.values()))
        reasons: dict[str, list[str]] = {}
        for name, error in self.failures.items():
            known = isinstance(error, FedrlvrError)
            reasons.setdefault(str(error) if known else f"{type(error).__name__}: {error}.", []).append(name)
        if len(reasons) == 1 and not any(line.seeds for line in self.lines):
            raise first
        lines = [f"{_some(names)}: {reason}" for reason, names in reasons.items()]
        raise RoundError(
            f"{len(self.failures)} of the sweep's federations failed, the others are done. {' '.join(lines)} Mend it, "
            f"then give the same command with --directory {self.directory}: what is done is kept."
        ) from first


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def sweep(
    plan: Plan,
    *,
    command: str = "",
    apart: bool = False,
    observer: Observer | None = None,
    wrap: Callable[[Planned], Wrap] | None = None,
) -> SweepResult:
    """Run all federations of a plan that are not finished, and write the table to sweep.json and sweep.md.

    One that fails leaves, and the others go on (`SweepResult.check`).

    command: for the record. apart: one after another, each as a cohort of its own. wrap: of each federation's
        strategy the one whose hooks are called.

    Raises:
        CheckpointError: the table cannot be written, or another process is at work on this sweep.
    """
    listeners = Listeners([observer] if observer else [])
    failures: Failures = {}
    todo = [planned for planned in plan.federations if not planned.finished]
    train = [planned.config.train for planned in todo]
    started = SweepStarted(
        str(plan.directory),
        federations=len(plan.federations),
        finished=len(plan.federations) - len(todo),
        rounds=sum(settings.rounds for settings in train),
        local_steps=sum(settings.rounds * settings.local_steps for settings in train),
    )
    with locked(plan.directory):
        try:
            listeners.notify(started)
            for alike in _alike(todo):
                _run_alike(alike, apart, listeners, failures, wrap)
        finally:
            listeners.close()
        return _tabulated(plan, command, failures)


def _tabulated(plan: Plan, command: str, failures: Failures) -> SweepResult:
    """The result of a plan that has run, written to sweep.json and sweep.md if there is any."""
    records = {}
    for planned in plan.federations:
        try:
            if planned.name not in failures:
                records[planned.arm, planned.seed] = read_metrics(planned.directory)
        except FedrlvrError as error:
            failures[planned.name] = error
    lines = tabulate([(arm.name, arm.settings) for arm in plan.arms], records)
    about = {
        "command": command,
        "date": datetime.datetime.now().isoformat(" ", "minutes"),
        "seeds": plan.seeds,
        "machine": _machine(),
        "fedrlvr": __version__,
    }
    if not records:
        return SweepResult(plan.directory, lines, about, failures)
    atomic_text(plan.directory / "sweep.json", to_json(lines, about, {n: str(e) for n, e in failures.items()}))
    atomic_text(plan.directory / "sweep.md", to_markdown(lines, about))
    return SweepResult(plan.directory, lines, about, failures)


def _machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{description()}{gpu}"


def _alike(federations: Sequence[Planned]) -> list[list[Planned]]:
    """Federations that can share a cohort, their configs settled."""
    groups: dict[str, list[Planned]] = {}
    for planned in federations:
        config = settled(planned.config, planned.directory)
        shape = "\n".join(part.model_dump_json() for part in (config.model, config.lora, config.engine))
        shape += config.prompt.model_dump_json(include=RUN_WIDE)
        groups.setdefault(shape, []).append(replace(planned, config=config))
    return list(groups.values())


def _parts(alike: Sequence[Planned], apart: bool) -> list[list[Planned]]:
    """As many at once as `engine.decode_rows` has room for a problem of each client's; one at a time if `apart`."""
    parts: list[list[Planned]] = []
    rows = 0
    for planned in alike:
        more = _clients(planned.config) * planned.config.sampling.group_size
        if not parts or apart or rows + more > planned.config.engine.decode_rows:
            parts.append([])
            rows = 0
        parts[-1].append(planned)
        rows += more
    return parts


def _clients(config: Config) -> int:
    return 1 if config.federation.arm == "central" else len(config.federation.names)


def _run_alike(
    alike: Sequence[Planned],
    apart: bool,
    observer: Observer,
    failures: Failures,
    wrap: Callable[[Planned], Wrap] | None,
) -> None:
    """Run federations that can share a cohort; what went wrong goes to `failures`."""

    def fail(name: str, error: Exception) -> None:
        failures[name] = error
        observer.notify(RunFailed(str(error), federation=name))

    try:
        cohort = new_cohort(alike[0].config)
    except Exception as error:
        for planned in alike:
            fail(planned.name, error)
        return
    observer.notify(EngineChosen(choices(cohort)))
    for part in _parts(alike, apart):
        with contextlib.ExitStack() as locks:
            members = []
            for planned in part:
                try:
                    locks.enter_context(locked(planned.directory))
                    if planned.started != (planned.directory / "config.json").exists():
                        raise ConfigError(f"{planned.directory}: another process has run it since. Start again.")
                    forwarder, hooks = Forwarder(observer, planned.name), wrap(planned) if wrap else None
                    federation = Federation(planned.config, planned.directory, cohort, forwarder, planned.name, hooks)
                except Exception as error:
                    fail(planned.name, error)
                else:
                    members.append(_Member(planned.name, federation, resume=planned.started))
            _take_turns(members)
        for member in members:
            if member.error is not None:  # its server has told the observer
                failures[member.name] = member.error


Handed = tuple[Sequence[Message], Sequence[Context]]
"""Messages of a push, with their receivers' contexts."""


class _Stop(BaseException):
    """Ends a federation that waits for replies. No failure of its own, so nothing may catch it as one."""


class _Member:
    """A federation in a thread of its own, which runs only while `turn` waits for it."""

    def __init__(self, name: str, federation: Federation, *, resume: bool) -> None:
        self.name = name
        self.app: CohortApp = federation.app
        self.error: BaseException | None = None
        self._federation = federation
        self._resume = resume
        self._replies: queue.SimpleQueue[Sequence[Message] | BaseException] = queue.SimpleQueue()
        self._handed: queue.SimpleQueue[Handed | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def turn(self, replies: Sequence[Message] | BaseException | None = None) -> Handed | None:
        """Go on with these replies (at first with none) until it hands in messages; None if it has ended.

        replies: an exception is raised where the federation waits for them.
        """
        if replies is None:
            self._thread.start()
        else:
            self._replies.put(replies)
        return self._handed.get()

    def stop(self) -> None:
        """End it where it waits next, and wait for that; finished rounds are kept."""
        self._replies.put(_Stop())
        if self._thread.ident is not None:
            self._thread.join()

    def _live(self) -> None:
        try:
            self._federation.go(resume=self._resume, handler=self._hand_in)
        except _Stop:
            pass
        except BaseException as error:
            self.error = error
        self._handed.put(None)

    def _hand_in(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Sequence[Message]:
        self._handed.put((messages, contexts))
        replies = self._replies.get()
        if isinstance(replies, BaseException):
            raise replies
        return replies


def _take_turns(members: Sequence[_Member]) -> None:
    """Run these federations on their common cohort until all have ended, each with its `error` if it failed."""
    try:
        waiting = {member: handed for member in members if (handed := member.turn()) is not None}
        while waiting:
            replies = _answer(waiting)
            waiting = {member: handed for member in waiting if (handed := member.turn(replies[member])) is not None}
    finally:
        for member in members:
            member.stop()


def _answer(waiting: Mapping[_Member, Handed]) -> dict[_Member, list[Message] | Exception]:
    """Everybody's messages computed at once; a federation whose part fails gets the exception for replies."""
    failed: dict[str, Exception] = {}
    read: dict[str, list[ClientRequest]] = {}
    replies: dict[ClientRequest, Message] = {}
    for member, handed in waiting.items():
        try:
            read[member.name] = member.app.read(*handed)
        except Exception as error:
            failed[member.name] = error
    app = next(iter(waiting)).app  # computing a batch needs the cohort, which all members share
    everything = [request for requests in read.values() for request in requests]
    for batch in batches(everything, together=app.cohort.engine.cohort):
        _compute(app, [request for request in batch if request.client.federation not in failed], replies, failed)
    return {
        member: failed[member.name] if member.name in failed else [replies[request] for request in read[member.name]]
        for member in waiting
    }


def _compute(
    app: CohortApp, batch: Sequence[ClientRequest], replies: dict[ClientRequest, Message], failed: dict[str, Exception]
) -> None:
    """Compute one batch; if that fails, each federation's part of it by itself, to see whose fault it is."""
    if not batch:
        return
    try:
        replies.update(zip(batch, app.compute(batch), strict=True))
    except Exception as error:
        federations = list(dict.fromkeys(request.client.federation for request in batch))
        if len(federations) == 1:
            failed[federations[0]] = error
            return
        for federation in federations:
            _compute(app, [request for request in batch if request.client.federation == federation], replies, failed)
