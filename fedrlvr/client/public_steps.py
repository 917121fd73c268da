"""A client's part in public exchanges: responses to public problems, and steps on them once others' have come.

Responses wait in the client's memory as groups until the next message brings the client's share of the pool. Then
others' correct responses take the slots that the swap rule says, and the public steps are taken on the mixed groups.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, RecordDict

from fedrlvr.client.metrics import SwapMetrics
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import Memory
from fedrlvr.config import PubSwapCoordination
from fedrlvr.coordination import Sent, flaw, reference, swap, usual_length
from fedrlvr.output import logger
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.policy.stops import ended, overruns
from fedrlvr.rl import CORRECT, Group, Origin, Response, assign_advantages, withhold_unfinished
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.rewards import behind_answer
from fedrlvr.wire.messages import RespondRequest, StretchRequest, record_in
from fedrlvr.wire.public_messages import (
    RESPONSES,
    SHARE,
    STAMP,
    Stamp,
    read_problems,
    read_responses,
    responses_record,
    stamp_record,
)

_log = logger("client")

Shared = list[tuple[Response, int]]
"""Others' responses to one problem, each with its age in optimizer steps."""


@dataclass
class PublicSteps:
    """The public steps that one batch of messages asks for.

    memory: by row of the cohort, as the requests. learners: the requests without those to free riders.
    swaps: by row the numbers of the public steps that were taken.

    Raises:
        MessageError: public problems that cannot be read.
    """

    cohort: Cohort
    asked: StretchRequest
    requests: Mapping[str, ClientRequest]
    memory: Mapping[str, Memory]
    learners: Mapping[str, ClientRequest]
    swaps: dict[str, SwapMetrics] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.asked, RespondRequest):
            for row, request in self.requests.items():
                problems, notice = read_problems(request.message.content, self.coordination.public_problems)
                self.problems[row] = problems
                if notice:
                    _log.warning("%s: the server says: %s", request.client.name, notice)

    @property
    def coordination(self) -> PubSwapCoordination:
        """Settings of the exchange, which exist wherever public problems are answered or awaited."""
        assert self.asked.coordination is not None
        return self.asked.coordination

    @property
    def waiting(self) -> bool:
        """Whether responses of an earlier message wait for their pool."""
        return self.asked.coordination is not None and any(memory.waiting for memory in self.memory.values())

    def train(self, rates: Mapping[str, float]) -> None:
        """Put others' correct responses into the waiting groups, and take the public steps on them.

        rates: learning rates by row.

        Raises:
            MessageError: a share that cannot be read.
            GradingError: a client's grader fails.
        """
        started = time.perf_counter()
        coordination = self.coordination
        self.swaps = {row: SwapMetrics() for row in self.requests}
        mixed = {row: self._mixed_groups(row, request) for row, request in self.requests.items()}
        sender = self._score(mixed)
        for groups in mixed.values():
            for response in _foreign(groups):
                ratio = reference(
                    coordination.ratio,
                    tokens=len(response.token_ids),
                    local_logps=response.logps,
                    sender_logps=sender[id(response)],
                    cap=self.asked.train.ratio_cap,
                    gamma=coordination.gamma,
                )
                response.logps, response.weights = ratio.behaviour_logps, ratio.weights
                response.shaping = ratio.shaping
            assign_advantages(groups, scale_by_std=self.asked.train.scale_by_std)
        for _ in range(coordination.public_steps):
            for row, stats in self.cohort.learn(mixed, rates).items():
                self.swaps[row].learned(stats)
                self.memory[row].metrics.public_tokens_trained += stats.ratios.tokens
                self.memory[row].updates += 1
        self._took(started)

    def respond(self) -> None:
        """Answer the public problems from the policies as they are now; the responses wait in the memories.

        Raises:
            GradingError: a client's grader fails.
        """
        assert isinstance(self.asked, RespondRequest)
        if not self.learners:
            return
        started = time.perf_counter()
        cohort, sampling = self.cohort, self.asked.sampling
        prompts = {row: request.encode(cohort.base, self.problems[row]) for row, request in self.learners.items()}
        seeds = {
            row: stream(request.seed, request.client.name, "public", request.asked.round, self.asked.exchange)
            for row, request in self.learners.items()
        }
        # Nothing is cut from the distribution, or a ratio against these log-probs would carry what was left of it.
        decoding = Decoding(sampling.group_size, sampling.max_new_tokens, sampling.temperature)
        drawn = cohort.sample(prompts, decoding, seeds)
        cohort.correct(prompts, drawn, self.asked.train.ratio_cap)
        for row, request in self.learners.items():
            memory = self.memory[row]
            parts = zip(self.problems[row], prompts[row], drawn[row], strict=True)
            memory.waiting = [Group(*group) for group in parts]
            for group in memory.waiting:
                withhold_unfinished(group.responses, self.asked.train.unfinished)
                rewards = request.data.grade(_public(group), group.texts, group.finished)
                for response, reward in zip(group.responses, rewards, strict=True):
                    response.reward = reward
                memory.metrics.public_tokens_sampled += sum(len(r.token_ids) for r in group.responses)
        self._took(started)

    def responses(self, row: str) -> RecordDict:
        """Records of a reply to `query.respond` besides numbers: a stamp, and the responses if they are asked for."""
        assert isinstance(self.asked, RespondRequest)
        memory, base = self.memory[row], self.cohort.base
        stamp = Stamp(
            model=base.model_id,
            tokenizer=base.tokenizer_id,
            temperature=self.asked.sampling.temperature,
            round=self.requests[row].asked.round,
            exchange=self.asked.exchange,
        )
        record = RecordDict({STAMP: stamp_record(stamp)})
        if self.asked.send:
            logps = self.coordination.ratio_rule.needs_sender
            sent = [
                Sent(p, tuple(r.token_ids), tuple(r.logps) if logps else (), memory.updates)
                for p, group in enumerate(memory.waiting)
                for r in group.responses
            ]
            record[RESPONSES] = responses_record(sent, base.vocabulary)
        return record

    def _mixed_groups(self, row: str, request: ClientRequest) -> list[Group]:
        """The client's waiting groups with responses of its share in the slots that the swap rule says."""
        waiting, metrics = self.memory[row].waiting, self.swaps[row]
        for group in waiting:
            withhold_unfinished(group.responses, self.asked.train.unfinished)
        shares = self._share(request, waiting, metrics)
        # The exchange is over before this message's own begins, so its stream is named by the steps taken.
        steps = self.memory[row].round_steps
        rng = random.Random(stream(request.seed, request.client.name, "swap", request.asked.round, steps))
        swaps = swap([group.rewards for group in waiting], shares, rule=self.coordination.swap, rng=rng)
        mixed = []
        for group, share, slots in zip(waiting, shares, swaps, strict=True):
            responses = [replace(share[slots[i]][0]) if i in slots else r for i, r in enumerate(group.responses)]
            mixed.append(replace(group, responses=responses))
            metrics.swapped(group.rewards, [share[entry][1] for entry in slots.values()])
        return mixed

    def _share(self, request: ClientRequest, waiting: Sequence[Group], metrics: SwapMetrics) -> list[Shared]:
        """For each waiting group the responses of the client's share that pass the client's own checks.

        A response is refused that is too long, not of this vocabulary, cut off where such responses are not graded,
        goes on after a stop string, is not correct by this client's own grader, or not passed by the screening of the
        pool, which is done here once more.

        Raises:
            MessageError: the share cannot be read.
        """
        shares: list[Shared] = [[] for _ in waiting]
        record = record_in(request.message.content, SHARE, ArrayRecord)
        if record is None or not waiting:  # a free rider, which answered nothing, waits for nothing
            return shares
        base, sampling = self.cohort.base, self.asked.sampling
        sent = read_responses(
            record,
            most=len(waiting) * sampling.group_size,
            max_tokens=sampling.max_new_tokens,
            logps=self.coordination.ratio_rule.needs_sender,
        )
        lengths: tuple[list[int], list[int]] = ([], [])
        for group in waiting:
            for response, reward in zip(group.responses, group.rewards, strict=True):
                lengths[reward < CORRECT].append(len(response.token_ids))
        longest = self.coordination.pool_length * usual_length(*lengths)
        for foreign in sent:
            usable = (
                0 <= foreign.problem < len(waiting)
                and 0 < len(foreign.token_ids) <= min(sampling.max_new_tokens, longest)
                and min(foreign.token_ids) >= 0
                and max(foreign.token_ids) < base.vocabulary
                and (self.asked.train.unfinished == "grade" or ended(foreign.token_ids, base.eos_ids, base.stops))
                and not overruns(foreign.token_ids, base.stops)
            )
            if usable:
                text = base.decode(list(foreign.token_ids))
                problem = _public(waiting[foreign.problem])
                (reward,) = request.data.grade(problem, [text], [foreign.token_ids[-1] in base.eos_ids])
                usable = reward >= CORRECT and not flaw(
                    text,
                    behind_answer(request.data.reward, text, problem),
                    foreign.token_ids,
                    special=base.special_ids,
                    ends=base.eos_ids,
                    tail=self.coordination.pool_tail,
                )
            if not usable:
                metrics.refused += 1
                continue
            finished = ended(foreign.token_ids, base.eos_ids, base.stops)
            response = Response(foreign.token_ids, foreign.logps, text, finished, Origin.FOREIGN, reward)
            shares[foreign.problem].append((response, foreign.age))
        if metrics.refused:
            _log.warning("%s: refused %d of the %d responses of its share", request.place, metrics.refused, len(sent))
        return shares

    def _score(self, mixed: Mapping[str, Sequence[Group]]) -> dict[int, Sequence[float]]:
        """The senders' log-probs of the foreign responses, whose own become the receivers' where they are needed."""
        foreign = {row: [_foreign([group]) for group in groups] for row, groups in mixed.items()}
        sender = {id(r): r.logps for by_group in foreign.values() for responses in by_group for r in responses}
        if self.coordination.ratio_rule.needs_local and sender:
            prompts = {row: [group.prompt_ids for group in groups] for row, groups in mixed.items()}
            self.cohort.rescore(prompts, foreign)
            for row, by_group in foreign.items():
                self.swaps[row].scored([r.logps for responses in by_group for r in responses])
        return sender

    def _took(self, started: float) -> None:
        """Share out the time since `started` (from perf_counter) among all clients."""
        for memory in self.memory.values():
            memory.metrics.took(public=(time.perf_counter() - started) / len(self.requests))


def _public(group: Group) -> Problem:
    """A public group's problem, whose answer everybody has."""
    assert isinstance(group.problem, Problem)
    return group.problem


def _foreign(groups: Sequence[Group]) -> list[Response]:
    return [r for group in groups for r in group.responses if r.origin is Origin.FOREIGN]
