"""Sampling and training on a GPU against what its memory and its arithmetic allow.

    scripts/bench gpu                          all cases; needs a CUDA GPU
    scripts/bench gpu --device cpu --tiny      the same code at toy sizes in seconds, its figures worth nothing

E1 and E2 are the shapes of those names in `scripts/bench speed`, here with 8 clients each; 1.5B is the shape of
Qwen2.5-1.5B. Weights are random, made on the device; no response ends early, so that every run does the same work.

Sampling and training are timed by the wall with the device idle before and after, decode ways in turn, medians with
range. Two bounds are measured on the same device in the same run: copies of a large tensor (bytes/s, read and write
counted) and a large matrix product (FLOP/s).
- A decode step must read every weight, every adapter and the cache filled so far once, a prompt's once for its
  responses: its bound is these bytes over the bandwidth.
- A training step must do, for each token, 2 FLOP per frozen weight forward and 2 backward (towards the input), and 6
  per adapter weight, the output head at response tokens only, a prompt once per group: its bound is this over the rate
  of products. Attention's products are left out, so the share is rather too low.

Writes docs/results/gpu.json and gpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.cases import SMOLLM2_135M, TINY
from benchmarks.measure import Summary, machine, summary, today
from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.policy.attention import use_own_attention
from fedrlvr.policy.base import Base
from fedrlvr.policy.capabilities import can_pack, can_share, has_plain_head, way_to_decode
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group, Response
from fedrlvr.tasks import Problem

ROOT = Path(__file__).parents[1]
CPU, CUDA = "cpu", "cuda"

EMBEDDED: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
QWEN2_1_5B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """One shape and one round's work. prompts: least and largest number of tokens."""

    name: str
    kind: str
    shape: dict[str, Any]
    clients: int
    problems: int
    responses: int
    prompts: tuple[int, int]
    new_tokens: int
    micro_batch_tokens: int


CASES = (
    Case("E1", "llama", EMBEDDED, 8, 8, 8, (12, 36), 32, 32768),
    Case("E2", "llama", SMOLLM2_135M, 8, 2, 8, (200, 300), 32, 32768),
    Case("1.5B", "qwen2", QWEN2_1_5B, 8, 4, 8, (200, 300), 128, 8192),
)
TINY_CASES = (Case("tiny", "llama", TINY, 2, 2, 4, (4, 9), 6, 256),)


class NoTokenizer:
    """Stands where a tokenizer would; nothing that is measured depends on text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """No text."""
        return ""


def random_base(case: Case, device: torch.device) -> Base:
    """A model of the case's shape with random weights and an end token beyond its vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = torch.bfloat16 if device.type == CUDA and torch.cuda.is_bf16_supported() else torch.float32
    config = AutoConfig.for_model(case.kind, **case.shape)
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.requires_grad_(False)
    model.eval().to(device)
    packs = use_own_attention(model) and can_pack(model, case.name)
    decoding = way_to_decode(model, case.name)
    return Base(
        model=model,
        tokenizer=NoTokenizer(),
        name=case.name,
        device=device,
        pad_id=0,
        eos_ids=frozenset([case.shape["vocab_size"]]),
        max_length=case.shape["max_position_embeddings"],
        packs=packs,
        shares=packs and decoding == "filled" and can_share(model),
        plain_head=has_plain_head(model, case.name),
        decoding=decoding,
    )


# Bounds


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes/s of copying `size` bytes, read and write counted: the best of five."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(seconds(lambda: target.copy_(source), device) for _ in range(6))


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the product of two [size, size] matrices: the best of five."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / min(seconds(lambda: torch.mm(left, right, out=out), device) for _ in range(6))


def decode_bytes(cohort: Cohort, case: Case, prompt_tokens: Sequence[int]) -> float:
    """Bytes that a decode step must read, on average over the steps; see the head of this file."""
    weights = sum(p.numel() * p.element_size() for p in _weights(cohort))
    adapters = sum(p.numel() * p.element_size() for p in cohort.stack.parameters())
    config = cohort.base.model.config
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    element = next(cohort.base.model.parameters()).element_size()
    per_position = 2 * config.num_hidden_layers * heads * size * element
    positions = sum(length + case.responses * case.new_tokens / 2 for length in prompt_tokens)
    return weights + adapters + per_position * positions


def training_flop(cohort: Cohort, case: Case, prompt_tokens: Sequence[int]) -> float:
    """FLOP that a training step on all responses must do; see the head of this file."""
    head = cohort.base.model.get_output_embeddings().weight
    response_tokens = len(prompt_tokens) * case.responses * case.new_tokens
    tokens = sum(prompt_tokens) + response_tokens
    body = sum(p.numel() for p in _weights(cohort) if p is not head)
    adapter = sum(p.numel() for p in cohort.stack.parameters()) / case.clients
    return (4 * body + 6 * adapter) * tokens + 4 * head.numel() * response_tokens


def _weights(cohort: Cohort) -> list[torch.nn.Parameter]:
    """The frozen weights that every token meets: all but the table of embeddings, unless it is the output head too."""
    model = cohort.base.model
    adapters = {id(p) for p in cohort.stack.parameters()}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [p for p in model.parameters() if id(p) not in adapters and (p is not table or p is head)]


# Measuring


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall seconds of `work`, the device idle before and after."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == CUDA:
        torch.cuda.synchronize(device)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Largest number of bytes allocated on a GPU while `work` ran; None elsewhere."""
    if device.type != CUDA:
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return int(torch.cuda.max_memory_allocated(device))


@contextlib.contextmanager
def decode_way(way: str) -> Iterator[str]:
    """`engine.decode_cache` for a way to decode: growing, static (no graph), graph."""
    if way == "static":
        with mock.patch("fedrlvr.policy.decode.can_capture", return_value=False):
            yield "static"
    else:
        yield "static" if way == "graph" else way


class Runner:
    """A cohort on one case's model, and the work that is timed."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        engine = EngineConfig(micro_batch_tokens=case.micro_batch_tokens, decode_cache="growing")
        self.cohort = Cohort(random_base(case, device), LoraConfig(), engine)
        draw = random.Random(0)
        names = [f"client-{i}" for i in range(case.clients)]
        self.adapters = {name: self.cohort.fresh_adapter(i) for i, name in enumerate(names)}
        self.prompts = {
            name: [
                [draw.randrange(3, case.shape["vocab_size"]) for _ in range(draw.randint(*case.prompts))]
                for _ in range(case.problems)
            ]
            for name in names
        }
        self.prompt_tokens = [len(ids) for client in self.prompts.values() for ids in client]

    def seat(self, names: Sequence[str]) -> None:
        """Seat these clients and begin their training."""
        self.cohort.seat({name: self.adapters[name] for name in names})
        sampling = SamplingConfig(group_size=self.case.responses, max_new_tokens=self.case.new_tokens)
        self.cohort.begin_training(TrainConfig(), sampling)

    def sample(self, way: str, new_tokens: int | None = None) -> dict[str, list[list[Response]]]:
        """Responses of the seated clients."""
        seated = self.cohort.clients
        decoding = Decoding(self.case.responses, new_tokens or self.case.new_tokens)
        with decode_way(way) as cache:
            engine = self.cohort.engine.model_copy(update={"decode_cache": cache})
            self.cohort.sampler = DecodeSampler(self.cohort.base, self.cohort.stack, engine)
            prompts = {name: self.prompts[name] for name in seated}
            return self.cohort.sample(prompts, decoding, {name: i for i, name in enumerate(seated)})

    def learn(self, drawn: dict[str, list[list[Response]]]) -> None:
        """One update of the seated clients on all these responses; half of them have a positive advantage."""
        problem = Problem("prompt", "answer", "id", "source", "exact")
        signs = [1.0 if i % 2 else -1.0 for i in range(self.case.responses)]
        groups = {
            name: [
                Group(problem, ids, responses, advantages=signs)
                for ids, responses in zip(self.prompts[name], client, strict=True)
            ]
            for name, client in drawn.items()
        }
        self.cohort.learn(groups, dict.fromkeys(groups, 1e-6))

    def round(self, way: str, names: Sequence[str]) -> None:
        """Seat, sample, learn."""
        self.seat(names)
        self.learn(self.sample(way))

    def one_after_another(self, way: str) -> None:
        """The round of each client alone."""
        for name in self.adapters:
            self.round(way, [name])


def measure(case: Case, device: torch.device, ways: Sequence[str], repeats: int) -> dict[str, Any]:
    """All figures of a case; every repetition takes the ways in turn, after one that does not count."""
    runner = Runner(case, device)
    everyone = list(runner.adapters)
    runner.seat(everyone)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        times.setdefault(name, []).append(seconds(work, device))

    drawn = runner.sample(ways[0])
    for _ in range(repeats + 1):
        for way in ways:
            timed(f"sample {way}", lambda way=way: runner.sample(way))  # type: ignore[misc]
        timed("first token", lambda: runner.sample("growing", 1))
        timed("learn", lambda: runner.learn(drawn))
    for _ in range(repeats + 1):
        timed("cohort", lambda: runner.round(ways[-1], everyone))
        timed("one after another", lambda: runner.one_after_another(ways[-1]))
    runner.seat(everyone)
    peaks = {way: peak_bytes(lambda way=way: runner.sample(way), device) for way in ways}  # type: ignore[misc]
    peaks["learn"] = peak_bytes(lambda: runner.learn(drawn), device)
    counted = {name: summary(values[1:]) for name, values in times.items()}
    speed_up = summary([a / b for a, b in zip(times["one after another"][1:], times["cohort"][1:], strict=True)])

    tokens = len(runner.prompt_tokens) * case.responses * case.new_tokens
    step = {
        way: (counted[f"sample {way}"].median - counted["first token"].median) / (case.new_tokens - 1) for way in ways
    }
    return {
        "case": asdict(case),
        "dtype": str(runner.cohort.base.model.dtype),
        "response tokens": tokens,
        "decode bytes a step": decode_bytes(runner.cohort, case, runner.prompt_tokens),
        "training flop": training_flop(runner.cohort, case, runner.prompt_tokens),
        "seconds": {name: asdict(value) for name, value in counted.items()},
        "decode seconds a step": step,
        "cohort speed-up": asdict(speed_up),
        "peak bytes": peaks,
    }


# Writing


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    about, bounds = results["about"], results["bounds"]
    lines = [
        f"`{about['command']}`, {about['date']}, {about['device']}, torch {about['torch']}. Random weights. "
        f"Seconds are medians (range) of {about['repeats']}. Copies run at {bounds['bytes/s'] / 1e9:,.1f} GB/s, "
        f"products at {bounds['flop/s'] / 1e12:,.2f} TFLOP/s. Share: of the bandwidth bound in sampling, "
        "of the arithmetic bound in training.",
        "",
        "| case | work | seconds | response tokens/s | share of the bound | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for case in results["cases"]:
        name, tokens = case["case"]["name"], case["response tokens"]
        for way, step in case["decode seconds a step"].items():
            bound = case["decode bytes a step"] / bounds["bytes/s"]
            took = Summary(**case["seconds"][f"sample {way}"])
            lines.append(_row(name, f"sample, {way}", took, tokens, bound / step, case["peak bytes"][way]))
        took = Summary(**case["seconds"]["learn"])
        bound = case["training flop"] / bounds["flop/s"]
        lines.append(_row(name, "train", took, tokens, bound / took.median, case["peak bytes"]["learn"]))
    lines += [
        "",
        "| case | clients | a round as a cohort, s | one after another, s | speed-up |",
        "|---|---|---|---|---|",
    ]
    for case in results["cases"]:
        together, apart = (Summary(**case["seconds"][name]) for name in ("cohort", "one after another"))
        lines.append(
            f"| {case['case']['name']} | {case['case']['clients']} | {together.shown(3)} | {apart.shown(3)} | "
            f"{Summary(**case['cohort speed-up']).shown(1)} |"
        )
    return "\n".join(lines) + "\n"


def _row(name: str, work: str, took: Summary, tokens: int, share: float, peak: int | None) -> str:
    shown = "-" if peak is None else f"{peak / (1 << 20):,.0f}"
    return f"| {name} | {work} | {took.shown(3)} | {tokens / took.median:,.0f} | {share:.0%} | {shown} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=CUDA)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try this script")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == CUDA and not torch.cuda.is_available():
        print("scripts/bench gpu needs a CUDA GPU and torch built for it; there is none here.", file=sys.stderr)
        return 2
    if device.type != CUDA and not args.tiny:
        print(f"scripts/bench gpu measures GPUs; on {args.device} it runs with --tiny only.", file=sys.stderr)
        return 2
    ways = ["growing", "static", "graph"] if device.type == CUDA else ["growing", "static"]
    size, matrix = (1 << 20, 64) if args.tiny else (1 << 30, 8192)
    dtype = torch.bfloat16 if device.type == CUDA and torch.cuda.is_bf16_supported() else torch.float32
    results: dict[str, Any] = {
        "about": {
            "command": "scripts/bench gpu" + (f" --device {args.device} --tiny" if args.tiny else ""),
            "date": today(),
            "device": torch.cuda.get_device_name(device) if device.type == CUDA else machine(),
            "torch": torch.__version__,
            "repeats": args.repeats,
        },
        "bounds": {"bytes/s": bandwidth(device, size), "flop/s": product_rate(device, dtype, matrix)},
        "cases": [],
    }
    for case in TINY_CASES if args.tiny else CASES:
        results["cases"].append(measure(case, device, ways, args.repeats))
        print(table(results), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (args.out / "gpu.md").write_text(table(results), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
