"""One side of a comparison in a process of its own, a round at a time.

    python -m benchmarks.worker --side ours --case E1 --set engine.cohort=false

Reads lines `round` (timed), `memory` (peak measured), `floor` (a round recorded, then its products timed) and
`quit` on its standard input and answers each with one JSON line. The first line tells that it is ready, and what is
resident after importing and after setting up.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.measure import Meter, resident


class Pacer:
    """Between two rounds: reports the one that ended, waits for the word to begin the next."""

    def __init__(self, commands: TextIO, answers: TextIO, imported: int) -> None:
        self.commands = commands
        self.answers = answers
        self.imported = imported
        self.meter = Meter()
        self.recorder: Any = None

    def __call__(self, round_: int, phases: dict[str, float], sampled: int, trained: int) -> bool:
        """As `benchmarks.flower_trl.Pace`."""
        if round_ == 0:
            self._answer({"ready": True, "imported": self.imported, "set_up": resident()})
        elif self.recorder is not None:
            from benchmarks.floor import floor

            self.recorder.__exit__(None, None, None)
            calls, self.recorder = self.recorder.calls, None
            self._answer(floor(calls).to_json() | {"tokens_sampled": sampled})
        else:
            self._answer(self.meter.stop(sampled, trained, phases).to_json())
        command = self.commands.readline().strip()
        if command == "floor":
            from benchmarks.floor import Recorder

            self.recorder = Recorder()
            self.recorder.__enter__()
        elif command in ("round", "memory"):
            self.meter.start(memory=command == "memory")
        return command in ("floor", "round", "memory")

    def _answer(self, answer: dict[str, Any]) -> None:
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve rounds until told to quit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("ours", "flower-trl"), required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--medqa", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="ours: a setting")
    parser.add_argument("--per-device", type=int, help="flower-trl: responses in a micro-batch")
    parser.add_argument("--documented", action="store_true", help="flower-trl: as documented, not tuned")
    chosen = parser.parse_args(arguments)
    # Libraries print; answers go out by a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    side: Any
    if chosen.side == "ours":
        from benchmarks.ours import Ours as side
    else:
        from benchmarks.flower_trl import FlowerTrl as side
    from benchmarks.cases import build

    imported = resident()
    case = build(chosen.case, clients=chosen.clients, length=chosen.length, medqa=chosen.medqa)
    if chosen.side == "ours":
        runner = side(case, chosen.set)
    else:
        runner = side(case, per_device=chosen.per_device, documented=chosen.documented)
    if not chosen.documented:
        # Accelerate collects garbage after every call of the trainer; what the libraries hold need not be looked
        # through each time (0.24 CPU-s a client and round else). Ours and the tuned baseline alike.
        gc.collect()
        gc.freeze()
    runner.run(Pacer(sys.stdin, answers, imported))


if __name__ == "__main__":
    main()
