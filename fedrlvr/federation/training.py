"""A client's training, written for a cohort of K: public steps, local steps, responses to public problems.

A round without exchanges is one `train` message: all local steps. With exchanges it is a `query.respond` for each,
which takes public steps on the share of the last pool, then a stretch of local steps, and then answers the exchange's
public problems; and a `train` that ends the round with public steps on the last share.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.config import LabelsSupervision, PubSwapCoordination
from fedrlvr.coordination import NEEDS_LOCAL, NEEDS_SENDER, Sent, reference, swap
from fedrlvr.coordination.ratio import CAP, GAMMA
from fedrlvr.errors import AdapterError
from fedrlvr.federation.labelmetrics import LabelMetrics
from fedrlvr.federation.memory import LOST, MOMENTS, OWN_ADAPTER, ROUND_ANCHOR, ROUND_MOMENTS, Memory, arrays_in
from fedrlvr.federation.messages import (
    ARRAYS,
    METRICS,
    PROBES,
    RespondRequest,
    StretchRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    metrics_record,
    probes_record,
    read_probes,
    record_in,
)
from fedrlvr.federation.precision import pack
from fedrlvr.federation.publicmessages import (
    EXCHANGE,
    RESPONSES,
    SHARE,
    STAMP,
    Stamp,
    exchange_record,
    read_problems,
    read_responses,
    responses_record,
    stamp_record,
)
from fedrlvr.federation.receiving import Start
from fedrlvr.federation.stepmetrics import SwapMetrics
from fedrlvr.federation.supervising import Supervising
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.optimizer import learning_rate
from fedrlvr.policy.sampler import Decoding
from fedrlvr.policy.states import States
from fedrlvr.reporting.observer import StepEnded
from fedrlvr.rl import CORRECT, Group, Origin, Response, assign_advantages
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem

_log = logging.getLogger("fedrlvr.federation")

if TYPE_CHECKING:
    from fedrlvr.federation.client import Asked, CohortApp


class Training:
    """What one batch of messages has its clients do; the clients are seated.

    request: stands for all in what a batch has in common; round, seed and adapter are each client's own.
    clients: by row of the cohort.
    """

    def __init__(
        self, cohort: Cohort, request: StretchRequest, clients: Mapping[str, Asked], starts: Mapping[str, Start]
    ) -> None:
        self.cohort = cohort
        self.starts = {row: start.adapter for row, start in starts.items()}
        """The adapters the round began with."""
        self.request = request
        self.clients = clients
        self.memory = {row: Memory.of(one.context, under_way=one.under_way) for row, one in clients.items()}
        if not isinstance(request.supervision, LabelsSupervision):
            for memory in self.memory.values():
                memory.labels = memory.labels or LabelMetrics()
        self.swaps: dict[str, SwapMetrics] = {}
        self.public = self._public_problems()
        moments = {}
        for row, one in clients.items():
            kept = None
            if one.under_way:
                kept = arrays_in(one.context, ROUND_MOMENTS)
                if (anchor := arrays_in(one.context, ROUND_ANCHOR)) is not None:
                    self.starts[row] = arrays_to_adapter(anchor, one.initial, whose=one.site.name)
            elif request.train.optimizer_state == "keep":
                kept = arrays_in(one.context, MOMENTS)
            if kept is not None:
                moments[row] = dict(kept.to_torch_state_dict())
        anchors = self.starts if request.train.proximal_mu else None
        cohort.begin_training(request.train, request.sampling, moments, anchors, trains=request.trains)
        self.supervising = Supervising(cohort.base, request, clients, self.memory, self._shared_probes())

    def go(self) -> list[RecordDict]:
        """Everything that is asked, and each client's answer. Memories change only at the very end."""
        with self.supervising:
            return self._go()

    def _go(self) -> list[RecordDict]:
        if self.request.coordination is not None and any(memory.waiting for memory in self.memory.values()):
            self._public_steps(self.request.coordination)
        for _ in range(self.request.steps):
            self._local_step()
        if isinstance(self.request, RespondRequest):
            return self._respond(self.request)
        return self._finish()

    def _public_problems(self) -> dict[str, list[Problem]]:
        """What each client is to answer; read before anything is computed."""
        found: dict[str, list[Problem]] = {}
        if isinstance(self.request, RespondRequest) and self.request.coordination is not None:
            for row, one in self.clients.items():
                found[row], notice = read_problems(one.message.content, self.request.coordination.public_problems)
                if notice:
                    _log.warning("%s: the server says: %s", one.site.name, notice)
        return found

    def _shared_probes(self) -> dict[str, torch.Tensor]:
        """The averaged weights of everybody's probes that messages bring."""
        found = {}
        for row, one in self.clients.items():
            if (record := record_in(one.message.content, PROBES, ArrayRecord)) is not None:
                found[row] = read_probes(record, None, whose=f"round {one.request.round}, the server")
        return found

    # Local steps.

    def _local_step(self) -> None:
        """One local step of every client: draw, sample, grade and supervise, learn."""
        cohort, request, clients, memory = self.cohort, self.request, self.clients, self.memory
        started = time.perf_counter()
        count = request.train.problems_per_step
        problems = {n: one.site.draw(memory[n].cursor, count, one.request.seed) for n, one in clients.items()}
        prompts = {n: one.encode(problems[n]) for n, one in clients.items()}
        # Streams go by the client's own name, seed and round, so that it draws what it would draw without the others.
        seeds = {
            n: stream(one.request.seed, one.site.name, "sample", one.request.round, memory[n].round_steps)
            for n, one in clients.items()
        }
        states: dict[str, States] | None = {} if self.supervising.reads_states else None
        drawn = cohort.sample(prompts, Decoding.of(request.sampling), seeds, states)
        if not cohort.engine.sampled_logps:
            cohort.rescore(prompts, drawn)
        sampled, judging = time.perf_counter(), self.supervising.seconds
        groups = {n: [Group(*item) for item in zip(problems[n], prompts[n], drawn[n], strict=True)] for n in clients}
        for name in clients:
            self.supervising.supervise(name, groups[name], states[name] if states is not None else None)
            assign_advantages(groups[name], scale_by_std=request.train.scale_by_std)
        graded, judging = time.perf_counter(), self.supervising.seconds - judging
        first = next(iter(memory.values()))
        if first.round_steps + 1 == request.train.local_steps:
            for name, value in cohort.kl_to_base(groups).items():
                memory[name].metrics.kl = value
        rates = self._rates()
        for _ in range(request.train.updates_per_batch):
            stats = cohort.learn(groups, rates)
            for name in clients:
                memory[name].metrics.learned(stats[name])
                memory[name].updates += 1
        learned = time.perf_counter()
        for name in clients:
            self.supervising.learn(name)
            memory[name].cursor += count
            memory[name].steps += 1
            memory[name].round_steps += 1
            memory[name].metrics.sampled(groups[name])
            # A cohort's time is everybody's: each client is told its equal share.
            memory[name].metrics.took(
                sample=(sampled - started) / len(clients),
                grade=(graded - sampled - judging) / len(clients),
                train=(learned - graded) / len(clients),
            )
        self._tell()

    def _rates(self) -> dict[str, float]:
        return {n: learning_rate(self.request.train, memory.steps) for n, memory in self.memory.items()}

    def _tell(self) -> None:
        """Tell each federation's observer how its clients' step went."""
        total = self.request.train.local_steps
        for app, mine in by_federation(self.clients).items():
            done = next(iter(mine))
            rewards = {one.site.name: self.memory[n].metrics.last_reward for n, one in mine.items()}
            tokens = sum(self.memory[n].metrics.last_tokens for n in mine)
            step = StepEnded(mine[done].request.round, self.memory[done].round_steps, total, rewards, tokens)
            app.observer.notify(step)

    # Exchanges.

    def _public_steps(self, coordination: PubSwapCoordination) -> None:
        """Put others' correct responses into the waiting groups, and take the public steps on them."""
        started = time.perf_counter()
        self.swaps = {row: SwapMetrics() for row in self.clients}
        groups = {row: self._swapped(row, one, coordination) for row, one in self.clients.items()}
        sender = self._score(groups, coordination)
        for own in groups.values():
            for response in _foreign(own):
                found = reference(
                    coordination.ratio,
                    tokens=len(response.token_ids),
                    local_logps=response.logps,
                    sender_logps=sender[id(response)],
                    cap=coordination.cap or CAP,
                    gamma=coordination.gamma or GAMMA,
                )
                response.logps, response.weights = found.behaviour_logps, found.weights
                response.shaping = found.shaping
            assign_advantages(own, scale_by_std=self.request.train.scale_by_std)
        rates = self._rates()
        for _ in range(coordination.public_steps):
            for row, stats in self.cohort.learn(groups, rates).items():
                self.swaps[row].learned(stats)
                self.memory[row].metrics.public_tokens_trained += stats.tokens_trained
                self.memory[row].updates += 1
        for memory in self.memory.values():
            memory.metrics.took(public=(time.perf_counter() - started) / len(self.clients))

    def _swapped(self, row: str, one: Asked, coordination: PubSwapCoordination) -> list[Group]:
        """The client's waiting groups with responses of its share in the slots that the rule says."""
        own, metrics = self.memory[row].waiting, self.swaps[row]
        shares = self._share(one, own, coordination, metrics)
        # The exchange is over before this message's own begins, so its stream is named by the steps taken.
        seed = stream(one.request.seed, one.site.name, "swap", one.request.round, self.memory[row].round_steps)
        swaps = swap([group.rewards for group in own], shares, rule=coordination.swap, rng=random.Random(seed))
        mixed = []
        for group, share, slots in zip(own, shares, swaps, strict=True):
            taken = [replace(share[slots[i]][0]) if i in slots else r for i, r in enumerate(group.responses)]
            mixed.append(replace(group, responses=taken))
            metrics.swapped(group.rewards, [share[entry][1] for entry in slots.values()])
        return mixed

    def _share(
        self, one: Asked, own: Sequence[Group], coordination: PubSwapCoordination, metrics: SwapMetrics
    ) -> list[list[tuple[Response, int]]]:
        """For each waiting group what of the share can be used, each with its age: this client checks it again.

        A response is refused that is too long, not of this vocabulary, or not correct by this client's own grader.

        Raises:
            MessageError: the share cannot be read.
        """
        shares: list[list[tuple[Response, int]]] = [[] for _ in own]
        record = record_in(one.message.content, SHARE, ArrayRecord)
        if record is None:
            return shares
        base, sampling = self.cohort.base, self.request.sampling
        sent = read_responses(
            record,
            most=len(own) * sampling.group_size,
            max_tokens=sampling.max_new_tokens,
            logps=coordination.ratio in NEEDS_SENDER,
        )
        for item in sent:
            usable = (
                0 <= item.problem < len(own)
                and 0 < len(item.token_ids) <= sampling.max_new_tokens
                and min(item.token_ids) >= 0
                and max(item.token_ids) < base.vocabulary
            )
            if usable:
                text = base.decode(list(item.token_ids))
                (reward,) = one.site.grade(_public(own[item.problem]), [text])
                usable = reward >= CORRECT
            if not usable:
                metrics.refused += 1
                continue
            ended = item.token_ids[-1] in base.eos_ids
            response = Response(item.token_ids, item.logps, text, ended, Origin.FOREIGN, reward)
            shares[item.problem].append((response, item.age))
        return shares

    def _score(
        self, groups: Mapping[str, Sequence[Group]], coordination: PubSwapCoordination
    ) -> dict[int, Sequence[float]]:
        """The senders' log-probs of the foreign responses, whose own become the receivers' where they are needed."""
        foreign = {row: [_foreign([group]) for group in own] for row, own in groups.items()}
        sender = {id(r): r.logps for own in foreign.values() for responses in own for r in responses}
        if coordination.ratio in NEEDS_LOCAL and sender:
            prompts = {row: [group.prompt_ids for group in own] for row, own in groups.items()}
            self.cohort.rescore(prompts, foreign)
            for row, own in foreign.items():
                self.swaps[row].scored([r.logps for responses in own for r in responses])
        return sender

    def _respond(self, request: RespondRequest) -> list[RecordDict]:
        """Answer the public problems from the policies as they are now, and remember the round under way."""
        assert request.coordination is not None
        started = time.perf_counter()
        cohort, sampling, clients = self.cohort, request.sampling, self.clients
        problems = self.public
        prompts = {n: one.encode(problems[n]) for n, one in clients.items()}
        seeds = {
            n: stream(one.request.seed, one.site.name, "public", one.request.round, request.exchange)
            for n, one in clients.items()
        }
        # Nothing is cut from the distribution, or a ratio against these log-probs would carry what was left of it.
        decoding = Decoding(sampling.group_size, sampling.max_new_tokens, sampling.temperature)
        drawn = cohort.sample(prompts, decoding, seeds)
        if not cohort.engine.sampled_logps:
            cohort.rescore(prompts, drawn)
        for n, one in clients.items():
            memory = self.memory[n]
            memory.waiting = [Group(*item) for item in zip(problems[n], prompts[n], drawn[n], strict=True)]
            for group in memory.waiting:
                rewards = one.site.grade(_public(group), [response.text for response in group.responses])
                for response, reward in zip(group.responses, rewards, strict=True):
                    response.reward = reward
                memory.metrics.public_tokens_sampled += sum(len(r.token_ids) for r in group.responses)
        for memory in self.memory.values():
            memory.metrics.took(public=(time.perf_counter() - started) / len(clients))
        adapters, moments = cohort.adapters(), cohort.moments()
        answers = []
        for n, one in clients.items():
            memory = self.memory[n]
            needed = request.train.proximal_mu or request.precision != "float32"
            anchor = adapter_to_arrays(self.starts[n]) if needed else None
            answers.append(self._answer(n, self._sent(n, request)))
            self.supervising.settle(n)
            memory.pause(one.context, adapter_to_arrays(adapters[n]), anchor, moments[n])
        return answers

    def _sent(self, row: str, request: RespondRequest) -> RecordDict:
        """What a reply to `query.respond` carries besides numbers: stamped responses, if they are asked for."""
        assert request.coordination is not None
        one, memory, base = self.clients[row], self.memory[row], self.cohort.base
        stamp = Stamp(
            model=base.model_id,
            tokenizer=base.tokenizer_id,
            temperature=request.sampling.temperature,
            round=one.request.round,
            exchange=request.exchange,
        )
        record = RecordDict({STAMP: stamp_record(stamp)})
        if request.send:
            logps = request.coordination.ratio in NEEDS_SENDER
            sent = [
                Sent(p, tuple(r.token_ids), tuple(r.logps) if logps else (), memory.updates)
                for p, group in enumerate(memory.waiting)
                for r in group.responses
            ]
            record[RESPONSES] = responses_record(sent, base.vocabulary)
        return record

    def _answer(self, row: str, rest: RecordDict, **numbers: float | list[int] | list[float]) -> RecordDict:
        """A reply: numbers, those of the last exchange if public steps were taken on it, and the rest."""
        answer = RecordDict({METRICS: metrics_record({"num-examples": len(self.clients[row].site.train), **numbers})})
        if row in self.swaps:
            answer[EXCHANGE] = exchange_record(self.swaps[row].summary())
        answer.update(rest)
        return answer

    # The end of a round.

    def _finish(self) -> list[RecordDict]:
        """Send adapters and numbers; remember what lasts."""
        adapters = self.cohort.adapters()
        keep = self.request.train.optimizer_state == "keep"
        moments = self.cohort.moments() if keep else {}
        packed = {n: self._packed(n, one, adapters[n]) for n, one in self.clients.items()}
        answers = []
        for row, one in self.clients.items():
            arrays, lost = packed[row]
            own = one.request.own_adapter
            rest = RecordDict() if own else RecordDict({ARRAYS: arrays})
            if (probes := self.supervising.settle(row)) is not None:
                rest[PROBES] = probes_record(probes)
            memory = self.memory[row]
            numbers = memory.metrics.summary() | (memory.labels.summary() if memory.labels else {})
            answers.append(self._answer(row, rest, **numbers))
            memory.finish(one.context, moments.get(row))
            if own:
                one.context.state[OWN_ADAPTER] = arrays
            if lost is not None:
                one.context.state[LOST] = lost
        return answers

    def _packed(self, row: str, one: Asked, adapter: Adapter) -> tuple[ArrayRecord, ArrayRecord | None]:
        """The trained half of the adapter as it travels, and what rounding has lost of it and is to be remembered."""
        precision, halves = self.request.precision, self.request.trains
        if precision == "float32":
            return adapter_to_arrays(adapter, halves), None
        lost = arrays_in(one.context, LOST) if self.request.feedback else None
        try:
            sent, lost = pack(adapter, self.starts[row], lost, precision, halves)
            return sent, lost if self.request.feedback else None
        except AdapterError as error:  # diverged, or changed by more than can be rounded: the server is to see it
            _log.warning("%s: sent in float32: %s", one.site.name, error)
            return adapter_to_arrays(adapter, halves), None


def by_federation(clients: Mapping[str, Asked]) -> dict[CohortApp, dict[str, Asked]]:
    """A batch's clients by the client code of their federations."""
    found: dict[CohortApp, dict[str, Asked]] = {}
    for row, one in clients.items():
        found.setdefault(one.app, {})[row] = one
    return found


def _public(group: Group) -> Problem:
    """A public group's problem, whose answer everybody has."""
    assert isinstance(group.problem, Problem)
    return group.problem


def _foreign(groups: Sequence[Group]) -> list[Response]:
    return [r for group in groups for r in group.responses if r.origin is Origin.FOREIGN]
