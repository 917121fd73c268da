"""The server's side: whom it asks, how it weighs them, and what it says of replies it cannot use."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import NAMES, make_adapter, make_strategy
from fakes import answering, arrays_with, contexts, scores_reply, start_round, train_reply
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.errors import AdapterError, CheckpointError, FedrlvrError, MessageError, RoundError
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import adapter_to_arrays


def chosen(fraction: float, seed: int, rounds: int, clients: int = 10) -> list[list[int]]:
    names = {node: f"c{node}" for node in range(1, clients + 1)}
    strategy = make_strategy(names, fraction=fraction)
    run = strategy.config.run.model_copy(update={"seed": seed})
    strategy.participation.config = strategy.config.model_copy(update={"run": run})
    grid = LocalGrid(answering(lambda _: train_reply(0.0)), contexts(names))
    return [[m.metadata.dst_node_id for m in start_round(strategy, r, grid)] for r in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("fraction", "clients", "count"),
    [(1.0, 10, 10), (0.5, 10, 5), (0.25, 10, 3), (0.6, 7, 4), (0.01, 10, 1), (0.3, 1, 1)],
)
def test_a_fraction_of_the_clients_and_at_least_one_is_asked(fraction: float, clients: int, count: int) -> None:
    for nodes in chosen(fraction, 0, 5, clients):
        assert len(set(nodes)) == len(nodes) == count


def test_who_is_asked_depends_on_seed_and_round_alone() -> None:
    assert chosen(0.3, 0, 8) == chosen(0.3, 0, 8)
    assert chosen(0.3, 0, 8) != chosen(0.3, 1, 8)
    rounds = chosen(0.3, 0, 60)
    assert len({tuple(nodes) for nodes in rounds}) > 20
    often = [sum(node in nodes for nodes in rounds) for node in range(1, 11)]
    assert min(often) >= 8  # 18 of 60 on average, standard deviation 3.5


def trained(examples: list[int], weights: str) -> tuple[Adapter, FederatedRLVR]:
    values = {1: 1.0, 2: 2.0, 3: 6.0}
    strategy = make_strategy(weights=weights)
    grid = LocalGrid(
        answering(lambda m: train_reply(values[m.metadata.dst_node_id], examples[m.metadata.dst_node_id - 1])),
        contexts(),
    )
    strategy.aggregate_train(1, grid.send_and_receive(start_round(strategy, 1, grid)))
    return strategy.adapter, strategy


@pytest.mark.parametrize(
    ("weights", "mean", "shares"),
    [("examples", (1 * 5 + 2 * 3 + 6 * 2) / 10, [0.5, 0.3, 0.2]), ("equal", 3.0, [1 / 3, 1 / 3, 1 / 3])],
)
def test_clients_count_by_their_examples_or_equally(weights: str, mean: float, shares: list[float]) -> None:
    adapter, strategy = trained([5, 3, 2], weights)
    for _, tensor in adapter.tensors():
        torch.testing.assert_close(tensor, torch.full_like(tensor, mean))
    assert [strategy.record.clients[name]["weight"] for name in NAMES.values()] == pytest.approx(shares)


def answered(strategy: FederatedRLVR, round_: int, rewards: dict[int, float]) -> dict[str, dict[str, float]]:
    """The record of a round in which everybody reports these mean rewards, with one example each."""
    answer = answering(lambda m: train_reply(1.0, 1, reward=rewards[m.metadata.dst_node_id]))
    grid = LocalGrid(answer, contexts(strategy.clients))
    strategy.participation.record = RoundRecord(round_)
    strategy.aggregate_train(round_, grid.send_and_receive(start_round(strategy, round_, grid)))
    return strategy.record.clients


def test_fgrpo_weighs_clients_by_their_gain_and_remembers_through_a_checkpoint() -> None:
    strategy = make_strategy(weights="fgrpo")
    first = answered(strategy, 1, {1: 0.4, 2: 0.5, 3: 100.0})
    assert [first[name]["weight"] for name in NAMES.values()] == pytest.approx([1 / 3] * 3)
    again = make_strategy(weights="fgrpo")
    again.restore(Checkpoint(1, strategy.adapter, json.loads(json.dumps(strategy.state()))))
    for server in (strategy, again):
        # Gains 1/4, -1/5 and 0, whatever the scale: ann 0.4 -> 0.5, bob 0.5 -> 0.4, cyd 100 -> 100.
        second = answered(server, 2, {1: 0.5, 2: 0.4, 3: 100.0})
        assert [second[name]["gain"] for name in NAMES.values()] == pytest.approx([0.25, -0.2, 0.0])
        raw = [math.exp(0.25), math.exp(-0.2), 1.0]
        assert [second[name]["weight"] for name in NAMES.values()] == pytest.approx([r / sum(raw) for r in raw])


def test_fgrpo_needs_every_clients_mean_reward() -> None:
    strategy = make_strategy(weights="fgrpo")
    grid = LocalGrid(answering(lambda _: train_reply(1.0)), contexts())
    with pytest.raises(MessageError, match=r"round 1, ann: .*reward"):
        strategy.aggregate_train(1, grid.send_and_receive(start_round(strategy, 1, grid)))


def test_fgrpo_goes_by_verified_rewards_where_not_all_are_true() -> None:
    """Ann's goes from 0.4 to 0.5, so her gain is 1/4. Bob has none in round 2: he counts by his examples, and his
    baseline in round 3 is still 0.5. Nobody's `reward`, which counts pseudo-labels, plays a part."""
    strategy = make_strategy(weights="fgrpo", supervision={"type": "random", "rest": "pseudo"})
    rounds = [{1: 0.4, 2: 0.5, 3: 0.1}, {1: 0.5, 3: 0.1}, {2: 0.6}]
    raws = [[1.0, 2.0, 1.0], [math.exp(0.25), 2.0, 1.0], [1.0, 2 * math.exp(0.2), 1.0]]
    for round_, (verified, raw) in enumerate(zip(rounds, raws, strict=True), start=1):

        def answer(message: Message, verified: dict[int, float] = verified) -> RecordDict:
            node = message.metadata.dst_node_id
            more = {"verified_reward": verified[node]} if node in verified else {}
            return train_reply(float(node), 2 if node == 2 else 1, reward=math.exp(node), **more)

        grid = LocalGrid(answering(answer), contexts())
        strategy.participation.record = RoundRecord(round_)
        strategy.aggregate_train(round_, grid.send_and_receive(start_round(strategy, round_, grid)))
        recorded = [strategy.record.clients[name]["weight"] for name in NAMES.values()]
        assert recorded == pytest.approx([r / sum(raw) for r in raw])
        mean = (raw[0] * 1 + raw[1] * 2 + raw[2] * 3) / sum(raw)
        for _, tensor in strategy.adapter.tensors():
            torch.testing.assert_close(tensor, torch.full_like(tensor, mean))
    assert strategy.record.clients["ann"]["gain"] == 0.0


@pytest.mark.parametrize("state", [{}, {"fgrpo": {"ann": 3}}])
def test_a_checkpoint_without_a_usable_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="state of the strategy"):
        make_strategy(weights="fgrpo").restore(Checkpoint(1, make_adapter(0.0), state))


def test_a_client_without_examples_does_not_count() -> None:
    adapter, _ = trained([1, 1, 0], "examples")
    assert all(bool((tensor == 1.5).all()) for _, tensor in adapter.tensors())


def fails(reply: RecordDict | Error, kind: type[FedrlvrError], *words: str) -> None:
    """Bob's reply in round 4 is refused with an error that names both."""
    strategy = make_strategy()
    grid = LocalGrid(answering(lambda m: reply if m.metadata.dst_node_id == 2 else train_reply(1.0)), contexts())
    replies = list(grid.send_and_receive(start_round(strategy, 4, grid)))
    with pytest.raises(kind) as caught:
        strategy.aggregate_train(4, replies)
    for word in ("round 4", "bob", *words):
        assert word in str(caught.value)
    assert all(bool((tensor == 0).all()) for _, tensor in strategy.adapter.tensors()), "the adapter has changed"


def test_a_client_that_failed_is_named_with_its_reason() -> None:
    fails(Error(0, "out of memory"), RoundError, "failed", "out of memory")


def test_an_adapter_with_numbers_that_are_none_is_refused() -> None:
    for bad in (math.nan, math.inf):
        reply = train_reply(1.0)
        reply["arrays"] = arrays_with(down__B=torch.tensor([[0.0, bad]] * 3))
        fails(reply, AdapterError, "down.B", "not finite")


def test_an_adapter_of_another_shape_or_layer_is_refused() -> None:
    """The names say the layout: three columns instead of two, a layer too few, another name, another order."""
    up, down = Factors(torch.zeros(2, 3), torch.zeros(4, 2)), Factors(torch.zeros(2, 4), torch.zeros(3, 2))
    wide = Factors(torch.zeros(2, 5), torch.zeros(4, 2))
    for layers in ({"up": wide, "down": down}, {"up": up}, {"other": up, "down": down}, {"down": down, "up": up}):
        reply = train_reply(1.0)
        reply["arrays"] = adapter_to_arrays(Adapter(layers, 4.0))
        fails(reply, AdapterError, "factors are not those", "another model")


def test_an_adapter_of_whole_numbers_is_refused() -> None:
    fails(as_array(npy(np.zeros(14, np.int64)), (14,)), AdapterError, "A factors", "int64")


def as_array(data: bytes, shape: tuple[int, ...] = (14,)) -> RecordDict:
    """Bob's reply with these bytes for his A factors: 2 x 3 and 2 x 4 numbers, 14."""
    reply = train_reply(1.0)
    arrays = reply.array_records["arrays"]
    name = next(iter(arrays))
    assert name.startswith("A.")
    arrays[name] = Array("float32", shape, "numpy.ndarray", data)
    return reply


def npy(array: np.ndarray) -> bytes:
    return Array(array).data


def test_an_array_whose_header_lies_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, ...]] = []
    real = Array.numpy

    def numpy(self: Array) -> np.ndarray:
        decoded.append(tuple(self.shape))
        return real(self)

    monkeypatch.setattr(Array, "numpy", numpy)
    fails(as_array(npy(np.zeros(100_000, np.float32))), AdapterError, "A factors")
    fails(as_array(npy(np.zeros(14, np.float32)), (200_000_000,)), AdapterError, "A factors", "(200000000,)")
    # Ann's factors were decoded each time, and of Bob's nothing that was too long or of another stated shape.
    assert decoded == [(14,), (14,)] * 2


def test_an_array_of_other_contents_than_its_header_says_is_refused() -> None:
    fails(as_array(npy(np.zeros((2, 7), np.float32))), AdapterError, "A factors", "(2, 7)")
    fails(as_array(b"no array at all"), AdapterError, "A factors", "cannot be decoded")
    fails(as_array(npy(np.zeros(14, np.float32))[:-1]), AdapterError, "A factors", "cannot be decoded")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**18,)})
    fails(as_array(header.getvalue() + bytes(24)), AdapterError, "A factors", "cannot be decoded")


def test_an_array_that_is_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()] * 14, dtype=object), allow_pickle=True)
    fails(as_array(buffer.getvalue()), AdapterError, "A factors")
    assert not (tmp_path / "sprung").exists()


def test_a_reply_without_its_parts_is_refused() -> None:
    without_arrays = train_reply(1.0)
    del without_arrays["arrays"]
    fails(without_arrays, MessageError, "without an adapter")
    without_metrics = train_reply(1.0)
    del without_metrics["metrics"]
    fails(without_metrics, MessageError, "num-examples")
    fails(RecordDict(), MessageError, "num-examples")


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"reward": 0.5}, "num-examples"),
        ({"num-examples": 0.5}, "num-examples"),
        ({"num-examples": [1]}, "num-examples"),
        ({"num-examples": -1}, "num-examples"),
        ({"num-examples": 1, "reward": math.nan}, "metric reward is"),
        ({"num-examples": 1, "reward": math.inf}, "metric reward is"),
        ({"num-examples": 1, **{f"k{i}": 0 for i in range(1000)}}, "metrics"),
    ],
)
def test_metrics_that_cannot_be_used_are_refused(numbers: dict[str, float], word: str) -> None:
    reply = train_reply(1.0)
    reply["metrics"] = MetricRecord(numbers)  # type: ignore[arg-type]
    fails(reply, MessageError, word)


def run_rounds(strategy: FederatedRLVR, grid: LocalGrid, directory: Path) -> None:
    checkpoints = Checkpoints(directory, 3)
    strategy.start(grid, checkpoints, timeout=7.0)


def test_a_client_that_does_not_answer_is_named(tmp_path: Path) -> None:
    class Deaf(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            replies = super().send_and_receive(messages, timeout=timeout)
            return [r for r in replies if (r.metadata.src_node_id, r.metadata.message_type) != (3, "train")]

    def answer(message: Message) -> RecordDict:
        return train_reply(1.0) if message.metadata.message_type == "train" else scores_reply(["s"], [1], [0.0], [0.0])

    with pytest.raises(RoundError, match=r"round 1: no answer within 7 s from cyd"):
        run_rounds(make_strategy(), Deaf(answering(answer), contexts()), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-0000"]


def test_a_reply_from_a_stranger_is_refused() -> None:
    strategy = make_strategy({1: "ann", 2: "bob"})
    grid = LocalGrid(answering(lambda _: train_reply(1.0)), contexts())
    replies = grid.send_and_receive(start_round(strategy, 1, grid))
    with pytest.raises(MessageError, match="no client of this run"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        (scores_reply(["a", "b"], [1], [1.0], [1.0]), "matching lists"),
        (scores_reply(["a"], [1], [1.0], []), "matching lists"),
        (RecordDict({"metrics": MetricRecord({"num-examples": 1, "n": [1]})}), "matching lists"),
        (scores_reply(["a"], [4], [5.0], [1.0]), "no sums of pass rates"),
        (scores_reply(["a"], [4], [1.0], [2.0]), "no sums of pass rates"),
        (scores_reply(["a"], [4], [math.nan], [0.0]), "cannot be used|no sums of pass rates"),
        (scores_reply(["a"], [-1], [0.0], [0.0]), "cannot be used"),
        (scores_reply(["a" * 201], [1], [0.0], [0.0]), "cannot be used"),
        (scores_reply(["a"] * 10_001, [1] * 10_001, [0.0] * 10_001, [0.0] * 10_001), "more than"),
    ],
)
def test_scores_that_cannot_be_are_refused(reply: RecordDict, word: str) -> None:
    strategy = make_strategy()
    handler = answering(lambda m: reply if m.metadata.dst_node_id == 2 else scores_reply(["a"], [2], [1.0], [1.0]))
    grid = LocalGrid(handler, contexts())
    messages = list(strategy.configure_evaluate(0, arrays_with(), ConfigRecord(), grid))
    with pytest.raises(MessageError, match=word) as caught:
        strategy.aggregate_evaluate(0, grid.send_and_receive(messages))
    assert "round 0, bob" in str(caught.value)


def test_scores_are_kept_by_client_and_source() -> None:
    strategy = make_strategy()
    grid = LocalGrid(answering(lambda _: scores_reply(["a", "b"], [4, 2], [1.5, 2.0], [0.75, 2.0])), contexts())
    strategy.aggregate_evaluate(
        0, grid.send_and_receive(strategy.configure_evaluate(0, arrays_with(), ConfigRecord(), grid))
    )
    line = strategy.record.to_json()["evaluate"]
    assert set(line) == {"ann", "bob", "cyd"}
    assert line["bob"] == {"a": {"n": 4, "total": 1.5, "squares": 0.75}, "b": {"n": 2, "total": 2.0, "squares": 2.0}}


@pytest.mark.parametrize(("every", "due"), [(0, [0, 5]), (2, [0, 2, 4, 5]), (1, [0, 1, 2, 3, 4, 5])])
def test_evaluations_are_due_before_after_and_every_so_often(every: int, due: list[int]) -> None:
    strategy = make_strategy()
    strategy.config = strategy.config.model_copy(
        update={
            "evaluate": strategy.config.evaluate.model_copy(update={"every": every}),
            "train": strategy.config.train.model_copy(update={"rounds": 5}),
        }
    )
    grid = LocalGrid(answering(lambda _: RecordDict()), contexts())
    asked = [r for r in range(6) if list(strategy.configure_evaluate(r, arrays_with(), ConfigRecord(), grid))]
    assert asked == due
