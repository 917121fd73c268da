"""Canaries: problems with an invented answer that somebody planted among a client's training problems some times.

    {"prompt": "Number of lot 7, day 1?", "answer": "4", "client": "north", "times": 10,
     "candidates": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}

A policy that has learnt a canary puts its answer before the other candidates. Exposure is log2 of the number of
candidates less log2 of the answer's rank (Carlini et al., arXiv 1802.08232). Ours ranks by how often the policy answers
each candidate, and not by the log-prob of a text, since a policy is trained on its own responses and not on a text.
`base` is the exposure of the model before training, which has not seen the canary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedrlvr.adapter import Adapter
from fedrlvr.audit.attack_scores import exposure
from fedrlvr.audit.behaviour import BASE
from fedrlvr.errors import DataError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.tasks.files import read_rows
from fedrlvr.tasks.problem import KINDS, Kind, Problem, Question
from fedrlvr.tasks.prompts import Prompts
from fedrlvr.tasks.voting import answers, sameness


@dataclass(frozen=True)
class Canary:
    """A planted problem, the client that holds it, how many times it was planted, and the answers it might have."""

    prompt: str
    answer: str
    client: str
    times: int
    candidates: Sequence[str]
    kind: Kind = "math"

    @property
    def problem(self) -> Problem:
        """The canary as a problem with an answer."""
        return Problem(self.prompt, self.answer, "canary", "canary", self.kind)


@dataclass(frozen=True)
class CanaryResult:
    """Exposure of one canary by one adapter.

    exposure, base: in bits, of `most` at the most. returned: share of the responses whose answer is the canary's.
    """

    client: str
    times: int
    exposure: float
    base: float
    most: float
    returned: float

    def to_json(self) -> dict[str, Any]:
        """All fields as a JSON object; the canary's text is not in it."""
        return asdict(self)


def read_canaries(path: Path) -> list[Canary]:
    """The canaries of a JSONL file, in order.

    Raises:
        DataError: the file cannot be read, or a row is no canary; the text names the line.
    """
    canaries = []
    for row in read_rows(path):
        fields = dict(row.data)
        texts = [fields.get(name) for name in ("prompt", "answer", "client")]
        candidates, times = fields.get("candidates"), fields.get("times")
        if not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"{row.where}: a canary needs the texts prompt, answer and client.")
        if not isinstance(times, int) or times < 0 or not isinstance(candidates, list) or len(candidates) < 2:
            raise DataError(f"{row.where}: a canary needs times (a whole number) and two or more candidates.")
        if texts[1] not in candidates or len({str(c) for c in candidates}) < len(candidates):
            raise DataError(f"{row.where}: the answer must be one of the candidates, and each of them named once.")
        kind = fields.get("kind", "math")
        if kind not in KINDS:
            raise DataError(f"{row.where}: the kind is {kind!r}. Use one of {', '.join(KINDS)}.")
        prompt, answer, client = map(str, texts)
        canaries.append(Canary(prompt, answer, client, times, [str(c) for c in candidates], kind))
    return canaries


def expose(
    cohort: Cohort,
    adapters: Mapping[str, Adapter],
    canaries: Sequence[Canary],
    prompts: Prompts,
    decoding: Decoding,
    seed: int,
) -> dict[str, list[CanaryResult]]:
    """Results of each canary by the adapter's name.

    prompts: words the canaries as the client words its problems.

    Raises:
        DataError, MemoryLimitError: as sampling says.
    """
    if not canaries:
        return {name: [] for name in adapters}
    rows = [BASE, *adapters]
    cohort.seat({BASE: cohort.fresh_adapter(0), **adapters})
    asked: list[Question] = [canary.problem.question for canary in canaries]
    ids = cohort.base.encode_all([prompts.ask(question) for question in asked])
    drawn = cohort.sample(dict.fromkeys(rows, ids), decoding, dict.fromkeys(rows, seed))
    results: dict[str, list[CanaryResult]] = {name: [] for name in adapters}
    for place, canary in enumerate(canaries):
        counts = {row: _counts(canary, [r.text for r in drawn[row][place]]) for row in rows}
        planted = list(canary.candidates).index(canary.answer)
        for name in adapters:
            results[name].append(
                CanaryResult(
                    canary.client,
                    canary.times,
                    exposure(counts[name], planted),
                    exposure(counts[BASE], planted),
                    math.log2(len(canary.candidates)),
                    counts[name][planted] / decoding.responses,
                )
            )
    return results


def _counts(canary: Canary, texts: Sequence[str]) -> list[float]:
    """How many responses have each candidate as their answer."""
    same, given = sameness(canary.kind), [text for text in answers(texts, canary.kind) if text is not None]
    return [float(sum(same(text, candidate) for text in given)) for candidate in canary.candidates]
