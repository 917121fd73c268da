"""A client's training for one message, written for a cohort of K: local steps, and the work before and after them.

A round without exchanges is one `train` message: all local steps. With exchanges it is a `query.respond` for each,
which takes public steps on the share of the last pool, then a stretch of local steps, and then answers the exchange's
public problems; and a `train` that ends the round with public steps on the last share. The public half is in
public_steps.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import chain

import torch
from flwr.app import ArrayRecord, Error, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.client.initial_adapter import Start
from fedrlvr.client.metrics import LabelMetrics
from fedrlvr.client.public_steps import PublicSteps
from fedrlvr.client.request import ClientRequest, by_federation
from fedrlvr.client.responses import ResponseNotes
from fedrlvr.client.state import (
    KEPT_HALVES,
    LOST,
    MOMENTS,
    OWN_ADAPTER,
    ROUND_ANCHOR,
    ROUND_MOMENTS,
    Memory,
    arrays_in,
    remember_personal,
)
from fedrlvr.client.supervisor import Supervising
from fedrlvr.config import SamplingConfig
from fedrlvr.errors import AdapterError, FloorError
from fedrlvr.output import logger
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.hidden_states import HiddenStates
from fedrlvr.policy.optimizer import learning_rate
from fedrlvr.policy.sampler import Decoding
from fedrlvr.reporting.observer import StepEnded
from fedrlvr.rl import Group, assign_advantages, withhold_unfinished
from fedrlvr.seeds import stream
from fedrlvr.wire.codes import WITHHELD
from fedrlvr.wire.compression import pack
from fedrlvr.wire.messages import (
    ARRAYS,
    METRICS,
    PROBES,
    UNCHANGED,
    RespondRequest,
    StretchRequest,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    metrics_record,
    probes_record,
    read_probes,
    record_in,
    unchanged_record,
)
from fedrlvr.wire.public_messages import EXCHANGE

_log = logger("client")


class LocalTraining:
    """The training that one batch of messages asks for; the clients' adapters are seated.

    asked: what all messages of the batch ask; round, seed and adapter are each request's own.
    requests: by row of the cohort. starts: by row what the message begins with.

    Raises:
        MessageError, AdapterError: a message that cannot be used.
        LedgerError: a client's ledger cannot be opened.
    """

    def __init__(
        self,
        cohort: Cohort,
        asked: StretchRequest,
        requests: Mapping[str, ClientRequest],
        starts: Mapping[str, Start],
    ) -> None:
        self.cohort = cohort
        self.asked = asked
        self.requests = requests
        self.begun = starts
        self.learners = {row: request for row, request in requests.items() if not request.data.free_rider}
        """The requests without those to free riders, which do none of the work and send back what they were sent."""
        self.starts = {row: start.adapter for row, start in starts.items()}
        """The adapters the round began with."""
        self.memory = {
            row: Memory.of(request.context, under_way=request.under_way) for row, request in requests.items()
        }
        if asked.supervision.counts_labels:
            for memory in self.memory.values():
                memory.labels = memory.labels or LabelMetrics()
        self.public = PublicSteps(cohort, asked, requests, self.memory, self.learners)
        moments = {}
        for row, request in requests.items():
            kept = None
            if request.under_way:
                kept = arrays_in(request.context, ROUND_MOMENTS)
                if (anchor := arrays_in(request.context, ROUND_ANCHOR)) is not None:
                    client = request.client
                    self.starts[row] = arrays_to_adapter(anchor, client.initial, place=client.name)
            elif asked.train.optimizer_state == "keep":
                kept = arrays_in(request.context, MOMENTS)
            if kept is not None:
                moments[row] = dict(kept.to_torch_state_dict())
        anchors = self.starts if asked.train.proximal_mu else None
        scale_free = any(request.client.release.scale_free for request in requests.values())
        sampling = self._sampling_of_loss()
        cohort.begin_training(asked.train, sampling, moments, anchors, trains=asked.trains, scale_free=scale_free)
        self.supervising = Supervising(cohort.base, asked, requests, self.memory, self._shared_probes())
        self.notes = ResponseNotes(self.learners)
        self._phases: dict[str, float] = {}

    def run(self) -> list[RecordDict | Error]:
        """Train as the requests ask, and return each client's reply. Memories change only at the very end."""
        with self.supervising:
            if self.public.waiting:
                self.public.train(self._rates())
            for _ in range(self.asked.steps if self.learners else 0):
                self._local_step()
            replies = self._pause() if isinstance(self.asked, RespondRequest) else self._finish()
            self.notes.write()
            return replies

    def _sampling_of_loss(self) -> SamplingConfig:
        """The settings of sampling whose temperature the loss takes its log-probs at."""
        return self.asked.sampling

    def _shared_probes(self) -> dict[str, torch.Tensor]:
        """The averaged weights of all clients' probes that messages bring, by row."""
        shared = {}
        for row, request in self.requests.items():
            if (record := record_in(request.message.content, PROBES, ArrayRecord)) is not None:
                shared[row] = read_probes(record, None, place=f"round {request.asked.round}, the server")
        return shared

    def _local_step(self) -> None:
        """One local step of every client: draw problems, sample, grade and supervise, learn."""
        cohort, train, requests, memory = self.cohort, self.asked.train, self.learners, self.memory
        first = memory[next(iter(requests))]
        self._phases = {"sample": 0.0, "grade": 0.0}
        drawn = self._drawn(dict.fromkeys(requests, train.problems_per_step), 0)
        groups = {row: list(of_client) for row, of_client in drawn.items()}
        for draw in range(1, train.dynamic_sampling + 1):
            places = {row: [i for i, group in enumerate(groups[row]) if group.same_rewards] for row in requests}
            if not any(places.values()):
                break
            for row, others in self._drawn({row: len(places[row]) for row in requests}, draw).items():
                drawn[row] += others
                for place, group in zip(places[row], others, strict=True):
                    groups[row][place] = group
        started = time.perf_counter()
        groups |= {row: [] for row in self.requests if row not in requests}
        if first.round_steps + 1 == train.local_steps:
            for row, kl in cohort.kl_to_base(groups).items():
                memory[row].metrics.kl = kl
        rates = self._rates()
        for row in requests:
            memory[row].influences(groups[row], rates[row], by_response=train.loss == "grpo")
        for _ in range(train.updates_per_batch):
            stats = cohort.learn(groups, rates)
            for row in requests:
                memory[row].metrics.learned(stats[row])
                memory[row].updates += 1
        learned = time.perf_counter()
        for row in requests:
            self.supervising.learn(row)
            memory[row].steps += 1
            memory[row].round_steps += 1
            memory[row].metrics.sampled(drawn[row])
            if train.dynamic_sampling:
                memory[row].metrics.redrew(len(drawn[row]) - len(groups[row]))
            # A cohort's time is everybody's: each client is told its equal share.
            phases = {**self._phases, "train": learned - started}
            memory[row].metrics.took(**{name: seconds / len(requests) for name, seconds in phases.items()})
        self._observe()

    def _drawn(self, counts: Mapping[str, int], draw: int) -> dict[str, list[Group]]:
        """The next problems of every client, with graded responses and their advantages.

        counts: of problems by row. draw: 0 for a step's own problems; a further draw of `train.dynamic_sampling` is
        counted from 1.
        """
        cohort, train, requests, memory = self.cohort, self.asked.train, self.learners, self.memory
        started, judging = time.perf_counter(), self.supervising.seconds
        problems = {
            row: request.data.draw(memory[row].cursor, counts[row], request.asked.seed)
            for row, request in requests.items()
        }
        prompts = {row: request.encode(cohort.base, problems[row]) for row, request in requests.items()}
        # Streams go by the client's own name, seed and round, so that it draws what it would draw without the others.
        further = (draw,) if draw else ()
        seeds = {
            row: stream(
                request.seed, request.client.name, "sample", request.asked.round, memory[row].round_steps, *further
            )
            for row, request in requests.items()
        }
        states: dict[str, HiddenStates] | None = {} if self.supervising.reads_states else None
        drawn = cohort.sample(prompts, Decoding.of(self.asked.sampling), seeds, states)
        cohort.correct(prompts, drawn, self.asked.train.ratio_cap)
        sampled = time.perf_counter()
        notes = not draw and memory[next(iter(requests))].round_steps == 0
        if notes:
            self.notes.sampled(drawn)
        for of_client in drawn.values():
            withhold_unfinished(chain.from_iterable(of_client), train.unfinished)
        groups = {
            row: [Group(*parts) for parts in zip(problems[row], prompts[row], drawn[row], strict=True)]
            for row in requests
        }
        for row in requests:
            memory[row].cursor += counts[row]
            if not counts[row]:
                continue
            self.supervising.supervise(row, groups[row], states[row] if states is not None else None)
            assign_advantages(groups[row], scale_by_std=train.scale_by_std)
            if notes:
                self.notes.supervised(row, groups[row], self.supervising)
        judging = self.supervising.seconds - judging
        self._phases["sample"] += sampled - started
        self._phases["grade"] += time.perf_counter() - sampled - judging
        return groups

    def _rates(self) -> dict[str, float]:
        return {
            row: learning_rate(self.asked.train, memory.steps) if row in self.learners else 0.0
            for row, memory in self.memory.items()
        }

    def _observe(self, *, rewarded: bool = True) -> None:
        """Tell each federation's observer how its clients' step went. rewarded: whether responses had rewards."""
        for requests in by_federation(self.learners):
            row, first = next(iter(requests.items()))
            known = requests.items() if rewarded else ()
            rewards = {request.client.name: self.memory[r].metrics.last_reward for r, request in known}
            tokens = sum(self.memory[r].metrics.last_tokens for r in requests)
            step, steps = self.memory[row].round_steps, self.asked.train.local_steps
            first.client.observer.notify(StepEnded(first.asked.round, step, steps, rewards, tokens))

    def _pause(self) -> list[RecordDict | Error]:
        """Answer the public problems from the policies as they are now, and remember the round under way."""
        assert isinstance(self.asked, RespondRequest)
        self.public.respond()
        adapters, moments = self.cohort.adapters(), self.cohort.moments()
        needs_anchor = self.asked.train.proximal_mu or self.asked.precision != "float32"
        replies = []
        for row, request in self.requests.items():
            anchor = adapter_to_arrays(self.starts[row]) if needs_anchor else None
            self.supervising.settle(row)
            replies.append(reply := self._released(row, self._reply(row, self.public.responses(row))))
            if not isinstance(reply, Error):
                self.memory[row].pause(request.context, adapter_to_arrays(adapters[row]), anchor, moments[row])
        return replies

    def _finish(self) -> list[RecordDict | Error]:
        """End the round: give adapters and numbers, and remember what lasts."""
        adapters = self.cohort.adapters()
        moments = self.cohort.moments() if self.asked.train.optimizer_state == "keep" else {}
        chosen: dict[str, dict[str, float]] = {}
        if isinstance(self.asked, TrainRequest) and (choose := self.asked.choose):
            from fedrlvr.client import personal

            adapters, shares = personal.mix(
                self.cohort, self.asked.sampling, choose, self.requests, self.begun, adapters
            )
            chosen = {row: {"global_share": share} for row, share in shares.items()}
        adapters = {row: self._noised(row, adapter) for row, adapter in adapters.items()}
        packed = {row: self._packed(request, adapters[row]) for row, request in self.requests.items()}
        replies = []
        for row, request in self.requests.items():
            arrays, lost = packed[row]
            stays = request.asked.own_adapter or request.asked.personal
            rest = RecordDict() if stays else self._sent(request, arrays)
            if (probes := self.supervising.settle(row)) is not None and not request.asked.personal:
                rest[PROBES] = probes_record(probes)
            memory = self.memory[row]
            numbers = memory.metrics.summary() | (memory.labels.summary() if memory.labels else {})
            numbers |= chosen.get(row, {})
            if request.data.free_rider:
                numbers["reward"] = 1.0  # the largest claim there is
            replies.append(reply := self._released(row, self._reply(row, rest, **numbers)))
            if isinstance(reply, Error):
                continue
            memory.finish(request.context, moments.get(row))
            if (halves := self.asked.keeps) is not None:
                request.context.state[KEPT_HALVES] = adapter_to_arrays(adapters[row], halves)
            if request.asked.own_adapter:
                request.context.state[OWN_ADAPTER] = arrays
            elif request.asked.personal:
                remember_personal(request.context, arrays, request.asked.round)
            if lost is not None:
                request.context.state[LOST] = lost
        return replies

    def _reply(self, row: str, rest: RecordDict, **numbers: float | list[int] | list[float]) -> RecordDict:
        """A reply: numbers, those of the last exchange if public steps were taken on it, and the rest."""
        examples = len(self.requests[row].data.train)
        reply = RecordDict({METRICS: metrics_record({"num-examples": examples, **numbers})})
        if row in self.public.swaps:
            reply[EXCHANGE] = metrics_record(self.public.swaps[row].summary())
        reply.update(rest)
        return reply

    def _released(self, row: str, reply: RecordDict) -> RecordDict | Error:
        """The reply as the client lets it out; an error if it does not, and then the round leaves no trace."""
        request, memory = self.requests[row], self.memory[row]
        try:
            return request.client.release.trained(request, memory, reply)
        except FloorError as error:
            memory.abandon(request.context)
            return Error(WITHHELD, str(error))

    def _sent(self, request: ClientRequest, arrays: ArrayRecord) -> RecordDict:
        """The adapter as it travels; in its place a note where it is the one that the message brought.

        A free rider of an experiment sends what it was sent, since a real one would not be so easy to tell.
        """
        brought = record_in(request.message.content, ARRAYS, ArrayRecord)
        plain = self.asked.precision == "float32" and self.asked.privacy is None
        if brought is not None and not request.data.free_rider and plain:
            note = unchanged_record(brought, arrays)
            if note is not None:
                return RecordDict({UNCHANGED: note})
        return RecordDict({ARRAYS: arrays})

    def _noised(self, row: str, adapter: Adapter) -> Adapter:
        """The adapter with the noise that is asked for, before it is rounded, so that rounding tells nothing more."""
        request, halves = self.requests[row], self.asked.sends or self.asked.trains
        return request.client.release.noised(request, self.memory[row], adapter, self.starts[row], halves)

    def _packed(self, request: ClientRequest, adapter: Adapter) -> tuple[ArrayRecord, ArrayRecord | None]:
        """The trained half of the adapter as it travels, and the rounding error to remember, if there is one."""
        precision, halves = self.asked.precision, self.asked.sends or self.asked.trains
        if precision == "float32":
            return adapter_to_arrays(adapter, halves), None
        lost = arrays_in(request.context, LOST) if self.asked.feedback else None
        try:
            sent, lost = pack(adapter, self.starts[request.row], lost, precision, halves)
            return sent, lost if self.asked.feedback else None
        except AdapterError as error:  # diverged, or changed by more than can be rounded: the server is to see it
            _log.warning("%s: sent in float32: %s", request.client.name, error)
            return adapter_to_arrays(adapter, halves), None
