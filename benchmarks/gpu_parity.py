"""Does a device compute what a CPU computes in float32: samples, log-probs, losses and gradients.

A small model with random weights, grouped heads and two clients' moved adapters is sampled from and trained on the CPU
in float32, then on the device in three precisions. Sampling draws by the same uniform numbers, so that a response
differs only where rounding moves a probability past its number; log-probs are compared up to the first token that
differs. Training takes the CPU's responses on both sides, at learning rate 0, so that the gradients can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report import CPU, CUDA, Report
from benchmarks.gpu_speed import Case, Runner, as_base, decode_way, ways_on
from fedrlvr.config import SamplingConfig, TrainConfig
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.learner import StepStats
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Response

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # wider than usual: the logits of a narrow random model are else all alike
    "tie_word_embeddings": False,
}
CASE = Case("parity", "llama", SHAPE, 2, 2, 4, (5, 40), 24, 4096)
PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "float32": (torch.float32, "off"),
    "float32 weights, bfloat16 products": (torch.float32, "bfloat16"),
    "bfloat16": (torch.bfloat16, "bfloat16"),
}
"""Number format of the weights, and engine.autocast."""
LIMITS: dict[str, tuple[float, float, float]] = {
    "float32": (1e-3, 1e-3, 5e-3),
    "float32 weights, bfloat16 products": (0.1, 0.03, 0.1),
    "bfloat16": (0.1, 0.03, 0.1),
}
"""Largest difference of a log-prob, of a loss by its size, and of a client's gradient by its norm."""
EQUAL = 0.8
"""Least share of responses that are the CPU's, token by token, in float32."""
Drawn = dict[str, list[list[Response]]]


def parity(report: Report) -> None:
    """Compare the device with the CPU; fails if a limit is passed, with all figures kept."""
    reference = _runner(torch.device(CPU), torch.float32, "off")
    drawn = _sample(reference, "growing")
    stats, gradients = _learn(reference, drawn)
    rows: list[dict[str, Any]] = []
    for name, (dtype, autocast) in PRECISIONS.items():
        device = report.device
        if dtype == torch.bfloat16 and device.type == CUDA and not torch.cuda.is_bf16_supported(False):
            continue
        runner = _runner(device, dtype, autocast)
        logp_limit, loss_limit, gradient_limit = LIMITS[name]
        for way in ways_on(device):
            equal, gap = _compared(drawn, _sample(runner, way))
            if name == "float32":
                rows.append(_row(name, f"equal responses, {way}", equal, EQUAL, ok=equal >= EQUAL))
            rows.append(_row(name, f"log-probs, {way}", gap, logp_limit, ok=gap <= logp_limit))
            report.put("rows", value=rows)
        actual, actual_gradients = _learn(runner, drawn)
        for client, of_cpu in stats.items():
            gap = abs(actual[client].loss - of_cpu.loss) / max(abs(of_cpu.loss), 1e-3)
            rows.append(_row(name, f"loss, {client}", gap, loss_limit, ok=gap <= loss_limit))
        for i, client in enumerate(stats):
            gap = _gradient_gap(gradients, actual_gradients, i)
            rows.append(_row(name, f"gradient, {client}", gap, gradient_limit, ok=gap <= gradient_limit))
        report.put("rows", value=rows)
    if wrong := [row for row in rows if not row["ok"]]:
        raise ArithmeticError(f"{len(wrong)} of {len(rows)} comparisons are outside their limit")


def _row(precision: str, what: str, value: float, limit: float, *, ok: bool) -> dict[str, Any]:
    return {"precision": precision, "what": what, "value": value, "limit": limit, "ok": bool(ok)}


def _runner(device: torch.device, dtype: torch.dtype, autocast: str) -> Runner:
    """A runner with two moved adapters on the model, whose weights are made on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(CASE.kind, **SHAPE), dtype=torch.float32)
    runner = Runner(CASE, device, as_base(copy.deepcopy(model).to(dtype), CASE.name, device))
    runner.cohort.engine = runner.cohort.engine.model_copy(update={"autocast": autocast})
    generator = torch.Generator().manual_seed(1)
    for adapter in runner.adapters.values():
        for factors in adapter.layers.values():
            factors.B.normal_(std=0.5 / factors.B.shape[0] ** 0.5, generator=generator)
    runner.cohort.seat(runner.adapters)
    return runner


def _sample(runner: Runner, way: str) -> Drawn:
    decoding = Decoding(CASE.responses, CASE.new_tokens)
    cohort: Cohort = runner.cohort
    with decode_way(way) as cache:
        engine = cohort.engine.model_copy(update={"decode_cache": cache})
        cohort.sampler = DecodeSampler(cohort.base, cohort.stack, engine)
        return cohort.sample(runner.prompts, decoding, {name: i for i, name in enumerate(runner.prompts)})


def _compared(expected: Drawn, actual: Drawn) -> tuple[float, float]:
    """Share of responses with equal tokens; largest difference of a log-prob up to the first token that differs."""
    equal = total = 0
    gap = 0.0
    for client, groups in expected.items():
        for group, other in zip(groups, actual[client], strict=True):
            for a, b in zip(group, other, strict=True):
                pairs = zip(a.token_ids, b.token_ids, a.logps, b.logps, strict=True)
                whole = True
                for token, other_token, logp, other_logp in pairs:
                    if token != other_token:
                        whole = False
                        break
                    gap = max(gap, abs(logp - other_logp))
                equal, total = equal + whole, total + 1
    return equal / total, gap


def _learn(runner: Runner, drawn: Drawn) -> tuple[Mapping[str, StepStats], list[Tensor]]:
    """Losses by client, and the gradients of all factors, on the CPU."""
    sampling = SamplingConfig(group_size=CASE.responses, max_new_tokens=CASE.new_tokens)
    runner.cohort.begin_training(TrainConfig(kl_beta=0.05, max_grad_norm=1e6), sampling)
    copies = {name: [[replace(r) for r in group] for group in client] for name, client in drawn.items()}
    groups = runner.groups(copies)
    stats = runner.cohort.learn(groups, dict.fromkeys(groups, 0.0))
    parameters = runner.cohort.stack.parameters()
    return stats, [(p.grad if p.grad is not None else torch.zeros_like(p)).float().cpu() for p in parameters]


def _gradient_gap(expected: list[Tensor], actual: list[Tensor], client: int) -> float:
    """Norm of the difference of a client's gradients by the norm of the expected one."""
    square = sum(float((a[client] - b[client]).double().square().sum()) for a, b in zip(expected, actual, strict=True))
    return (square / sum(float(a[client].double().square().sum()) for a in expected)) ** 0.5
