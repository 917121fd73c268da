"""What the server holds while it makes one adapter of K: peak memory and CPU seconds, at the size of a 7B model.

    scripts/bench memory          every case, each in a process of its own; writes docs/results/memory.{json,md}

The adapters are those of a model of 32 layers, rank 16: 40 million random numbers, 152.5 MiB in float32. Replies are
made one after the other, when they are asked for, and are handed to the strategy's `aggregate_train`, so that what is
measured is the checks, the decoding, the rule and the encoding of the result. How many replies a grid holds is its own
affair and not in here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict

from benchmarks.measure import MEBI, machine, peak_resident, reset_peak, resident, today
from benchmarks.tables import mebi, table
from fedrlvr.adapter import Adapter, Factors, fresh
from fedrlvr.config import parse_config
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.wire.compression import pack
from fedrlvr.wire.messages import ARRAYS, METRICS, adapter_to_arrays

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MATRICES = {
    **dict.fromkeys(("q", "k", "v", "o"), (4096, 4096)),
    **dict.fromkeys(("gate", "up"), (11008, 4096)),
    "down": (4096, 11008),
}
SEVEN_B: Mapping[str, tuple[int, int]] = {f"{layer}.{name}": dk for layer in range(32) for name, dk in MATRICES.items()}
"""(d, k) of each adapted matrix."""
RANK = 16
ALPHA = 32.0
NONE = "none"
"""In place of a rule: replies are made and dropped, and no server sees them."""


@dataclass(frozen=True)
class Case:
    """What is measured once. ranks: the clients', in turn."""

    rule: str
    clients: int
    robust: str = "none"
    precision: str = "float32"
    ranks: tuple[int, ...] = (RANK,)
    step: float | str = 1

    @property
    def label(self) -> str:
        """All but the number of clients."""
        if self.rule == NONE:
            return "replies made and dropped, no server"
        parts = [self.rule]
        parts += [f'robust = "{self.robust}"'] * (self.robust != "none")
        parts += [f"server step {self.step}"] * (self.step != 1)
        parts += [self.precision] * (self.precision != "float32")
        parts += [f"ranks {', '.join(map(str, self.ranks))}"] * (len(self.ranks) > 1)
        return ", ".join(parts)


STREAMED = [
    *(Case(rule, clients) for rule in ("fedit", "ffa", "rolora", "hetlora") for clients in (8, 64, 256)),
    Case("hetlora", 8, ranks=(4, 8, 16)),
    Case("hetlora", 64, ranks=(4, 8, 16)),
    Case("fedit", 8, precision="int8"),
    Case("fedit", 64, precision="int8"),
    Case(NONE, 64),
]
HOLDING = [
    *(Case(rule, clients) for rule in ("flora", "fedex", "flexlora") for clients in (2, 4, 8)),
    *(Case("fedit", clients, robust="median") for clients in (4, 8)),  # two have no median
    *(Case("fedit", clients, step="auto") for clients in (2, 4, 8)),
]


class Alive:
    """How many of the things it was shown still live, each with its parts, and the most there ever were."""

    def __init__(self) -> None:
        self._things: list[list[weakref.ref[Any]]] = []
        self.most = 0

    def note(self, parts: Iterable[Any]) -> None:
        """One more thing, which lives as long as any of its parts."""
        self._things.append([weakref.ref(part) for part in parts])
        self.most = max(self.most, self.count())

    def count(self) -> int:
        """How many live now."""
        self._things = [refs for refs in self._things if any(ref() is not None for ref in refs)]
        return len(self._things)


class Replies:
    """Train replies, made when they are asked for and not kept: one client's numbers, begun at another place for each.

    Iterating: seconds, spent on making; ended, the CPU second at which all had been taken.
    """

    def __init__(self, case: Case, strategy: FederatedRLVR) -> None:
        self.nodes = list(strategy.clients)
        self.alive = Alive()
        self.seconds = 0.0
        self.ended = 0.0
        self._records = [_record(case, strategy, rank) for rank in case.ranks]
        self._places = random.Random(0)

    def __iter__(self) -> Iterator[Message]:
        for node, record in zip(self.nodes, itertools.cycle(self._records)):
            yield self._made(node, record)  # a name for it would keep it until the next is made
        self.ended = time.process_time()

    def _made(self, node: int, record: ArrayRecord) -> Message:
        started = time.process_time()
        place = self._places.random()
        arrays = ArrayRecord({name: _begun_at(array, place) for name, array in record.items()})
        content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({"num-examples": node})})
        metadata = Metadata(0, "", node, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
        reply = Message(content, metadata=metadata)  # type: ignore[call-overload]  # Flower's own, undeclared
        self.alive.note([reply, arrays, *arrays.values()])
        self.seconds += time.process_time() - started
        return reply


def _record(case: Case, strategy: FederatedRLVR, rank: int) -> ArrayRecord:
    """What one client of this rank sends."""
    halves = strategy.model.rule.trains(1)
    start = strategy.adapter.at_rank(rank)
    generator = torch.Generator().manual_seed(1)
    made = {
        name: Factors(*(torch.empty_like(factor).uniform_(-0.02, 0.02, generator=generator) for factor in factors))
        for name, factors in start.layers.items()
    }
    ended = start.alike(made)
    if case.precision == "float32":
        return adapter_to_arrays(ended, halves)
    assert case.precision in ("float16", "int8")
    return pack(ended, start, None, case.precision, halves)[0]  # type: ignore[arg-type]  # one of the two


def _begun_at(array: Array, place: float) -> Array:
    """The same numbers, from `place` (a share of them) on and then from the first on. Takes no room but its own."""
    item = np.dtype(array.dtype).itemsize
    count = math.prod(array.shape)
    head, numbers = array.data[: -count * item], memoryview(array.data)[-count * item :]
    cut = int(place * count) * item
    return Array(array.dtype, tuple(array.shape), array.stype, b"".join((head, numbers[cut:], numbers[:cut])))


def strategy_for(case: Case, shapes: Mapping[str, tuple[int, int]]) -> FederatedRLVR:
    """A server whose adapter has just been begun.

    Raises:
        ConfigError: the case is none that a federation can have.
    """
    names = {node: f"client-{node}" for node in range(1, case.clients + 1)}
    ranks = dict(zip(names.values(), itertools.cycle(case.ranks)))
    rank = max(case.ranks)
    rule = "fedit" if case.rule == NONE else case.rule
    config = parse_config(
        {
            "federation": {"clients": list(names.values())},
            "lora": {"rank": ranks if len(case.ranks) > 1 else rank, "alpha": ALPHA},
            "aggregation": {
                "type": rule,
                "robust": case.robust,
                "precision": case.precision,
                "server_learning_rate": case.step,
            },
        }
    )
    return FederatedRLVR(config, names, fresh(shapes, rank=rank, alpha=ALPHA, seed=0), Observer())


def measure(case: Case, shapes: Mapping[str, tuple[int, int]] = SEVEN_B) -> dict[str, Any]:
    """One round's aggregation.

    before, peak: resident bytes before the first reply, and their largest value from then on. adapters, replies: the
    most that lived at once, of those the clients sent. left: adapters that live when it is done. cpu: seconds while
    replies came, without their making; cpu_end: seconds after the last.
    """
    strategy = strategy_for(case, shapes)
    replies = Replies(case, strategy)
    adapters = Alive()
    combine = strategy.combiner.combine
    base_tensors = {id(tensor) for _, tensor in strategy.adapter.tensors()}

    def noted(pair: tuple[str, Adapter]) -> tuple[str, Adapter]:
        # What a rule does not send is the server's own.
        adapters.note([pair[1], *(tensor for _, tensor in pair[1].tensors() if id(tensor) not in base_tensors)])
        return pair

    strategy.combiner.combine = lambda taken, *rest: combine(map(noted, taken), *rest)  # type: ignore[method-assign]
    reset_peak()
    before, started = resident(), time.process_time()
    if case.rule == NONE:
        for _ in replies:
            del _
    else:
        strategy.aggregate_train(1, replies)
    ended = time.process_time()
    return {
        "before": before,
        "peak": peak_resident(),
        "adapters": adapters.most,
        "replies": replies.alive.most,
        "left": adapters.count(),
        "cpu": replies.ended - started - replies.seconds,
        "cpu_end": ended - replies.ended,
        "cpu_making": replies.seconds,
    }


def apart(case: Case) -> dict[str, Any]:
    """`measure` in a process of its own, with one thread.

    Raises:
        subprocess.CalledProcessError: it failed; why is on standard error.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


Found = list[tuple[Case, dict[str, Any]]]


def report(result: Found, about: str) -> str:
    """The measurements in Markdown: what takes adapters as they come, and what holds them all."""
    size = sum(RANK * (d + k) for d, k in SEVEN_B.values()) * 4
    sections = [
        about,
        "",
        f"Peak: MiB above what was resident before the first reply. One adapter in float32 is {size / MEBI:.1f} MiB.",
        "CPU seconds: of the largest number of clients measured, without the making of replies.",
        "",
        "A reply is made when it is asked for, as by a grid that hands them over one by one. Flower's HTTP grid (1.41) "
        f"gathers all replies of a push in a list: of 256 clients {256 * size / MEBI / 1024:.0f} GiB before the first "
        "is looked at.",
        "",
    ]
    for title, cases in (
        ("### Rules that take adapters as they come", STREAMED),
        ("### Rules that hold them all, for contrast", HOLDING),
    ):
        sections += [title, "", _tabulated([(case, cost) for case, cost in result if case in cases], size)]
    return "\n".join(sections)


def _tabulated(result: Found, size: int) -> str:
    points = sorted({case.clients for case, _ in result})
    rows = []
    for label in dict.fromkeys(case.label for case, _ in result):
        by_clients = {case.clients: cost for case, cost in result if case.label == label}
        peaks = {clients: cost["peak"] - cost["before"] for clients, cost in by_clients.items()}
        few, many = min(by_clients), max(by_clients)
        more = (peaks[many] - peaks[few]) / (many - few) / size if many > few else math.nan
        last = by_clients[many]
        rows.append(
            [
                label,
                *(mebi(peaks[clients]) if clients in peaks else "" for clients in points),
                "" if math.isnan(more) else f"{more:+.3f}",
                " / ".join(str(cost["adapters"]) for cost in by_clients.values()),
                " / ".join(str(cost["replies"]) for cost in by_clients.values()),
                f"{last['cpu'] / many:.2f}",
                f"{last['cpu_end']:.2f}",
            ]
        )
    header = ["", *(f"peak, {clients} clients" for clients in points), "adapters' worth for each further client"]
    header += ["most adapters alive", "most replies alive", "CPU-s a client", "CPU-s at the end"]
    return table(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything, or one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help="measure this one here (JSON) and print what it took")
    given = parser.parse_args(arguments)
    if given.case:
        torch.set_num_threads(1)
        fields = json.loads(given.case)
        print(json.dumps(measure(Case(**{**fields, "ranks": tuple(fields.get("ranks", (RANK,)))}))))
        return
    result: Found = []
    for case in [*STREAMED, *HOLDING]:
        result.append((case, apart(case)))
        peak = result[-1][1]["peak"] - result[-1][1]["before"]
        print(f"{case.label}, {case.clients} clients: {mebi(peak)} MiB", file=sys.stderr, flush=True)
    spent = os.times()
    cpu = spent.children_user + spent.children_system
    about = (
        f"`scripts/bench memory`, {today()}, {machine()}, one torch thread, a process for each number, "
        f"{cpu / 60:.0f} CPU minutes. Random adapters of rank {RANK} for q, k, v, o, gate, up and down of 32 layers, "
        "shaped like those of a model of 7 billion parameters."
    )
    results = {"about": about, "cases": [{**asdict(case), **cost} for case, cost in result]}
    (RESULTS / "memory.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    text = report(result, about)
    (RESULTS / "memory.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
