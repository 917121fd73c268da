"""The local grid: contents are copied, replies come in order, and Flower's own strategies run over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from factories import NAMES, make_adapter, make_request
from fakes import contexts
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from small_runs import Configs

from fedrlvr.aggregation.averaging import FedIT
from fedrlvr.client.app import CohortApp
from fedrlvr.config import parse_config
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.reporting.observer import Observer
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.tasks.deal import deal
from fedrlvr.wire.messages import adapter_to_arrays, arrays_to_adapter, content, nbytes


def shared_content() -> RecordDict:
    return RecordDict(
        {
            "arrays": adapter_to_arrays(make_adapter(1.0)),
            "config": ConfigRecord({"word": "sent"}),
            "metrics": MetricRecord({"n": 1}),
        }
    )


def spoil(record: RecordDict) -> None:
    record.config_records["config"]["word"] = "spoilt"
    record.metric_records["metrics"]["n"] = 2
    first, second = record.array_records["arrays"]
    record.array_records["arrays"][first] = record.array_records["arrays"][second]
    del record["metrics"]


def test_one_content_in_all_messages_reaches_each_receiver_as_its_own() -> None:
    seen: list[tuple[object, ...]] = []

    def handler(messages: Sequence[Message], _: Sequence[Context]) -> list[Message]:
        for message in messages:
            record = message.content
            (array, _) = record.array_records["arrays"].values()
            seen.append((record["config"]["word"], record["metrics"]["n"], array.shape))  # type: ignore[union-attr]
            spoil(record)
        return [Message(RecordDict(), reply_to=message) for message in messages]

    record = shared_content()
    before = {name: np.array(array.numpy()) for name, array in record.array_records["arrays"].items()}
    grid = LocalGrid(handler, contexts())
    list(grid.send_and_receive([Message(record, node, "train") for node in NAMES]))
    assert seen == [("sent", 1, (14,))] * 3
    assert record.config_records["config"]["word"] == "sent"
    assert record.metric_records["metrics"]["n"] == 1
    for name, array in record.array_records["arrays"].items():
        assert np.array_equal(array.numpy(), before[name])


def test_a_reply_is_the_servers_own_copy_too() -> None:
    kept: list[RecordDict] = []

    def handler(messages: Sequence[Message], _: Sequence[Context]) -> list[Message]:
        kept.extend(shared_content() for _ in messages)
        return [Message(reply, reply_to=message) for reply, message in zip(kept, messages, strict=True)]

    grid = LocalGrid(handler, contexts([1]))
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "train")])
    spoil(kept[0])
    assert reply.content.config_records["config"]["word"] == "sent"
    assert [tuple(array.shape) for array in reply.content.array_records["arrays"].values()] == [(14,), (14,)]


def test_replies_come_in_the_order_of_the_messages_with_their_addresses() -> None:
    def handler(messages: Sequence[Message], memories: Sequence[Context]) -> list[Message]:
        for message, context in zip(messages, memories, strict=True):
            assert context.node_id == message.metadata.dst_node_id
        return [
            Message(RecordDict({"config": ConfigRecord({"for": message.metadata.dst_node_id})}), reply_to=message)
            for message in messages
        ]

    grid = LocalGrid(handler, contexts())
    assert list(grid.get_node_ids()) == [1, 2, 3]
    replies = list(grid.send_and_receive([Message(RecordDict(), node, "train") for node in (3, 1, 2)]))
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1, 2]
    assert [reply.content.config_records["config"]["for"] for reply in replies] == [3, 1, 2]


def test_messages_can_be_pushed_now_and_pulled_later_once() -> None:
    grid = LocalGrid(lambda messages, _: [Message(RecordDict(), reply_to=m) for m in messages], contexts())
    ids = list(grid.push_messages([grid.create_message(RecordDict(), "train", node, "1") for node in (1, 2)]))
    assert len(set(ids)) == 2
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(ids[::-1])] == [2, 1]
    assert list(grid.pull_messages(ids)) == []


def test_bytes_are_those_of_the_arrays_and_of_the_words() -> None:
    arrays = ArrayRecord({"x": torch.zeros(100)})
    alone = nbytes(Message(RecordDict({"arrays": arrays}), 1, "train"))
    with_word = nbytes(Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"k": "12345"})}), 1, "train"))
    assert 400 <= alone < 400 + 300  # 100 floats of 4 bytes, and numpy's header
    assert with_word - alone == len("k") + len("12345")
    assert nbytes(Message(RecordDict(), 1, "train")) == 0


def test_flowers_own_fedavg_runs_over_our_grid_and_clients(configured: Configs, tmp_path: Path) -> None:
    config = parse_config(configured(None, federation={"clients": ["ann", "bob"]}))
    torch.set_num_threads(1)
    cohort = Cohort(load_base(config.model), config.lora, config.engine)
    initial = cohort.fresh_adapter(1)
    sites = dict(enumerate(deal(config).clients, start=1))
    sent: list[Message] = []

    class Recording(LocalGrid):
        def push_messages(self, messages):  # type: ignore[no-untyped-def]
            for id_ in super().push_messages(messages):
                sent.append(self._replies[id_])
                yield id_

    grid = Recording(CohortApp(cohort, sites, initial, Observer()), contexts(sites))
    request = make_request(config)
    train_config = content(request).config_records["config"]
    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid, adapter_to_arrays(initial), num_rounds=1, train_config=train_config)

    assert result.arrays is not None
    averaged = arrays_to_adapter(result.arrays, initial, place="FedAvg")
    locals_ = [arrays_to_adapter(r.content.array_records["arrays"], initial, place="a client") for r in sent]
    examples = [float(r.content.metric_records["metrics"]["num-examples"]) for r in sent]  # type: ignore[arg-type]
    assert len(locals_) == 2
    mean_adapter = FedIT().aggregate(zip(locals_, examples, strict=True)).adapter
    assert mean_adapter is not None
    ours = dict(mean_adapter.tensors())
    moved = 0.0
    for (name, mean), (_, start) in zip(averaged.tensors(), initial.tensors(), strict=True):
        torch.testing.assert_close(mean, ours[name], rtol=1e-5, atol=1e-7)
        moved = max(moved, float((mean - start).abs().max()))
    assert moved > 1e-3
