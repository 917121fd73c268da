"""Client code: what an organisation does with the messages it gets, written for a cohort of K.

A deployed organisation is a cohort of one; a simulation hands over everybody's messages at once. What a client must
remember between messages (cursor, steps done, optimizer moments, its own adapter in the arm `local`) lives in Flower's
`context.state` and never in a message.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.errors import GradingError, MessageError
from fedrlvr.federation.messages import (
    ARRAYS,
    METRICS,
    EvaluateRequest,
    Request,
    SourceScores,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    metrics_record,
    read_request,
    scores_content,
)
from fedrlvr.federation.stepmetrics import CORRECT, StepMetrics
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.optimizer import learning_rate
from fedrlvr.policy.sampler import Decoding
from fedrlvr.reporting.observer import Observer
from fedrlvr.rl import Group, Response, assign_advantages
from fedrlvr.seeds import stream
from fedrlvr.supervision import Supervision, TrueLabels
from fedrlvr.tasks.problem import Problem

MEMORY, MOMENTS, OWN_ADAPTER = "fedrlvr", "fedrlvr.moments", "fedrlvr.adapter"


@dataclass(frozen=True)
class Site:
    """One organisation's own: its problems and its grader. Never leaves its machine.

    reward: (completion, problem) -> the true reward.
    instruction: appended to every prompt.
    """

    name: str
    train: Sequence[Problem]
    test: Sequence[Problem]
    reward: Callable[[str, Problem], float]
    instruction: str = ""

    def grade(self, problem: Problem, completions: Sequence[str]) -> list[float]:
        """The site's ledger of true labels (supervision's `Ledger`).

        Raises:
            GradingError: the reward fails; the text names the client.
        """
        try:
            return [self.reward(completion, problem) for completion in completions]
        except GradingError as error:
            raise GradingError(f"{self.name}: {error}") from (error.__cause__ or error)

    def draw(self, cursor: int, count: int, seed: int) -> list[Problem]:
        """The next `count` training problems after `cursor` draws: seeded permutations, one after another."""
        drawn: list[Problem] = []
        while len(drawn) < count:
            epoch, index = divmod(cursor + len(drawn), len(self.train))
            order = list(self.train)
            random.Random(stream(seed, self.name, "epoch", epoch)).shuffle(order)
            drawn.extend(order[index : index + count - len(drawn)])
        return drawn


class CohortApp:
    """Answers `train` and `evaluate` messages for the sites of this process, all of one kind at once.

    sites: by Flower node id.
    initial: the adapter a client without one starts from; others are checked against its names and shapes.
    """

    def __init__(self, cohort: Cohort, sites: Mapping[int, Site], initial: Adapter, observer: Observer) -> None:
        self.cohort = cohort
        self.sites = sites
        self.initial = initial
        self.observer = observer

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """One reply per message, in order. Messages that ask the same are computed together.

        Raises:
            MessageError: a message this client does not know, or cannot read.
        """
        replies: dict[int, Message] = {}
        batches: dict[TrainRequest | EvaluateRequest, list[int]] = {}
        for i, message in enumerate(messages):
            kinds: dict[str, type[TrainRequest] | type[EvaluateRequest]] = {
                "train": TrainRequest,
                "evaluate": EvaluateRequest,
            }
            kind = kinds.get(message.metadata.message_type)
            if kind is None:
                raise MessageError(f"this client does not answer messages of type {message.metadata.message_type!r}")
            batches.setdefault(read_request(message, kind), []).append(i)
        for request, indices in batches.items():
            mine = [messages[i] for i in indices]
            theirs = {self.sites[m.metadata.dst_node_id].name: contexts[i] for i, m in zip(indices, mine, strict=True)}
            if isinstance(request, TrainRequest):
                answers = self._train(request, mine, theirs)
            else:
                answers = self._evaluate(request, mine, theirs)
            for i, answer in zip(indices, answers, strict=True):
                replies[i] = Message(answer, reply_to=messages[i])
        return [replies[i] for i in range(len(messages))]

    def _seat(self, request: Request, messages: Sequence[Message], contexts: Mapping[str, Context]) -> dict[str, Site]:
        sites = {self.sites[m.metadata.dst_node_id].name: self.sites[m.metadata.dst_node_id] for m in messages}
        adapters = {}
        for message, name in zip(messages, sites, strict=True):
            if request.own_adapter:
                arrays = contexts[name].state.get(OWN_ADAPTER)
            else:
                arrays = message.content.array_records.get(ARRAYS)
                if arrays is None:
                    raise MessageError(f"{name}: round {request.round}: a request without an adapter")
            adapters[name] = (
                arrays_to_adapter(arrays, self.initial, whose=f"the adapter sent to {name} in round {request.round}")
                if isinstance(arrays, ArrayRecord)
                else self.initial
            )
        self.cohort.seat(adapters)
        return sites

    def _train(
        self, request: TrainRequest, messages: Sequence[Message], contexts: Mapping[str, Context]
    ) -> list[RecordDict]:
        sites = self._seat(request, messages, contexts)
        keep = request.train.optimizer_state == "keep"
        moments = {n: _load_moments(contexts[n]) for n in sites if keep and MOMENTS in contexts[n].state}
        self.cohort.begin_training(request.train, request.sampling, moments)
        supervision = TrueLabels()
        metrics = {name: StepMetrics() for name in sites}
        memory = {name: _Memory.of(contexts[name]) for name in sites}
        for step in range(request.steps):
            self._local_step(request, step, sites, memory, supervision, metrics)
        answers = []
        adapters = self.cohort.adapters()
        all_moments = self.cohort.moments() if keep else {}
        for name, site in sites.items():
            memory[name].store(contexts[name])
            if keep:
                contexts[name].state[MOMENTS] = ArrayRecord(all_moments[name])
            numbers = {"num-examples": len(site.train), **metrics[name].summary()}
            answer = RecordDict({METRICS: metrics_record(numbers)})
            arrays = adapter_to_arrays(adapters[name])
            if request.own_adapter:
                contexts[name].state[OWN_ADAPTER] = arrays
            else:
                answer[ARRAYS] = arrays
            answers.append(answer)
        return answers

    def _local_step(
        self,
        request: TrainRequest,
        step: int,
        sites: Mapping[str, Site],
        memory: Mapping[str, _Memory],
        supervision: Supervision,
        metrics: Mapping[str, StepMetrics],
    ) -> None:
        """One local step of every client: draw, sample, grade and supervise, learn."""
        started = time.perf_counter()
        count = request.train.problems_per_step
        problems = {n: s.draw(memory[n].cursor, count, request.seed) for n, s in sites.items()}
        prompts = {n: [self.cohort.base.encode(p.prompt, sites[n].instruction) for p in problems[n]] for n in sites}
        seeds = {n: stream(request.seed, n, "sample", request.round, step) for n in sites}
        drawn = self.cohort.sample(prompts, Decoding.of(request.sampling), seeds)
        sampled = time.perf_counter()
        groups = {
            n: [
                self._group(sites[n], supervision, *item)
                for item in zip(problems[n], prompts[n], drawn[n], strict=True)
            ]
            for n in sites
        }
        for name in sites:
            assign_advantages(groups[name], scale_by_std=request.train.scale_by_std)
        graded = time.perf_counter()
        if step + 1 == request.steps:
            for name, value in self.cohort.kl_to_base(groups).items():
                metrics[name].kl = value
        rates = {n: learning_rate(request.train, memory[n].steps) for n in sites}
        for _ in range(request.train.updates_per_batch):
            stats = self.cohort.learn(groups, rates)
            for name in sites:
                metrics[name].learned(stats[name])
        learned = time.perf_counter()
        for name in sites:
            memory[name].cursor += count
            memory[name].steps += 1
            metrics[name].sampled(groups[name])
            # A cohort's time is everybody's: each client is told its equal share.
            metrics[name].took(
                sample=(sampled - started) / len(sites),
                grade=(graded - sampled) / len(sites),
                train=(learned - graded) / len(sites),
            )
        self.observer.step(
            request.round,
            step + 1,
            request.steps,
            {name: metrics[name].last_reward for name in sites},
            sum(metrics[name].last_tokens for name in sites),
        )

    def _group(
        self,
        site: Site,
        supervision: Supervision,
        problem: Problem,
        prompt_ids: Sequence[int],
        responses: list[Response],
    ) -> Group:
        group = Group(problem, prompt_ids, responses)
        verdict = supervision.supervise(group, site)
        for response, reward in zip(responses, verdict.rewards, strict=True):
            response.reward = reward
        group.multiplier = verdict.multiplier
        return group

    def _evaluate(
        self, request: EvaluateRequest, messages: Sequence[Message], contexts: Mapping[str, Context]
    ) -> list[RecordDict]:
        started = time.perf_counter()
        sites = self._seat(request, messages, contexts)
        decoding = Decoding(
            responses=request.evaluate.samples,
            max_new_tokens=request.sampling.max_new_tokens,
            temperature=request.evaluate.temperature,
        )
        prompts = {n: [self.cohort.base.encode(p.prompt, s.instruction) for p in s.test] for n, s in sites.items()}
        # One stream for every evaluation: before and after are compared on the same random numbers.
        seeds = {n: stream(request.seed, n, "evaluate") for n in sites}
        drawn = self.cohort.sample(prompts, decoding, seeds)
        scores = {name: _scores(site, drawn[name]) for name, site in sites.items()}
        seconds = (time.perf_counter() - started) / len(sites)
        self.observer.evaluated(request.round, sum(len(site.test) for site in sites.values()))
        return [
            scores_content(scores[n], {"num-examples": len(s.test), "seconds_evaluate": seconds})
            for n, s in sites.items()
        ]


@dataclass
class _Memory:
    """What a client remembers of its own past: problems drawn and local steps done."""

    cursor: int = 0
    steps: int = 0

    @staticmethod
    def of(context: Context) -> _Memory:
        record = context.state.get(MEMORY)
        if not isinstance(record, ConfigRecord):
            return _Memory()
        return _Memory(cursor=int(record["cursor"]), steps=int(record["steps"]))  # type: ignore[arg-type]

    def store(self, context: Context) -> None:
        context.state[MEMORY] = ConfigRecord({"cursor": self.cursor, "steps": self.steps})


def _load_moments(context: Context) -> dict[str, torch.Tensor]:
    record = context.state[MOMENTS]
    assert isinstance(record, ArrayRecord)
    return dict(record.to_torch_state_dict())


def _scores(site: Site, drawn: Sequence[Sequence[Response]]) -> list[SourceScores]:
    """Pass rates of the held-out problems, summed by source."""
    rates: dict[str, list[float]] = {}
    for problem, responses in zip(site.test, drawn, strict=True):
        right = [reward >= CORRECT for reward in site.grade(problem, [response.text for response in responses])]
        rates.setdefault(problem.source, []).append(sum(right) / len(right))
    return [
        SourceScores(source=source, n=len(rs), total=sum(rs), squares=sum(r * r for r in rs))
        for source, rs in sorted(rates.items())
    ]
