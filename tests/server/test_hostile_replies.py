"""One of three clients sends what once ended a run: the run ends with the two others' adapter, and names the third."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_strategy
from fakes import answering, contexts, scores_reply, start_round, train_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from small_runs import lines

from fedrlvr.coordination import Sent
from fedrlvr.errors import printable
from fedrlvr.reporting.observer import Listeners
from fedrlvr.reporting.report import write_report
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.server.exchange import PublicSet
from fedrlvr.server.metrics_log import MetricsLog
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.tasks import Problem
from fedrlvr.wire.messages import SourceScores
from fedrlvr.wire.public_messages import RESPOND, RESPONSES, STAMP, Stamp, responses_record, stamp_record

CYD = 3
"""The node of the client that is hostile."""


def archive() -> Array:
    """An npz archive as the bytes of an array of one number."""
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(1, np.int32))
    return Array("int32", (1,), "numpy.ndarray", buffer.getvalue())


def federation(
    directory: Path, change: Callable[[Message, RecordDict], Error | None], quorum: float = 0.5, **settings: Any
) -> FederatedRLVR:
    """A run of two rounds with an exchange each; `change` alters the third client's replies, or gives an error."""
    public = PublicSet(
        [Problem("spell", "A", "p0", "spelling", "exact")], lambda ids: "A", lambda text, _: 1.0, "m", "t", 27
    )
    strategy = make_strategy(
        quorum=quorum,
        public=public,
        data={"public_size": 1},
        coordination={"type": "pubswap", "public_problems": 1},
        sampling={"group_size": 2, "max_new_tokens": 3},
        **settings,
    )
    strategy.observer = Listeners([MetricsLog(directory)])

    def answer(message: Message) -> RecordDict | Error:
        kind = message.metadata.message_type
        if kind == "evaluate":
            reply = scores_reply(["s"], [1], [1.0], [1.0])
        elif kind == RESPOND:
            stamp = Stamp(model="m", tokenizer="t", temperature=1.0, round=int(message.metadata.group_id), exchange=1)
            sent = [Sent(0, (message.metadata.dst_node_id,))]
            reply = RecordDict({RESPONSES: responses_record(sent, 27), STAMP: stamp_record(stamp)})
        else:
            reply = train_reply(9.0 if message.metadata.dst_node_id == CYD else 2.0, reward=0.5, seconds_train=1.0)
        error = change(message, reply) if message.metadata.dst_node_id == CYD else None
        return error or reply

    strategy.start(LocalGrid(answering(answer), contexts()), Checkpoints(directory, 3))
    return strategy


def extra(value: Any) -> Callable[[Message, RecordDict], None]:
    def change(_: Message, reply: RecordDict) -> None:
        reply["more"] = ConfigRecord({"a": value})

    return change


def stamped(value: Any) -> Callable[[Message, RecordDict], None]:
    def change(message: Message, reply: RecordDict) -> None:
        if message.metadata.message_type == RESPOND:
            reply[STAMP] = ConfigRecord({"stamp": value})

    return change


def number(name: str, value: float) -> Callable[[Message, RecordDict], None]:
    def change(message: Message, reply: RecordDict) -> None:
        if message.metadata.message_type == "train":
            reply.metric_records["metrics"][name] = value if message.metadata.group_id == "1" else -value

    return change


def column(name: str, array: Array) -> Callable[[Message, RecordDict], None]:
    def change(message: Message, reply: RecordDict) -> None:
        if message.metadata.message_type == RESPOND:
            reply[RESPONSES] = ArrayRecord({**reply.array_records[RESPONSES], name: array})

    return change


KINDS: dict[str, tuple[Callable[[Message, RecordDict], None], dict[str, Any]]] = {
    "empty list": (extra([]), {}),
    "empty text": (extra(""), {}),
    "empty bytes": (extra(b""), {}),
    "rewards of FGRPO's window": (number("reward", 1e308), {"weights": "fgrpo", "fgrpo_baseline": "window"}),
    "reward": (number("reward", 1e308), {}),
    "seconds": (number("seconds_sample", 1e308), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_reply_leaves_its_client_out_and_the_run_ends_with_the_others(kind: str, tmp_path: Path) -> None:
    change, settings = KINDS[kind]
    strategy = federation(tmp_path, change, **settings)
    assert all(bool((tensor == 2.0).all()) for _, tensor in strategy.adapter.tensors()), "of the two honest clients"
    _, *rounds = records = lines(tmp_path)
    assert [set(line["left_out"]) for line in rounds] == [{"cyd"}] * 2
    write_report(tmp_path, strategy.config, records)


def responding(change: Callable[[Message, RecordDict], None]) -> Callable[[Message, RecordDict], None]:
    def changed(message: Message, reply: RecordDict) -> None:
        if message.metadata.message_type == RESPOND:
            change(message, reply)

    return changed


MALFORMED = {
    "age": column("age", Array(np.array([2**40]))),
    "archive as ages": column("age", archive()),
    "archive as lengths": column("length", archive()),
    "stamp of an empty text": stamped(""),
    "stamp of an empty list": stamped([]),
    "stamp that is no JSON": stamped("later"),
    "stamp of a number": stamped(7),
    "empty list beside good responses": responding(extra([])),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_reply_of_an_exchange_leaves_its_client_out_of_the_round(kind: str, tmp_path: Path) -> None:
    strategy = federation(tmp_path, MALFORMED[kind])
    assert all(bool((tensor == 2.0).all()) for _, tensor in strategy.adapter.tensors()), "of the two honest clients"
    _, *rounds = records = lines(tmp_path)
    assert [set(line["left_out"]) for line in rounds] == [{"cyd"}] * 2
    write_report(tmp_path, strategy.config, records)


@pytest.mark.parametrize("kind", MALFORMED)
def test_where_every_client_is_needed_a_malformed_reply_costs_its_client_the_exchange_alone(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = federation(tmp_path, MALFORMED[kind], quorum=1.0)
    for line in lines(tmp_path)[1:]:
        exchanged = line["exchanges"][0]["clients"]
        assert exchanged["cyd"]["dropped_unreadable"] == 1
        assert [exchanged[client]["pooled"] for client in ("ann", "bob", "cyd")] == [1, 1, 0]
        assert line.get("left_out", {}) == {}
    assert not any(bool((tensor == 2.0).all()) for _, tensor in strategy.adapter.tensors()), "its adapter counts"
    assert any("round 1, exchange 1, cyd: responses left out" in text for text in caplog.messages)


def test_a_client_that_fails_in_an_exchange_is_left_out_of_the_round(tmp_path: Path) -> None:
    def fails(message: Message, _: RecordDict) -> Error | None:
        return Error(0, "its disk is full") if message.metadata.message_type == RESPOND else None

    strategy = federation(tmp_path, fails)
    assert all(bool((tensor == 2.0).all()) for _, tensor in strategy.adapter.tensors())
    assert [set(line["left_out"]) for line in lines(tmp_path)[1:]] == [{"cyd"}] * 2


def test_any_exception_while_a_reply_is_read_is_named_by_its_class_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrlvr.server import strategy as module

    def fails(message: Message, *, place: str) -> dict[str, float]:
        if message.metadata.src_node_id == CYD:
            raise KeyError("\x1b[2J foreign")
        return {"num-examples": 1, "reward": 0.5}

    monkeypatch.setattr(module, "read_numbers", fails)
    federation(tmp_path, lambda *_: None)
    assert lines(tmp_path)[1]["left_out"] == {"cyd": "round 1, cyd: its reply cannot be used (KeyError)"}


def test_a_client_weighs_by_no_more_than_it_declared_and_cannot_write_the_servers_numbers(tmp_path: Path) -> None:
    def change(message: Message, reply: RecordDict) -> None:
        if message.metadata.message_type == "train":
            numbers = {"num-examples": 10**6, "bytes_up": -5, "weight": 9.0, "gain": 9.0, "kept": 9.0, "mine": 1.0}
            reply.metric_records["metrics"].update({**numbers, "num-examples": 1 if is_first(message) else 10**6})

    def is_first(message: Message) -> bool:
        return message.metadata.group_id == "1"

    federation(tmp_path, change)
    for line in lines(tmp_path)[1:]:
        numbers = line["clients"]["cyd"]
        assert numbers["num-examples"] == 1
        assert numbers["weight"] == pytest.approx(1 / 3)
        assert numbers["bytes_up"] > 0
        assert not {"gain", "kept", "mine"} & set(numbers)


@pytest.mark.parametrize("scores", [(["s"], [2**62]), (["s"] * 2, [1, 1]), ([f"s{i}" for i in range(501)], [0] * 501)])
def test_scores_are_within_the_declared_problems_and_sources(
    scores: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    def change(message: Message, reply: RecordDict) -> None:
        if message.metadata.message_type == "evaluate":
            sources, n = scores
            reply.update(scores_reply(sources, n, [0.0] * len(n), [0.0] * len(n)))
            reply.metric_records["metrics"]["num-examples"] = 2

    federation(tmp_path, change)
    assert [set(line["left_out"]) for line in lines(tmp_path)[::2]] == [{"cyd"}] * 2


FOREIGN = "\x1b[2J\x9b31m\r\n\u202e\u200b\ud800"
"""A terminal's escapes, a new line, text direction, zero width and half a character."""


def test_foreign_text_is_shown_with_its_escapes() -> None:
    assert printable("Zürich, 北京 (ok)") == "Zürich, 北京 (ok)"
    assert printable(FOREIGN) == r"\x1b[2J\x9b31m\r\n\u202e\u200b\ud800"


def test_no_reason_notice_or_source_of_a_client_is_passed_on_raw(caplog: pytest.LogCaptureFixture) -> None:
    strategy = make_strategy(quorum=0.5)
    grid = LocalGrid(
        answering(lambda m: Error(0, FOREIGN) if m.metadata.dst_node_id == CYD else train_reply(1.0)), contexts()
    )
    strategy.aggregate_train(1, grid.send_and_receive(start_round(strategy, 1, grid)))
    assert all(text.isprintable() for text in (strategy.record.left_out["cyd"], caplog.messages[-1]))
    assert SourceScores(source=FOREIGN[:-1], n=0, total=0, squares=0).source.isprintable()
    ours = Stamp(model="m", tokenizer="t", temperature=1.0, round=1, exchange=1)
    assert (ours.model_copy(update={"model": FOREIGN}).difference(ours) or "\n").isprintable()
