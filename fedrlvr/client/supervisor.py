"""Supervision of the clients of one batch: each client's method, ledger, probes and results.

Where the ledger is a data set's own, a client that goes back to a checkpoint forgets what it asked since, so that a
round done again asks the same. What people answered is never forgotten.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import Memory, SupervisionState
from fedrlvr.config import (
    Asking,
    CareSupervision,
    Config,
    DemonstrationsSupervision,
    GeominSupervision,
    LabelsSupervision,
    MajoritySupervision,
    SelectionSupervision,
    TrapoSupervision,
)
from fedrlvr.config.sections import Section
from fedrlvr.errors import MessageError
from fedrlvr.labels.client_ledger import AllLabels, Budget, ClientLedger, NoLabels
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.policy.base import Base
from fedrlvr.policy.hidden_states import HiddenStates, width
from fedrlvr.rl import Group
from fedrlvr.seeds import stream
from fedrlvr.supervision import (
    MajorityVotes,
    Selection,
    Spending,
    Step,
    Supervised,
    Supervision,
    TrueLabels,
    clusters,
)
from fedrlvr.supervision.acquisition import quota
from fedrlvr.supervision.care import Care
from fedrlvr.supervision.features import Features, Labelled, features
from fedrlvr.supervision.geomin import Geomin
from fedrlvr.supervision.judge import Judge, Judgement, Settings, learning_rate
from fedrlvr.supervision.selection import SELECTIONS
from fedrlvr.supervision.trapo import Trapo
from fedrlvr.supervision.types import Fate
from fedrlvr.tasks.rewards import grades_by_kind
from fedrlvr.tasks.voting import answers, sameness
from fedrlvr.wire.messages import StretchRequest


class TimedJudge(Judge):
    """A judge that measures its time. seconds: of judging and learning, since it was made."""

    seconds = 0.0

    def judge(self, seen: Features) -> Judgement:
        """Judge the problems, and add the seconds that it took."""
        started = time.perf_counter()
        opinion = super().judge(seen)
        self.seconds += time.perf_counter() - started
        return opinion

    def learn(self, new: Labelled | None) -> dict[str, float]:
        """Learn from labelled problems, and add the seconds that it took."""
        started = time.perf_counter()
        losses = super().learn(new)
        self.seconds += time.perf_counter() - started
        return losses


@dataclass(frozen=True)
class Known:
    """Knowledge of a client about a group that was supervised.

    label, rewards: the true answer and the true rewards, where the ledger has the label or an audit knows every answer.
    """

    fate: Fate
    label: str | None
    rewards: list[float] | None


@dataclass
class ClientSupervision:
    """One client's supervision. disk: its ledger, where labels are asked for. judge: its probes, if any."""

    method: Supervision
    ledger: NoLabels | ClientLedger
    disk: LabelLedger | None = None
    judge: TimedJudge | None = None


@dataclass
class Setting:
    """Inputs of a client's supervision. shared: the probes' weights that came with the message, if any."""

    base: Base
    asked: StretchRequest
    request: ClientRequest
    memory: Memory
    shared: torch.Tensor | None

    @property
    def run_steps(self) -> int:
        """Local steps of a client in the whole run, if it takes part in every round."""
        return self.asked.train.rounds * self.asked.train.local_steps

    def spending(self, section: Asking) -> Spending:
        """Number of queries of each step by which `budget` of the run's distinct problems are asked about."""
        distinct = min(len(self.request.data.train), self.run_steps * self.asked.train.problems_per_step)
        return Spending(section.budget, section.spend, distinct, self.run_steps)

    def ledger(self, section: Asking) -> tuple[LabelLedger, ClientLedger]:
        """The client's ledger on its disk, and the same within its budget.

        Raises:
            MessageError: no ledger is kept here. LedgerError: it cannot be opened.
        """
        data = self.request.data
        if data.ledger is None:
            type_ = section.type
            raise MessageError(f"{data.name}: supervision.type = {type_!r} needs a ledger, and none is kept here")
        desk = section.labels_from == "desk"
        disk = LabelLedger(data.ledger, run=data.run, durable=desk)
        if not desk:
            disk.rewind(self.memory.steps)
        problems = frozenset(question.id for question in data.train)
        share = self.spending(section).labels
        budget = Budget(section.budget_total, section.budget_per_day, share, problems)
        return disk, ClientLedger(disk, data.answers, budget, desk=desk)

    def restore(self, method: Supervision) -> None:
        """Give a supervision what the client remembers of it.

        Raises:
            MessageError: it does not fit.
        """
        kept = self.memory.supervision
        if kept is None:
            return
        try:
            method.load(kept.tensors, kept.plain)
        except ValueError as error:
            raise MessageError(f"{self.request.place}: supervision that cannot be resumed: {error}") from None

    def judge(self, section: CareSupervision) -> TimedJudge:
        """The client's probes as it remembers them, with the weights that came with the message.

        Raises:
            MessageError: they do not fit.
        """
        request, kept = self.request, self.memory.supervision
        # Probes that are averaged begin alike, or their hidden units would have nothing to do with each other.
        shared = section.share_probes
        seed, name = (request.asked.seed, "") if shared else (request.seed, request.data.name)
        rng = torch.Generator().manual_seed(stream(seed, name, "probes"))
        hidden, group = width(self.base), self.asked.sampling.group_size
        rate = section.probe_learning_rate or learning_rate(hidden)
        settings = Settings(lr=rate, steps=section.probe_steps, worth=section.worth)
        judge = TimedJudge(hidden, group, rng, settings, str(self.base.device))
        try:
            if kept is not None:
                judge.load(kept.tensors, kept.plain)
            if self.shared is not None:
                judge.load_flattened(self.shared)
        except ValueError as error:
            raise MessageError(f"{request.place}: probes that cannot be used: {error}") from None
        return judge


def _labels(setting: Setting, section: LabelsSupervision | DemonstrationsSupervision) -> ClientSupervision:
    return ClientSupervision(TrueLabels(), AllLabels(setting.request.data.answers))


def _majority(setting: Setting, section: MajoritySupervision) -> ClientSupervision:
    return ClientSupervision(MajorityVotes(), NoLabels())


def _selection(setting: Setting, section: SelectionSupervision) -> ClientSupervision:
    peek = setting.request.data.answers.peek if SELECTIONS[section.type].peeks else None
    spending = setting.spending(section)
    method = Selection(section.type, spending=spending, rest=section.rest, peek=peek, worth=section.worth)
    disk, ledger = setting.ledger(section)
    return ClientSupervision(method, ledger, disk)


def _care(setting: Setting, section: CareSupervision) -> ClientSupervision:
    judge = setting.judge(section)
    method = Care(
        judge,
        spending=setting.spending(section),
        trusted=section.trust,
        vote_free_steps=quota(section.vote_free, setting.run_steps),
        min_reliability=section.min_reliability,
        selection=section.selection,
        min_auc=section.min_auc,
    )
    disk, ledger = setting.ledger(section)
    return ClientSupervision(method, ledger, disk, judge)


def _trapo(setting: Setting, section: TrapoSupervision) -> ClientSupervision:
    method = Trapo(
        spending=setting.spending(section),
        trusted=section.trust,
        vote_free_steps=quota(section.vote_free, setting.run_steps),
        min_similarity=section.min_similarity,
    )
    setting.restore(method)
    disk, ledger = setting.ledger(section)
    return ClientSupervision(method, ledger, disk)


def _geomin(setting: Setting, section: GeominSupervision) -> ClientSupervision:
    method = Geomin(
        width(setting.base),
        spending=setting.spending(section),
        trusted=section.trust,
        vote_free_steps=quota(section.vote_free, setting.run_steps),
    )
    setting.restore(method)
    disk, ledger = setting.ledger(section)
    return ClientSupervision(method, ledger, disk)


SUPERVISIONS: dict[type[Section], Callable[[Setting, Any], ClientSupervision]] = {
    LabelsSupervision: _labels,
    DemonstrationsSupervision: _labels,
    MajoritySupervision: _majority,
    SelectionSupervision: _selection,
    CareSupervision: _care,
    TrapoSupervision: _trapo,
    GeominSupervision: _geomin,
}
"""Constructor of a client's supervision, by the class of its config section."""


class Supervising:
    """Supervision of all clients of one batch: it decides over their rewards.

    requests, memory: by row of the cohort. shared: by row the probes' weights that came with a message, if any.

    Raises:
        LedgerError: a ledger cannot be opened.
        MessageError: probes that a server has sent do not fit.
    """

    def __init__(
        self,
        base: Base,
        asked: StretchRequest,
        requests: Mapping[str, ClientRequest],
        memory: Mapping[str, Memory],
        shared: Mapping[str, torch.Tensor],
    ) -> None:
        self.asked, self.requests, self.memory = asked, requests, memory
        self._clients: dict[str, ClientSupervision] = {}
        self._last: dict[str, list[tuple[Supervised, list[float] | None]]] = {}  # of the step supervised last, by row
        make = SUPERVISIONS[type(asked.supervision)]
        try:
            for row, request in requests.items():
                setting = Setting(base, asked, request, memory[row], shared.get(row))
                self._clients[row] = make(setting, asked.supervision)
        except BaseException:
            self.__exit__()
            raise
        method = next(iter(self._clients.values())).method
        self.reads_votes, self.reads_states = method.reads_votes, method.reads_states

    def supervise(self, row: str, groups: Sequence[Group], states: HiddenStates | None) -> None:
        """Give one step's groups of a client their rewards and multipliers.

        Raises:
            GradingError: a reward fails. LedgerError: the ledger fails.
        """
        client, request, memory = self._clients[row], self.requests[row], self.memory[row]
        by_kind = grades_by_kind(request.data.reward)
        read = [answers(group.texts, group.problem.kind) for group in groups] if by_kind or self.reads_votes else []
        if read:  # a function of the user's own, where nobody votes, need not read an answer at all
            memory.metrics.read(read)
        votes = []
        if self.reads_votes:
            pairs = zip(groups, read, strict=True)
            votes = [clusters(of_group, sameness(group.problem.kind)) for group, of_group in pairs]
        seen = None
        if states is not None:
            lengths = [[len(response.token_ids) for response in group.responses] for group in groups]
            longest = self.asked.sampling.max_new_tokens
            seen = features(states.prompt_PH, states.response_PGH, votes, lengths, longest)
        rng = random.Random(stream(request.seed, request.data.name, "labels", memory.steps))
        verdicts = client.method.supervise(Step(memory.steps, groups, votes, seen, rng), client.ledger)
        for group, verdict in zip(groups, verdicts, strict=True):
            for response, reward in zip(group.responses, verdict.rewards, strict=True):
                response.reward = reward
            group.multiplier = verdict.multiplier
        learnt = _used(client.disk, memory.steps, groups, verdicts)
        self._last[row] = [(verdict, verdict.rewards if verdict.true else None) for verdict in verdicts]
        if memory.labels is None:
            return
        care = client.method if isinstance(client.method, Care) else None
        judged = care.judged if care else None
        reliable = judged.reliable if judged else None
        memory.labels.supervised(votes, verdicts, reliable, learnt)
        if self.asked.supervision.audits:
            true = [request.data.answers.peek(g.problem.question, [r.text for r in g.responses]) for g in groups]
            scores = judged.scores if judged else None
            memory.labels.audit(votes, verdicts, true, reliable, scores, care.worth if care else "gap")
            self._last[row] = list(zip(verdicts, true, strict=True))

    def known(self, row: str, place: int, group: Group) -> Known:
        """Knowledge of a client about a group, which stood at this place in the step supervised last.

        A label that was not paid for stays sealed, unless supervision.audit opens every answer.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        verdict, rewards = self._last[row][place]
        data, ledger = self.requests[row].data, self._clients[row].ledger
        ledger = AllLabels(data.answers) if self.asked.supervision.audits else ledger
        return Known(verdict.fate, None if rewards is None else ledger.label(group.problem.question), rewards)

    def learn(self, row: str) -> None:
        """Let a client's probes learn from the step that was supervised last; after the policy's update."""
        client, memory = self._clients[row], self.memory[row]
        if client.judge is None or memory.labels is None:
            return
        memory.labels.learned(client.method.learn())

    @property
    def seconds(self) -> float:
        """Seconds that all clients' probes have taken."""
        return sum(client.judge.seconds for client in self._clients.values() if client.judge is not None)

    def settle(self, row: str) -> torch.Tensor | None:
        """Store a client's supervision and its number of labels in its memory; returns the probes' weights to send, if
        they are shared."""
        client, memory = self._clients[row], self.memory[row]
        if client.disk is not None and memory.labels is not None:
            memory.labels.total = client.disk.counts().labelled
        if (state := client.method.state()) is not None:
            memory.supervision = SupervisionState(*state)
        if client.judge is None:
            return None
        if memory.labels is not None:
            memory.labels.probe_auc = client.judge.auc
        memory.metrics.took(probes=client.judge.seconds)
        return client.judge.flattened() if self.asked.supervision.shares_probes else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledgers."""
        for client in self._clients.values():
            if client.disk is not None:
                client.disk.close()


def _used(disk: LabelLedger | None, step: int, groups: Sequence[Group], verdicts: Sequence[Supervised]) -> set[int]:
    """Count a step's uses of labels; the places of the problems whose labels were used before."""
    if disk is None:
        return set()
    true = [place for place, verdict in enumerate(verdicts) if verdict.true]
    before = {place for place in true if disk.uses(groups[place].problem.id)}
    for place in true:
        disk.use(groups[place].problem.id, step)
    return before


def shared_numbers(base: Base, config: Config) -> int | None:
    """Number of values in a client's probes; None where they are not shared."""
    if not config.supervision.shares_probes:
        return None
    return Judge(width(base), config.sampling.group_size, torch.Generator().manual_seed(0)).flattened().numel()
