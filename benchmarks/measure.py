"""What a round costs: CPU seconds, wall seconds, resident memory; and how repeated numbers are put together."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from fedrlvr.machine import description

MEBI = 1 << 20


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process, of its children that ended and of those that live (graders)."""
    total = time.process_time()
    ended = os.times()
    total += ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.NoSuchProcess:  # counted above, at the next call
            continue
        total += spent.user + spent.system
    return total


def resident() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """Largest resident bytes of this process since `reset_peak` (or since it began).

    Raises:
        OSError: there is no /proc here; peaks are measured on Linux only.
    """
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: the peak of resident memory cannot be read here.")


def reset_peak() -> None:
    """Give freed memory back to the system, then let the peak start from what is resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what an earlier round freed counts as resident in this one
    Path("/proc/self/clear_refs").write_text("5", "ascii")


@dataclass(frozen=True)
class Cost:
    """One round. Seconds; bytes, None where memory was not looked at.

    before, peak: resident before the round, and its largest value during it.
    tokens_sampled, tokens_trained: response tokens of all clients; those without a gradient may be sampled only.
    phases: CPU seconds by phase.
    """

    cpu: float
    wall: float
    before: int | None
    peak: int | None
    tokens_sampled: int
    tokens_trained: int
    phases: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


class Meter:
    """Measures from `start` to `stop`."""

    def start(self, *, memory: bool) -> None:
        """memory: measure the peak; freed memory is handed back first, so such a round is not for timing."""
        self._memory = memory
        if memory:
            reset_peak()
        self._before = resident()
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def stop(self, tokens_sampled: int, tokens_trained: int, phases: dict[str, float]) -> Cost:
        """What it cost since `start`."""
        cpu, wall = cpu_seconds() - self._cpu, time.perf_counter() - self._wall
        before, peak = (self._before, peak_resident()) if self._memory else (None, None)
        return Cost(cpu, wall, before, peak, tokens_sampled, tokens_trained, phases)


class Phases:
    """CPU seconds of this process by phase, from functions wrapped with `timed`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted under `name`."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

        return wrapped

    def take(self) -> dict[str, float]:
        """The seconds since the last `take`."""
        taken, self.seconds = self.seconds, {}
        return taken


@dataclass(frozen=True)
class Summary:
    """Repeated measurements: how many, their median, smallest and largest."""

    n: int
    median: float
    low: float
    high: float

    def shown(self, digits: int = 2) -> str:
        """`1.23 (1.20 to 1.31)`, or the bare value where there is only one."""
        if self.n == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def summary(values: Sequence[float]) -> Summary:
    """Median and range.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    return Summary(len(values), statistics.median(values), min(values), max(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Summary:
    """Of pairs measured one right after the other, the quotient of each."""
    return summary([a / b for a, b in zip(numerators, denominators, strict=True)])


def machine() -> str:
    """Cores, processor, system and memory of this machine."""
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{description()}, {memory:.0f} GiB"


def today() -> str:
    """The date, ISO."""
    return datetime.date.today().isoformat()
