"""The decode loop and a vLLM server: `scripts/bench vllm MODEL --python vllm/bin/python`, MODEL as fetched by
`fedrlvr model fetch smollm2 MODEL`.

    --parts rates    tokens per CPU second of both samplers, about 10 CPU minutes
    --parts sums     the federated run of docs/real-model.md with vLLM as its sampler, at seed 0

`rates`: two clients with adapters of rank 8 draw 8 responses each to one prompt, in float32 and on one thread, at three
lengths of the response and two of the prompt. No response ends before its length. CPU seconds are those of this process
and of the server with all its children; the server's start is not counted. Every cell follows a smaller call that warms
up, and is measured in turns of both samplers.

`sums`: the arm `federated` of `scripts/bench smollm2`, whose scores with the decode loop are in
docs/results/smollm2.json, evaluated before and after. Its CPU seconds have those of the server's start in them.

Writes docs/results/vllm.json and .md; a part that is not run keeps its numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.smollm2 import ARMS, BASE, COMMON, LAST, result_of
from benchmarks.vllm_tables import write
from fedrlvr import machine
from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig, load_config
from fedrlvr.policy.base import load_base
from fedrlvr.policy.choices import choices
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.sampler import Decoding, Sampler
from fedrlvr.policy.vllm.sampler import VllmSampler
from fedrlvr.server.run import RunResult
from fedrlvr.simulation.run import run
from fedrlvr.version import __version__

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "vllm"
FILE = ROOT / "docs" / "results" / "vllm.json"
CLIENTS, RESPONSES, RANK = ("a", "b"), 8, 8
NEW_TOKENS, PROMPTS = (4, 32, 256), (24, 384)
TURNS = {4: 5, 32: 3, 256: 2}
"""Measurements of each cell by tokens of a response."""
PARTS = ("rates", "sums")


def moved_adapter(cohort: Cohort, seed: int) -> Adapter:
    """An adapter that changes what is sampled."""
    adapter, generator = cohort.fresh_adapter(seed), torch.Generator().manual_seed(seed)
    for factors in adapter.layers.values():
        factors.B.normal_(std=0.1 / factors.B.shape[0] ** 0.5, generator=generator)
    return adapter


def cpu_seconds(cohort: Cohort) -> float:
    """CPU seconds of this process and of the server, so far."""
    seconds = time.process_time()
    if isinstance(cohort.sampler, VllmSampler) and (pid := cohort.sampler.server_pid) is not None:
        server = psutil.Process(pid)
        for process in (server, *server.children(recursive=True)):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def rate(cohort: Cohort, prompt: list[int], new_tokens: int, seed: int) -> float:
    """Tokens drawn per CPU second."""
    prompts = {client: [prompt] for client in CLIENTS}
    decoding = Decoding(RESPONSES, new_tokens, past_end=True)
    started = cpu_seconds(cohort)
    drawn = cohort.sample(prompts, decoding, dict.fromkeys(CLIENTS, seed))
    took = cpu_seconds(cohort) - started
    tokens = sum(len(response.token_ids) for groups in drawn.values() for group in groups for response in group)
    assert tokens == len(CLIENTS) * RESPONSES * new_tokens
    return tokens / took


def origin(part: str) -> dict[str, str]:
    """Where results come from."""
    return {
        "date": str(date.today()),
        "machine": machine.description(),
        "fedrlvr": __version__,
        "torch": torch.__version__,
        "command": f"scripts/bench vllm MODEL --python vllm/bin/python --parts {part}",
    }


def rates(model: str, python: Path) -> dict[str, Any]:
    """Tokens per CPU second by sampler, tokens of the prompt and new tokens: every measurement."""
    torch.set_num_threads(1)
    base = load_base(ModelConfig(name=model))
    words = base.encode("Add the ones first, then the tens, then the hundreds. " * 64)
    engine = EngineConfig(sampler="vllm", vllm_python=python, vllm_max_loras=len(CLIENTS))
    cohort = Cohort(base, LoraConfig(rank=RANK), engine)
    cohort.seat({client: moved_adapter(cohort, i) for i, client in enumerate(CLIENTS)})
    samplers: dict[str, Sampler] = {"loop": DecodeSampler(base, cohort.stack, engine), "vllm": cohort.sampler}
    cells: dict[str, dict[str, list[float]]] = {name: {} for name in samplers}
    for length in PROMPTS:
        for new_tokens in NEW_TOKENS:
            cell = f"{length}/{new_tokens}"
            for seed in range(TURNS[new_tokens] + 1):
                for name, cohort.sampler in samplers.items():
                    measured = rate(cohort, words[:length], new_tokens if seed else 2, seed)
                    if seed:
                        cells[name].setdefault(cell, []).append(measured)
            print(cell, {name: round(median(of[cell]), 1) for name, of in cells.items()}, flush=True)
    return {
        **origin("rates"),
        "vllm": samplers["vllm"].description.partition(",")[0],
        "clients": len(CLIENTS),
        "responses": RESPONSES,
        "rank": RANK,
        "cells": cells,
    }


@dataclass
class Spent:
    """CPU seconds of a run's process and of its server, read at the run's end, and the sampler in words."""

    began: float = field(default_factory=time.process_time)
    seconds: float = 0.0
    sampler: str = ""

    def read(self, result: RunResult, cohort: Cohort) -> None:
        """Read them; the server still lives."""
        self.seconds = cpu_seconds(cohort) - self.began
        self.sampler = choices(cohort)["sampler"]


def sums(model: str, python: Path) -> dict[str, Any]:
    """The federated run in numbers."""
    directory, spent = RUNS / "sums", Spent()
    given = [f"model.name={Path(model).absolute()}", f"run.directory={directory}", "engine.threads=1", "run.seed=0"]
    vllm = ["engine.sampler=vllm", f"engine.vllm_python={python}"]
    run(load_config(BASE, [*COMMON, LAST, *ARMS["federated"], *given, *vllm]), after=spent.read)
    return {
        **origin("sums"),
        "sampler": spent.sampler.replace(str(python), "vllm/bin/python"),
        "cpu_seconds": spent.seconds,
        **result_of(directory),
    }


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of SmolLM2")
    parser.add_argument("--python", type=Path, required=True, help="Python of an environment that has vLLM")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    for part in options.parts:
        results = {**results, part: {"rates": rates, "sums": sums}[part](options.model, options.python.absolute())}
        FILE.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
        print(write(results))


if __name__ == "__main__":
    main()
