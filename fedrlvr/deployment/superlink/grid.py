"""The organisations of a run as the strategy sees them: clients 1 to K in the config's order, over Flower's grid.

The strategy asks this grid as it asks the local engine's. What a network adds is here: who is connected and under which
name, what is too late, what each message says of its run (terms.py), and one reply at a time, so that the server never
holds them all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedrlvr.deployment.terms import TERMS, Terms, terms_record
from fedrlvr.errors import ConfigError, RoundError, printable
from fedrlvr.reporting import units
from fedrlvr.reporting.absence import CONNECTION_LOST, NOT_CONNECTED
from fedrlvr.wire.messages import nbytes, record_in

LOST = 1
"""Code of the errors that this grid makes; the strategy reads only their reason."""


EXPIRED = 3
"""Flower's code (MESSAGE_UNAVAILABLE) of an error in the place of a message whose time is over."""
PLAINLY = {5: CONNECTION_LOST, 8: "its client app stopped responding, as one that was killed does"}
"""Readable reasons for errors that Flower makes in a reply's place (NODE_UNAVAILABLE, CLIENT_APP_CRASHED), by their
codes."""

Clock = Callable[[], float]
Sleep = Callable[[float], None]
_ONE_CALL = (
    "The strategy sends messages with grid.push_messages or pull_messages. In a federation across machines use "
    "grid.send_and_receive, which watches deadlines, the quorum and who the clients are."
)
POLL = 0.25
"""Seconds between two looks for replies."""


@dataclass
class Roster:
    """Connected SuperNodes, with the organisation of each.

    ask_names: SuperNodes without registration (insecure) say themselves what they are called.
    """

    grid: Grid
    ask_names: bool
    clock: Clock = time.monotonic
    sleep: Sleep = time.sleep
    poll: float = POLL
    _said: dict[int, str] = field(default_factory=dict)

    def online(self) -> list[tuple[str, int]]:
        """Name and Flower's node id of each that is connected; "" for one without a name."""
        nodes = [node for node in self.grid.get_nodes() if node.status == "online"]
        if self.ask_names:
            self._ask([node.node_id for node in nodes if node.node_id not in self._said])
        return [(node.name or self._said.get(node.node_id, ""), node.node_id) for node in nodes]

    def _ask(self, nodes: Sequence[int]) -> None:
        sent = {}
        for node in nodes:
            (message_id,) = self.grid.push_messages([Message(RecordDict(), node, "query.hello", ttl=30.0)])
            if message_id:
                sent[message_id] = node
        end = self.clock() + 30
        while sent and self.clock() < end:
            for message_id, node in list(sent.items()):
                for reply in self.grid.pull_messages([message_id]):
                    del sent[message_id]
                    self._said[node] = read_hello(reply.content) if reply.has_content() else ""
                    break
            self.sleep(self.poll)


def read_hello(content: RecordDict) -> str:
    """Name that a SuperNode reports, as printable text; "" if its answer holds nothing that can be a name."""
    name = (record_in(content, "hello", ConfigRecord) or ConfigRecord()).get("name")
    return printable(name[:64]) if isinstance(name, str) else ""


def names_here(grid: Grid, seconds: float, *, ask_names: bool) -> list[str]:
    """The names of the SuperNodes that are connected, once there are two and no more have come for a while.

    Raises:
        RoundError: there are not two in time.
    """
    roster = Roster(grid, ask_names)
    end, before = time.monotonic() + seconds, -1
    while True:
        names = sorted({name for name, _ in roster.online() if name})
        if len(names) > 1 and len(names) == before:
            return names
        if time.monotonic() >= end:
            raise RoundError(
                f"after {seconds:.0f} s {len(names)} SuperNodes with a name are connected, and at least 2 are needed"
            )
        before = len(names)
        time.sleep(5.0)


@dataclass(eq=False)
class SuperLinkGrid(Grid):
    """Flower grid of the organisations behind a SuperLink.

    clients: their names, by which they are registered, in the config's order; node ids are 1 to their number.
    terms: by client what its messages say of the run.
    quorum: share of those asked without whom a message is not sent before `deadline` is over.
    ask_names: as for `Roster`. say: takes a line of progress.
    """

    grid: Grid
    clients: Sequence[str]
    terms: Mapping[str, Terms]
    _: KW_ONLY
    quorum: float
    say: Callable[[str], None]
    ask_names: bool = False
    poll: float = POLL
    clock: Clock = time.monotonic
    sleep: Sleep = time.sleep

    def __post_init__(self) -> None:
        self.roster = Roster(self.grid, self.ask_names, self.clock, self.sleep, self.poll)
        self._warnings: set[str] = set()

    # What Flower's grids have.

    def set_run(self, run: Any) -> None:
        """Set the run that all messages belong to."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The current run of this grid, as `set_run` was given it."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to one client, without sending it."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of all clients in the config, connected or not: the network does not decide who takes part."""
        return list(range(1, len(self.clients) + 1))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse to send without waiting for replies.

        Raises:
            ConfigError: always; deadlines, quorum and names are watched in `send_and_receive` alone.
        """
        raise ConfigError(_ONE_CALL)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse to look for replies, as `push_messages` refuses.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(_ONE_CALL)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send, then yield each reply as it comes, until `timeout` seconds are over.

        A client that is not connected is waited for only as long as the quorum needs it. Nor is one whose connection
        goes while it works, if the others make the quorum. For either an error comes in the reply's place.
        """
        asked = list(messages)
        if not asked:
            return
        began = self.clock()
        end = began + (math.inf if timeout is None else timeout)
        needed = math.ceil(self.quorum * len(asked))
        wanted = {self._client(message): message for message in asked}
        what = f"round {asked[0].metadata.group_id}, {asked[0].metadata.message_type}"
        nodes = self._reached(list(wanted), needed, end, what)
        if len(nodes) < needed:
            self.say(f"{what}: only {', '.join(nodes) or 'nobody'} connected, and {needed} are needed")
            for client, message in sorted(wanted.items(), key=lambda item: item[0] in nodes):
                yield _lost(message, "not asked, since too few are connected" if client in nodes else NOT_CONNECTED)
            return
        waiting: dict[str, str] = {}
        for client, message in wanted.items():
            if client in nodes and (sent := self._push(nodes[client], client, message, end)):
                waiting[sent] = client
        absent = [client for client in wanted if client not in waiting.values()]
        size = units.size(sum(nbytes(wanted[client]) for client in waiting.values()))
        gone = f"; not connected: {', '.join(absent)}" if absent else ""
        self.say(f"{what}: sent {size} to {', '.join(waiting.values()) or 'nobody'}{gone}")
        for client in absent:
            yield _lost(wanted[client], NOT_CONNECTED)
        answered, looked, warned = 0, self.clock(), False
        while waiting:
            for sent, client in list(waiting.items()):
                for reply in self.grid.pull_messages([sent]):
                    if reply.has_error() and reply.error.code == EXPIRED and self.clock() >= end - self.poll:
                        break  # Flower's words for what is too late
                    del waiting[sent]
                    answered += reply.has_content()
                    self.say(f"{what}: {self._told_of(client, reply)} after {self.clock() - began:.1f} s")
                    yield _as_reply(wanted[client], reply)
                    break
            now = self.clock()
            if not waiting or now >= end:
                break
            if not warned and now - began > 0.5 * (end - began):
                warned = True
                self.say(f"{what}: late: {', '.join(waiting.values())}; waiting {end - now:.0f} s more at most")
            if now - looked > 5 and answered >= needed:
                looked = now
                here = self.connected()
                for sent, client in [item for item in waiting.items() if item[1] not in here]:
                    del waiting[sent]
                    self.say(f"{what}: {client}'s connection is gone; the round goes on without it")
                    yield _lost(wanted[client], CONNECTION_LOST)
            self.sleep(self.poll)
        for client in waiting.values():
            self.say(f"{what}: {client} has missed the deadline of {timeout:.0f} s")

    # Who is there.

    def connected(self) -> dict[str, int]:
        """Flower's node id of each client of the run that is connected.

        Raises:
            RoundError: two SuperNodes have one client's name.
        """
        nodes: dict[str, int] = {}
        for name, node in self.roster.online():
            if name not in self.clients:
                self._once(f"a SuperNode named {name[:64]!r} is connected, which is no client of this run")
            elif name in nodes:
                raise RoundError(
                    f"two SuperNodes are registered as {name}: unregister one of them (fedrlvr superlink members)"
                )
            else:
                nodes[name] = node
        return {client: nodes[client] for client in self.clients if client in nodes}

    def gather(self, seconds: float) -> None:
        """Wait until every client is connected; after the time given, continue if the quorum is connected.

        Raises:
            RoundError: it is not; the text names who is missing.
        """
        needed = math.ceil(self.quorum * len(self.clients))
        self.say(f"waiting for {', '.join(self.clients)}")
        here = self._reached(self.clients, len(self.clients), self.clock() + seconds, "before the first round")
        missing = [client for client in self.clients if client not in here]
        if len(here) < needed:
            raise RoundError(
                f"after {seconds:.0f} s {len(here)} of {len(self.clients)} clients are connected and federation.quorum "
                f"= {self.quorum:g} asks for {needed}. Missing: {', '.join(missing)}. Are they registered under these "
                "names, and do their SuperNodes run (fedrlvr site run)?"
            )
        self.say(f"connected: {', '.join(here)}" + (f"; missing: {', '.join(missing)}" if missing else ""))

    def _reached(self, clients: Sequence[str], needed: int, end: float, what: str) -> dict[str, int]:
        """The connected ones of these clients, as soon as they are as many as needed, or when time is over."""
        announced: list[str] | None = None
        while True:
            here = self.connected()
            missing = [client for client in clients if client not in here]
            if len(clients) - len(missing) >= needed or self.clock() >= end:
                return {client: node for client, node in here.items() if client in clients}
            if missing != announced:
                self.say(f"{what}: waiting for {', '.join(missing)} to connect")
                announced = missing
            self.sleep(1.0)

    def _once(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings.add(line)
            self.say(line)

    # Messages.

    def _client(self, message: Message) -> str:
        return self.clients[message.metadata.dst_node_id - 1]

    def _push(self, node: int, client: str, message: Message, end: float) -> str | None:
        """Send a client's message with its terms; its id, or None if Flower would not take it."""
        # The records are shared with other clients' messages: Flower sends what it knows by its content only once.
        content = RecordDict({**message.content, TERMS: terms_record(self.terms[client])})
        metadata = message.metadata
        # What has missed the deadline is not delivered any more, so that nobody works for a round that is over.
        ttl = min(max(end - self.clock(), 1.0), 7 * 86400.0)
        out = Message(content, node, metadata.message_type, group_id=metadata.group_id, ttl=ttl)
        (sent,) = self.grid.push_messages([out])
        return sent or None

    def _told_of(self, client: str, reply: Message) -> str:
        if reply.has_content():
            try:
                return f"{client} has answered with {units.size(nbytes(reply))}"
            except Exception:  # Flower's count fails in several ways; the strategy leaves the client out
                return f"{client} has answered with bytes that cannot be counted"
        return f"{client} has not: {_reason(reply)}"[:500]


def _as_reply(message: Message, reply: Message) -> Message:
    """What came from a SuperNode, as from the client that was asked."""
    if reply.has_content():
        return Message(reply.content, reply_to=message)
    return Message(Error(reply.error.code, _reason(reply)), reply_to=message)


def _reason(reply: Message) -> str:
    return PLAINLY.get(reply.error.code) or printable(reply.error.reason or "no reason given")


def _lost(message: Message, reason: str) -> Message:
    return Message(Error(LOST, reason), reply_to=message)
