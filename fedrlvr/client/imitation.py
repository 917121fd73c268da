"""Supervised local steps: the policy learns to write given responses, which is the start of reinforcement learning.

A step differs from one of reinforcement learning in the responses alone: they are given, each has advantage 1, and the
loss is `cross_entropy` (rl/loss.py), at temperature 1. Messages, optimizer, memory, aggregation and checkpoints are the
same. The responses are the data set's own, or correct ones of the base model (rejection sampling, as RFT,
arXiv 2308.01825, does it):

1. The base model draws them anew whenever a problem is drawn, so that no file has to keep them.
2. Equal responses to a problem count once, and responses that were cut at the length limit do not count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fedrlvr.client.local_training import LocalTraining
from fedrlvr.client.request import ClientRequest
from fedrlvr.config import DemonstrationsSupervision, SamplingConfig, TrainConfig
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import CORRECT, Group, Response
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Question

Prompts = Mapping[str, Sequence[Sequence[int]]]


class ImitationTraining(LocalTraining):
    """Trains the clients of one batch on given responses."""

    def _sampling_of_loss(self) -> SamplingConfig:
        return self.asked.sampling.model_copy(update={"temperature": 1.0})

    def _local_step(self) -> None:
        """One local step of every client: draw problems, take their responses, learn."""
        cohort, requests, memory = self.cohort, self.learners, self.memory
        section = self.asked.supervision
        assert isinstance(section, DemonstrationsSupervision)
        started = time.perf_counter()
        count = self.asked.train.problems_per_step
        problems = {
            row: request.data.draw(memory[row].cursor, count, request.asked.seed) for row, request in requests.items()
        }
        prompts = {row: request.encode(cohort.base, problems[row]) for row, request in requests.items()}
        samples = section.responses == "own"
        groups = self._own(problems, prompts) if samples else self._given(problems, prompts)
        sampled = time.perf_counter()
        groups |= {row: [] for row in self.requests if row not in requests}
        stats = cohort.learn(groups, self._rates())
        learned = time.perf_counter()
        for row in requests:
            numbers = memory[row].metrics
            numbers.imitated(stats[row])
            memory[row].updates += 1
            memory[row].cursor += count
            memory[row].steps += 1
            memory[row].round_steps += 1
            if not samples:
                numbers.last_tokens = stats[row].ratios.tokens
            numbers.took(sample=(sampled - started) / len(requests), train=(learned - sampled) / len(requests))
        self._observe(rewarded=samples)

    def _given(self, problems: Mapping[str, Sequence[Question]], prompts: Prompts) -> dict[str, list[Group]]:
        """The groups of the data set's own responses."""
        groups: dict[str, list[Group]] = {}
        for row, request in self.learners.items():
            texts = [request.data.answers.demonstration(question) for question in problems[row]]
            groups[row] = [
                _imitated(question, prompt_ids, [given_response(self.cohort, text)])
                for question, prompt_ids, text in zip(problems[row], prompts[row], texts, strict=True)
            ]
        return groups

    def _own(self, problems: Mapping[str, Sequence[Question]], prompts: Prompts) -> dict[str, list[Group]]:
        """The groups of the base model's correct responses, of which a problem may have none."""
        cohort, memory = self.cohort, self.memory
        seeds = {
            row: stream(request.seed, request.client.name, "sample", request.asked.round, memory[row].round_steps)
            for row, request in self.learners.items()
        }
        with cohort.stack.off():
            drawn = cohort.sample(prompts, Decoding.of(self.asked.sampling), seeds)
        first = memory[next(iter(self.learners))].round_steps == 0
        if first:
            self.notes.sampled(drawn)
        groups: dict[str, list[Group]] = {}
        for row in self.learners:
            every = [Group(*parts) for parts in zip(problems[row], prompts[row], drawn[row], strict=True)]
            self.supervising.supervise(row, every, None)
            self.notes.supervised(row, every, self.supervising)
            memory[row].metrics.sampled(every)
            groups[row] = [_imitated(group.problem.question, group.prompt_ids, _correct(group)) for group in every]
        return groups


def given_response(cohort: Cohort, text: str) -> Response:
    """A text as a response of the policy, without log-probs."""
    return Response(cohort.base.encode_response(text), [], text, finished=True)


def _imitated(question: Question, prompt_ids: Sequence[int], responses: list[Response]) -> Group:
    return Group(question, prompt_ids, responses, advantages=[1.0] * len(responses))


def _correct(group: Group) -> list[Response]:
    """The group's correct responses that ended by themselves, each text once."""
    kept: dict[tuple[int, ...], Response] = {}
    for response in group.responses:
        if response.finished and (response.reward or 0.0) >= CORRECT:
            kept.setdefault(tuple(response.token_ids), response)
    return list(kept.values())


def held_out_losses(cohort: Cohort, requests: Mapping[str, ClientRequest], split: str) -> dict[str, float]:
    """The mean cross entropy per token of the responses of each client's held-out problems, by row of the cohort.

    Responses of more than sampling.max_new_tokens tokens are left out, and clients without any. The adapters that are
    seated stay as they are.
    """
    prompts: dict[str, list[list[int]]] = {}
    given: dict[str, list[list[Response]]] = {}
    for row, request in requests.items():
        pairs = [(p, given_response(cohort, p.response)) for p in request.data.split(split) if p.response]
        pairs = [(p, r) for p, r in pairs if len(r.token_ids) <= request.asked.sampling.max_new_tokens]
        prompts[row] = request.encode(cohort.base, [problem for problem, _ in pairs])
        given[row] = [[response] for _, response in pairs]
    if not any(given.values()):
        return {}
    cohort.begin_training(TrainConfig(), SamplingConfig())
    cohort.rescore(prompts, given)
    logps = {row: [logp for (response,) in of_client for logp in response.logps] for row, of_client in given.items()}
    return {row: -sum(of_client) / len(of_client) for row, of_client in logps.items() if of_client}
