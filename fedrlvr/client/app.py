"""Client code: an organisation's answers to messages, written for a cohort of K.

A deployed organisation is a cohort of one; a simulation hands over everybody's messages at once, and a sweep those of
several federations, which share a cohort and nothing else. Training is in local_training.py, and what a client
remembers between messages in state.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import Context, Error, Message, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.client.imitation import ImitationTraining, held_out_losses
from fedrlvr.client.initial_adapter import Reading, Start
from fedrlvr.client.local_training import LocalTraining
from fedrlvr.client.request import Client, ClientRequest, Release, batches, by_federation
from fedrlvr.client.state import HELD
from fedrlvr.config import DemonstrationsSupervision
from fedrlvr.errors import MessageError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.reporting.observer import Evaluated, Observer
from fedrlvr.reporting.responses import ResponseLog
from fedrlvr.rl import CORRECT, Response
from fedrlvr.seeds import private_seed, stream
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.wire.messages import (
    DELTA,
    EvaluateRequest,
    RespondRequest,
    SourceScores,
    StretchRequest,
    TrainRequest,
    read_request,
    scores_content,
)
from fedrlvr.wire.public_messages import RESPOND

REQUESTS: dict[str, type[TrainRequest] | type[RespondRequest] | type[EvaluateRequest]] = {
    "train": TrainRequest,
    RESPOND: RespondRequest,
    "evaluate": EvaluateRequest,
}
"""Class of the request in a message, by the message's type."""


def asked_in(message: Message) -> TrainRequest | RespondRequest | EvaluateRequest:
    """Read the request of a message, by the message's type.

    Raises:
        MessageError: a message of a type that no client answers, or that cannot be read.
    """
    kind = REQUESTS.get(message.metadata.message_type)
    if kind is None:
        raise MessageError(f"messages of type {message.metadata.message_type} are not answered")
    return read_request(message, kind)


def start_of(reading: Reading, request: ClientRequest) -> Start:
    """Starting point of a client's work on a message: adapter and change of the base weights.

    Raises:
        MessageError, AdapterError: the message lacks something, or cannot be used.
    """
    if request.uses_personal:
        from fedrlvr.client import personal

        return personal.start(reading, request)
    remembers = request.under_way and HELD in request.context.state
    if not request.asked.own_adapter and (DELTA in request.message.content or remembers):
        from fedrlvr.client import delta_start

        start = delta_start.start(reading, request)
        if not request.asked.personal or isinstance(request.asked, StretchRequest):
            return start
        from fedrlvr.client import personal

        return personal.of_parts(start, request)
    return reading.start(request)


class CohortApp:
    """Answers the messages to one federation's clients in this process, all that ask the same at once.

    data: the clients by Flower node id.
    initial: the adapter a client without one starts from, of the largest rank; others are checked against its names and
        shapes.
    federation: tells its clients from those of other federations on the same cohort; "" if there are none.
    release: what the clients accept and let out. log: where each client writes a few of its responses.
    """

    def __init__(
        self,
        cohort: Cohort,
        data: Mapping[int, ClientData],
        initial: Adapter,
        observer: Observer,
        federation: str = "",
        release: Release | None = None,
        log: ResponseLog | None = None,
    ) -> None:
        self.cohort = cohort
        self.initial = initial
        self.federation = federation
        ranks = {client.rank or initial.rank for client in data.values()}
        initials = {rank: initial.at_rank(rank) for rank in ranks}
        self.clients = {
            node: Client(
                federation, client, initials[client.rank or initial.rank], initial, observer, release or Release(), log
            )
            for node, client in data.items()
        }

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """One reply per message, in order. Messages that ask the same are computed together.

        Raises:
            MessageError: a message this client does not know, or cannot read.
        """
        requests = self.read(messages, contexts)
        replies: dict[ClientRequest, Message] = {}
        for batch in batches(requests, together=self.cohort.engine.cohort):
            replies.update(zip(batch, self.compute(batch), strict=True))
        return [replies[request] for request in requests]

    def read(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[ClientRequest]:
        """Requests of these messages, each at its client.

        Raises:
            MessageError: as `__call__`.
        """
        return [self.request(message, context) for message, context in zip(messages, contexts, strict=True)]

    def request(self, message: Message, context: Context) -> ClientRequest:
        """The request of a message, at its client.

        Raises:
            MessageError: as `__call__`.
        """
        client = self.clients[message.metadata.dst_node_id]
        return ClientRequest(message, asked_in(message), client, context)

    def compute(self, batch: Sequence[ClientRequest]) -> list[Message]:
        """Replies to one batch of `batches`, which may hold messages of other federations on the same cohort.

        A client's memory changes only after everything was computed, so a batch that fails can be computed again. An
        error in a reply's place has the code WITHHELD: a floor of the client's was missed.

        Raises:
            LimitError: what a message begins with is beyond a client's limits.
        """
        requests = {request.row: request for request in batch}
        asked = batch[0].asked
        reading = Reading()
        starts = {row: start_of(reading, request) for row, request in requests.items()}
        for row, request in list(requests.items()):
            start = starts[row]
            variation = request.client.release.accept(request, start.adapter, start.change)
            requests[row] = replace(request, variation=variation)
        changes = {row: start.change for row, start in starts.items() if start.change is not None}
        self.cohort.seat({row: start.adapter for row, start in starts.items()}, changes)
        answers: Sequence[RecordDict | Error]
        if isinstance(asked, StretchRequest):
            imitates = isinstance(asked.supervision, DemonstrationsSupervision)
            training = ImitationTraining if imitates else LocalTraining
            answers = training(self.cohort, asked, requests, starts).run()
        else:
            answers = self._evaluate(asked, requests)
        for request, answer in zip(batch, answers, strict=True):
            if not isinstance(answer, Error):
                starts[request.row].remember(request.context)
        return [Message(answer, reply_to=request.message) for request, answer in zip(batch, answers, strict=True)]

    def _evaluate(self, asked: EvaluateRequest, requests: Mapping[str, ClientRequest]) -> list[RecordDict]:
        started = time.perf_counter()
        decoding = Decoding(
            responses=asked.evaluate.samples,
            max_new_tokens=asked.sampling.max_new_tokens,
            temperature=asked.evaluate.temperature,
        )
        prompts = {
            row: request.encode(self.cohort.base, request.data.split(asked.evaluate.split))
            for row, request in requests.items()
        }
        # One stream for every evaluation: before and after are compared on the same random numbers.
        seeds = {
            row: stream(private_seed(request.asked.seed, request.data.secret), request.client.name, "evaluate")
            for row, request in requests.items()
        }
        drawn = self.cohort.sample(prompts, decoding, seeds)
        scores = {row: self._scores(request, asked.evaluate.split, drawn[row]) for row, request in requests.items()}
        losses = held_out_losses(self.cohort, requests, asked.evaluate.split) if asked.held_out_loss else {}
        seconds = (time.perf_counter() - started) / len(requests)
        for federation in by_federation(requests):
            first = next(iter(federation.values()))
            problems = sum(len(prompts[request.row]) for request in federation.values())
            first.client.observer.notify(Evaluated(first.asked.round, problems))
        return [
            scores_content(
                scores[row],
                {"num-examples": len(prompts[row]), "seconds_evaluate": seconds}
                | ({"held_out_loss": losses[row]} if row in losses else {}),
            )
            for row, request in requests.items()
        ]

    @staticmethod
    def _scores(request: ClientRequest, split: str, drawn: Sequence[Sequence[Response]]) -> list[SourceScores]:
        """Pass rates of the problems of a split, summed by source, as the client lets them out."""
        client, release = request.data, request.client.release
        problems = client.split(split)
        rates = []
        for problem, responses in zip(problems, drawn, strict=True):
            texts, finished = [r.text for r in responses], [r.finished for r in responses]
            right = [reward >= CORRECT for reward in client.grade(problem, texts, finished)]
            rates.append(sum(right) / len(right))
        release.rated(request, rates)
        by_source: dict[str, list[float]] = {}
        for problem, rate in zip(problems, rates, strict=True):
            by_source.setdefault(problem.source, []).append(rate)
        sums = [
            SourceScores(source=source, n=len(rs), total=sum(rs), squares=sum(r * r for r in rs))
            for source, rs in sorted(by_source.items())
        ]
        return release.scores(request, sums)
