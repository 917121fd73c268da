"""How a round's adapters are made one: what counts how much, what is held at once, and who is left out of it."""

from __future__ import annotations

import itertools
import math
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from factories import NAMES, make_adapter, make_strategy
from fakes import answering, contexts, scores_reply, train_reply
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Factors, Halves
from fedrlvr.aggregation import FGRPOWeights, lora_rule
from fedrlvr.client.local_training import LocalTraining
from fedrlvr.client.request import ClientRequest
from fedrlvr.errors import RoundError
from fedrlvr.server import strategy as strategy_module
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import TrainRequest, adapter_to_arrays, arrays_to_adapter, read_request
from fedrlvr.wire.model_delta import read_delta

FIVE = dict(enumerate(["ann", "bob", "cyd", "dan", "eve"], start=1))


def one_hot(at: int) -> Adapter:
    """An adapter of zeros with a one in B, so that a mean of such tells each one's weight."""
    adapter = make_adapter(0.0)
    adapter.layers["up"].B.view(-1)[at] = 1.0
    return adapter


def reply(adapter: Adapter, examples: int = 1, halves: Halves = "AB", **metrics: float) -> RecordDict:
    numbers = MetricRecord({"num-examples": examples, **metrics})
    return RecordDict({"arrays": adapter_to_arrays(adapter, halves), "metrics": numbers})


def delivered(strategy: FederatedRLVR, round_: int) -> list[Message]:
    """A round's messages as the clients have them."""
    result: list[Message] = []

    def keep(messages: Sequence[Message], _: Sequence[Context]) -> list[Message]:
        result.extend(messages)
        return [Message(RecordDict(), reply_to=message) for message in messages]

    grid = LocalGrid(keep, contexts(strategy.clients))
    strategy.participation.record = RoundRecord(round_)
    arrays = adapter_to_arrays(strategy.adapter, strategy.model.halves)
    grid.push_messages(strategy.configure_train(round_, arrays, ConfigRecord(), grid))
    return result


def trained(strategy: FederatedRLVR, round_: int, answer: Callable[[str], RecordDict | Error]) -> None:
    """A round in which every client answers what this gives for its name."""
    replies = [
        Message(answer(strategy.clients[message.metadata.dst_node_id]), reply_to=message)
        for message in delivered(strategy, round_)
    ]
    strategy.aggregate_train(round_, replies)


# Weights.

OPTIONS: list[dict[str, Any]] = [
    {"gain": gain, "baseline": baseline, "shape": shape, **more}
    for gain, baseline, shape in itertools.product(("relative", "zscore"), ("ema", "window"), ("softmax", "positive"))
    for more in [{}, {"temperature": 0.01} if shape == "softmax" else {"floor": 1e-3}]
]


def rewards_of(rounds: int, seed: int = 0) -> Iterator[dict[str, float]]:
    """Rewards on scales from 1e-3 to 1e3, of either sign, and some of zero."""
    rng = random.Random(seed)
    for _ in range(rounds):
        yield {
            name: rng.choice([0.0, 1.0, 1.0, -1.0]) * rng.random() * 1000.0 ** (at - 1)
            for at, name in enumerate(NAMES.values())
        }


@pytest.mark.parametrize("options", OPTIONS)
def test_raw_fgrpo_weights_have_the_ratios_of_the_weights(options: dict[str, Any]) -> None:
    weights, examples = FGRPOWeights(**options), {"ann": 5, "bob": 3, "cyd": 0}
    seen = set()
    for rewards in rewards_of(12):
        before = weights.state()
        raw = {client: weights.raw(client, rewards[client], examples[client]) for client in rewards}
        assert weights.state() == before
        wanted = weights.weights(rewards, examples)
        assert {c: value / sum(raw.values()) for c, value in raw.items()} == pytest.approx(
            wanted, rel=1e-12, abs=1e-300
        )
        seen.add(round(wanted["ann"], 6))
    assert len(seen) > 2, "rewards made a difference"


@pytest.mark.parametrize(
    "settings",
    [{"weights": "examples"}, {"weights": "equal"}]
    + [{"weights": "fgrpo", **{f"fgrpo_{name}": value for name, value in options.items()}} for options in OPTIONS],
)
def test_what_is_recorded_is_what_the_clients_counted(settings: dict[str, Any]) -> None:
    strategy, examples = make_strategy(server_learning_rate=1, **settings), {"ann": 5, "bob": 3, "cyd": 2}
    twin = FGRPOWeights(**strategy.config.aggregation.fgrpo)
    for round_, rewards in enumerate(rewards_of(4, seed=1), start=1):
        trained(
            strategy,
            round_,
            lambda name, rewards=rewards: reply(  # type: ignore[misc]
                one_hot(list(examples).index(name)), examples[name], reward=rewards[name]
            ),
        )
        recorded = {name: strategy.record.clients[name]["weight"] for name in examples}
        applied = strategy.adapter.layers["up"].B.view(-1)[:3].tolist()
        assert applied == pytest.approx(list(recorded.values()), rel=1e-6)
        if settings["weights"] == "fgrpo":
            assert {n: strategy.record.clients[n]["gain"] for n in examples} == twin.gains(rewards)
            assert recorded == twin.weights(rewards, examples)
        else:
            shares = [0.5, 0.3, 0.2] if settings["weights"] == "examples" else [1 / 3] * 3
            assert list(recorded.values()) == pytest.approx(shares)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_client_without_a_verified_reward_counts_as_recorded(options: dict[str, Any]) -> None:
    settings = {f"fgrpo_{name}": value for name, value in options.items()}
    strategy = make_strategy(supervision={"type": "entropy"}, weights="fgrpo", server_learning_rate=1, **settings)
    twin, examples = FGRPOWeights(**options), {"ann": 5, "bob": 3, "cyd": 2}
    for round_, rewards in enumerate(rewards_of(5, seed=2), start=1):
        silent = [[], ["bob"], ["bob", "cyd"], list(examples), ["ann"]][round_ - 1]
        verified = {name: None if name in silent else rewards[name] for name in examples}

        def answer(name: str, verified: dict[str, float | None] = verified) -> RecordDict:
            value = verified[name]
            adapter, many = one_hot(list(examples).index(name)), examples[name]
            return reply(adapter, many, reward=0.5, **({} if value is None else {"verified_reward": value}))  # type: ignore[arg-type]

        trained(strategy, round_, answer)
        recorded = {name: strategy.record.clients[name]["weight"] for name in examples}
        applied = strategy.adapter.layers["up"].B.view(-1)[:3].tolist()
        assert applied == pytest.approx(list(recorded.values()), rel=1e-6)
        assert all(strategy.record.clients[name]["gain"] == 0.0 for name in silent)
        assert recorded == twin.weights(verified, examples)
    assert strategy.state()["fgrpo"] == twin.state()


# What is held at once.


def most_alive(monkeypatch: pytest.MonkeyPatch, clients: int = 50, **settings: Any) -> int:
    """The most adapters of clients that exist at a time while replies come in."""
    names = {node: f"c{node}" for node in range(1, clients + 1)}
    strategy = make_strategy(names, **settings)
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def tracked(*args: Any, **kwargs: Any) -> Adapter:
        adapter = arrays_to_adapter(*args, **kwargs)
        seen.append(weakref.ref(adapter.layers["up"].B))
        alive.append(sum(reference() is not None for reference in seen))
        return adapter

    monkeypatch.setattr(strategy_module, "arrays_to_adapter", tracked)
    halves: Halves = "B" if settings.get("type") in ("ffa", "rolora") else "AB"
    messages = delivered(strategy, 1)
    replies = (Message(reply(make_adapter(1.0), halves=halves, reward=0.5), reply_to=message) for message in messages)
    strategy.aggregate_train(1, replies)
    assert len(alive) == clients
    assert float(strategy.adapter.layers["up"].B[0, 0]) == 1.0
    return max(alive)


@pytest.mark.parametrize("weights", ["examples", "fgrpo"])
@pytest.mark.parametrize("rule", ["fedit", "ffa", "rolora", "hetlora"])
def test_averages_hold_no_more_than_three_adapters_of_fifty(
    rule: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, the last and the one that comes."""
    assert most_alive(monkeypatch, type=rule, weights=weights) <= 3


@pytest.mark.parametrize("more", [{"largest_change": 3.0}, {"robust": "clip"}, {"robust": "median"}])
def test_what_compares_all_adapters_holds_them_all(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_alive(monkeypatch, **more) == 50


# Lengths of mixed ranks.

MIXED = {"ann": 1, "bob": 2, "cyd": 4}


def test_lengths_are_compared_across_ranks() -> None:
    """The same change of every number is twice as long at rank 4 as at rank 1, and is no larger for that."""
    strategy = make_strategy(rank=MIXED, quorum=0.6, type="hetlora", largest_change=1.5)
    trained(strategy, 1, lambda name: reply(make_adapter(1.0, MIXED[name])))
    assert strategy.record.left_out == {}


@pytest.mark.parametrize("who", ["ann", "cyd"])
def test_a_client_of_any_rank_whose_numbers_changed_too_much_is_left_out(who: str) -> None:
    strategy = make_strategy(rank=MIXED, quorum=0.6, type="hetlora", largest_change=1.5)
    trained(strategy, 1, lambda name: reply(make_adapter(1.6 if name == who else 1.0, MIXED[name])))
    (entry,) = strategy.record.left_out.items()
    length = 1.6 * math.sqrt(14 * MIXED[who])
    assert entry == (
        who,
        f"round 1, {who}: its adapter changed by {length:.3g}, 1.6 times the median; 1.5 is allowed",
    )
    assert "weight" not in strategy.record.clients[who]
    rest = [(make_adapter(1.0, rank), 1.0) for name, rank in MIXED.items() if name != who]
    expected = lora_rule("hetlora").aggregation().aggregate(rest, rank=4, before=make_adapter(0.0, 4)).adapter
    assert expected is not None
    for (_, got), (_, wanted) in zip(strategy.adapter.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("who", "factor"), [("ann", None), ("cyd", None), ("cyd", 2.0)])
def test_clipping_shortens_a_change_of_any_rank_to_the_same_numbers(who: str, factor: float | None) -> None:
    strategy = make_strategy(rank=MIXED, type="hetlora", robust="clip", robust_clip=factor)
    values = {name: 4.0 if name == who else 1.0 for name in MIXED}
    trained(strategy, 1, lambda name: reply(make_adapter(values[name], MIXED[name])))
    limit = factor or 1.0
    kept = {name: strategy.record.clients[name]["kept"] for name in MIXED}
    assert kept == pytest.approx({**dict.fromkeys(MIXED, 1.0), who: limit / 4})
    short = [(make_adapter(limit if name == who else 1.0, rank), 1.0) for name, rank in MIXED.items()]
    expected = lora_rule("hetlora").aggregation().aggregate(short, rank=4, before=make_adapter(0.0, 4)).adapter
    assert expected is not None
    for (_, got), (_, wanted) in zip(strategy.adapter.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_client_is_left_out_before_the_others_are_clipped_to_their_median() -> None:
    strategy = make_strategy(FIVE, quorum=0.6, robust="clip", largest_change=5.0)
    values = dict(zip(FIVE.values(), [1.0, 2.0, 2.0, 4.0, 90.0], strict=True))
    trained(strategy, 1, lambda name: reply(make_adapter(values[name])))
    assert set(strategy.record.left_out) == {"eve"}
    assert [strategy.record.clients[n].get("kept") for n in FIVE.values()] == pytest.approx([1.0, 1.0, 1.0, 0.5, None])
    for _, tensor in strategy.adapter.tensors():  # 1, 2, 2 and 4 cut to 2
        torch.testing.assert_close(tensor, torch.full_like(tensor, 7 / 4))


# Robust means.


def test_krums_choice_is_the_one_that_counts() -> None:
    strategy = make_strategy(FIVE, robust="krum")
    values = dict(zip(FIVE.values(), [1.0, 1.5, 1.1, 0.0, 100.0], strict=True))
    trained(strategy, 1, lambda name: reply(make_adapter(values[name]), 5))
    # Each looks at its 2 nearest: cyd 0.1 and 0.4, ann 0.1 and 0.5, bob 0.4 and 0.5, dan 1 and 1.1.
    assert [strategy.record.clients[name]["weight"] for name in FIVE.values()] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert all(
        torch.equal(a, b)
        for (_, a), (_, b) in zip(strategy.adapter.tensors(), make_adapter(1.1).tensors(), strict=True)
    )


# Who was left out, and who answers twice.


def test_who_was_left_out_gets_the_whole_change_the_next_time() -> None:
    strategy = make_strategy(quorum=0.6, type="flora", largest_change=3.0)
    start = strategy.adapter
    for round_, far in ((1, ""), (2, "cyd")):
        start = strategy.adapter

        def answer(name: str, start: Adapter = start, far: str = far) -> RecordDict:
            step = 10.0 if name == far else 1.0
            moved = {n: Factors(a + step, b + step) for n, (a, b) in start.layers.items()}
            return reply(Adapter(moved, 4.0))

        trained(strategy, round_, answer)
    assert set(strategy.record.left_out) == {"cyd"}
    kinds = []
    for message in delivered(strategy, 3):
        delta = read_delta(message)
        kinds.append((delta.change_rank, delta.since))
    assert kinds == [(3, 1), (3, 1), (3, None)]


@pytest.mark.parametrize("settings", [{}, {"weights": "fgrpo"}, {"robust": "median"}, {"robust": "clip"}])
def test_a_client_that_answers_twice_counts_once(settings: dict[str, Any]) -> None:
    strategy = make_strategy(**settings)
    messages = delivered(strategy, 1)
    values = {1: 1.0, 2: 2.0, 3: 3.0}
    replies = [Message(reply(make_adapter(values[m.metadata.dst_node_id]), reward=0.5), reply_to=m) for m in messages]
    again = Message(reply(make_adapter(100.0), reward=0.5), reply_to=messages[0])
    strategy.aggregate_train(1, [*replies, again])
    expected = 2.0 if settings.get("robust") != "clip" else (1 + 2 + 2) / 3
    for _, tensor in strategy.adapter.tensors():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_who_failed_does_not_count_after_all() -> None:
    strategy = make_strategy(quorum=0.6)
    messages = delivered(strategy, 1)
    replies = [Message(reply(make_adapter(1.0)), reply_to=message) for message in messages[1:]]
    failed = Message(Error(0, "out of memory"), reply_to=messages[0])
    strategy.aggregate_train(1, [failed, *replies, Message(reply(make_adapter(100.0)), reply_to=messages[0])])
    assert set(strategy.record.left_out) == {"ann"}
    assert all(bool((tensor == 1.0).all()) for _, tensor in strategy.adapter.tensors())


# Strategies around ours.


class Doubling(WrappingStrategy):
    """Doubles the aggregate."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = self.inner.aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord({name: tensor * 2 for name, tensor in arrays.to_torch_state_dict().items()}), metrics


def doubled(strategy: FederatedRLVR, directory: Path) -> list[tuple[str, list[str], float]]:
    """Two rounds in which clients add 1 to every number they train, and the result is doubled; what they were sent:
    in which message, which halves, and a number of B."""
    seen = []

    def answer(message: Message) -> RecordDict:
        kind, arrays = message.metadata.message_type, message.content.array_records["arrays"]
        values = arrays.to_torch_state_dict()
        seen.append((kind, [name[0] for name in values], float(list(values.values())[-1][0])))
        if kind == "evaluate":
            return scores_reply(["s"], [1], [0.0], [0.0])
        trained = {name: value + 1 for name, value in values.items()}
        numbers = MetricRecord({"num-examples": 1})
        return RecordDict({"arrays": ArrayRecord(trained), "metrics": numbers})

    grid = LocalGrid(answering(answer), contexts())
    checkpoints = Checkpoints(directory, 3)
    strategy.start(grid, checkpoints, hooks=Doubling(strategy))
    return seen


@pytest.mark.parametrize(("rule", "halves"), [("fedit", ["A", "B"]), ("ffa", ["B"])])
def test_what_a_wrapper_makes_of_the_aggregate_is_what_everybody_gets(
    rule: str, halves: list[str], tmp_path: Path
) -> None:
    strategy = make_strategy(type=rule, server_learning_rate=1)
    seen = doubled(strategy, tmp_path)
    # Round 1: (0 + 1) x 2; round 2: (2 + 1) x 2; the adapter is evaluated before and after.
    values = [("evaluate", 0.0), ("train", 0.0), ("train", 2.0), ("evaluate", 6.0)]
    assert seen == [(kind, halves, value) for kind, value in values for _ in NAMES]
    for factors in strategy.adapter.layers.values():
        assert bool((factors.B == 6.0).all())
        expected = torch.full_like(factors.A, 6.0 if rule == "fedit" else 0.0)
        assert torch.equal(factors.A, expected)
    checkpoint = Checkpoints(tmp_path, 3).load()
    assert checkpoint is not None
    assert bool((checkpoint.adapter.layers["up"].B == 6.0).all())


@pytest.mark.parametrize("rule", ["rolora", "flora", "fedex", "hetlora", "flexlora"])
def test_rules_without_a_place_for_a_changed_aggregate_say_so(rule: str, tmp_path: Path) -> None:
    strategy = make_strategy(type=rule)

    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type == "evaluate":
            return scores_reply(["s"], [1], [0.0], [0.0])
        return reply(make_adapter(1.0), halves="B" if rule == "rolora" else "AB")

    grid = LocalGrid(answering(answer), contexts())
    checkpoints = Checkpoints(tmp_path, 3)
    with pytest.raises(RoundError, match=rf"round 1: .*aggregation\.type = '{rule}'"):
        strategy.start(grid, checkpoints, hooks=Doubling(strategy))
    assert Checkpoints(tmp_path, 3).rounds() == [0]


# Fewer bytes.


def sent(message: Message, adapter: Adapter, start: Adapter) -> RecordDict:
    """The reply that the client code makes of its adapter at the end of a round."""
    request = read_request(message, TrainRequest)
    context = contexts([1])[1]
    training = cast(LocalTraining, SimpleNamespace(asked=request, starts={"me": start}))
    client_request = cast(ClientRequest, SimpleNamespace(context=context, row="me", client=SimpleNamespace(name="me")))
    arrays, _ = LocalTraining._packed(training, client_request, adapter)
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})


@pytest.mark.parametrize("rule", ["fedit", "ffa", "rolora"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_who_has_no_finite_adapter_is_left_out_and_nobody_else(rule: str, precision: str, value: float) -> None:
    strategy = make_strategy(quorum=0.6, type=rule, precision=precision)
    values = {"ann": 1.0, "bob": value, "cyd": 2.0}
    replies = []
    for message in delivered(strategy, 1):
        adapter = make_adapter(values[NAMES[message.metadata.dst_node_id]])
        replies.append(Message(sent(message, adapter, make_adapter(0.0)), reply_to=message))
    strategy.aggregate_train(1, replies)
    (entry,) = strategy.record.left_out.items()
    assert entry[0] == "bob"
    assert "round 1, bob: " in entry[1]
    assert "not finite" in entry[1]
    for factors in strategy.adapter.layers.values():  # 1 and 2 are what int8 and float16 can say of a row of ones
        torch.testing.assert_close(factors.B, torch.full_like(factors.B, 1.5))


@pytest.mark.parametrize("rule", ["fedit", "ffa"])
def test_an_adapter_beyond_the_range_of_float16_arrives_all_the_same(rule: str) -> None:
    strategy = make_strategy(type=rule, precision="float16", change_bound=1e9)
    values = {"ann": 3e5, "bob": 60000.0, "cyd": 0.0}
    replies = []
    for message in delivered(strategy, 1):
        body = sent(message, make_adapter(values[NAMES[message.metadata.dst_node_id]]), make_adapter(0.0))
        kinds = {array.dtype for array in body.array_records["arrays"].values()}
        assert kinds == {"float32" if message.metadata.dst_node_id == 1 else "float16"}
        replies.append(Message(body, reply_to=message))
    strategy.aggregate_train(1, replies)
    for factors in strategy.adapter.layers.values():
        torch.testing.assert_close(factors.B, torch.full_like(factors.B, 120000.0))


def test_an_unrounded_adapter_is_no_way_around_the_checks() -> None:
    strategy = make_strategy(quorum=0.6, precision="int8")
    for message in (messages := delivered(strategy, 1)):
        assert read_request(message, TrainRequest).precision == "int8"
    wide = adapter_to_arrays(make_adapter(1.0, 3))
    bad = RecordDict({"arrays": wide, "metrics": MetricRecord({"num-examples": 1})})
    replies = [Message(train_reply(1.0), reply_to=message) for message in messages[1:]]
    strategy.aggregate_train(1, [Message(bad, reply_to=messages[0]), *replies])
    assert list(strategy.record.left_out) == ["ann"]
    assert "in int8 (names, order or shapes differ)" in strategy.record.left_out["ann"]
