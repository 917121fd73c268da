"""Which attention kernels ran in sampling and in training, which ones could, and what else a device spent its time on.

The profiler counts the operators that torch's `scaled_dot_product_attention` chose. Beside that each of its backends is
asked for the two calls of the training pass at the shape of E2: prompts with a causal mask, and responses with an
additive mask, as they are and with the grouped heads repeated. A backend that refuses is written down as such.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_report import CUDA, Report
from benchmarks.gpu_speed import Runner, best_dtype, cases, seconds

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
MOST = 12
"""Kernels that are listed, those that took longest."""


def attention(report: Report) -> None:
    """Profile a few decode steps and a training step at the shape of E2; then ask each backend."""
    case = next(case for case in cases(report.tiny) if case.name == "E2")
    runner = Runner(case, report.device)
    runner.seat(list(runner.adapters))
    drawn: dict[str, Any] = {}
    for way in ("growing", "static"):
        runner.sample(way, 4)
        report.put("ran", f"sampling, {way}", value=_profiled(lambda way=way: runner.sample(way, 4), report))  # type: ignore[misc]
    drawn.update(runner.sample("growing"))
    runner.learn(drawn)
    report.put("ran", "training", value=_profiled(lambda: runner.learn(drawn), report))
    shape = case.shape
    heads, kv = shape["num_attention_heads"], shape["num_key_value_heads"]
    size = shape["hidden_size"] // heads
    prompts = case.clients * case.problems
    responses, prompt, tokens = prompts * case.responses, max(runner.prompt_tokens), case.new_tokens
    calls: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool, bool]] = {
        "prompts, causal": ((prompts, heads, prompt, size), (prompts, kv, prompt, size), True, False),
        "responses, masked": ((responses, heads, tokens, size), (responses, kv, prompt + tokens, size), False, True),
        "responses, masked, heads repeated": (
            (responses, heads, tokens, size),
            (responses, heads, prompt + tokens, size),
            False,
            True,
        ),
        "responses against their prompts, no mask": (
            (prompts, heads, case.responses * tokens, size),
            (prompts, kv, prompt, size),
            False,
            False,
        ),
        "responses against themselves, causal": (
            (responses, heads, tokens, size),
            (responses, kv, tokens, size),
            True,
            False,
        ),
    }
    for call, arguments in calls.items():
        for name, backend in BACKENDS.items():
            report.put("could", call, name, value=_tried(backend, *arguments, report=report))


def _profiled(work: Callable[[], Any], report: Report) -> dict[str, Any]:
    """Attention operators with their counts, and the kernels that took longest, in ms."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if report.device.type == CUDA:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        seconds(work, report.device)
    events = profile.key_averages()
    operators = {
        event.key: int(event.count)
        for event in events
        if event.key.startswith("aten::_scaled_dot_product") or event.key in ("aten::_flash_attention_forward",)
    }
    # `scaled_dot_product_attention` that chose no fused kernel and no named one computed the plain formula.
    on_gpu = report.device.type == CUDA

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3

    longest = sorted(events, key=spent, reverse=True)[:MOST]
    return {"operators": operators, "longest": [[e.key[:90], int(e.count), round(spent(e), 3)] for e in longest]}


def _tried(
    backend: SDPBackend,
    query: tuple[int, ...],
    key: tuple[int, ...],
    causal: bool,
    masked: bool,
    *,
    report: Report,
) -> dict[str, Any]:
    """Milliseconds of a forward and a backward pass, the better of two, and a GPU's peak memory; or why it refuses."""
    device, dtype = report.device, best_dtype(report.device)
    q = torch.randn(query, device=device, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(key, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.zeros(query[0], 1, query[2], key[2], device=device, dtype=dtype) if masked else None

    def passes() -> None:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=query[1] != key[1])
        out.sum().backward()

    try:
        with sdpa_kernel([backend]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            passes()
            if device.type == CUDA:
                torch.cuda.reset_peak_memory_stats(device)
            took = min(seconds(passes, device) for _ in range(2))
    except RuntimeError as error:
        return {"refuses": (str(error).splitlines() or [""])[0][:120]}
    peak = torch.cuda.max_memory_allocated(device) if device.type == CUDA else None
    return {"ms": took * 1e3, "peak bytes": peak}
