"""Sampling and training on a device against what its memory and its arithmetic allow, with random weights.

E1 and E2 are the shapes of those names in `scripts/bench speed`, here with 8 clients each; 1.5B is the shape of
Qwen2.5-1.5B with responses of 2,048 tokens. Weights are made on the device; no response ends early, so that every run
does the same work. Seconds are of the wall clock with the device idle before and after.

Two bounds are measured on the same device in the same run: copies of a large tensor (bytes/s, read and write counted)
and a large matrix product (FLOP/s).
- A decode step must read every weight, every adapter and the cache filled so far once, a prompt's once for its
  responses: its bound is these bytes over the bandwidth.
- A training step must do, for each token, 2 FLOP per frozen weight forward and 2 backward (towards the input), and 6
  per adapter weight, the output head at response tokens only, a prompt once per group: its bound is this over the rate
  of products. Attention's products are left out, so the share is rather too low.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.cases import SMOLLM2_135M, TINY
from benchmarks.gpu_report import CUDA, Report
from benchmarks.measure import summary
from fedrlvr.config import EngineConfig, LoraConfig, SamplingConfig, TrainConfig
from fedrlvr.policy import decode
from fedrlvr.policy.attention import use_own_attention
from fedrlvr.policy.base import Base
from fedrlvr.policy.capabilities import can_pack, can_share, has_plain_head, way_to_decode
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group, Response
from fedrlvr.tasks import Problem

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
LAST = 48
"""Decode steps from which the time of all is foreseen."""
LATER = 1.3
"""Later steps are slower than the first ones, whose cache is short, by about this factor."""
REACHED = 0.15
"""Share of the arithmetic bound that a training step is expected to reach, for foreseeing its time."""


@dataclass(frozen=True)
class Case:
    """One shape and one round's work. prompts: least and largest number of tokens."""

    name: str
    kind: str
    shape: Mapping[str, Any]
    clients: int
    problems: int
    responses: int
    prompts: tuple[int, int]
    new_tokens: int
    micro_batch_tokens: int


def cases(tiny: bool = False) -> tuple[Case, ...]:
    """The cases; tiny: a toy in the place of each."""
    if tiny:
        return tuple(Case(name, "llama", TINY, 2, 2, 4, (4, 9), 12, 256) for name in ("E1", "E2", "1.5B"))
    return (
        Case("E1", "llama", EMBEDDED, 8, 8, 8, (12, 36), 32, 32768),
        Case("E2", "llama", SMOLLM2_135M, 8, 2, 8, (200, 300), 32, 32768),
        Case("1.5B", "qwen2", QWEN2_1_5B, 8, 1, 8, (200, 300), 2048, 8192),
    )


class NoTokenizer:
    """Stands where a tokenizer would; nothing that is measured depends on text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """No text."""
        return ""


def best_dtype(device: torch.device) -> torch.dtype:
    """Number format of the weights: bfloat16 on a GPU that computes in it, else float32."""
    native = device.type == CUDA and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def random_base(case: Case, device: torch.device) -> Base:
    """A model of the case's shape with random weights and an end token beyond its vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(case.kind, **case.shape)
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=best_dtype(device))
    return as_base(model, case.name, device)


def as_base(model: Any, name: str, device: torch.device) -> Base:
    """A frozen base on this device, none of whose responses ends early."""
    model.requires_grad_(False)
    model.eval().to(device)
    packs = use_own_attention(model) and can_pack(model, name)
    decoding = way_to_decode(model, name)
    config = model.config
    return Base(
        model=model,
        tokenizer=NoTokenizer(),
        name=name,
        device=device,
        pad_id=0,
        eos_ids=frozenset([config.vocab_size]),
        max_length=config.max_position_embeddings,
        packs=packs,
        shares=packs and decoding == "filled" and can_share(model),
        plain_head=has_plain_head(model, name),
        decoding=decoding,
    )


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


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes/s of copying `size` bytes, read and write counted: the best of six."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(seconds(lambda: target.copy_(source), device) for _ in range(6))


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the product of two [size, size] matrices: the best of six."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / min(seconds(lambda: torch.mm(left, right, out=out), device) for _ in range(6))


def bounds(report: Report) -> None:
    """What the device's memory and arithmetic reach."""
    size, matrix = (1 << 20, 64) if report.tiny else (1 << 30, 8192)
    report.put("bytes/s", value=bandwidth(report.device, size))
    report.put("flop/s", value=product_rate(report.device, best_dtype(report.device), matrix))


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


@contextlib.contextmanager
def decode_way(way: str) -> Iterator[str]:
    """`engine.decode_cache` for a way to decode: growing, static (no graph), graph."""
    if way == "static":
        with mock.patch("fedrlvr.policy.decode.can_capture", return_value=False):
            yield "static"
    else:
        yield "static" if way == "graph" else way


def ways_on(device: torch.device) -> tuple[str, ...]:
    """Ways to decode that can be tried, the likely best first."""
    return ("graph", "growing", "static") if device.type == CUDA else ("growing", "static")


class Runner:
    """A cohort on one case's model, and the work that is timed."""

    def __init__(self, case: Case, device: torch.device, base: Base | None = None) -> None:
        self.case, self.device = case, device
        engine = EngineConfig(micro_batch_tokens=case.micro_batch_tokens, decode_cache="growing")
        self.cohort = Cohort(base or random_base(case, device), LoraConfig(), engine)
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

    def groups(self, drawn: Mapping[str, list[list[Response]]]) -> dict[str, list[Group]]:
        """These responses with advantages, of which half are positive."""
        problem = Problem("prompt", "answer", "id", "source", "exact")
        signs = [1.0 if i % 2 else -0.5 for i in range(self.case.responses)]
        return {
            name: [
                Group(problem, ids, responses, advantages=signs)
                for ids, responses in zip(self.prompts[name], client, strict=True)
            ]
            for name, client in drawn.items()
        }

    def learn(self, drawn: Mapping[str, list[list[Response]]]) -> None:
        """One update of the seated clients on all these responses."""
        groups = self.groups(drawn)
        self.cohort.learn(groups, dict.fromkeys(groups, 1e-6))

    def round(self, way: str, names: Sequence[str]) -> None:
        """Seat, sample, learn."""
        self.seat(names)
        self.learn(self.sample(way))

    def one_after_another(self, way: str) -> None:
        """The round of each client alone."""
        for name in self.adapters:
            self.round(way, [name])

    def foreseen(self, way: str) -> float:
        """Seconds that sampling should take, from its first steps at full size, which also warm up."""
        last = min(LAST, self.case.new_tokens - 1)
        first = last // 2
        stamps: list[float] = []
        count = itertools.count(1)
        plain = decode._Batch.advance

        def advance(batch: decode._Batch) -> None:
            plain(batch)
            if (step := next(count)) in (first, last):
                _wait(self.device)
                stamps.append(time.perf_counter())
                if step == last:
                    raise _Enough

        started = time.perf_counter()
        with mock.patch.object(decode._Batch, "advance", advance), contextlib.suppress(_Enough):
            self.sample(way)
        a_step = (stamps[1] - stamps[0]) / (last - first)
        return stamps[1] - started + LATER * a_step * (self.case.new_tokens - last)


class _Enough(Exception):
    """Ends a sampling that is only looked at."""


def timed(report: Report, name: str, work: Callable[[], Any], expected: float, *, warm: bool) -> dict[str, Any] | None:
    """Repeat `work` while there is time: seconds, and the peak of a GPU's memory. None where not even once.

    warm: it has run before, so that the first time counts.
    """
    took: list[float] = []
    peak = None
    for _ in range(report.repeats + (not warm)):
        if not report.fits(name, took[-1] if took else expected):
            break
        if report.device.type == CUDA:
            torch.cuda.reset_peak_memory_stats(report.device)
        took.append(seconds(work, report.device))
        if report.device.type == CUDA:
            peak = torch.cuda.max_memory_allocated(report.device)
    if not took:
        return None
    cold = not warm and len(took) == 1
    values = took if warm or cold else took[1:]
    return {"seconds": asdict(summary(values)), "cold": cold, "peak bytes": peak}


def speed(case: Case, report: Report) -> None:
    """All figures of a case, each kept as soon as it is known."""
    device = report.device
    runner = Runner(case, device)
    everyone = list(runner.adapters)
    runner.seat(everyone)
    model, flop = runner.cohort.base.model, training_flop(runner.cohort, case, runner.prompt_tokens)
    report.put("case", value=asdict(case))
    report.put("dtype", value=str(model.dtype).removeprefix("torch."))
    report.put("response tokens", value=len(runner.prompt_tokens) * case.responses * case.new_tokens)
    report.put("decode bytes a step", value=decode_bytes(runner.cohort, case, runner.prompt_tokens))
    report.put("training flop", value=flop)
    drawn: dict[str, list[list[Response]]] = {}
    medians: dict[str, float] = {}
    for way in ways_on(device):
        expected = runner.foreseen(way)
        first = seconds(lambda way=way: runner.sample(way, 1), device)  # type: ignore[misc]
        report.put("sampling", way, "first token, s", value=first)
        report.put("sampling", way, "foreseen, s", value=expected)

        def sample(way: str = way) -> None:
            drawn.update(runner.sample(way))

        if measured := timed(report, f"sample, {way}", sample, expected, warm=True):
            medians[way] = measured["seconds"]["median"]
            measured["decode seconds a step"] = (medians[way] - first) / max(1, case.new_tokens - 1)
            report.put("sampling", way, value={**report.of(case.name, "sampling", way), **measured})
    if not medians:
        return
    rate = report.of("bounds", "flop/s")
    expected = flop / rate / REACHED if rate else 0.0
    learned = timed(report, "train", lambda: runner.learn(drawn), expected, warm=False)
    if learned is None:
        return
    report.put("training", value=learned)
    best = min(medians, key=lambda way: medians[way])
    together = medians[best] + learned["seconds"]["median"]
    if (measured := timed(report, "cohort", lambda: runner.round(best, everyone), together, warm=True)) is None:
        return
    report.put("cohort", value={"way": best, **measured})
    runner.seat(everyone[:1])
    apart = case.clients * runner.foreseen(best) + learned["seconds"]["median"]
    measured = timed(report, "one after another", lambda: runner.one_after_another(best), apart, warm=True)
    if measured is not None:
        report.put("one after another", value=measured)
