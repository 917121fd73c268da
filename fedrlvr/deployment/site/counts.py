"""Counts of an organisation's answers over all runs and all servers, on its own disk (state/answered.json).

    {"days": {"2026-11-28": {"messages": 12, "requests": {DIGEST: DIGEST},
                             "tasks": {"main": {"train": 3, "evaluate": 1}}}},
     "labels": {"main": {RUN: 40}},
     "privacy": {"main": {"rounds": 3, "mu_squared": 0.21}}}

A message is counted before it is computed, so a worker that is killed has counted it. A run's budget of labels is
reserved when it is first asked for. The privacy loss of all adapters with noise is the sum of their mu^2, and never
expires (privacy/accountant.py). Nothing that a server sends makes a count smaller. With a clock that was set back,
the messages of all later days count as today's.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrlvr.deployment.site.config import Limits
from fedrlvr.errors import CheckpointError, LimitError
from fedrlvr.files import atomic_text, read_json, waiting_lock
from fedrlvr.privacy.accountant import epsilon_of, mu_of

DAYS = 30
"""Days over which a task's adapters are counted, the current one included."""
WAIT_S = 10.0
"""Seconds to wait for the lock; it is held for one write."""


@dataclass(frozen=True)
class PrivacyLoss:
    """Privacy loss of a site's adapters with noise, over all tasks, runs and servers.

    rounds: number of adapters. mu: their privacy loss together. epsilon: the same, at the site's limits.delta. left:
    what is left of the budget limits.epsilon; None without one.
    """

    rounds: int
    mu: float
    epsilon: float
    left: float | None


class AnsweredCounts:
    """The counts of one organisation, by day and task.

    state: its state directory. clock: unix seconds. tell: takes a line for the site's log.
    """

    def __init__(
        self, state: Path, clock: Callable[[], float] = time.time, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.path, self._clock, self._tell = state / "answered.json", clock, tell

    def count(
        self, limits: Limits, name: str, task: str, run: str, kind: str, labels: int | None, mu: float = 0.0
    ) -> None:
        """Count a message that is about to be computed.

        name: of the organisation. kind: type of the message. labels: that its run may ask for in all; None if they are
        not limited, or nobody is asked. mu: privacy loss of an adapter with noise that the message asks for.

        Raises:
            LimitError: a count would exceed its limit; nothing is counted then.
            CheckpointError: the file is damaged, or cannot be written or locked.
        """
        with self._locked() as tree:
            days, today = self._days(tree)
            entry = days[today]
            entry["messages"] += 1
            of_task = entry["tasks"].setdefault(task, {"train": 0, "evaluate": 0})
            if kind in of_task:
                of_task[kind] += 1
            current = [entry for day, entry in days.items() if day >= today]
            evaluations = sum(entry["tasks"][task]["evaluate"] for entry in current if task in entry["tasks"])
            reserved = tree["labels"].setdefault(task, {})
            if labels is not None:
                reserved[run] = max(labels, reserved.get(run, 0))
            adapters = sum(day["tasks"][task]["train"] for day in days.values() if task in day["tasks"])
            counted: list[tuple[str, int | None, int, str]] = [
                (
                    "messages_per_day",
                    limits.messages_per_day,
                    sum(entry["messages"] for entry in current),
                    "messages in a day",
                ),
                ("evaluations_per_day", limits.evaluations_per_day, evaluations, "evaluations in a day"),
                ("rounds", limits.rounds, adapters, f"adapters of a task in {DAYS} days"),
            ]
            if labels is not None:
                counted.append(("labels", limits.labels, sum(reserved.values()), "labels for all runs of a task"))
            if mu:
                spent = tree.setdefault("privacy", {}).setdefault(task, {"rounds": 0, "mu_squared": 0.0})
                spent["rounds"] += 1
                spent["mu_squared"] += mu * mu
            beyond = bool(mu) and limits.epsilon is not None and _mu(tree) > mu_of(limits.epsilon, limits.delta)
            budget = f"at most epsilon = {limits.epsilon} at delta = {limits.delta:g} (limits.epsilon)"
            reasons = [f"{budget}, over all tasks, runs and servers"] if beyond else []
            reasons += [
                f"at most {most} {what} (limits.{setting}), over all runs and servers"
                for setting, most, number, what in counted
                if most is not None and number > most
            ]
            if reasons:
                raise LimitError(f"{name} allows {'; '.join(reasons)}")

    def privacy_loss(self, limits: Limits) -> PrivacyLoss:
        """The privacy loss of all adapters with noise so far.

        Raises:
            CheckpointError: as `count`.
        """
        tree: dict[str, Any] = {}
        if self.path.exists():
            with waiting_lock(self.path.with_suffix(".lock"), WAIT_S):
                tree = self._read()
        mu, rounds = _mu(tree), sum(task["rounds"] for task in tree.get("privacy", {}).values())
        epsilon = epsilon_of(mu, limits.delta)
        left = None if limits.epsilon is None else max(0.0, limits.epsilon - epsilon)
        return PrivacyLoss(rounds, mu, epsilon, left)

    def first(self, request: str, rest: str) -> str:
        """The digest of the rest of the first message with this request in the last days; now `rest` if there was none.

        request: digest of what is asked. rest: digest of everything else in the message.

        Raises:
            CheckpointError: as `count`.
        """
        with self._locked() as tree:
            days, today = self._days(tree)
            for entry in days.values():
                if (seen := entry["requests"].get(request)) is not None:
                    return str(seen)
            days[today]["requests"][request] = rest
        return rest

    def _days(self, tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The entries of the days that count, by day, and today, which has one."""
        date = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).date()
        oldest, today = (date - datetime.timedelta(days=DAYS - 1)).isoformat(), date.isoformat()
        tree["days"] = days = {day: entry for day, entry in tree["days"].items() if day >= oldest}
        days.setdefault(today, {"messages": 0, "tasks": {}, "requests": {}})
        return days, today

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """What the file holds, to change; written at the end unless an error is raised."""
        with waiting_lock(self.path.with_suffix(".lock"), WAIT_S):
            tree = self._read()
            yield tree
            atomic_text(self.path, json.dumps(tree, indent=1, sort_keys=True) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            tree = read_json(self.path)
            _check(tree)
        except FileNotFoundError:
            self._tell(
                f"{self.path.name} is not there: messages, evaluations, adapters, labels and the privacy loss are "
                "counted from 0"
            )
            return {"days": {}, "labels": {}}
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"{self.path} is damaged ({error}). It holds what was answered so far; delete it to count anew."
            ) from None
        return dict(tree)


def _mu(tree: Mapping[str, Any]) -> float:
    return math.sqrt(math.fsum(task["mu_squared"] for task in tree.get("privacy", {}).values()))


def _check(tree: Any) -> None:
    """
    Raises:
        ValueError, TypeError, AttributeError, KeyError: it is not what `count` writes.
    """
    counts = [n for runs in tree["labels"].values() for n in runs.values()]
    for day, entry in tree["days"].items():
        datetime.date.fromisoformat(day)
        counts += [
            entry["messages"],
            *(n for kinds in entry["tasks"].values() for n in (kinds["train"], kinds["evaluate"])),
        ]
        entry["requests"].items()
    spent = tree.get("privacy", {}).values()
    counts += [task["rounds"] for task in spent]
    if any(type(n) is not int or n < 0 for n in counts):
        raise ValueError("a count that is none")
    if any(not 0 <= task["mu_squared"] < math.inf for task in spent):
        raise ValueError("a privacy loss that is none")
