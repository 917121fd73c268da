"""Client code: what an organisation does with the messages it gets, written for a cohort of K.

A deployed organisation is a cohort of one; a simulation hands over everybody's messages at once, and a sweep those of
several federations, which share a cohort and nothing else. What a client must remember between messages (cursor, steps
done, optimizer moments, its own adapter in the arm `local`) lives in Flower's `context.state` and never in a message.
"""

from __future__ import annotations

import random
import time
from collections import Counter
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


@dataclass(frozen=True, eq=False)
class Asked:
    """A message at its client: what is asked, and of whom.

    app: the client code of the client's federation.
    context: the client's own memory.
    """

    app: CohortApp
    message: Message
    context: Context
    request: TrainRequest | EvaluateRequest

    @property
    def site(self) -> Site:
        """Who is asked."""
        return self.app.sites[self.message.metadata.dst_node_id]

    @property
    def row(self) -> str:
        """The client's name in the cohort, where clients of several federations may sit."""
        return f"{self.app.federation}/{self.site.name}" if self.app.federation else self.site.name


def batches(asked: Sequence[Asked], *, together: bool = True) -> list[list[Asked]]:
    """What can be computed at once: messages that ask the same of different clients, whatever their seeds and rounds.

    together: off makes batches of one, in order.
    """
    if not together:
        return [[one] for one in asked]
    found: dict[tuple[Request, int], list[Asked]] = {}
    before: Counter[tuple[Request, str]] = Counter()
    for one in asked:
        # Each client's own round, seed and adapter are its row's; nothing else may differ within a batch.
        same = one.request.model_copy(update={"round": 0, "seed": 0, "own_adapter": False})
        found.setdefault((same, before[same, one.row]), []).append(one)
        before[same, one.row] += 1
    return list(found.values())


class CohortApp:
    """Answers `train` and `evaluate` messages for one federation's sites in this process, all of one kind at once.

    sites: by Flower node id.
    initial: the adapter a client without one starts from; others are checked against its names and shapes.
    federation: tells its clients from those of other federations on the same cohort; "" if there are none.
    """

    def __init__(
        self, cohort: Cohort, sites: Mapping[int, Site], initial: Adapter, observer: Observer, federation: str = ""
    ) -> None:
        self.cohort = cohort
        self.sites = sites
        self.initial = initial
        self.observer = observer
        self.federation = federation

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """One reply per message, in order. Messages that ask the same are computed together.

        Raises:
            MessageError: a message this client does not know, or cannot read.
        """
        asked = self.read(messages, contexts)
        replies: dict[Asked, Message] = {}
        for batch in batches(asked, together=self.cohort.engine.cohort):
            replies.update(zip(batch, self.compute(batch), strict=True))
        return [replies[one] for one in asked]

    def read(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Asked]:
        """What these messages ask.

        Raises:
            MessageError: as `__call__`.
        """
        kinds: dict[str, type[TrainRequest] | type[EvaluateRequest]] = {
            "train": TrainRequest,
            "evaluate": EvaluateRequest,
        }
        asked = []
        for message, context in zip(messages, contexts, strict=True):
            kind = kinds.get(message.metadata.message_type)
            if kind is None:
                raise MessageError(f"this client does not answer messages of type {message.metadata.message_type!r}")
            asked.append(Asked(self, message, context, read_request(message, kind)))
        return asked

    def compute(self, batch: Sequence[Asked]) -> list[Message]:
        """Replies to one batch of `batches`, which may hold messages of other federations on the same cohort.

        A client's memory changes only after everything was computed, so a batch that fails can be computed again.
        """
        clients = {one.row: one for one in batch}
        request = batch[0].request
        if isinstance(request, TrainRequest):
            answers = self._train(request, clients)
        else:
            answers = self._evaluate(request, clients)
        return [Message(answer, reply_to=one.message) for one, answer in zip(batch, answers, strict=True)]

    def _seat(self, clients: Mapping[str, Asked]) -> None:
        adapters: dict[str, Adapter] = {}
        decoded: dict[tuple[bytes, ...], Adapter] = {}  # all clients of a federation are sent the same one
        for row, one in clients.items():
            name, round_ = one.site.name, one.request.round
            if one.request.own_adapter:
                arrays = one.context.state.get(OWN_ADAPTER)
            else:
                arrays = one.message.content.array_records.get(ARRAYS)
                if arrays is None:
                    raise MessageError(f"{name}: round {round_}: a request without an adapter")
            if not isinstance(arrays, ArrayRecord):
                adapters[row] = one.app.initial
                continue
            content = (*(key.encode() for key in arrays), *(array.data for array in arrays.values()))
            if content not in decoded:
                whose = f"the adapter sent to {name} in round {round_}"
                decoded[content] = arrays_to_adapter(arrays, one.app.initial, whose=whose)
            adapters[row] = decoded[content]
        self.cohort.seat(adapters)

    def _train(self, request: TrainRequest, clients: Mapping[str, Asked]) -> list[RecordDict]:
        """request: stands for all in what a batch has in common; round, seed and adapter are each client's own."""
        self._seat(clients)
        keep = request.train.optimizer_state == "keep"
        kept = {row: one.context for row, one in clients.items() if keep and MOMENTS in one.context.state}
        self.cohort.begin_training(
            request.train, request.sampling, {row: _load_moments(context) for row, context in kept.items()}
        )
        supervision = TrueLabels()
        metrics = {row: StepMetrics() for row in clients}
        memory = {row: _Memory.of(one.context) for row, one in clients.items()}
        for step in range(request.steps):
            self._local_step(request, step, clients, memory, supervision, metrics)
        answers = []
        adapters = self.cohort.adapters()
        all_moments = self.cohort.moments() if keep else {}
        for row, one in clients.items():
            state = one.context.state
            memory[row].store(one.context)
            if keep:
                state[MOMENTS] = ArrayRecord(all_moments[row])
            numbers = {"num-examples": len(one.site.train), **metrics[row].summary()}
            answer = RecordDict({METRICS: metrics_record(numbers)})
            arrays = adapter_to_arrays(adapters[row])
            if one.request.own_adapter:
                state[OWN_ADAPTER] = arrays
            else:
                answer[ARRAYS] = arrays
            answers.append(answer)
        return answers

    def _local_step(
        self,
        request: TrainRequest,
        step: int,
        clients: Mapping[str, Asked],
        memory: Mapping[str, _Memory],
        supervision: Supervision,
        metrics: Mapping[str, StepMetrics],
    ) -> None:
        """One local step of every client: draw, sample, grade and supervise, learn."""
        started = time.perf_counter()
        count = request.train.problems_per_step
        problems = {n: one.site.draw(memory[n].cursor, count, one.request.seed) for n, one in clients.items()}
        prompts = {n: _encode(self.cohort, one.site, problems[n]) for n, one in clients.items()}
        # Streams go by the client's own name, seed and round, so that it draws what it would draw without the others.
        seeds = {
            n: stream(one.request.seed, one.site.name, "sample", one.request.round, step) for n, one in clients.items()
        }
        drawn = self.cohort.sample(prompts, Decoding.of(request.sampling), seeds)
        if not self.cohort.engine.sampled_logps:
            self.cohort.rescore(prompts, drawn)
        sampled = time.perf_counter()
        groups = {
            n: [
                self._group(one.site, supervision, *item)
                for item in zip(problems[n], prompts[n], drawn[n], strict=True)
            ]
            for n, one in clients.items()
        }
        for name in clients:
            assign_advantages(groups[name], scale_by_std=request.train.scale_by_std)
        graded = time.perf_counter()
        if step + 1 == request.steps:
            for name, value in self.cohort.kl_to_base(groups).items():
                metrics[name].kl = value
        rates = {n: learning_rate(request.train, memory[n].steps) for n in clients}
        for _ in range(request.train.updates_per_batch):
            stats = self.cohort.learn(groups, rates)
            for name in clients:
                metrics[name].learned(stats[name])
        learned = time.perf_counter()
        for name in clients:
            memory[name].cursor += count
            memory[name].steps += 1
            metrics[name].sampled(groups[name])
            # A cohort's time is everybody's: each client is told its equal share.
            metrics[name].took(
                sample=(sampled - started) / len(clients),
                grade=(graded - sampled) / len(clients),
                train=(learned - graded) / len(clients),
            )
        for app, mine in _by_federation(clients).items():
            rewards = {one.site.name: metrics[n].last_reward for n, one in mine.items()}
            tokens = sum(metrics[n].last_tokens for n in mine)
            round_ = next(iter(mine.values())).request.round
            app.observer.step(round_, step + 1, request.steps, rewards, tokens)

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

    def _evaluate(self, request: EvaluateRequest, clients: Mapping[str, Asked]) -> list[RecordDict]:
        started = time.perf_counter()
        self._seat(clients)
        decoding = Decoding(
            responses=request.evaluate.samples,
            max_new_tokens=request.sampling.max_new_tokens,
            temperature=request.evaluate.temperature,
        )
        prompts = {n: _encode(self.cohort, one.site, one.site.test) for n, one in clients.items()}
        # One stream for every evaluation: before and after are compared on the same random numbers.
        seeds = {n: stream(one.request.seed, one.site.name, "evaluate") for n, one in clients.items()}
        drawn = self.cohort.sample(prompts, decoding, seeds)
        scores = {n: _scores(one.site, drawn[n]) for n, one in clients.items()}
        seconds = (time.perf_counter() - started) / len(clients)
        for app, mine in _by_federation(clients).items():
            round_ = next(iter(mine.values())).request.round
            app.observer.evaluated(round_, sum(len(one.site.test) for one in mine.values()))
        return [
            scores_content(scores[n], {"num-examples": len(one.site.test), "seconds_evaluate": seconds})
            for n, one in clients.items()
        ]


def _encode(cohort: Cohort, site: Site, problems: Sequence[Problem]) -> list[list[int]]:
    return cohort.base.encode_all([problem.prompt for problem in problems], site.instruction)


def _by_federation(clients: Mapping[str, Asked]) -> dict[CohortApp, dict[str, Asked]]:
    found: dict[CohortApp, dict[str, Asked]] = {}
    for row, one in clients.items():
        found.setdefault(one.app, {})[row] = one
    return found


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
