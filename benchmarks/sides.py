"""The parent's hold on the workers, and what one asks of them: interleaved rounds, a round's memory, the floor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cases import ROOT

LOGS = ROOT / "runs" / "bench" / "logs"


@dataclass(frozen=True)
class Work:
    """What a worker is to run.

    settings: ours: `section.key=value`.
    per_device: Flower + TRL: responses in a micro-batch.
    documented: Flower + TRL: as documented, not tuned.
    """

    side: str
    case: str
    settings: tuple[str, ...] = ()
    clients: int | None = None
    length: int | None = None
    medqa: Path | None = None
    per_device: int | None = None
    documented: bool = False
    threads: int = 1

    def command(self) -> list[str]:
        """The worker's command line."""
        parts = [sys.executable, "-m", "benchmarks.worker", "--side", self.side, "--case", self.case]
        for option in ("clients", "length", "medqa", "per_device"):
            if (value := getattr(self, option)) is not None:
                parts += [f"--{option.replace('_', '-')}", str(value)]
        for setting in self.settings:
            parts += ["--set", setting]
        return parts + ["--documented"] * self.documented


class Side:
    """A worker process. A context manager: the process ends with it."""

    def __init__(self, work: Work) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.log = LOGS / f"{work.case}-{work.side}-{time.time_ns()}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                work.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(work.threads), "MKL_NUM_THREADS": str(work.threads)},
            )
        self._ready: dict[str, Any] | None = None

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.write("quit\n")
            self.process.stdin.flush()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        elif self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def ready(self) -> dict[str, Any]:
        """Wait until it is set up; bytes resident after importing (`imported`) and after setting up (`set_up`)."""
        if self._ready is None:
            self._ready = self._answer()
        return self._ready

    def ask(self, command: str) -> dict[str, Any]:
        """The answer to `round`, `memory` or `floor`.

        Raises:
            RuntimeError: the worker has ended; the text names its log.
        """
        self.ready()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._failed()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> None:
        raise RuntimeError(f"{' '.join(self.work.command())} failed; its messages are in {self.log}.")


def pairs(first: Work, second: Work, *, warm: int, rounds: int, apart: bool = True) -> dict[str, Any]:
    """Two workers, round by round in turn: A, B, A, B, ...

    Both begin with the same adapter and take the same problems, so round i of one is round i of the other.
    apart: peak memory is measured in one more round of each; else in every round.
    Returns {"first": ..., "second": ...}, each with `rounds` (costs), `memory` (a cost) and `resident`.
    """
    costs: dict[str, Any] = {}
    with Side(first) as a, Side(second) as b:
        sides = {"first": a, "second": b}
        for name, side in sides.items():
            costs[name] = {"resident": side.ready(), "rounds": [], "memory": None}
        for i in range(warm + rounds):
            for name, side in sides.items():
                cost = side.ask("round" if apart else "memory")
                if i >= warm:
                    costs[name]["rounds"].append(cost)
        for name, side in sides.items():
            costs[name]["memory"] = (
                side.ask("memory") if apart else max(costs[name]["rounds"], key=lambda cost: int(cost["peak"]))
            )
    return costs


def alone(work: Work, commands: Sequence[str]) -> list[dict[str, Any]]:
    """One worker's answers to these commands."""
    with Side(work) as side:
        return [side.ask(command) for command in commands]
