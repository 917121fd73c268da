"""Participation in a round: the clients that are asked, the content that each is sent, and the check of its reply."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedrlvr.config import Config
from fedrlvr.config.federation import share_of
from fedrlvr.errors import FedrlvrError, MessageError, RoundError, printable
from fedrlvr.output import logger
from fedrlvr.reporting.absence import FAILED_WORDS, LATE_WORDS, WITHHELD_WORDS
from fedrlvr.reporting.observer import ClientAnswered, ClientLeftOut, ClientsAsked, Observer, PhaseStarted
from fedrlvr.seeds import stream
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.shared_probes import SharedProbes
from fedrlvr.wire.codes import WITHHELD
from fedrlvr.wire.messages import MOST_REASON, Request, StretchRequest, content, nbytes
from fedrlvr.wire.public_messages import RESPOND

_log = logger("server")

R = TypeVar("R", bound=StretchRequest)
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A client's reply that has a content. place: round and client, for errors."""

    round: int
    client: str
    place: str
    message: Message


@dataclass
class Participation:
    """Selects the clients of a round, and decides whether their replies count.

    clients: the organisations by Flower node id. record: of the round that is under way. asked: clients that were asked
    in this phase of the round; the quorum is of them.
    """

    config: Config
    clients: Mapping[int, str]
    model: GlobalModel
    probes: SharedProbes
    observer: Observer
    record: RoundRecord = field(default_factory=lambda: RoundRecord(0))
    asked: int = 0
    declared: dict[str, dict[str, int]] = field(default_factory=lambda: {"train": {}, "validation": {}, "test": {}})
    """Problems of each client as known at the start, or else as it first reported them."""

    def drawn(self, round_: int, grid: Grid) -> list[int]:
        """The nodes drawn for a round among those that train, without those that have been left out of it."""
        nodes = self.training(grid)
        count = share_of(self.config.federation.fraction, len(nodes))
        drawn = random.Random(stream(self.config.run.seed, "clients", round_)).sample(nodes, count)
        return self.present(drawn)

    def training(self, grid: Grid) -> list[int]:
        """The nodes whose clients train, in order: all but those that are excluded or have withdrawn."""
        federation = self.config.federation
        excluded = () if federation.arm == "central" else federation.excluded  # whose one client has a name of its own
        return [node for node in self._here(grid.get_node_ids()) if self.clients.get(node) not in excluded]

    def _here(self, nodes: Iterable[int]) -> list[int]:
        withdrawn = self.config.federation.withdrawn
        return sorted(node for node in nodes if self.clients.get(node) not in withdrawn)

    def present(self, nodes: Iterable[int]) -> list[int]:
        """These nodes, in order, without those that have withdrawn or been left out of the round."""
        asked = self._here(nodes)
        self.asked = len(asked)
        return [node for node in asked if self.clients.get(node) not in self.record.left_out]

    def problems(self, client: str, part: Literal["train", "validation", "test"], reported: float) -> int:
        """A client's number of problems: what it reports, and never more than it declared at the start."""
        declared = self.declared[part].setdefault(client, int(reported))
        if reported > declared:
            _log.warning(
                "round %d, %s: reports %d problems (%s), and counts with the %d that it declared at the start",
                self.record.round,
                client,
                reported,
                part,
                declared,
            )
        return min(int(reported), declared)

    # Requests.

    def request(self, kind: type[R], round_: int, steps: int, **fields: Any) -> R:
        """A request for training, with what every such request of this run asks.

        fields: those of this kind alone, and those that differ.
        """
        config, rule = self.config, self.model.rule
        usual = {
            "train": config.train,
            "supervision": config.supervision,
            "trains": rule.trains(round_),
            "precision": config.aggregation.number_format,
            "feedback": not rule.new_components,
            "sends": self.model.sends(round_) if self.config.personal.method.keeps else None,
            "keeps": self.config.personal.method.keeps,
            "privacy": config.privacy.noise(config.train.rounds),
        }
        return kind(round=round_, seed=config.run.seed, sampling=config.sampling, steps=steps, **usual | fields)

    def content(self, request: Request, node: int, arrays: ArrayRecord | None) -> RecordDict:
        """A request's content for a node; with arrays it brings the client what it lacks of the global model."""
        if arrays is None:
            return content(request)
        client = self.clients.get(node, "")  # a stranger's reply is refused
        body = content(request, **self.model.bring(client, self.rank(client), arrays))
        if isinstance(request, StretchRequest):
            self.probes.bring(body)
        return body

    def rank(self, client: str) -> int:
        """The rank of a client's adapter."""
        ranks = self.config.lora.rank
        return ranks[client] if isinstance(ranks, dict) and client in ranks else self.model.adapter.rank

    # Replies.

    def ask(self, grid: Grid, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
        """Send, and yield the replies as they come; bytes of both directions are counted by client."""
        out = list(messages)
        if not out:
            return
        kind = out[0].metadata.message_type
        for message in out:
            self.record.add_bytes(self.clients[message.metadata.dst_node_id], down=nbytes(message))
        waiting = {message.metadata.dst_node_id for message in out}
        asked = sorted(self.clients[node] for node in waiting)
        self.observer.notify(ClientsAsked(self.record.round, kind, asked))
        started = time.perf_counter()
        replies = iter(grid.send_and_receive(out, timeout=timeout))
        del out, message
        while True:
            reply = next(replies, None)
            self.record.seconds[kind] = self.record.seconds.get(kind, 0.0) + time.perf_counter() - started
            if reply is None:
                break
            node = reply.metadata.src_node_id
            waiting.discard(node)
            if node in self.clients:
                self.observer.notify(ClientAnswered(self.record.round, self.clients[node]))
            if node not in self.clients or self._counted(self.clients[node], reply):
                yield reply
            started = time.perf_counter()
        if kind == MessageType.TRAIN:
            self.observer.notify(PhaseStarted(self.record.round, "aggregate"))
        for client in sorted(self.clients[node] for node in waiting):
            late = f"round {self.record.round}: {LATE_WORDS} {timeout:.0f} s from {client}"
            self.leave_out(client, RoundError(late))

    def _counted(self, client: str, reply: Message) -> bool:
        """Count the bytes of a client's reply. False: they cannot be counted, and the client is left out. A reply of an
        exchange is given on uncounted, and fails where it is read.

        Raises:
            FedrlvrError: as `leave_out`.
        """
        try:
            self.record.add_bytes(client, up=nbytes(reply))
        except Exception as error:  # Flower's count fails in several ways on values that are empty
            if reply.metadata.message_type == RESPOND:
                return True
            self.leave_out(client, unusable(f"round {self.record.round}, {client}", error))
            return False
        return True

    def accepted(
        self,
        round_: int,
        messages: Iterable[Message],
        read: Callable[[Reply], T],
        unread: Callable[[str, FedrlvrError], None] | None = None,
    ) -> Iterator[T]:
        """Results of `read` for each client's first reply, in the order of arrival.

        A client is left out when anything fails while its reply is read, whatever the exception: a reply is somebody
        else's, and must not end a run that keeps its quorum.

        unread: is given a client and why its reply cannot be read, and the client stays in the round; None: the client
            is left out of the round. A client that failed is left out in either case.

        Raises:
            MessageError: a reply from a stranger.
            FedrlvrError: as `leave_out`.
        """
        seen: set[str] = set()
        for message in messages:
            client = self.clients.get(message.metadata.src_node_id)
            if client is None:
                raise MessageError(f"round {round_}: a reply from a node that is no client of this run")
            reply = Reply(round_, client, f"round {round_}, {client}", message)
            if client in seen or client in self.record.left_out:
                _log.warning("%s: a second reply, which does not count", reply.place)
                continue
            seen.add(client)
            if message.has_error() and message.error.code == WITHHELD:
                stated = printable(str(message.error.reason or "no reason given"))
                self._withheld(client, f"{reply.place}: {WITHHELD_WORDS} ({stated})")
                continue
            if not message.has_content():
                empty = "an empty reply"
                reason = message.error.reason if message.has_error() else None
                failed = f"{reply.place}: {FAILED_WORDS} ({printable(str(reason or empty))})"
                self.leave_out(client, RoundError(failed))
                continue
            self.model.answered(client)
            try:
                value = read(reply)
            except Exception as error:
                (unread or self.leave_out)(client, unusable(reply.place, error))
                continue
            yield value

    def leave_out(self, client: str, error: FedrlvrError) -> None:
        """Go on with the round without a client, as long as the quorum is kept.

        Raises:
            FedrlvrError: the error itself, if everybody is needed.
            RoundError: too few are left; the text names them and their reasons.
        """
        if self.config.federation.quorum == 1.0:
            raise error
        self._leave_out(client, printable(str(error)), error)

    def _withheld(self, client: str, reason: str) -> None:
        """Go on with the round without a client whose own floor keeps its reply back. It counts as one that answered:
        whoever only claims this can neither end a run nor make others' failures count for more.
        """
        self.record.withheld.add(client)
        self._leave_out(client, reason, None)

    def _leave_out(self, client: str, reason: str, cause: Exception | None) -> None:
        quorum, left_out, withheld = self.config.federation.quorum, self.record.left_out, self.record.withheld
        self.model.lost(client)
        left_out[client] = reason = reason[:MOST_REASON]
        self.observer.notify(ClientLeftOut(self.record.round, client, reason))
        _log.warning("left out: %s", reason)
        failed, needed = len(left_out) - len(withheld), math.ceil(quorum * self.asked)
        if self.asked - failed < needed:
            reasons = " ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise RoundError(
                f"round {self.record.round}: federation.quorum = {quorum:g} asks for {needed} of {self.asked} "
                f"clients, and {failed} are left out. {reasons}"
            ) from cause


def unusable(place: str, error: Exception) -> FedrlvrError:
    """Error that leaves a client out: an error of ours as it is, of any other error only its class, which holds no
    foreign text.

    place: round and client.
    """
    if isinstance(error, FedrlvrError):
        return error
    wrapped = RoundError(f"{place}: its reply cannot be used ({type(error).__name__})")
    wrapped.__cause__ = error
    return wrapped
