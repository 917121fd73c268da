"""Supervision at the clients of one batch: the method each has, its ledger, its probes, and what they come to.

Where the ledger is a data set's own, a client that goes back to a checkpoint forgets what it asked since, so that a
round done again asks the same. What people answered is never forgotten.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import Memory, Probes
from fedrlvr.config import Asking, CareSupervision, Config, LabelsSupervision, MajoritySupervision, SelectionSupervision
from fedrlvr.errors import MessageError
from fedrlvr.labels.client_ledger import AllLabels, Budget, ClientLedger, NoLabels
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.policy.base import Base
from fedrlvr.policy.hidden_states import HiddenStates, width
from fedrlvr.rl import Group
from fedrlvr.seeds import stream
from fedrlvr.supervision import (
    Clusters,
    Ledger,
    MajorityVotes,
    Selection,
    Step,
    Supervised,
    Supervision,
    TrueLabels,
    clusters,
)
from fedrlvr.supervision.care import Care
from fedrlvr.supervision.features import Features, Labelled, features
from fedrlvr.supervision.judge import Judge, Judgement, Settings
from fedrlvr.supervision.selection import SELECTIONS
from fedrlvr.tasks.voting import answers, sameness
from fedrlvr.wire.messages import StretchRequest


@dataclass
class Mine:
    """One client's supervision."""

    method: Supervision
    ledger: Ledger
    disk: LabelLedger | None
    judge: TimedJudge | None


class TimedJudge(Judge):
    """A judge that knows how long it took. seconds: of judging and learning, since it was made."""

    seconds = 0.0

    def judge(self, seen: Features) -> Judgement:
        """As `Judge.judge`."""
        started = time.perf_counter()
        opinion = super().judge(seen)
        self.seconds += time.perf_counter() - started
        return opinion

    def learn(self, new: Labelled | None) -> dict[str, float]:
        """As `Judge.learn`."""
        started = time.perf_counter()
        losses = super().learn(new)
        self.seconds += time.perf_counter() - started
        return losses


class Supervising:
    """What decides over the rewards of one batch's clients.

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
        self.base, self.asked, self.how = base, asked, asked.supervision
        self.requests, self.memory = requests, memory
        self._mine: dict[str, Mine] = {}
        try:
            for row, request in requests.items():
                self._mine[row] = self._made(row, request, shared.get(row))
        except BaseException:
            self.__exit__()
            raise
        method = next(iter(self._mine.values())).method
        self.reads_votes, self.reads_states = method.reads_votes, method.reads_states
        self._audits = self.how.audits

    def _made(self, row: str, request: ClientRequest, shared: torch.Tensor | None) -> Mine:
        how, data = self.how, request.data
        if isinstance(how, LabelsSupervision):
            return Mine(TrueLabels(), AllLabels(data.answers), None, None)
        if isinstance(how, MajoritySupervision):
            return Mine(MajorityVotes(), NoLabels(), None, None)
        assert isinstance(how, Asking)
        if data.ledger is None:
            raise MessageError(f"{data.name}: supervision.type = {how.type!r} needs a ledger, and none is kept here")
        desk = how.labels_from == "desk"
        disk = LabelLedger(data.ledger, run=data.run, durable=desk)
        if not desk:
            disk.rewind(self.memory[row].steps)
        ledger = ClientLedger(disk, data.answers, Budget(how.budget_total, how.budget_per_day), desk=desk)
        if isinstance(how, SelectionSupervision):
            peek = data.answers.peek if SELECTIONS[how.type].peeks else None
            return Mine(Selection(how.type, budget=how.budget, rest=how.rest, peek=peek), ledger, disk, None)
        judge = self._judge(row, request, how, shared)
        method = Care(judge, budget=how.budget, trusted=how.trusted, warm_up=how.warm_up, trust_above=how.trust_above)
        return Mine(method, ledger, disk, judge)

    def _judge(self, row: str, request: ClientRequest, how: CareSupervision, shared: torch.Tensor | None) -> TimedJudge:
        data, kept = request.data, self.memory[row].probes
        # Probes that are averaged begin alike, or their hidden units would have nothing to do with each other.
        whose = "" if how.share_probes else data.name
        rng = torch.Generator().manual_seed(stream(request.asked.seed, whose, "probes"))
        settings = Settings(lr=how.probe_learning_rate, steps=how.probe_steps)
        judge = TimedJudge(width(self.base), self.asked.sampling.group_size, rng, settings, str(self.base.device))
        try:
            if kept is not None:
                judge.load(kept.tensors, kept.plain)
            if shared is not None:
                judge.load_flattened(shared)
        except ValueError as error:
            raise MessageError(
                f"{data.name}: round {request.asked.round}: probes that cannot be used: {error}"
            ) from None
        return judge

    def supervise(self, row: str, groups: Sequence[Group], states: HiddenStates | None) -> None:
        """Give one step's groups of a client their rewards and multipliers.

        Raises:
            GradingError: a reward fails. LedgerError: the ledger fails.
        """
        mine, request, memory = self._mine[row], self.requests[row], self.memory[row]
        votes = [_votes(group) for group in groups] if self.reads_votes else []
        seen = None
        if states is not None:
            lengths = [[len(response.token_ids) for response in group.responses] for group in groups]
            longest = self.asked.sampling.max_new_tokens
            seen = features(states.prompt_PH, states.response_PGH, votes, lengths, longest)
        rng = random.Random(stream(request.asked.seed, request.data.name, "labels", memory.steps))
        verdicts = mine.method.supervise(Step(memory.steps, groups, votes, seen, rng), mine.ledger)
        for group, verdict in zip(groups, verdicts, strict=True):
            for response, reward in zip(group.responses, verdict.rewards, strict=True):
                response.reward = reward
            group.multiplier = verdict.multiplier
        learnt = _used(mine.disk, memory.steps, groups, verdicts)
        if memory.labels is None:
            return
        judged = mine.method.judged if isinstance(mine.method, Care) else None
        memory.labels.supervised(votes, verdicts, judged.reliable if judged else None, learnt)
        if self._audits:
            true = [request.data.answers.peek(g.problem.question, [r.text for r in g.responses]) for g in groups]
            memory.labels.audit(
                votes, verdicts, true, judged.reliable if judged else None, judged.scores if judged else None
            )

    def learn(self, row: str) -> None:
        """Let a client's probes learn from the step that was supervised last; after the policy's update."""
        mine, memory = self._mine[row], self.memory[row]
        if mine.judge is None or memory.labels is None:
            return
        memory.labels.learned(mine.method.learn())

    @property
    def seconds(self) -> float:
        """What all clients' probes have taken."""
        return sum(mine.judge.seconds for mine in self._mine.values() if mine.judge is not None)

    def settle(self, row: str) -> torch.Tensor | None:
        """Let the client's memory have its probes and the number of its labels; the weights to send, if they are
        shared."""
        mine, memory = self._mine[row], self.memory[row]
        if mine.disk is not None and memory.labels is not None:
            memory.labels.total = mine.disk.counts().labelled
        if mine.judge is None:
            return None
        memory.probes = Probes(*mine.judge.state())
        memory.metrics.took(probes=mine.judge.seconds)
        return mine.judge.flattened() if self.how.shares_probes else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledgers."""
        for mine in self._mine.values():
            if mine.disk is not None:
                mine.disk.close()


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
    """How many numbers a client's probes are; None where they are not shared."""
    if not config.supervision.shares_probes:
        return None
    return Judge(width(base), config.sampling.group_size, torch.Generator().manual_seed(0)).flattened().numel()


def _votes(group: Group) -> Clusters:
    kind = group.problem.kind
    return clusters(answers([response.text for response in group.responses], kind), sameness(kind))
