"""A client that is sent only what it lacks begins each message with exactly the server's model; what does not fit what
it remembers is refused, and forgets nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from factories import NAMES, make_strategy, random_adapter
from fakes import contexts, scores_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.client.app import CohortApp, start_of
from fedrlvr.client.initial_adapter import Reading, Start
from fedrlvr.client.request import ClientRequest
from fedrlvr.client.state import HELD, HELD_ADAPTER, HELD_CHANGE, ROUND_ADAPTER
from fedrlvr.config import EngineConfig, PubSwapCoordination
from fedrlvr.errors import AdapterError, FedrlvrError, MessageError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.observer import Observer
from fedrlvr.rl import Response
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.wire.messages import DELTA, StretchRequest, adapter_to_arrays
from fedrlvr.wire.model_delta import CHANGE, ModelDelta, read_delta

MIXED = {"ann": 2, "bob": 3, "cyd": 1}


def same(adapter: Adapter | None, other: Adapter | None) -> bool:
    """Equal to the bit."""
    if adapter is None or other is None:
        return adapter is other
    return adapter.alpha == other.alpha and all(
        torch.equal(a, b) for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True)
    )


class Federation:
    """A strategy and clients that read messages as real ones do, but train at random."""

    def __init__(self, rule: str, ranks: int | dict[str, int] = 2) -> None:
        largest = max(ranks.values()) if isinstance(ranks, dict) else ranks
        self.initial = random_adapter(1, largest)
        self.strategy = make_strategy(rank=ranks, start=self.initial, quorum=0.3, type=rule, run={"seed": 5})
        of = ranks if isinstance(ranks, dict) else {}
        sites = {node: ClientData.of(name, (), (), lambda *_: 0.0, rank=of.get(name)) for node, name in NAMES.items()}
        self.app = CohortApp(cast(Cohort, None), sites, self.initial, Observer())
        self.contexts = contexts()
        self.arrays = adapter_to_arrays(self.initial, self.strategy.model.halves)
        self.kinds: list[tuple[str, str | None, str]] = []
        """Of every message: for whom, the halves and the kind of change in it."""

    def asked(self, message: Message) -> ClientRequest:
        (request,) = self.app.read([message], [self.contexts[message.metadata.dst_node_id]])
        return request

    def begin(self, request: ClientRequest) -> Start:
        """Begins a client's round; its adapter and change must equal the server's to the bit."""
        start, model = start_of(Reading(), request), self.strategy.model
        assert same(start.adapter, model.adapter.at_rank(request.client.initial.rank)), (
            f"{request.client.name}: its adapter"
        )
        assert same(start.change, model.updates().get("change")), f"{request.client.name}: its change"
        content = request.message.content
        delta = read_delta(request.message) if DELTA in content else ModelDelta(version=model.version)
        kind = ("whole" if delta.since is None else "next") if CHANGE in content else "held" if start.change else "none"
        self.kinds.append((request.client.name, delta.halves, kind))
        return start

    def answer(self, messages: Sequence[Message], _: Sequence[Context]) -> list[Message]:
        """Each client reads, remembers, and replies with a step at random in what it is to train."""
        replies = []
        for message in messages:
            request = self.asked(message)
            start = self.begin(request)
            start.remember(request.context)
            body = scores_reply(["s"], [1], [0.0], [0.0])
            if isinstance(request.asked, StretchRequest):
                step = random_adapter(100 * request.asked.round + message.metadata.dst_node_id, start.adapter.rank)
                after = Adapter(
                    {
                        n: Factors(a + step.layers[n].A, b + step.layers[n].B)
                        for n, (a, b) in start.adapter.layers.items()
                    },
                    4.0,
                )
                arrays = adapter_to_arrays(after, request.asked.trains)
                body = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
            replies.append(Message(body, reply_to=message))
        return replies

    def grid(self, nodes: Sequence[int]) -> LocalGrid:
        return LocalGrid(self.answer, {node: self.contexts[node] for node in nodes})

    def round(self, number: int, nodes: Sequence[int] = (1, 2, 3)) -> None:
        """A round of these nodes."""
        grid = self.grid(nodes)
        messages = list(self.strategy.configure_train(number, self.arrays, ConfigRecord(), grid))
        assert [message.metadata.dst_node_id for message in messages] == list(nodes)
        arrays, _ = self.strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert arrays is not None
        self.arrays = arrays

    def evaluate(self, nodes: Sequence[int] = (1, 2, 3)) -> None:
        grid = self.grid(nodes)
        messages = self.strategy.configure_evaluate(0, self.arrays, ConfigRecord(), grid)
        self.strategy.aggregate_evaluate(0, grid.send_and_receive(messages))

    def message(self, number: int, node: int = 2) -> Message:
        """The train message to a node, not sent."""
        grid = self.grid([node])
        (message,) = self.strategy.configure_train(number, self.arrays, ConfigRecord(), grid)
        return message


RULES: list[tuple[str, int | dict[str, int]]] = [
    ("fedit", 2),
    ("ffa", 2),
    ("rolora", 2),
    ("flora", 2),
    ("flora", MIXED),
    ("fedex", 2),
    ("hetlora", MIXED),
    ("flexlora", MIXED),
]


@pytest.mark.parametrize(("rule", "ranks"), RULES)
def test_who_comes_and_goes_begins_each_message_with_the_servers_model(rule: str, ranks: int | dict[str, int]) -> None:
    federation = Federation(rule, ranks)
    present = [(1, 2), (1, 2, 3), (1, 3), (1, 2), (1,), (1, 2, 3), (2, 3), (1, 2, 3)]
    for number, nodes in enumerate(present, start=1):
        federation.round(number, nodes)
        if number in (4, 7):
            federation.evaluate()
            federation.evaluate()
    assert federation.strategy.model.version == len(present)
    if rule in ("flora", "fedex"):
        assert {kind for _, _, kind in federation.kinds} == {"none", "held", "next", "whole"}
    if rule == "rolora":
        assert {halves for _, halves, _ in federation.kinds} == {"AB", "A", "B", None}


def test_a_client_that_lost_its_memory_says_so_and_gets_everything_the_next_time() -> None:
    federation = Federation("flora")
    federation.round(1)
    federation.evaluate()
    federation.round(2)
    federation.contexts[2].state = RecordDict()
    with pytest.raises(MessageError, match=r"bob: round 3: .*of round 1.* nothing"):
        federation.begin(federation.asked(federation.message(3)))
    federation.strategy.model.lost("bob")
    federation.kinds.clear()
    federation.round(3)
    assert ("bob", None, "whole") in federation.kinds


def test_an_older_memory_than_the_server_thinks_is_named() -> None:
    federation = Federation("fedex")
    federation.round(1)
    federation.evaluate()
    old = RecordDict(dict(federation.contexts[2].state))
    federation.round(2)
    federation.evaluate()
    federation.contexts[2].state = old
    with pytest.raises(MessageError, match=r"of round 2.* of round 1"):
        federation.begin(federation.asked(federation.message(3)))


def test_a_memory_without_its_change_is_named_and_not_taken_for_none() -> None:
    federation = Federation("flora")
    federation.round(1)
    federation.round(2)
    del federation.contexts[2].state[HELD_CHANGE]
    with pytest.raises(MessageError, match=r"bob: round 3: .*change .*missing"):
        federation.begin(federation.asked(federation.message(3)))


def spoilt(rule: str, spoil: Callable[[Message, Context], None], rounds: int = 2, **notes: Any) -> str:
    """Bob's error for a changed message of the next round; his memory must stay as it was."""
    federation = Federation(rule)
    for number in range(1, rounds + 1):
        federation.round(number)
    message = federation.message(rounds + 1)
    context = federation.contexts[2]
    request = federation.asked(message)
    if notes:
        message.content[DELTA] = ModelDelta(**{**read_delta(message).model_dump(), **notes}).record()
    spoil(message, context)
    before = dict(context.state)
    with pytest.raises(FedrlvrError) as caught:
        start_of(Reading(), request)
    assert dict(context.state) == before
    assert all(context.state[name] is record for name, record in before.items())
    assert type(caught.value) in (MessageError, AdapterError)
    for word in ("bob", f"round {rounds + 1}"):
        assert word in str(caught.value)
    return str(caught.value)


def nothing(message: Message, context: Context) -> None:
    """Leaves all as it is."""


def without(name: str) -> Callable[[Message, Context], None]:
    return lambda message, _: message.content.__delitem__(name)


def forgetting(name: str) -> Callable[[Message, Context], None]:
    return lambda _, context: context.state.__delitem__(name)


def with_arrays(name: str, arrays: ArrayRecord) -> Callable[[Message, Context], None]:
    return lambda message, _: message.content.__setitem__(name, arrays)


def numbers(record: ArrayRecord, value: float) -> ArrayRecord:
    """The record with one number replaced."""
    result = {name: array.numpy().copy() for name, array in record.items()}
    next(iter(result.values()))[-1] = value
    return ArrayRecord({name: Array(values) for name, values in result.items()})


def test_a_change_of_another_rank_than_stated_is_refused() -> None:
    """The change of a round of three clients of rank 2 has rank 3, the most that layers of 4 x 3 can use."""
    for rank, word in ((0, "without the change"), (4, "without the change"), (65536, "without the change")):
        assert word in spoilt("flora", nothing, change_rank=rank)
    for rank in (1, 2):
        assert "factors are not those" in spoilt("flora", nothing, change_rank=rank)


def test_a_change_that_is_missing_or_is_none_is_refused() -> None:
    assert "without the change of the base weights" in spoilt("flora", without("change"))
    good = adapter_to_arrays(random_adapter(3, 3, 3.0))
    for value in (float("nan"), float("inf"), float("-inf")):
        reason = spoilt("flora", with_arrays("change", numbers(good, value)))
        assert (
            "the change of the base weights sent to bob in round 3: down.A holds values that are not finite" in reason
        )


def test_factors_of_another_layout_are_refused() -> None:
    layers = {"other" if name == "up" else name: factors for name, factors in random_adapter(3, 3, 3.0).layers.items()}
    strange = adapter_to_arrays(Adapter(layers, 3.0))
    reason = spoilt("flora", with_arrays("change", strange))
    assert "the change of the base weights sent to bob in round 3: its factors are not those" in reason
    for rule in ("fedex", "rolora"):
        reason = spoilt(rule, with_arrays("arrays", strange))
        assert "the adapter sent to bob in round 3: its factors are not those" in reason
    both = adapter_to_arrays(random_adapter(3))
    assert "its factors are not those" in spoilt("rolora", with_arrays("arrays", both)), "one half was announced"
    assert "its factors are not those" in spoilt(
        "ffa", with_arrays("arrays", adapter_to_arrays(random_adapter(3), "A"))
    )


def test_an_adapter_that_is_announced_and_missing_is_refused() -> None:
    for rule in ("fedit", "ffa", "rolora", "fedex"):
        assert "a request without an adapter" in spoilt(rule, without("arrays"))


def test_a_half_adapter_is_of_no_use_without_the_other() -> None:
    assert "remembers nothing" in spoilt("rolora", forgetting(HELD))
    assert "no adapter is remembered here" in spoilt("rolora", forgetting(HELD_ADAPTER))
    assert "remembers nothing" in spoilt("rolora", lambda _, context: context.state.clear(), halves="B")
    assert "remembers that of round 1" in spoilt("rolora", nothing, since=0)


@pytest.mark.parametrize(
    "notes",
    [{"halves": "B"}, {"halves": None}, {"version": -1}, {"change_rank": 1 << 17}, {"keep": "all"}, {"coming": 1}],
)
def test_notes_that_cannot_be_are_refused(notes: dict[str, Any]) -> None:
    """Halves that come from nowhere, and fields that do not fit."""
    message = Federation("rolora").message(1)
    message.content[DELTA] = ConfigRecord({"delta": json.dumps({"version": 1, **notes})})
    with pytest.raises(MessageError, match="a train delta that cannot be used"):
        read_delta(message)


def test_a_message_that_counts_on_another_version_is_refused() -> None:
    for rule in ("flora", "fedex", "rolora"):
        for since in (0, 2):
            reason = spoilt(rule, nothing, since=since)
            assert f"counts on the model of round {since}, but this client remembers that of round 1" in reason


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_what_several_clients_have_alike_is_read_once(rule: str) -> None:
    """The cohort holds one object once, and multiplies it once."""
    federation = Federation(rule)
    for number in (1, 2, 3):
        federation.round(number)
        reading = Reading()
        starts = [start_of(reading, federation.asked(federation.message(number + 1, node))) for node in NAMES]
        assert starts[0].change is not None
        assert len({id(start.change) for start in starts}) == 1
        assert rule == "flora" or len({id(start.adapter) for start in starts}) == 1


def test_the_same_news_added_to_other_changes_are_other_changes() -> None:
    federation = Federation("flora")
    federation.round(1)
    federation.round(2)
    federation.contexts[2].state[HELD_CHANGE] = adapter_to_arrays(random_adapter(8, 3, 3.0))
    reading = Reading()
    ann, bob, cyd = (start_of(reading, federation.asked(federation.message(3, node))).change for node in NAMES)
    assert ann is cyd
    assert ann is not None
    assert not same(ann, bob)


def test_the_middle_of_a_round_goes_on_with_the_rounds_adapter_and_the_change_that_was_kept() -> None:
    federation = Federation("flora")
    federation.round(1)
    federation.evaluate()
    request = federation.asked(federation.message(2))
    middle = request.asked.model_copy(update={"coordination": PubSwapCoordination()})
    message = Message(RecordDict({"config": ConfigRecord({"request": middle.model_dump_json()})}), 2, "train")
    with pytest.raises(MessageError, match="bob: round 2: a request without an adapter"):
        start_of(Reading(), federation.asked(message))
    request.context.state[ROUND_ADAPTER] = adapter_to_arrays(random_adapter(6))
    start = start_of(Reading(), federation.asked(message))
    assert same(start.adapter, random_adapter(6))
    assert same(start.change, federation.strategy.model.updates()["change"])
    assert start.keep == {}


class Stub:
    """A cohort that samples nothing, or fails at it."""

    def __init__(self) -> None:
        self.base = self
        self.engine = EngineConfig()
        self.fails = True
        self.seated: dict[str, Adapter] = {}

    def encode_all(self, prompts: list[str]) -> list[list[int]]:
        return []

    def seat(self, adapters: dict[str, Adapter], changes: dict[str, Adapter]) -> None:
        self.seated = {**adapters, **{f"{name}'s change": change for name, change in changes.items()}}

    def sample(self, prompts: dict[str, list[list[int]]], *_: object) -> dict[str, list[list[Response]]]:
        if self.fails:
            raise RuntimeError("out of memory")
        return {name: [] for name in prompts}


@pytest.mark.parametrize("rule", ["rolora", "flora"])
def test_a_batch_that_fails_is_not_remembered_and_can_be_computed_again(rule: str) -> None:
    federation = Federation(rule)
    federation.round(1)
    federation.app.cohort = stub = Stub()  # type: ignore[assignment]
    model = federation.strategy.model
    messages = list(
        federation.strategy.configure_evaluate(0, federation.arrays, ConfigRecord(), federation.grid([1, 2]))
    )
    contexts = [federation.contexts[node] for node in (1, 2)]
    before = [dict(context.state) for context in contexts]
    with pytest.raises(RuntimeError, match="out of memory"):
        federation.app(messages, contexts)
    assert [dict(context.state) for context in contexts] == before
    stub.fails = False
    for version in (0, 1):
        assert all(context.state.config_records[HELD]["version"] == version for context in contexts)
        if not version:
            federation.app(messages, contexts)
    assert same(stub.seated["bob"], model.adapter)
    assert same(stub.seated.get("bob's change"), model.updates().get("change"))


def test_one_message_of_a_batch_that_is_refused_leaves_all_memories_alone() -> None:
    federation = Federation("rolora")
    federation.round(1)
    federation.app.cohort = Stub()  # type: ignore[assignment]
    messages = list(
        federation.strategy.configure_evaluate(0, federation.arrays, ConfigRecord(), federation.grid([1, 2]))
    )
    del messages[1].content["arrays"]
    contexts = [federation.contexts[node] for node in (1, 2)]
    before = [dict(context.state) for context in contexts]
    with pytest.raises(MessageError, match="bob: round 0: a request without an adapter"):
        federation.app(messages, contexts)
    assert [dict(context.state) for context in contexts] == before
