"""One message at its client: the request, the client, and the client's memory.

A batch holds messages to clients of one or several federations, which share a cohort and nothing else. So each request
carries its own client, and computing a batch needs nothing but the cohort and the requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import Context, Message, RecordDict

from fedrlvr.adapter import Adapter, Halves
from fedrlvr.client.state import Memory
from fedrlvr.policy.base import Base
from fedrlvr.privacy.mechanism import Normal, noised, system_normal
from fedrlvr.reporting.observer import Observer
from fedrlvr.reporting.responses import ResponseLog
from fedrlvr.seeds import private_seed
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.problem import Problem, Question
from fedrlvr.wire.messages import (
    ARRAYS,
    DELTA,
    METRICS,
    EvaluateRequest,
    Request,
    SourceScores,
    StretchRequest,
    metrics_record,
)


class Release:
    """Rules for what a client accepts from a server and lets out; here everything, as in a simulation.

    An organisation's own rules are in deployment/site/release.py.

    scale_free: whether the optimizer's steps are free of the gradient's scale (policy/optimizer.py). normal: gives the
    noise of differential privacy.
    """

    def __init__(self, *, scale_free: bool = False, normal: Normal = system_normal) -> None:
        self.scale_free, self._normal = scale_free, normal

    def accept(self, request: ClientRequest, adapter: Adapter, change: Adapter | None) -> str:
        """Check the model that a message begins with; the text that its private streams depend on besides the request.

        change: of the base weights, of scale 1.

        Raises:
            LimitError: it is beyond the client's limits.
        """
        return ""

    def trained(self, request: ClientRequest, memory: Memory, reply: RecordDict) -> RecordDict:
        """The reply to a request for training as it may leave.

        memory: of the round that the reply is about.

        Raises:
            FloorError: too little was trained on for anything to leave.
        """
        assert isinstance(request.asked, StretchRequest)
        if request.asked.privacy is not None:
            reply[METRICS] = metrics_record({"num-examples": 1})
        return reply

    def noised(
        self, request: ClientRequest, memory: Memory, adapter: Adapter, start: Adapter, halves: Halves
    ) -> Adapter:
        """The adapter with the noise that the request asks for, as it may leave; the same without such a request.

        start: the adapter that the client received. halves: those that are sent.
        """
        assert isinstance(request.asked, StretchRequest)
        if (asked := request.asked.privacy) is None:
            return adapter
        return noised(adapter, start, clip=asked.clip, noise=asked.noise, halves=halves, normal=self._normal)

    def rated(self, request: ClientRequest, rates: Sequence[float]) -> None:
        """Take the pass rate of each problem of an evaluation, in their order. Nothing keeps these rates here, and no
        message has a place for them."""

    def scores(self, request: ClientRequest, scores: list[SourceScores]) -> list[SourceScores]:
        """The scores of an evaluation as they may leave."""
        return scores


@dataclass(frozen=True, eq=False)
class Client:
    """One organisation in one federation, with its data.

    federation: tells its federation from others on the same cohort; "" where there is only one.
    initial: the adapter the client starts from, of its own rank. largest: the same of the federation's largest rank.
    observer: is told how the federation's work goes. release: what may come in and leave. log: where the client writes
    a few of its responses, if anywhere.
    """

    federation: str
    data: ClientData
    initial: Adapter
    largest: Adapter
    observer: Observer
    release: Release = field(default_factory=Release)
    log: ResponseLog | None = None

    @property
    def name(self) -> str:
        """The client's name in its federation."""
        return self.data.name

    @property
    def row(self) -> str:
        """The client's name in the cohort, where clients of several federations may sit."""
        return f"{self.federation}/{self.name}" if self.federation else self.name


@dataclass(frozen=True, eq=False)
class ClientRequest:
    """A message with its request, client and memory.

    asked: what the message asks. context: the client's memory between messages. variation: what its private streams
    depend on besides what is asked.
    """

    message: Message
    asked: StretchRequest | EvaluateRequest
    client: Client
    context: Context
    variation: str = ""

    @property
    def row(self) -> str:
        """The client's name in the cohort."""
        return self.client.row

    @property
    def data(self) -> ClientData:
        """Problems of the client that the message is for."""
        return self.client.data

    @cached_property
    def seed(self) -> int:
        """Seed of the private streams of this message's training.

        With a secret it depends on everything that is asked, and on how, so a message that is sent again with one
        setting changed draws other responses, and the two replies cannot be subtracted.
        """
        asked = self.asked.model_dump_json() + self.variation + self.data.prompts.settings
        return private_seed(self.asked.seed, self.data.secret, asked)

    @property
    def under_way(self) -> bool:
        """Whether the message continues a round: it brings no model, and the client does not keep its own."""
        return not (self.asked.own_adapter or self.uses_personal) and not {ARRAYS, DELTA} & set(self.message.content)

    @property
    def uses_personal(self) -> bool:
        """Whether the message is about the personal adapter as it is, rather than making one."""
        brings = {ARRAYS, DELTA} & set(self.message.content)
        return self.asked.personal and isinstance(self.asked, EvaluateRequest) and not brings

    @property
    def place(self) -> str:
        """Name of client and round, for the text of errors."""
        return f"{self.client.name}: round {self.asked.round}"

    def encode(self, base: Base, problems: Sequence[Problem] | Sequence[Question]) -> list[list[int]]:
        """Token ids of these problems' prompts as this client asks them."""
        return base.encode_all([self.data.prompts.ask(problem) for problem in problems])


def batches(requests: Sequence[ClientRequest], *, together: bool = True) -> list[list[ClientRequest]]:
    """Batches of requests that can be computed at once: they ask the same of different clients, whatever their seeds
    and rounds.

    together: off makes batches of one, in order.
    """
    if not together:
        return [[request] for request in requests]
    batched: dict[tuple[Request, int], list[ClientRequest]] = {}
    before: Counter[tuple[Request, str]] = Counter()
    for request in requests:
        # Each client's own round, seed and adapter are its row's; nothing else may differ within a batch.
        same = request.asked.model_copy(update={"round": 0, "seed": 0, "own_adapter": False})
        batched.setdefault((same, before[same, request.row]), []).append(request)
        before[same, request.row] += 1
    return list(batched.values())


def by_federation(requests: Mapping[str, ClientRequest]) -> list[dict[str, ClientRequest]]:
    """A batch's requests, by row of the cohort, apart for each federation."""
    federations: dict[str, dict[str, ClientRequest]] = {}
    for row, request in requests.items():
        federations.setdefault(request.client.federation, {})[row] = request
    return list(federations.values())
