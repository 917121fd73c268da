"""Behaviour of a trained policy on single problems, against the base model: the evidence of attacks on membership.

With N responses y ~ pi of the trained policy to a problem, and N responses of the base model pi_0 with the same random
numbers:

    gain       mean reward of the trained policy minus mean reward of the base model
    drift      mean over the tokens of y of  r - ln r - 1  with  r = pi_0(token) / pi(token): estimates KL(pi, pi_0)
    loss       mean of -ln pi(token) over the tokens of the prompt and its gold answer
    loss_drop  the base model's loss minus that one

Gain and drift are the two axes of DIBA (arXiv 2511.14045). Ours differs: (1) drift is this estimate of the KL
divergence alone, where the paper has several features of the log-probs; (2) the two are added after standardisation
(membership.py), where the paper trains a classifier on shadow models, so that no shadow model is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from fedrlvr.adapter import Adapter
from fedrlvr.config import SamplingConfig, TrainConfig
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import Response
from fedrlvr.rl.loss import k3
from fedrlvr.tasks.problem import Problem

BASE = "base"
"""Row of the base model in the cohort."""
Grade = Callable[[Problem, Sequence[str], Sequence[bool]], list[float]]
"""(problem, texts, whether each ended by itself) -> rewards."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Evidence on one problem, as the module's description says."""

    gain: float
    drift: float
    loss: float
    loss_drop: float


def behaviours(
    cohort: Cohort,
    adapters: Mapping[str, Adapter],
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    grade: Grade,
    decoding: Decoding,
    seed: int,
) -> dict[str, list[Behaviour]]:
    """The behaviour of each adapter on each problem, by the adapter's name.

    prompts: token ids of the problems, in order.

    Raises:
        DataError, GradingError, MemoryLimitError: as sampling and grading say.
    """
    rows = [BASE, *adapters]
    cohort.seat({BASE: cohort.fresh_adapter(0), **adapters})
    cohort.begin_training(TrainConfig(), SamplingConfig(temperature=decoding.temperature))
    drawn = cohort.sample(dict.fromkeys(rows, prompts), decoding, dict.fromkeys(rows, seed))
    texts = [[*ids, *cohort.base.encode_response(p.answer)] for ids, p in zip(prompts, problems, strict=True)]
    rewards = {row: [_reward(grade, *of) for of in zip(problems, drawn[row], strict=True)] for row in rows}
    losses = {row: [cohort.text_loss(row, [text]) for text in texts] for row in rows}
    result = {}
    for row in adapters:
        drifts = _drifts(cohort, prompts, drawn[row])
        result[row] = [
            Behaviour(rewards[row][i] - rewards[BASE][i], drifts[i], losses[row][i], losses[BASE][i] - losses[row][i])
            for i in range(len(problems))
        ]
    return result


def _reward(grade: Grade, problem: Problem, responses: Sequence[Response]) -> float:
    return fmean(grade(problem, [r.text for r in responses], [r.finished for r in responses]))


def _drifts(cohort: Cohort, prompts: Sequence[Sequence[int]], drawn: Sequence[Sequence[Response]]) -> list[float]:
    """Mean of k3 over the tokens of each problem's responses, against the base model; 0 without a token."""
    copies = [[replace(response) for response in group] for group in drawn]
    nothing: dict[str, list[list[Response]]] = {row: [] for row in cohort.clients}
    cohort.rescore({BASE: prompts}, {**nothing, BASE: copies})
    drifts = []
    for group, of_base in zip(drawn, copies, strict=True):
        pairs = [(r, b) for r, b in zip(group, of_base, strict=True) if r.token_ids]
        tokens = [
            k3(torch.tensor(r.logps).unsqueeze(0), torch.tensor(b.logps).unsqueeze(0)).flatten() for r, b in pairs
        ]
        drifts.append(float(torch.cat(tokens).mean()) if tokens else 0.0)
    return drifts
