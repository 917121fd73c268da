"""Tokens per CPU second of the decode loop and of a vLLM server: `scripts/bench vllm MODEL --python vllm/bin/python`.

Two clients with adapters of rank 8 draw 8 responses each to one prompt, in float32 and on one thread, at three lengths
of the response and two of the prompt. No response ends before its length. CPU seconds are those of this process and of
the server with all its children; the server's start is not counted. Every cell follows a smaller call that warms up.
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path

import psutil
import torch

from fedrlvr import machine
from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.policy.vllm.sampler import VllmSampler

CLIENTS, RESPONSES = ("a", "b"), 8
NEW_TOKENS, PROMPTS = (4, 32, 256), (24, 384)
REPEATS = {4: 4, 32: 2, 256: 1}
PAGE = Path(__file__).parent.parent / "docs" / "results" / "vllm.md"


def adapter_of(cohort: Cohort, seed: int) -> Adapter:
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


def rate(cohort: Cohort, prompt: list[int], new_tokens: int) -> float:
    """Tokens drawn per CPU second."""
    prompts = {client: [prompt] for client in CLIENTS}

    def draw(tokens: int, seed: int) -> None:
        decoding = Decoding(RESPONSES, tokens, past_end=True)
        drawn = cohort.sample(prompts, decoding, dict.fromkeys(CLIENTS, seed))
        assert all(len(r.token_ids) == tokens for client in drawn.values() for group in client for r in group)

    draw(2, 0)
    started, repeats = cpu_seconds(cohort), REPEATS[new_tokens]
    for seed in range(repeats):
        draw(new_tokens, seed + 1)
    return len(CLIENTS) * RESPONSES * new_tokens * repeats / (cpu_seconds(cohort) - started)


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description="Tokens per CPU second of both samplers.")
    parser.add_argument("model", help="directory of the model")
    parser.add_argument("--python", type=Path, required=True, help="Python of an environment that has vLLM")
    parser.add_argument("--write", action="store_true", help="write docs/results/vllm.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(ModelConfig(name=options.model))
    cells: dict[tuple[str, int, int], float] = {}
    described = {}
    for name in ("loop", "vllm"):
        server = {"sampler": "vllm", "vllm_python": options.python.absolute(), "vllm_max_loras": 2}
        engine = EngineConfig.model_validate(server if name == "vllm" else {})
        cohort = Cohort(base, LoraConfig(rank=8), engine)
        cohort.seat({client: adapter_of(cohort, i) for i, client in enumerate(CLIENTS)})
        words = base.encode("Add the ones first, then the tens, then the hundreds. " * 64)
        for length in PROMPTS:
            for new_tokens in NEW_TOKENS:
                cells[name, length, new_tokens] = rate(cohort, words[:length], new_tokens)
                print(
                    f"{name}, prompt of {length}, {new_tokens} new: {cells[name, length, new_tokens]:.1f}", flush=True
                )
        described[name] = cohort.sampler.description.partition(",")[0]
        cohort.stack.remove()
    lines = ["# The decode loop and vLLM", "", "Tokens drawn per CPU second, more is better.", ""]
    lines += ["| tokens of the prompt | new tokens | decode loop | vLLM | loop / vLLM |", "|---|---|---|---|---|"]
    for length in PROMPTS:
        for new_tokens in NEW_TOKENS:
            loop, vllm = cells["loop", length, new_tokens], cells["vllm", length, new_tokens]
            lines.append(f"| {length} | {new_tokens} | {loop:.1f} | {vllm:.1f} | {loop / vllm:.1f} |")
    lines += [
        "",
        f"Model: {type(base.model).__name__} of {sum(p.numel() for p in base.model.parameters()):,} parameters,",
    ]
    lines += [
        f"float32, one thread; {described['vllm']}; {len(CLIENTS)} clients with {RESPONSES} responses to one prompt",
        "each, adapters of rank 8.",
        "CPU seconds of this process and of the server with its children, without the server's start; one call of each",
        f"cell is one measurement, of {', '.join(f'{n} calls at {t}' for t, n in REPEATS.items())} new tokens.",
        f"Command: `scripts/bench vllm MODEL --python vllm/bin/python --write`, {date.today()},",
        f"{machine.description()}.",
    ]
    text = "\n".join(lines) + "\n"
    if options.write:
        PAGE.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
