"""E4: what a round costs besides the model: the grid, messages, drawing and tokenising, seating, metrics, aggregation.

python -m benchmarks.bookkeeping [--case E1] [--rounds 30]

Real rounds are measured first. Then the cohort's `sample`, `learn` and `kl_to_base` and the grader are replaced by the
replay of what they gave in the last real round, and rounds are measured again: what is left is everything else. The
checkpoint (a round's line of metrics, the clients' memories, the adapter, each synced to disk) is measured apart,
since the other measurements leave it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import build
from benchmarks.ours import Ours
from fedrlvr.reporting.observer import RoundEnded
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.metrics_log import MetricsLog, RoundRecord

REAL = 4


class Replay:
    """A function that calls through until `replaying`, and then gives what the last real round's calls gave."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.given: list[Any] = []
        self.replaying = False
        self._next = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.replaying:
            self.given.append(self.function(*args, **kwargs))
            return self.given[-1]
        value = self.given[self._next % len(self.given)]
        self._next += 1
        return value


def measure(case_name: str, rounds: int) -> dict[str, Any]:
    """CPU seconds of real rounds, of replayed ones, and CPU and wall seconds of checkpoints."""
    runner = Ours(build(case_name))
    replays = {name: Replay(getattr(runner.cohort, name)) for name in ("sample", "learn", "kl_to_base")}
    for name, replay in replays.items():
        setattr(runner.cohort, name, replay)
    rewards = {node: Replay(site.answers.grade) for node, site in runner.sites.items()}
    for node, site in runner.sites.items():
        site.answers.grade = rewards[node]
    every = [*replays.values(), *rewards.values()]
    real: list[float] = []
    replayed: list[float] = []
    started = 0.0

    def pace(round_: int, phases: dict[str, float], sampled: int, trained: int) -> bool:
        nonlocal started
        now = time.process_time()
        if round_ > 1:  # the first round warms up
            (real if round_ <= REAL else replayed).append(now - started)
        for replay in every:
            if round_ < REAL:
                replay.given.clear()
            replay.replaying = round_ >= REAL
        started = time.process_time()
        return round_ < REAL + rounds

    runner.run(pace)
    cpu, wall = checkpoints(runner, rounds)
    return {"real": real, "replayed": replayed, "checkpoint": cpu, "checkpoint_wall": wall}


def checkpoints(runner: Ours, rounds: int) -> tuple[list[float], list[float]]:
    """CPU and wall seconds of writing a round down."""
    names = {node: site.name for node, site in runner.sites.items()}
    by_name = {name: runner.contexts[node] for node, name in names.items()}
    cpu, wall = [], []
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        log, store = MetricsLog(run), Checkpoints(run, 3, by_name)
        for round_ in range(rounds):
            record = RoundRecord(round_)
            for name in by_name:
                record.client(name).update({f"number_{i}": float(i) for i in range(25)})
            before = time.process_time(), time.perf_counter()
            log.notify(RoundEnded(round_, record.to_json()))
            store.save(Checkpoint(round_, runner.initial, {}))
            cpu.append(time.process_time() - before[0])
            wall.append(time.perf_counter() - before[1])
    return cpu, wall


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="E1")
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    result = measure(chosen.case, chosen.rounds)
    result["share"] = statistics.median(result["replayed"]) / statistics.median(result["real"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
