"""The server sends its adapter rounded: what clients change is what they received, and the server keeps its own."""

from __future__ import annotations

import pytest
import torch
from factories import NAMES, make_strategy
from fakes import answering, contexts, start_round
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import Config, parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.compression import pack, received
from fedrlvr.wire.messages import ARRAYS, METRICS, TrainRequest, adapter_to_arrays, read_request


def of(a: float, b: float, like: Adapter) -> Adapter:
    """Rows of A are 1.27, a, a, ...; columns of B are 1.27, b, b, ...: in int8 their numbers are multiples of 0.01."""
    layers = {}
    for name, (old_a, old_b) in like.layers.items():
        new_a, new_b = torch.full_like(old_a, a), torch.full_like(old_b, b)
        new_a[:, 0] = new_b[0] = 1.27
        layers[name] = Factors(new_a, new_b)
    return like.alike(layers)


def plus(adapter: Adapter, by: float) -> Adapter:
    return adapter.alike({name: Factors(a + by, b + by) for name, (a, b) in adapter.layers.items()})


def clients_that_add(strategy: FederatedRLVR, by: dict[str, float]) -> LocalGrid:
    """Clients that add a number to each number of the adapter that they receive."""

    def answer(message: Message) -> RecordDict:
        client = NAMES[message.metadata.dst_node_id]
        like = strategy.adapter.at_rank(strategy.participation.rank(client))
        arrays = message.content.array_records[ARRAYS]
        assert not any(isinstance(array, Array) and name.count(".") == 1 for name, array in arrays.items())
        start = received(arrays, like, place=client)
        end, precision = plus(start, by[client]), read_request(message, TrainRequest).precision
        sent = adapter_to_arrays(end) if precision == "float32" else pack(end, start, None, precision)[0]
        return RecordDict({ARRAYS: sent, METRICS: MetricRecord({"num-examples": 1, "reward": 0.0})})

    return LocalGrid(answering(answer), contexts())


def train(strategy: FederatedRLVR, by: dict[str, float], round_: int = 1) -> None:
    grid = clients_that_add(strategy, by)
    strategy.aggregate_train(round_, grid.send_and_receive(start_round(strategy, round_, grid)))


def close(adapter: Adapter, expected: Adapter) -> None:
    for (name, tensor), (_, other) in zip(adapter.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("up", ["float32", "int8"])
@pytest.mark.parametrize("rule", ["fedit", "hetlora"])
def test_a_change_is_from_what_the_client_received(rule: str, up: str) -> None:
    """0.004 arrives as 0; 0 + 0.254 is sent; the server's 0.004 becomes 0.258, and not 0.254."""
    start = of(0.004, 0.004, make_strategy().adapter)
    strategy = make_strategy(start=start, type=rule, precision=up, precision_down="int8", server_learning_rate=1)
    zero = of(0.0, 0.0, start)
    close(strategy.model.received_by("ann", 2), zero)
    train(strategy, dict.fromkeys(NAMES.values(), 0.254))
    close(strategy.adapter, plus(start, 0.254))


def test_a_servers_step_is_along_the_clients_own_changes() -> None:
    """The mean change is (0.1 + 0.2 + 0.6) / 3 = 0.3, and the step 2 moves the adapter by 0.6."""
    start = of(0.004, 0.003, make_strategy().adapter)
    strategy = make_strategy(start=start, precision_down="int8", server_learning_rate=2)
    train(strategy, dict(zip(NAMES.values(), (0.1, 0.2, 0.6), strict=True)))
    close(strategy.adapter, plus(start, 0.6))


def test_changes_below_a_step_of_rounding_add_up() -> None:
    """Four changes of 0.003 are 0.012, which arrives as 0.01; rounded each time they would be nothing."""
    strategy = make_strategy(
        start=of(0.0, 0.0, make_strategy().adapter), rounds=4, precision_down="int8", server_learning_rate=1
    )
    arrived = []
    for round_ in range(1, 5):
        train(strategy, dict.fromkeys(NAMES.values(), 0.003), round_)
        factors = next(iter(strategy.model.received_by("ann", 2).layers.values()))
        arrived.append(round(float(factors.A[0, 1]), 2))
    assert arrived == [0.0, 0.01, 0.01, 0.01]  # 0.003, 0.006, 0.009, 0.012; the largest grows to 1.282


def test_clients_of_each_rank_receive_their_own_rounding() -> None:
    strategy = make_strategy(rank={"ann": 1, "bob": 2, "cyd": 3}, type="hetlora", precision_down="bfloat16")
    for client, rank in {"ann": 1, "bob": 2, "cyd": 3}.items():
        start = strategy.model.start_of(rank)
        arrays = strategy.model.bring(client, rank, ArrayRecord())[ARRAYS]
        assert isinstance(arrays, ArrayRecord)
        read = received(arrays, start, place=client)
        for (name, tensor), (_, other) in zip(
            strategy.model.received_by(client, rank).tensors(), read.tensors(), strict=True
        ):
            assert torch.equal(tensor, other), name


def settled(size: int, **aggregation: str) -> str:
    config = parse_config({"aggregation": aggregation})
    return config.aggregation.settled(config, size).precision


def test_auto_is_float32_for_small_adapters_and_int8_for_large_ones() -> None:
    assert Config().aggregation.precision == "auto"
    assert settled(999_999) == "float32"
    assert settled(1_000_000) == "int8"
    assert settled(1_000_000, precision="float16") == "float16"
    assert settled(10, precision="int8") == "int8"
    local = parse_config({"federation": {"arm": "local"}})
    assert local.aggregation.settled(local, 10**9).number_format == "float32"


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"aggregation": {"precision": "int8"}, "federation": {"arm": "local"}}, "federation.arm"),
        ({"aggregation": {"precision_down": "int8"}, "federation": {"arm": "central"}}, "federation.arm"),
        ({"aggregation": {"precision_down": "int8", "type": "fedex"}}, "aggregation.type"),
        ({"aggregation": {"precision_down": "bfloat16", "type": "rolora"}}, "aggregation.type"),
        ({"aggregation": {"precision_down": "int8"}, "personal": {"type": "fedsa"}}, "personal.type"),
    ],
)
def test_a_precision_that_cannot_be_kept_is_refused(tree: dict[str, dict[str, str]], named: str) -> None:
    with pytest.raises(ConfigError, match=r"aggregation\.precision") as refused:
        parse_config(tree)
    assert named in str(refused.value)
