"""A client that fails or sends nonsense is left out by name, and the round goes on while the quorum holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import NAMES, make_adapter, make_strategy
from fakes import answering, contexts, scores_reply, start_round, train_reply
from flwr.app import Error, Message, MetricRecord, RecordDict
from small_runs import Configs

import fedrlvr
from fedrlvr.errors import ConfigError, FedrlvrError, RoundError
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.metrics_log import MetricsLog, RoundRecord
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.codes import WITHHELD
from fedrlvr.wire.messages import adapter_to_arrays

Answer = Callable[[Message], RecordDict | Error]


def bad(kind: str) -> RecordDict | Error:
    """A train reply that cannot be used."""
    reply = train_reply(1.0)
    if kind == "failed":
        return Error(0, "out of memory")
    if kind == "not finite":
        reply["arrays"] = adapter_to_arrays(make_adapter(math.nan))
    elif kind == "no adapter":
        del reply["arrays"]
    elif kind == "no numbers":
        reply["metrics"] = MetricRecord({"reward": 1.0})
    return reply


def trained(strategy: FederatedRLVR, replies: dict[int, RecordDict | Error], round_: int = 1) -> None:
    """A round in which these nodes answer so, and all others with an adapter of ones."""
    grid = LocalGrid(answering(lambda m: replies.get(m.metadata.dst_node_id, train_reply(1.0))), contexts(NAMES))
    strategy.aggregate_train(round_, grid.send_and_receive(start_round(strategy, round_, grid)))


@pytest.mark.parametrize("kind", ["failed", "not finite", "no adapter", "no numbers"])
def test_one_of_three_is_left_out_by_name_and_the_others_are_averaged(kind: str) -> None:
    strategy = make_strategy(quorum=0.6)
    trained(strategy, {2: bad(kind), 3: train_reply(3.0)})
    assert all(bool((tensor == 2.0).all()) for _, tensor in strategy.adapter.tensors()), "of 1 and 3"
    (reason,) = strategy.record.to_json()["left_out"].values()
    assert reason.startswith("round 1, bob: ")
    assert {c for c, n in strategy.record.clients.items() if "weight" in n} == {"ann", "cyd"}


KEPT_BACK = Error(WITHHELD, "cyd: round 1: too little was trained on (limits.least_learned = 4)\x1b[31m")


@pytest.mark.parametrize("quorum", [1.0, 0.6])
def test_a_client_whose_floor_was_missed_is_left_out_and_does_not_count_against_the_quorum(quorum: float) -> None:
    strategy = make_strategy(quorum=quorum)
    trained(strategy, {2: train_reply(3.0), 3: KEPT_BACK})
    assert all(bool((tensor == 2.0).all()) for _, tensor in strategy.adapter.tensors()), "of 1 and 3"
    (reason,) = strategy.record.to_json()["left_out"].values()
    assert reason.startswith("round 1, cyd: ")
    assert "limits.least_learned" in reason
    assert reason.isprintable()


@pytest.mark.parametrize("node", NAMES)
def test_a_client_that_withholds_counts_as_one_that_answered(node: int) -> None:
    """Or one that only claims it would make the failure of one other end the run."""
    others = sorted(set(NAMES) - {node})
    strategy = make_strategy(quorum=0.6)  # of three it needs two, whoever withholds
    trained(strategy, {node: KEPT_BACK, others[0]: bad("failed")})
    left_out = strategy.record.to_json()["left_out"]
    assert list(left_out) == sorted(NAMES[n] for n in (node, others[0]))
    assert "withheld" in left_out[NAMES[node]]
    with pytest.raises(RoundError, match="asks for 2 of 3 clients, and 2 are left out"):
        trained(make_strategy(quorum=0.6), {node: KEPT_BACK, **dict.fromkeys(others, bad("failed"))})


@pytest.mark.parametrize("settings", [{"robust": "median"}, {"robust": "median", "server_learning_rate": 0.5}])
def test_floors_that_leave_too_few_for_a_robust_mean_leave_the_model_as_it_was(settings: dict[str, Any]) -> None:
    strategy = make_strategy(start=make_adapter(7.0), **settings)
    trained(strategy, {3: KEPT_BACK})
    assert all(bool((tensor == 7.0).all()) for _, tensor in strategy.adapter.tensors())
    strategy.participation.record = RoundRecord(2)
    trained(strategy, {3: train_reply(9.0)}, round_=2)
    assert not any(bool((tensor == 7.0).any()) for _, tensor in strategy.adapter.tensors())


@pytest.mark.parametrize(
    ("robust", "clients", "quorum"), [("median", 3, 0.6), ("trimmed_mean", 5, 0.8), ("krum", 6, 0.6)]
)
def test_a_quorum_below_what_a_robust_mean_needs_is_refused_before_the_run(
    robust: str, clients: int, quorum: float
) -> None:
    names = {node: f"c{node}" for node in range(1, clients + 1)}
    with pytest.raises(ConfigError, match=r"aggregation\.robust.*federation\.quorum"):
        make_strategy(names, quorum=quorum, robust=robust)
    make_strategy(names, quorum=1.0, robust=robust)


def test_a_round_in_which_every_floor_was_missed_changes_nothing() -> None:
    strategy = make_strategy(quorum=0.6, start=make_adapter(7.0))
    trained(strategy, dict.fromkeys(NAMES, KEPT_BACK))
    assert all(bool((tensor == 7.0).all()) for _, tensor in strategy.adapter.tensors())
    strategy.participation.record = RoundRecord(2)
    trained(strategy, {}, round_=2)
    assert all(bool((tensor == 1.0).all()) for _, tensor in strategy.adapter.tensors())


def test_too_few_are_an_error_that_names_everybody_left_out() -> None:
    strategy = make_strategy(quorum=0.6)  # two of three
    with pytest.raises(RoundError, match="2 of 3 clients") as caught:
        trained(strategy, {1: bad("failed"), 2: bad("not finite")})
    for word in ("ann: round 1, ann: the client failed (out of memory)", "bob: round 1, bob: "):
        assert word in str(caught.value)


def test_with_a_quorum_of_one_everybody_is_needed() -> None:
    with pytest.raises(FedrlvrError, match="round 1, bob"):
        trained(make_strategy(), {2: bad("not finite")})


@pytest.mark.parametrize(("value", "out"), [(9.0, False), (11.0, True), (-11.0, True), (1e6, True)])
def test_an_adapter_that_changed_by_far_more_than_the_median_is_left_out(value: float, out: bool) -> None:
    strategy = make_strategy(quorum=0.6, largest_change=10.0)
    trained(strategy, {3: train_reply(value)})  # from an adapter of zeros the others change by 1 in every number
    assert ("cyd" in strategy.record.left_out) == out
    if out:
        # 14 A and 14 B numbers: the norm is sqrt(28) times the value.
        assert f"changed by {abs(value) * math.sqrt(28):.3g}, " in strategy.record.left_out["cyd"]
        assert all(bool((tensor == 1.0).all()) for _, tensor in strategy.adapter.tensors())


def test_who_changed_nothing_is_compared_with_nobody() -> None:
    strategy = make_strategy(quorum=0.5, largest_change=2.0)
    trained(strategy, {1: train_reply(0.0), 2: train_reply(0.0)})  # a median of zero
    assert strategy.record.left_out == {}


def test_where_the_median_is_zero_that_of_an_earlier_round_counts() -> None:
    strategy = make_strategy(quorum=0.5, largest_change=2.0)
    trained(strategy, {})  # everybody changes by 1 in every number
    trained(strategy, {1: train_reply(1.0), 2: train_reply(1.0), 3: train_reply(4.0)}, round_=2)
    assert set(strategy.record.left_out) == {"cyd"}


@pytest.mark.parametrize(("value", "out"), [(99.0, False), (101.0, True), (3e38, True)])
def test_a_change_is_bounded_absolutely_in_the_first_round(value: float, out: bool) -> None:
    strategy = make_strategy(quorum=0.6)
    trained(strategy, {3: train_reply(value)})
    assert ("cyd" in strategy.record.left_out) == out


@pytest.mark.parametrize(("value", "out"), [(50.9, False), (51.1, True)])
def test_a_change_is_bounded_by_the_largest_median_of_earlier_rounds(value: float, out: bool) -> None:
    strategy = make_strategy(quorum=0.6, change_bound=25.0)
    trained(strategy, {node: train_reply(v) for node, v in ((1, 1.0), (2, 2.0), (3, 0.0))})  # a median of 1, mean 1
    assert strategy.bound.usual == pytest.approx(1.0)
    trained(strategy, {1: train_reply(3.0), 2: train_reply(3.0), 3: train_reply(3.0)}, round_=2)  # 2 from 1
    again = make_strategy(quorum=0.6, change_bound=25.0)
    again.restore(Checkpoint(2, strategy.adapter, json.loads(json.dumps(strategy.state()))))
    trained(again, {3: train_reply(value + 2.0)}, round_=3)  # from 3: 49.9 and 50.1, where 25 x 2 are allowed
    assert ("cyd" in again.record.left_out) == out


def test_weights_by_gain_are_over_those_who_answered() -> None:
    strategy = make_strategy(quorum=0.6, weights="fgrpo")
    trained(strategy, {node: train_reply(1.0, reward=0.5) for node in NAMES})
    trained(strategy, {1: train_reply(1.0, reward=0.6), 2: bad("failed"), 3: train_reply(1.0, reward=0.5)}, round_=2)
    # Ann gains (0.6 - 0.5) / 0.5 = 0.2, cyd nothing; bob keeps his baseline for when he is back.
    share = math.exp(0.2) / (math.exp(0.2) + 1)
    assert strategy.record.clients["ann"]["weight"] == pytest.approx(share)
    assert strategy.combiner.fgrpo is not None
    assert strategy.combiner.fgrpo.gains({"bob": 0.75}) == pytest.approx({"bob": 0.5})


def test_what_a_client_says_of_its_failure_is_bounded() -> None:
    strategy = make_strategy(quorum=0.6)
    trained(strategy, {2: Error(0, "x" * 100_000)})
    assert len(strategy.record.left_out["bob"]) == 500


def rounds(strategy: FederatedRLVR, answer: Answer, directory: Path) -> list[dict[str, Any]]:
    """All rounds of a run, and its lines."""
    strategy.observer = MetricsLog(directory)
    checkpoints = Checkpoints(directory, 3)
    strategy.start(LocalGrid(answering(answer), contexts()), checkpoints, timeout=7.0)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_a_client_is_back_in_the_next_round(tmp_path: Path) -> None:
    def answer(message: Message) -> RecordDict | Error:
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        if kind == "evaluate":
            return scores_reply(["s"], [1], [1.0], [1.0])
        return bad("failed") if (node, message.metadata.group_id) == (2, "1") else train_reply(1.0)

    strategy = make_strategy(quorum=0.6)
    train = strategy.config.train.model_copy(update={"rounds": 2})
    strategy.config = strategy.config.model_copy(update={"train": train})
    before, first, second = rounds(strategy, answer, tmp_path)
    assert set(first["left_out"]) == {"bob"}
    assert "left_out" not in before
    assert "left_out" not in second
    assert set(second["evaluate"]) == {"ann", "bob", "cyd"}


def test_an_evaluation_that_fails_is_left_out_too(tmp_path: Path) -> None:
    def answer(message: Message) -> RecordDict | Error:
        if message.metadata.message_type == "train":
            return train_reply(1.0)
        last = message.metadata.dst_node_id == 3 and message.metadata.group_id == "1"
        return Error(0, "disk") if last else scores_reply(["s"], [1], [1.0], [1.0])

    strategy = make_strategy(quorum=0.6)
    train = strategy.config.train.model_copy(update={"rounds": 1})
    strategy.config = strategy.config.model_copy(update={"train": train})
    _, line = rounds(strategy, answer, tmp_path)
    assert set(line["evaluate"]) == {"ann", "bob"}
    assert "cyd" in line["left_out"]


class Vanishing(LocalGrid):
    """Bob's second message of the run that is no evaluation is not answered."""

    seen = 0

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if messages[0].metadata.message_type != "evaluate":
            Vanishing.seen += 1
            if Vanishing.seen == 2:
                return [reply for reply in replies if reply.metadata.src_node_id != 2]
        return replies


def test_a_client_that_vanishes_between_exchanges_is_not_asked_again_in_that_round(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LocalGrid", Vanishing)
    Vanishing.seen = 0
    changes = {
        "train": {"local_steps": 3},
        "data": {"public_size": 6},
        "coordination": {"type": "pubswap", "exchanges": 3, "public_problems": 2},
        "federation": {"quorum": 0.5},
    }
    fedrlvr.run(configured(tmp_path / "run", **changes))
    _, first, second = (
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    )
    assert set(first["left_out"]) == {"bob"}
    assert "no answer" in first["left_out"]["bob"]
    assert [set(e["clients"]) for e in first["exchanges"]] == [{"ann", "bob", "cyd"}] * 2 + [{"ann", "cyd"}]
    assert {c for c, n in first["clients"].items() if "weight" in n} == {"ann", "cyd"}
    assert {c for c, n in second["clients"].items() if "weight" in n} == {"ann", "bob", "cyd"}
    assert all(len(e["clients"]) == 3 for e in second["exchanges"])


def test_distance_is_that_of_all_factors() -> None:
    assert make_adapter(2.0).distance(make_adapter(-1.0)) == pytest.approx(3 * math.sqrt(28))
    assert make_adapter(2.0).distance(make_adapter(2.0)) == 0.0
