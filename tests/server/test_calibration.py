"""How P1 compares with what was right, from a client's reply into the round's record; what cannot be is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from factories import NAMES, make_strategy
from fakes import answering, contexts, start_round, train_reply
from flwr.app import Message, MetricRecord, RecordDict

from fedrlvr.errors import MessageError
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import read_calibrations, read_numbers

N = [0, 0, 4, 0, 0, 3, 0, 0, 0, 2]
SUM = [0.0, 0.0, 0.9, 0.0, 0.0, 1.7, 0.0, 0.0, 0.0, 1.95]
RIGHT = [0, 0, 1, 0, 0, 2, 0, 0, 0, 2]
GOOD: dict[str, Any] = {"p1_n": N, "p1_sum": SUM, "p1_right": RIGHT}
AUDIT: dict[str, Any] = {"audit_p1_n": N, "audit_p1_sum": SUM, "audit_p1_right": N}


def reply(**lists: Any) -> RecordDict:
    """A train reply with these among its metrics."""
    record = train_reply(1.0, 3, reward=0.5)
    numbers = dict(record.metric_records["metrics"])
    record["metrics"] = MetricRecord({**numbers, **lists})
    return record


def message(**lists: Any) -> Message:
    """The same from a client."""
    strategy = make_strategy()
    grid = LocalGrid(answering(lambda _: reply(**lists)), contexts())
    first, *_ = grid.send_and_receive(start_round(strategy, 1, grid))
    return first


def trained(strategy: FederatedRLVR, replies: dict[int, RecordDict]) -> None:
    """A round in which these nodes answer so, and all others without any list."""
    grid = LocalGrid(answering(lambda m: replies.get(m.metadata.dst_node_id, reply())), contexts())
    strategy.aggregate_train(1, grid.send_and_receive(start_round(strategy, 1, grid)))


def test_the_lists_come_into_the_line_of_metrics_by_client() -> None:
    strategy = make_strategy()
    trained(strategy, {1: reply(**GOOD), 2: reply(**GOOD, **AUDIT)})
    clients = json.loads(json.dumps(strategy.record.to_json()))["clients"]
    labelled, everything = {"n": N, "sum": SUM, "right": RIGHT}, {"n": N, "sum": SUM, "right": N}
    result = {name: {k: v for k, v in clients[name].items() if "calibration" in k} for name in NAMES.values()}
    assert result == {
        "ann": {"calibration": labelled},
        "bob": {"calibration": labelled, "audit_calibration": everything},
        "cyd": {},
    }
    assert {name: numbers["reward"] for name, numbers in clients.items()} == dict.fromkeys(NAMES.values(), 0.5)


def test_a_reply_without_lists_has_no_calibration() -> None:
    assert read_calibrations(message(), place="ann") == {}


def test_lists_are_no_numbers() -> None:
    assert set(read_numbers(message(**GOOD, **AUDIT), place="ann")) == {"num-examples", "reward"}


def test_nothing_judged_is_no_mistake() -> None:
    none = {"p1_n": [0] * 10, "p1_sum": [0.0] * 10, "p1_right": [0] * 10}
    assert read_calibrations(message(**none), place="ann")["calibration"]["n"] == [0] * 10


def test_a_sum_may_be_rounded_above_its_problems() -> None:
    near = {**GOOD, "p1_sum": [*SUM[:9], 2 + 5e-7]}
    assert read_calibrations(message(**near), place="ann")["calibration"]["sum"] == near["p1_sum"]


def at(column: list[Any], place: int, value: Any) -> list[Any]:
    """A column with another value at one place, all of that value's type."""
    return [type(value)(value if i == place else v) for i, v in enumerate(column)]


@pytest.mark.parametrize("prefix", ["p1", "audit_p1"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": None}, "three lists of 10"),
        ({"sum": None}, "three lists of 10"),
        ({"right": None}, "three lists of 10"),
        ({"n": N[:9]}, "three lists of 10"),
        ({"sum": [*SUM, 0.0]}, "three lists of 10"),
        ({"right": []}, "three lists of 10"),
        ({"n": 3}, "three lists of 10"),
        ({"n": at(N, 0, -1)}, "of any problems"),
        ({"n": at(N, 9, 2.0)}, "of any problems"),
        ({"right": at(RIGHT, 2, 5)}, "of any problems"),
        ({"right": at(RIGHT, 2, -1)}, "of any problems"),
        ({"right": at(RIGHT, 2, 1.0)}, "of any problems"),
        ({"sum": at(SUM, 9, 2.0001)}, "of any problems"),
        ({"sum": at(SUM, 0, 0.5)}, "of any problems"),
        ({"sum": at(SUM, 5, -0.1)}, "of any problems"),
        ({"sum": at(SUM, 5, math.nan)}, "of any problems"),
        ({"sum": at(SUM, 5, math.inf)}, "of any problems"),
    ],
)
def test_lists_that_no_problems_can_have_given_are_refused_by_name(
    prefix: str, changes: dict[str, Any], reason: str
) -> None:
    columns = {"n": N, "sum": SUM, "right": RIGHT, **changes}
    lists = {f"{prefix}_{key}": column for key, column in columns.items() if column is not None}
    with pytest.raises(MessageError, match=f"^ann: {prefix}_n, _sum and _right .*{reason}"):
        read_calibrations(message(**lists), place="ann")


def test_who_sends_such_lists_is_left_out() -> None:
    strategy = make_strategy(quorum=0.6)
    trained(strategy, {1: reply(**GOOD), 2: reply(**{**GOOD, "p1_right": N[::-1]})})
    assert list(strategy.record.left_out) == ["bob"]
    assert strategy.record.left_out["bob"].startswith("round 1, bob: p1_n")
    assert list(strategy.record.to_json()["clients"]) == ["ann", "cyd"]
    with pytest.raises(MessageError, match="round 1, bob: p1_n"):
        trained(make_strategy(), {2: reply(p1_n=N)})


def test_means_of_rewards_are_read_by_name_and_no_more_than_there_can_be() -> None:
    sent = {f"reward_a{i}": 0.5 for i in range(12)} | {"reward_9": 0.5, "reward_Big": 0.5, "reward_1": -2.0}
    numbers = read_numbers(message(**GOOD, **sent), place="ann")
    means = [name for name in numbers if name.startswith("reward_")]
    assert len(means) == 8
    assert not {"reward_9", "reward_Big"} & set(means)
    with pytest.raises(MessageError, match="reward_short"):
        read_numbers(message(**GOOD, reward_short=1e9), place="ann")
