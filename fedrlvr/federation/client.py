"""Client code: what an organisation does with the messages it gets, written for a cohort of K.

A deployed organisation is a cohort of one; a simulation hands over everybody's messages at once, and a sweep those of
several federations, which share a cohort and nothing else. Training is in training.py, and what a client remembers
between messages in memory.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.errors import MessageError
from fedrlvr.federation.messages import (
    ARRAYS,
    Coming,
    EvaluateRequest,
    Request,
    RespondRequest,
    SourceScores,
    StretchRequest,
    TrainRequest,
    read_request,
    scores_content,
)
from fedrlvr.federation.publicmessages import RESPOND
from fedrlvr.federation.receiving import Reading
from fedrlvr.federation.site import Site
from fedrlvr.federation.training import Training, by_federation
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.reporting.observer import Evaluated, Observer
from fedrlvr.rl import CORRECT, Response
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem, Question


@dataclass(frozen=True, eq=False)
class Asked:
    """A message at its client: what is asked, and of whom.

    app: the client code of the client's federation.
    context: the client's own memory.
    """

    app: CohortApp
    message: Message
    context: Context
    request: StretchRequest | EvaluateRequest

    @property
    def site(self) -> Site:
        """Who is asked."""
        return self.app.sites[self.message.metadata.dst_node_id]

    @property
    def row(self) -> str:
        """The client's name in the cohort, where clients of several federations may sit."""
        return f"{self.app.federation}/{self.site.name}" if self.app.federation else self.site.name

    @property
    def under_way(self) -> bool:
        """Whether the message goes on with a round: it brings no adapter, and the client is not on its own."""
        return not self.request.own_adapter and self.coming is None

    @property
    def coming(self) -> Coming | None:
        """What the message brings of the global model; an adapter without notes is a whole one."""
        if self.request.coming is None and ARRAYS in self.message.content:
            return Coming(version=0)
        return self.request.coming

    @property
    def initial(self) -> Adapter:
        """The adapter this client starts from, of its own rank."""
        return self.app.initial_of(self.site)

    def encode(self, problems: Sequence[Problem] | Sequence[Question]) -> list[list[int]]:
        """Token ids of these problems' prompts as this client asks them."""
        prompts = [problem.prompt for problem in problems]
        return self.app.cohort.base.encode_all(prompts, self.site.instruction)


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
        same = one.request.model_copy(update={"round": 0, "seed": 0, "own_adapter": False, "coming": None})
        found.setdefault((same, before[same, one.row]), []).append(one)
        before[same, one.row] += 1
    return list(found.values())


class CohortApp:
    """Answers the messages to one federation's sites in this process, all that ask the same at once.

    sites: by Flower node id.
    initial: the adapter a client without one starts from, of the largest rank; others are checked against its names and
        shapes.
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
        self._initials: dict[int, Adapter] = {}

    def initial_of(self, site: Site) -> Adapter:
        """The adapter a site starts from."""
        rank = site.rank or self.initial.rank
        return self._initials.setdefault(rank, self.initial.at_rank(rank))

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
        kinds: dict[str, type[TrainRequest] | type[RespondRequest] | type[EvaluateRequest]] = {
            "train": TrainRequest,
            RESPOND: RespondRequest,
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
        reading = Reading()
        starts = {row: reading.start(one) for row, one in clients.items()}
        changes = {row: start.change for row, start in starts.items() if start.change is not None}
        self.cohort.seat({row: start.adapter for row, start in starts.items()}, changes)
        if isinstance(request, StretchRequest):
            answers = Training(self.cohort, request, clients, starts).go()
        else:
            answers = self._evaluate(request, clients)
        for row, one in clients.items():
            starts[row].remember(one.context)
        return [Message(answer, reply_to=one.message) for one, answer in zip(batch, answers, strict=True)]

    def _evaluate(self, request: EvaluateRequest, clients: Mapping[str, Asked]) -> list[RecordDict]:
        started = time.perf_counter()
        decoding = Decoding(
            responses=request.evaluate.samples,
            max_new_tokens=request.sampling.max_new_tokens,
            temperature=request.evaluate.temperature,
        )
        prompts = {n: one.encode(one.site.test) for n, one in clients.items()}
        # One stream for every evaluation: before and after are compared on the same random numbers.
        seeds = {n: stream(one.request.seed, one.site.name, "evaluate") for n, one in clients.items()}
        drawn = self.cohort.sample(prompts, decoding, seeds)
        scores = {n: _scores(one.site, drawn[n]) for n, one in clients.items()}
        seconds = (time.perf_counter() - started) / len(clients)
        for app, mine in by_federation(clients).items():
            round_ = next(iter(mine.values())).request.round
            app.observer.notify(Evaluated(round_, sum(len(one.site.test) for one in mine.values())))
        return [
            scores_content(scores[n], {"num-examples": len(one.site.test), "seconds_evaluate": seconds})
            for n, one in clients.items()
        ]


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
