"""The grid of organisations: who is asked, waited for and left out, with a Flower grid and a clock of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from factories import make_terms
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedrlvr.deployment.superlink.grid import SuperLinkGrid, names_here
from fedrlvr.deployment.terms import TERMS, read_terms
from fedrlvr.errors import ConfigError, RoundError
from fedrlvr.simulation.grid import LocalGrid

CLIENTS = ["ann", "bob", "cyd"]
NODES = {"ann": 900, "bob": 100, "cyd": 500}


class Time:
    """Seconds that pass only when somebody sleeps; what is to happen by then happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def at(self, second: float, event: Callable[[], None]) -> None:
        self.events.append((second, event))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for event in [event for event in self.events if event[0] <= self.now]:
            self.events.remove(event)
            event[1]()


class FlowersGrid(LocalGrid):
    """A fake of Flower's grid: it takes messages and has replies later. delays: seconds by client; None: no reply."""

    def __init__(self, time: Time, delays: dict[str, float | None]) -> None:
        super().__init__(lambda messages, _: [], {})
        self.time = time
        self.delays = delays
        self.online = set(delays)
        self.sent: list[Message] = []
        self.pulled: list[list[str]] = []
        self.ready: dict[str, Message] = {}
        self.answer: Callable[[Message, str], RecordDict | Error] = lambda _, name: RecordDict(
            {"config": ConfigRecord({"from": name})}
        )
        self.names: dict[str, str] = {name: name for name in NODES}

    def get_nodes(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(node_id=node, name=self.names[name], status="online" if name in self.online else "offline")
            for name, node in NODES.items()
            if name in self.delays
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            name = next(name for name, node in NODES.items() if node == message.metadata.dst_node_id)
            delay = self.delays[name]
            if delay is not None:
                reply = Message(self.answer(message, name), reply_to=message)
                self.time.at(self.time.now + delay, lambda i=message_id, r=reply: self.ready.update({i: r}))  # type: ignore[misc]
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        self.pulled.append(asked)
        return [self.ready.pop(message_id) for message_id in asked if message_id in self.ready]


def made(
    delays: dict[str, float | None], quorum: float = 1.0, **options: bool
) -> tuple[SuperLinkGrid, FlowersGrid, Time, list[str]]:
    time, lines = Time(), list[str]()
    flower = FlowersGrid(time, delays)
    of = {client: make_terms(client) for client in CLIENTS}
    grid = SuperLinkGrid(
        flower, CLIENTS, of, quorum=quorum, say=lines.append, poll=1.0, clock=time, sleep=time.sleep, **options
    )
    return grid, flower, time, lines


def messages(nodes: Iterable[int] = (1, 2, 3)) -> list[Message]:
    return [Message(RecordDict({"config": ConfigRecord({"n": node})}), node, "train", group_id="4") for node in nodes]


def heard(replies: Iterable[Message]) -> dict[int, str]:
    """The content of each client's reply, or the reason of its error, by the client's number."""
    return {
        r.metadata.src_node_id: str(r.content["config"]["from"]) if r.has_content() else r.error.reason  # type: ignore[index]
        for r in replies
    }


def test_it_is_a_grid_of_flower_with_a_node_for_every_client_connected_or_not() -> None:
    grid, *_ = made({"ann": 1.0})
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == [1, 2, 3]


def test_messages_go_to_the_names_of_the_registration_and_replies_come_from_the_clients_numbers() -> None:
    grid, flower, _, lines = made({"bob": 1.0, "cyd": 2.0, "ann": 3.0})
    assert heard(grid.send_and_receive(messages(), timeout=60)) == {1: "ann", 2: "bob", 3: "cyd"}
    assert [m.metadata.dst_node_id for m in flower.sent] == [NODES["ann"], NODES["bob"], NODES["cyd"]]
    assert [m.content["config"]["n"] for m in flower.sent] == [1, 2, 3]  # type: ignore[index]
    assert {m.metadata.group_id for m in flower.sent} == {"4"}
    assert lines[0].startswith("round 4, train: sent ")
    assert lines[0].endswith(" to ann, bob, cyd")
    assert [line.split(": ")[1].split(" has answered")[0] for line in lines[1:]] == ["bob", "cyd", "ann"]


def test_every_message_says_its_run_and_who_is_meant() -> None:
    grid, flower, *_ = made(dict.fromkeys(CLIENTS, 1.0))
    asked = messages()
    list(grid.send_and_receive(asked, timeout=60))
    assert [read_terms(message.content) for message in flower.sent] == [make_terms(client) for client in CLIENTS]
    assert all(TERMS not in message.content for message in asked), "the strategy's own messages stay as they were"


def test_replies_are_pulled_one_at_a_time_and_given_before_the_next_is_asked_for() -> None:
    grid, flower, time, _ = made({"ann": 5.0, "bob": 1.0, "cyd": 9.0})
    replies = grid.send_and_receive(messages(), timeout=60)
    assert next(replies).metadata.src_node_id == 2
    assert time.now == 1.0
    assert next(replies).metadata.src_node_id == 1
    assert time.now == 5.0
    assert all(len(asked) == 1 for asked in flower.pulled)


def test_nobody_is_waited_for_beyond_the_deadline_and_what_is_late_is_never_taken() -> None:
    grid, flower, time, lines = made({"ann": 1.0, "bob": 1.0, "cyd": 100.0})
    assert heard(grid.send_and_receive(messages(), timeout=20)) == {1: "ann", 2: "bob"}
    assert time.now == 20.0
    assert "round 4, train: late: cyd; waiting 9 s more at most" in lines
    assert lines[-1] == "round 4, train: cyd has missed the deadline of 20 s"
    assert all(m.metadata.ttl == 20.0 for m in flower.sent), "Flower drops what nobody waits for"
    flower.delays["cyd"] = 1.0
    assert heard(grid.send_and_receive(messages(), timeout=20)) == {1: "ann", 2: "bob", 3: "cyd"}


def test_who_is_not_connected_is_left_out_at_once_if_the_others_make_the_quorum() -> None:
    grid, flower, time, lines = made({"ann": 1.0, "bob": 1.0, "cyd": 1.0}, quorum=0.6)
    flower.online = {"ann", "bob"}
    assert heard(grid.send_and_receive(messages(), timeout=60)) == {1: "ann", 2: "bob", 3: "not connected"}
    assert time.now == 1.0
    assert lines[0].endswith("to ann, bob; not connected: cyd")


def test_a_message_waits_for_the_quorum_to_connect_but_not_beyond_the_deadline() -> None:
    grid, flower, time, lines = made(dict.fromkeys(CLIENTS, 1.0))
    flower.online = {"ann", "bob"}
    time.at(10.0, lambda: flower.online.add("cyd"))
    assert heard(grid.send_and_receive(messages(), timeout=60)) == {1: "ann", 2: "bob", 3: "cyd"}
    assert time.now == 11.0
    assert lines[0] == "round 4, train: waiting for cyd to connect"
    sent = len(flower.sent)
    flower.online = {"ann"}
    said = heard(grid.send_and_receive(messages(), timeout=5))
    assert list(said) == [2, 3, 1], "those who are missing are named first"
    assert said == {1: "not asked, since too few are connected", 2: "not connected", 3: "not connected"}
    assert time.now == 16.0
    assert len(flower.sent) == sent, "nobody computes for a round that cannot be"


def test_a_connection_that_goes_in_mid_round_is_not_waited_for_if_the_others_make_the_quorum() -> None:
    grid, flower, time, lines = made({"ann": 1.0, "bob": 1.0, "cyd": None}, quorum=0.6)
    time.at(8.0, lambda: flower.online.discard("cyd"))
    assert heard(grid.send_and_receive(messages(), timeout=600))[3] == "its connection was lost"
    assert time.now < 20
    assert "round 4, train: cyd's connection is gone; the round goes on without it" in lines


def test_a_connection_that_goes_is_waited_for_where_the_quorum_needs_it() -> None:
    grid, flower, time, _ = made({"ann": 1.0, "bob": 1.0, "cyd": 30.0})
    time.at(8.0, lambda: flower.online.discard("cyd"))
    assert heard(grid.send_and_receive(messages(), timeout=600)) == {1: "ann", 2: "bob", 3: "cyd"}


def test_an_error_in_the_reply_is_the_clients_own() -> None:
    grid, flower, _, lines = made(dict.fromkeys(CLIENTS, 1.0))
    flower.answer = lambda _, name: (
        Error(3, "allows at most 8 steps") if name == "bob" else RecordDict({"config": ConfigRecord({"from": name})})
    )
    assert heard(grid.send_and_receive(messages(), timeout=60))[2] == "allows at most 8 steps"
    assert any("bob has not: allows at most 8 steps" in line for line in lines)


@pytest.mark.parametrize(("code", "said"), [(5, "its connection was lost"), (8, "its client app stopped responding")])
def test_what_flower_says_in_a_clients_place_is_said_plainly(code: int, said: str) -> None:
    grid, flower, _, lines = made(dict.fromkeys(CLIENTS, 1.0))
    flower.answer = lambda _, name: (
        Error(code, "Flower's words") if name == "bob" else RecordDict({"config": ConfigRecord({"from": name})})
    )
    assert heard(grid.send_and_receive(messages(), timeout=60))[2].startswith(said)
    assert any(f"bob has not: {said}" in line for line in lines)


@pytest.mark.parametrize(("seconds", "given"), [(19.5, False), (12.0, True)])
def test_a_message_that_flower_lets_expire_at_the_deadline_has_missed_it(seconds: float, given: bool) -> None:
    grid, flower, _, lines = made({"ann": 1.0, "bob": seconds, "cyd": 1.0})
    flower.answer = lambda _, name: (
        Error(3, "Message Unavailable") if name == "bob" else RecordDict({"config": ConfigRecord({"from": name})})
    )
    said = heard(grid.send_and_receive(messages(), timeout=20))
    assert (2 in said) == given
    assert (lines[-1] == "round 4, train: bob has missed the deadline of 20 s") != given


def test_a_message_that_flower_does_not_take_counts_as_not_connected() -> None:
    grid, flower, *_ = made(dict.fromkeys(CLIENTS, 1.0))
    push = flower.push_messages
    flower.push_messages = lambda m: [None] if m[0].metadata.dst_node_id == NODES["ann"] else push(m)  # type: ignore
    assert heard(grid.send_and_receive(messages(), timeout=60)) == {1: "not connected", 2: "bob", 3: "cyd"}


def test_a_strategy_that_sends_and_receives_apart_is_told_what_to_call() -> None:
    grid, *_ = made(dict.fromkeys(CLIENTS, 1.0))
    for call in (lambda: grid.push_messages(messages()), lambda: grid.pull_messages(["1"])):
        with pytest.raises(ConfigError, match="send_and_receive"):
            call()


def test_strangers_are_named_once_and_never_asked() -> None:
    grid, flower, _, lines = made(dict.fromkeys(CLIENTS, 1.0), quorum=0.6)
    flower.names["cyd"] = "mallory"
    assert grid.connected() == {"ann": NODES["ann"], "bob": NODES["bob"]}
    grid.connected()
    assert lines == ["a SuperNode named 'mallory' is connected, which is no client of this run"]


def test_two_nodes_of_one_name_end_the_run() -> None:
    grid, flower, *_ = made(dict.fromkeys(CLIENTS, 1.0))
    flower.names["cyd"] = "bob"
    with pytest.raises(RoundError, match="two SuperNodes are registered as bob"):
        grid.connected()


def test_before_the_first_round_all_are_waited_for_and_then_the_quorum_decides() -> None:
    grid, flower, time, lines = made(dict.fromkeys(CLIENTS, 1.0), quorum=0.6)
    flower.online = {"ann"}
    time.at(4.0, lambda: flower.online.add("bob"))
    grid.gather(30)
    assert time.now == 30.0
    assert lines[-1] == "connected: ann, bob; missing: cyd"
    flower.online = {"ann"}
    with pytest.raises(RoundError, match=r"1 of 3 clients .*bob, cyd"):
        grid.gather(10)
    flower.online = set(CLIENTS)
    before = time.now
    grid.gather(30)
    assert time.now == before


def test_without_registration_a_supernode_says_itself_what_it_is_called() -> None:
    grid, flower, *_ = made(dict.fromkeys(CLIENTS, 1.0), ask_names=True)
    flower.names = dict.fromkeys(CLIENTS, "")
    flower.answer = lambda message, name: RecordDict({"hello": ConfigRecord({"name": name})})
    assert grid.connected() == NODES
    assert {m.metadata.message_type for m in flower.sent} == {"query.hello"}
    grid.connected()
    assert len(flower.sent) == 3, "each is asked once"


def test_the_names_of_whoever_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    flower = FlowersGrid(time, dict.fromkeys(CLIENTS, 1.0))
    monkeypatch.setattr("fedrlvr.deployment.superlink.grid.time.monotonic", time)
    monkeypatch.setattr("fedrlvr.deployment.superlink.grid.time.sleep", time.sleep)
    flower.online = {"cyd"}
    time.at(6.0, lambda: flower.online.add("ann"))
    assert names_here(flower, 60, ask_names=False) == ["ann", "cyd"]
    flower.online = {"cyd"}
    with pytest.raises(RoundError, match="1 SuperNodes with a name"):
        names_here(flower, 10, ask_names=False)
