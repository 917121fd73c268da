"""What an organisation has answered over all runs and all servers, counted on its own disk (state/answered.json).

    {"days": {"2026-11-28": {"messages": 12, "tasks": {"main": 3}}}, "labels": {"main": {RUN: 40}}}

A message is counted before it is computed, so a worker that is killed has counted it. A run's budget of labels is
reserved when it is first asked for. Nothing that a server sends makes a count smaller.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrlvr.deployment.site.config import Limits
from fedrlvr.errors import CheckpointError, LimitError
from fedrlvr.files import atomic_text, file_lock, read_json

DAYS = 30
"""Days over which a task's adapters are counted, the current one included."""
WAIT_S = 10.0
"""Seconds to wait for the lock; it is held for one write."""


class AnsweredCounts:
    """The counts of one organisation.

    state: its state directory. clock: unix seconds.
    """

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = state / "answered.json", clock

    def count(self, limits: Limits, name: str, task: str, run: str, *, adapter: bool, labels: int | None) -> None:
        """Count a message that is about to be computed.

        name: of the organisation. adapter: whether the message asks for the task's adapter. labels: that its run may
        ask for in all; None if they are not limited, or nobody is asked.

        Raises:
            LimitError: a count would exceed its limit; nothing is counted then.
            CheckpointError: the file is damaged, or cannot be written or locked.
        """
        end = time.monotonic() + WAIT_S
        while (lock := self._lock()) is None:
            if time.monotonic() > end:
                raise CheckpointError(f"{self.path}: another process has held its lock for {WAIT_S:.0f} s.")
            time.sleep(0.05)
        with lock:
            tree = self._read()
            today = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).date()
            first = today - datetime.timedelta(days=DAYS - 1)
            days = {day: entry for day, entry in tree["days"].items() if day >= first.isoformat()}
            entry = days.setdefault(today.isoformat(), {"messages": 0, "tasks": {}})
            entry["messages"] += 1
            entry["tasks"][task] = entry["tasks"].get(task, 0) + adapter
            reserved = tree["labels"].setdefault(task, {})
            if labels is not None:
                reserved[run] = max(labels, reserved.get(run, 0))
            tree["days"] = days
            counted: list[tuple[str, int | None, int, str]] = [
                ("messages_per_day", limits.messages_per_day, entry["messages"], "messages in a day"),
                ("rounds", limits.rounds, sum(d["tasks"].get(task, 0) for d in days.values()), _ADAPTERS),
            ]
            if labels is not None:
                counted.append(("labels", limits.labels, sum(reserved.values()), "labels for all runs of a task"))
            reasons = [
                f"at most {most} {what} (limits.{setting}), over all runs and servers"
                for setting, most, number, what in counted
                if most is not None and number > most
            ]
            if reasons:
                raise LimitError(f"{name} allows {'; '.join(reasons)}")
            atomic_text(self.path, json.dumps(tree, indent=1, sort_keys=True) + "\n")

    def _lock(self) -> Any:
        try:
            return file_lock(self.path.with_suffix(".lock"))
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be locked ({error.strerror}).") from error

    def _read(self) -> dict[str, Any]:
        try:
            tree = read_json(self.path)
            _check(tree)
        except FileNotFoundError:
            return {"days": {}, "labels": {}}
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(
                f"{self.path} is damaged ({error}). It holds what was answered so far; delete it to count anew."
            ) from None
        return dict(tree)


_ADAPTERS = f"adapters of a task in {DAYS} days"


def _check(tree: Any) -> None:
    """
    Raises:
        ValueError, TypeError, AttributeError, KeyError: it is not what `count` writes.
    """
    counts = [n for runs in tree["labels"].values() for n in runs.values()]
    for day, entry in tree["days"].items():
        datetime.date.fromisoformat(day)
        counts += [entry["messages"], *entry["tasks"].values()]
    if any(type(n) is not int or n < 0 for n in counts):
        raise ValueError("a count that is none")
