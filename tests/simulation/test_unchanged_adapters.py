"""An adapter that did not move is not sent again: the note in its place, and that a run is the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from factories import make_adapter, make_strategy
from fakes import answering, contexts, start_round, train_reply
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from small_runs import CLIENTS, Configs, adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.client.local_training import LocalTraining
from fedrlvr.config import parse_config
from fedrlvr.errors import MessageError
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.strategy import WrappingStrategy
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import ARRAYS, UNCHANGED, adapter_to_arrays, says_unchanged, unchanged_record

STILL = {"rewards": "small_runs:zero"}
"""A reward from which nothing is learnt, so that no adapter moves."""


def test_the_note_stands_for_these_bytes_alone() -> None:
    sent, moved = (adapter_to_arrays(make_adapter(value)) for value in (1.0, 2.0))
    note = unchanged_record(sent, sent)
    assert note is not None
    assert unchanged_record(sent, moved) is None
    # One half of what was brought, as rules send that train one; and never more than was brought.
    half = adapter_to_arrays(make_adapter(1.0), "B")
    assert unchanged_record(sent, half) is not None
    assert unchanged_record(half, sent) is None
    assert says_unchanged(RecordDict({UNCHANGED: note}), sent, place="ann")
    assert not says_unchanged(RecordDict({ARRAYS: sent}), sent, place="ann")
    refused: list[tuple[dict[str, Any], ArrayRecord]] = [
        ({UNCHANGED: note}, moved),
        ({UNCHANGED: note}, half),
        ({UNCHANGED: note, ARRAYS: sent}, sent),
        ({UNCHANGED: ConfigRecord({**note, "more": 1})}, sent),
        ({UNCHANGED: ConfigRecord({"digest": 3})}, sent),
        ({UNCHANGED: sent}, sent),
    ]
    for content, brought in refused:
        with pytest.raises(MessageError, match="ann"):
            says_unchanged(RecordDict(content), brought, place="ann")


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of the records in each train reply."""
    seen: list[set[str]] = []

    class Watching(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            answers = list(super().send_and_receive(messages, timeout=timeout))
            seen.extend(set(m.content) for m in answers if m.metadata.message_type == "train")
            return answers

    monkeypatch.setattr(run_module, "LocalGrid", Watching)
    return seen


CASES: dict[str, dict[str, Any]] = {
    **{rule: {"aggregation": {"type": rule}} for rule in ("fedit", "ffa", "rolora", "flora", "fedex", "hetlora")},
    "mixed": {"aggregation": {"type": "hetlora"}, "lora": {"rank": {"ann": 2, "bob": 4, "cyd": 1}}},
    "fedsa": {"personal": {"type": "fedsa"}},
    "fedalt": {"personal": {"type": "fedalt"}},
    "int8": {"aggregation": {"precision": "int8"}},
    "exchanges": {
        "data": {**STILL, "public_size": 4},
        "coordination": {"type": "pubswap", "exchanges": 1, "public_problems": 2, "public_steps": 1},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_in_which_nothing_moves_is_the_same_with_fewer_bytes(
    case: str, configured: Configs, replies: list[set[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"data": STILL, **CASES[case], "train": {"rounds": 2, "local_steps": 1}}
    fedrlvr.run(configured(tmp_path / "notes", **changes))
    noted = sum(UNCHANGED in records for records in replies)
    assert all(UNCHANGED not in records or ARRAYS not in records for records in replies)
    if case in ("fedit", "hetlora", "mixed"):
        assert noted == len(CLIENTS) * 2
    with monkeypatch.context() as patch:
        patch.setattr(LocalTraining, "_sent", lambda self, request, arrays: RecordDict({ARRAYS: arrays}))
        fedrlvr.run(configured(tmp_path / "whole", **changes))
    assert adapter_bytes(tmp_path / "notes") == adapter_bytes(tmp_path / "whole")
    lines = [without_seconds(tmp_path / name) for name in ("notes", "whole")]
    for records in lines:
        for record in records:
            for numbers in record["clients"].values():
                numbers.pop("bytes_up", None)
    assert lines[0] == lines[1]


def test_a_strategy_around_ours_sees_adapters(configured: Configs, replies: list[set[str]], tmp_path: Path) -> None:
    seen: list[set[str]] = []

    class Reading(WrappingStrategy):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            messages = list(replies)
            seen.extend(set(message.content) for message in messages)
            return super().aggregate_train(server_round, messages)

    config = parse_config(configured(tmp_path / "run", data=STILL, train={"rounds": 1, "local_steps": 1}))
    config = run_module.settled(config, tmp_path / "run")
    cohort = run_module.new_cohort(config)
    run_module.Federation(config, tmp_path / "run", cohort, Observer(), wrap=Reading).go(resume=False)
    assert all(UNCHANGED in records for records in replies)
    assert len(seen) == len(CLIENTS)
    assert all(ARRAYS in records and UNCHANGED not in records for records in seen)


def test_an_adapter_that_moved_is_sent(configured: Configs, replies: list[set[str]], tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path / "run"))
    assert replies
    assert all(ARRAYS in records for records in replies)


def test_a_free_rider_sends_what_it_was_sent(configured: Configs, replies: list[set[str]], tmp_path: Path) -> None:
    federation = {"clients": list(CLIENTS), "deviations": {"bob": {"free_rider": True}}}
    fedrlvr.run(configured(tmp_path / "run", federation=federation, train={"rounds": 1}))
    assert all(ARRAYS in records for records in replies)


def test_a_client_that_lies_gets_no_other_adapter_than_the_one_it_was_sent() -> None:
    """One of three says that its adapter is unchanged: it counts with the adapter that it was sent."""
    strategy = make_strategy(server_learning_rate=1)
    start = strategy.adapter

    def answer(message: Message) -> RecordDict:
        reply = train_reply(4.0)
        if message.metadata.dst_node_id == 3:
            del reply[ARRAYS]
            note = unchanged_record(adapter_to_arrays(start), adapter_to_arrays(start))
            assert note is not None
            reply[UNCHANGED] = note
        return reply

    grid = LocalGrid(answering(answer), contexts())
    strategy.aggregate_train(1, grid.send_and_receive(start_round(strategy, 1, grid)))
    for name, tensor in strategy.adapter.tensors():
        expected = (2 * 4.0 + dict(start.tensors())[name]) / 3
        assert tensor.allclose(expected)
