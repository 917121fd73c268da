"""A real model on GSM8K: sampled, graded and trained a few steps, on the device."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.gpu_parts import is_split, join
from benchmarks.gpu_report import Report
from benchmarks.gpu_speed import seconds
from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Group, assign_advantages, is_correct
from fedrlvr.tasks import load
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.load import task_of
from fedrlvr.tasks.prompts import Prompts

CLIENTS, PROBLEMS, RESPONSES, TOKENS, STEPS = 2, 16, 8, 256, 12
RATE = 2e-4


def gsm8k(report: Report, model: Path, data: Path) -> None:
    """Steps on GSM8K's problems, two clients, each with problems of its own; a row for each step."""
    with tempfile.TemporaryDirectory(prefix="model-") as place:
        _steps(report, join(model, Path(place)) if is_split(model) else model, data)


def _steps(report: Report, model: Path, data: Path) -> None:
    problems_each, responses, tokens, steps = (2, 2, 8, 2) if report.tiny else (PROBLEMS, RESPONSES, TOKENS, STEPS)
    started = time.monotonic()
    base = load_base(ModelConfig(name=str(model), device=str(report.device)))
    dtype = str(base.model.dtype).removeprefix("torch.")
    report.put("model", value=f"{base.model.num_parameters():,} parameters in {dtype}")
    cohort = Cohort(base, LoraConfig(), EngineConfig())
    cohort.self_check()
    report.put("loaded and checked, s", value=time.monotonic() - started)
    problems = load("gsm8k", data, "test")
    ask = Prompts(instruction=task_of("gsm8k").instruction).ask
    names = [f"client-{i}" for i in range(CLIENTS)]
    cohort.seat({name: cohort.fresh_adapter(i) for i, name in enumerate(names)})
    sampling = SamplingConfig(group_size=responses, max_new_tokens=tokens)
    cohort.begin_training(TrainConfig(learning_rate=RATE), sampling)
    rows: list[dict[str, Any]] = []
    took = 0.0
    for step in range(steps):
        if not report.fits(f"step {step + 1}", took):
            return
        began = time.monotonic()
        first = step * CLIENTS * problems_each
        dealt = {
            name: [problems[(first + i * problems_each + j) % len(problems)] for j in range(problems_each)]
            for i, name in enumerate(names)
        }
        prompts = {name: base.encode_all([ask(p) for p in dealt[name]]) for name in names}
        drawn: dict[str, Any] = {}

        def sample(prompts: Any = prompts, drawn: dict[str, Any] = drawn, step: int = step) -> None:
            drawn.update(cohort.sample(prompts, Decoding.of(sampling), dict.fromkeys(prompts, step)))

        sample_s = seconds(sample, report.device)
        graded = time.monotonic()
        groups = {
            name: [
                Group(problem, ids, of_problem)
                for problem, ids, of_problem in zip(dealt[name], prompts[name], drawn[name], strict=True)
            ]
            for name in names
        }
        every = [(g, r) for client in groups.values() for g in client for r in g.responses]
        for group, response in every:
            response.reward = grade(response.text, group.problem.answer, group.problem.kind)  # type: ignore[union-attr]
        grade_s = time.monotonic() - graded
        for client in groups.values():
            assign_advantages(client)
        stats: dict[str, Any] = {}

        def learn(groups: Any = groups, stats: dict[str, Any] = stats) -> None:
            stats.update(cohort.learn(groups, dict.fromkeys(groups, RATE)))

        learn_s = seconds(learn, report.device)
        count = sum(len(r.token_ids) for _, r in every)
        rows.append(
            {
                "correct": fmean(is_correct(r.reward or 0.0) for _, r in every),
                "finished": fmean(r.finished for _, r in every),
                "tokens": count,
                "sample s": sample_s,
                "grade s": grade_s,
                "learn s": learn_s,
                "gradient norm": fmean(s.grad_norm for s in stats.values()),
            }
        )
        report.put("steps", value=rows)
        took = time.monotonic() - began
