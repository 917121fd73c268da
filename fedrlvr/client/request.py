"""One message at the client it is for: what is asked, of whom, and what that client remembers.

A batch holds messages to clients of one or several federations, which share a cohort and nothing else. So each request
carries its own client, and computing a batch needs nothing but the cohort and the requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Context, Message

from fedrlvr.adapter import Adapter
from fedrlvr.policy.base import Base
from fedrlvr.reporting.observer import Observer
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.problem import Problem, Question
from fedrlvr.wire.messages import ARRAYS, DELTA, EvaluateRequest, Request, StretchRequest


@dataclass(frozen=True, eq=False)
class Client:
    """One organisation in one federation.

    federation: tells its federation from others on the same cohort; "" where there is only one.
    initial: the adapter the client starts from, of its own rank. largest: the same of the federation's largest rank.
    observer: is told how the federation's work goes.
    """

    federation: str
    data: ClientData
    initial: Adapter
    largest: Adapter
    observer: Observer

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
    """A message at its client.

    asked: what the message asks. context: the client's memory between messages.
    """

    message: Message
    asked: StretchRequest | EvaluateRequest
    client: Client
    context: Context

    @property
    def row(self) -> str:
        """The client's name in the cohort."""
        return self.client.row

    @property
    def data(self) -> ClientData:
        """The client's own data."""
        return self.client.data

    @property
    def under_way(self) -> bool:
        """Whether the message continues a round: it brings no model, and the client does not keep its own."""
        return not self.asked.own_adapter and not {ARRAYS, DELTA} & set(self.message.content)

    @property
    def place(self) -> str:
        """Client and round, for errors."""
        return f"{self.client.name}: round {self.asked.round}"

    def encode(self, base: Base, problems: Sequence[Problem] | Sequence[Question]) -> list[list[int]]:
        """Token ids of these problems' prompts as this client asks them."""
        return base.encode_all([self.data.prompt_text(problem) for problem in problems])


def batches(requests: Sequence[ClientRequest], *, together: bool = True) -> list[list[ClientRequest]]:
    """What can be computed at once: requests that ask the same of different clients, whatever their seeds and rounds.

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
