"""Every reader of foreign input under altered inputs: nothing but our own errors, nothing slow, memory bounded.

    scripts/bench fuzz --inputs 100000 [--seed 0] [--reader NAME ...] [--out docs/results/fuzz.md]

Valid inputs are altered at random by a fixed seed (fuzz_inputs.py) and given to the readers (fuzz_wire.py,
fuzz_files.py), an equal part of `--inputs` to each. Of each reader it says how many inputs were accepted, how many were
refused by an error of ours, how many raised anything else (the first is printed with what reproduces it), the CPU time
of the slowest, and by how much the process's peak memory grew. It ends with 1 if anything else was raised, an input
took longer than `SLOWEST` or memory grew by more than `MEMORY`. The suite does the same with fewer inputs, in
tests/benchmarks/test_fuzz.py.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fuzz_files import files, labels
from benchmarks.fuzz_wire import Reader, frames, wire
from fedrlvr.errors import FedrlvrError

SLOWEST = 1.0
"""CPU seconds of one input at most."""
MEMORY = 512 * 1024 * 1024
"""Bytes by which the peak of the process may grow while one reader reads all its inputs."""


@dataclass
class Outcome:
    """What came of a reader's inputs. slowest: CPU seconds. memory: bytes. first: what reproduces the first failure."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    slowest: float = 0.0
    memory: int = 0
    first: str = ""
    texts: set[str] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        """Whether nothing but our own errors was raised, in time and in bounded memory."""
        return not self.failed and self.slowest < SLOWEST and self.memory < MEMORY


def readers(root: Path) -> dict[str, Reader]:
    """All readers by their name. root: a directory for their files."""
    return {**wire(), **frames(), **files(root), **labels(root)}


def fuzz(name: str, reader: Reader, inputs: int, seed: int) -> Outcome:
    """Give a reader the input as it is, which it must accept, and then altered ones.

    Raises:
        Exception: what the reader raises of the input as it is.
    """
    outcome = Outcome(name)
    reader.read(reader.make(None))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(inputs):
        value = reader.make(random.Random(f"{seed} {name} {number}"))
        began = time.process_time()
        try:
            reader.read(value)
            outcome.accepted += 1
        except (FedrlvrError, *reader.ours) as error:
            outcome.refused += 1
            if isinstance(error, FedrlvrError) and not (text := str(error)).isprintable():
                outcome.texts.add(text)
        except Exception as error:
            outcome.failed += 1
            if not outcome.first:
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                how = f"input {number} of seed {seed}: {type(error).__name__} at {place}"
                outcome.first = f"{how}: {str(error)[:200]!r}\n  {repr(value)[:2000]}"
        taken = time.process_time() - began
        if taken > outcome.slowest:
            outcome.slowest = taken
            if taken >= SLOWEST and not outcome.first:
                outcome.first = f"input {number} of seed {seed} took {taken:.1f} s\n  {repr(value)[:500]}"
    outcome.inputs = inputs
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    outcome.memory = grown * (1 if sys.platform == "darwin" else 1024)
    return outcome


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Logs, and what readers write to the terminal, are not what is looked at here."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(logging.NOTSET)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    lines = ["| reader | inputs | accepted | refused | other exceptions | slowest, ms | memory grown, MB |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for o in outcomes:
        numbers = (o.inputs, o.accepted, o.refused, o.failed)
        counts = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| {o.reader} | {counts} | {1000 * o.slowest:.0f} | {o.memory / 1e6:.0f} |")
    sums = [sum(getattr(o, name) for o in outcomes) for name in ("inputs", "accepted", "refused", "failed")]
    last = f"{1000 * max(o.slowest for o in outcomes):.0f} | {sum(o.memory for o in outcomes) / 1e6:.0f}"
    return "\n".join([*lines, f"| all | {' | '.join(f'{number:,}' for number in sums)} | {last} |"])


def page(outcomes: Sequence[Outcome], command: str, cpu: float) -> str:
    """docs/results/fuzz.md."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"""# Altered inputs to every reader of foreign input

    {command}

{datetime.date.today()}, {processor}, {os.cpu_count()} cores, Python {platform.python_version()};
{cpu:.0f} s of CPU time. Valid inputs are altered by a fixed seed (`benchmarks/fuzz_inputs.py`) and given to each reader
(`benchmarks/fuzz_wire.py`, `fuzz_files.py`). An input is accepted, or refused by an error of fedrlvr's own (or one that
the reader's documentation names); any other exception is a fault. Bounds: {SLOWEST:g} s of CPU time for an input, and
{MEMORY / 2**20:.0f} MiB of growth in peak memory for a reader. Memory is the growth of the process's peak, so a reader
shows only what it needs beyond the readers above it.

{table(outcomes)}
"""


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="altered inputs of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this reader; may be repeated")
    parser.add_argument("--out", type=Path, help="write the table, with command and machine, to this file")
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as directory:
        chosen = readers(Path(directory))
        chosen = {name: chosen[name] for name in arguments.reader or chosen}
        share = arguments.inputs / sum(1 / reader.cost for reader in chosen.values())
        for name, reader in chosen.items():
            with quiet():
                outcome = fuzz(name, reader, round(share / reader.cost), arguments.seed)
            outcomes.append(outcome)
            verdict = "ok" if outcome.passed and not outcome.texts else "FAILED"
            print(
                f"{verdict:7}{name}: {outcome.inputs} inputs, {outcome.accepted} accepted, {outcome.refused} refused, "
                f"{outcome.failed} other, slowest {outcome.slowest:.3f} s, memory {outcome.memory / 1e6:.0f} MB",
                flush=True,
            )
            if outcome.first:
                print(ascii(outcome.first).replace("\\n", "\n"), flush=True)
    print(table(outcomes))
    if arguments.out is not None:
        command = f"scripts/bench fuzz --inputs {arguments.inputs} --seed {arguments.seed}"
        arguments.out.write_text(page(outcomes, command, time.process_time()), "utf-8")
    if not all(outcome.passed and not outcome.texts for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
