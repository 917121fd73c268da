"""CARE's probes at the server: averaged by training problems, sent with a round's first messages, never lost."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import NAMES, make_adapter, make_strategy
from fakes import answering, contexts, scores_reply, train_reply
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from torch import Tensor

from fedrlvr.errors import AdapterError, CheckpointError, MessageError, RoundError
from fedrlvr.reporting.observer import Event, Observer, RoundEnded
from fedrlvr.server import shared_probes as sharedprobes
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.exchange import PublicSet
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.messages import PROBES, adapter_to_arrays, probes_record, read_probes

THREE = 3
"""Numbers in these probes."""


def sharing(
    names: dict[int, str] | None = None, public: PublicSet | None = None, **sections: dict[str, Any]
) -> FederatedRLVR:
    """A strategy whose clients share probes of three numbers."""
    supervision = {"type": "care", "share_probes": True}
    return make_strategy(names or NAMES, public=public, probes=THREE, supervision=supervision, **sections)


def answer(*probes: float, examples: int = 1, value: float = 1.0) -> RecordDict:
    """A train reply with these probes."""
    reply = train_reply(value, examples)
    reply[PROBES] = probes_record(torch.tensor(probes))
    return reply


def asked(strategy: FederatedRLVR, round_: int) -> list[Message]:
    """A round's train messages as the clients have them."""
    result: list[Message] = []

    def keep(messages: Sequence[Message], _: Sequence[object]) -> list[Message]:
        result.extend(messages)
        return [Message(RecordDict(), reply_to=message) for message in messages]

    grid = LocalGrid(keep, contexts(strategy.clients))
    strategy.participation.record = RoundRecord(round_)
    arrays = adapter_to_arrays(strategy.adapter)
    grid.push_messages(strategy.configure_train(round_, arrays, ConfigRecord(), grid))
    return result


def trained(strategy: FederatedRLVR, round_: int, replies: Mapping[str, RecordDict | Error]) -> None:
    """A round in which the clients answer so."""
    messages = asked(strategy, round_)
    strategy.aggregate_train(
        round_, [Message(replies[strategy.clients[m.metadata.dst_node_id]], reply_to=m) for m in messages]
    )


def brought(messages: Sequence[Message]) -> list[list[float] | None]:
    """The probes in each message."""
    return [
        read_probes(m.content.array_records[PROBES], THREE, place="the server").tolist()
        if PROBES in m.content
        else None
        for m in messages
    ]


ROUND: dict[str, RecordDict | Error] = {
    "ann": answer(1.0, 0.0, 8.0, examples=5),
    "bob": answer(2.0, 0.0, 0.0, examples=3),
    "cyd": answer(6.0, -1.0, 4.0, examples=2),
}
MEAN = [2.3, -0.2, 4.8]
"""(5 + 6 + 12) / 10, -2 / 10 and (40 + 8) / 10."""


@pytest.mark.parametrize("weights", ["examples", "equal", "fgrpo"])
def test_clients_count_by_their_training_problems_whatever_weighs_their_adapters(weights: str) -> None:
    strategy = sharing(aggregation={"weights": weights})
    trained(strategy, 1, ROUND)
    assert strategy.probes.average is not None
    assert strategy.probes.average.dtype == torch.float32
    assert strategy.probes.average.tolist() == pytest.approx(MEAN)


def test_a_mean_of_alike_is_exactly_each_of_them() -> None:
    strategy = sharing()
    # 0.1 in float32 times 7, 11 and 13, summed in float32, is off in the last place; in float64 it is not.
    trained(strategy, 1, {n: answer(0.1, 1e30, 1e-30, examples=k) for n, k in (("ann", 7), ("bob", 11), ("cyd", 13))})
    assert strategy.probes.average is not None
    assert torch.equal(strategy.probes.average, torch.tensor([0.1, 1e30, 1e-30]))


def test_the_first_round_brings_none_and_the_next_one_everybody_the_average() -> None:
    strategy = sharing()
    assert brought(asked(strategy, 1)) == [None] * 3
    trained(strategy, 1, ROUND)
    assert brought(asked(strategy, 2)) == [pytest.approx(MEAN)] * 3
    trained(strategy, 2, {name: answer(7.0, 7.0, 7.0) for name in NAMES.values()})
    assert brought(asked(strategy, 3)) == [[7.0, 7.0, 7.0]] * 3, "of the last round alone"


def test_who_sat_out_gets_the_average_too() -> None:
    strategy = sharing(federation={"fraction": 0.3})
    who = []
    for round_ in range(1, 9):
        (message,) = asked(strategy, round_)
        who.append(message.metadata.dst_node_id)
        assert brought([message]) == [[float(round_ - 1)] * 3 if round_ > 1 else None]
        strategy.aggregate_train(round_, [Message(answer(*[float(round_)] * 3), reply_to=message)])
    assert set(who) == set(NAMES)


def whole_run(
    strategy: FederatedRLVR, directory: Path, log: list[tuple[str, list[float] | None]]
) -> list[dict[str, Any]]:
    """A run in which each client says its round in its probes; the records of its rounds."""

    def reply(message: Message) -> RecordDict:
        kind = message.metadata.message_type
        log.append((kind, brought([message])[0]))
        if kind == "evaluate":
            return scores_reply(["s"], [1], [0.0], [0.0])
        if kind != "train":
            return RecordDict()
        return answer(*[float(message.metadata.group_id)] * 3)

    grid = LocalGrid(answering(reply), contexts(strategy.clients))
    lines: list[dict[str, Any]] = []

    class Keeping(Observer):
        def notify(self, event: Event) -> None:
            if isinstance(event, RoundEnded):
                lines.append(dict(event.record))

    strategy.observer = Keeping()
    strategy.start(grid, Checkpoints(directory, 5))
    return lines


def test_an_evaluation_brings_none_and_their_bytes_are_counted(tmp_path: Path) -> None:
    seen: list[tuple[str, list[float] | None]] = []
    lines = whole_run(sharing(train={"rounds": 2}, evaluate={"every": 1}), tmp_path, seen)
    kinds = ["evaluate", "train", "evaluate", "train", "evaluate"]
    assert [kind for kind, _ in seen] == [kind for kind in kinds for _ in NAMES]
    assert {str(came) for kind, came in seen if kind == "evaluate"} == {"None"}
    assert [came for kind, came in seen if kind == "train"] == [None] * 3 + [[1.0] * 3] * 3
    # Three numbers of 4 bytes, numpy's header of 128, and a name of 6 letters.
    record = probes_record(torch.zeros(THREE))
    assert record.count_bytes() == 12 + 128 + 6
    down = [line["clients"]["ann"]["bytes_down"] for line in lines]
    assert down[2] - down[1] == record.count_bytes()
    assert lines[1]["clients"]["ann"]["bytes_up"] >= record.count_bytes()


def exchanging() -> FederatedRLVR:
    problems = [
        Problem(prompt=f"{i} + 1 =", answer=str(i + 1), id=f"p{i}", source="sum", kind="exact") for i in range(4)
    ]
    public = PublicSet(problems, lambda ids: "0", lambda text, problem: 0.0, "model", "tokenizer", vocabulary=9)
    coordination = {"type": "pubswap", "exchanges": 2, "public_problems": 2, "swap": "none"}
    return sharing(public=public, data={"public_size": 4}, coordination=coordination, train={"rounds": 2})


def test_with_exchanges_the_rounds_first_message_brings_it_and_no_other(tmp_path: Path) -> None:
    seen: list[tuple[str, list[float] | None]] = []
    whole_run(exchanging(), tmp_path, seen)
    trains = [message for message in seen if message[0] != "evaluate"]
    kinds = ["query.respond", "query.respond", "train"]
    assert [kind for kind, _ in trains] == [kind for kind in kinds * 2 for _ in NAMES]
    assert [came for _, came in trains] == [None] * 9 + [[1.0] * 3] * 3 + [None] * 6


# Who is left out.


def without(reply: RecordDict) -> RecordDict:
    del reply[PROBES]
    return reply


def with_array(array: Array | None, name: str = "probes") -> RecordDict:
    reply = train_reply(1.0)
    reply[PROBES] = ArrayRecord({} if array is None else {name: array})
    return reply


def doubles() -> Array:
    return Array(torch.zeros(THREE, dtype=torch.float64).numpy())


BAD: dict[str, Callable[[], RecordDict]] = {
    "a train reply without probes": lambda: without(answer(1.0, 1.0, 1.0)),
    "expected (3,) in at most": lambda: answer(1.0, 1.0),
    "have shape (4,)": lambda: answer(1.0, 1.0, 1.0, 1.0),
    "have shape (3, 1)": lambda: with_array(Array(torch.zeros(3, 1).numpy())),
    "values that are not finite": lambda: answer(1.0, math.nan, 1.0),
    "are not finite": lambda: answer(1.0, 1.0, math.inf),
    "float64": lambda: with_array(doubles()),
    "are not one array": lambda: with_array(None),
    "not one array": lambda: with_array(Array(torch.zeros(3).numpy()), "other"),
    "cannot be decoded": lambda: with_array(Array("float32", (3,), "numpy.ndarray", b"nothing")),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_whose_probes_cannot_be_used_is_left_out_whole(fault: str) -> None:
    strategy = sharing(federation={"quorum": 0.6})
    trained(strategy, 1, {**ROUND, "bob": BAD[fault]()})
    (name, reason), *more = strategy.record.left_out.items()
    assert (name, more) == ("bob", [])
    assert reason.startswith("round 1, bob: ")
    assert fault in reason
    assert "bob" not in strategy.record.clients, "nor do its numbers count"
    assert strategy.probes.average is not None
    assert strategy.probes.average.tolist() == pytest.approx([17 / 7, -2 / 7, 48 / 7])  # of ann's 5 and cyd's 2


def test_whose_adapter_cannot_be_used_does_not_count_with_its_probes() -> None:
    strategy = sharing(federation={"quorum": 0.6})
    trained(strategy, 1, {**ROUND, "bob": answer(100.0, 100.0, 100.0, value=math.nan)})
    assert strategy.probes.average is not None
    assert strategy.probes.average.tolist() == pytest.approx([17 / 7, -2 / 7, 48 / 7])


def test_with_a_quorum_of_one_everybodys_probes_are_needed() -> None:
    for reply, error in ((without(answer(1.0, 1.0, 1.0)), MessageError), (answer(1.0), AdapterError)):
        with pytest.raises(error, match="round 1, bob: "):
            trained(sharing(), 1, {**ROUND, "bob": reply})


def test_who_is_left_out_for_what_others_sent_does_not_count_with_its_probes() -> None:
    strategy = sharing(federation={"quorum": 0.6}, aggregation={"largest_change": 10.0})
    for round_ in (1, 2):
        start = float(strategy.adapter.layers["up"].A[0, 0])
        replies = {
            "ann": answer(1.0, 0.0, 8.0, examples=5, value=start + 1),
            "bob": answer(99.0, 99.0, 99.0, examples=3, value=start + 100),
            "cyd": answer(6.0, -1.0, 4.0, examples=2, value=start + 1),
        }
        trained(strategy, round_, replies)
        assert list(strategy.record.left_out) == ["bob"]
        assert strategy.probes.average is not None
        assert strategy.probes.average.tolist() == pytest.approx([17 / 7, -2 / 7, 48 / 7])


def test_a_second_reply_does_not_count() -> None:
    strategy = sharing()
    messages = asked(strategy, 1)
    replies = [Message(answer(1.0, 1.0, 1.0), reply_to=message) for message in messages]
    strategy.aggregate_train(1, [*replies, Message(answer(100.0, 0.0, 0.0, examples=9), reply_to=messages[0])])
    assert strategy.probes.average is not None
    assert strategy.probes.average.tolist() == [1.0, 1.0, 1.0]


def test_a_round_that_fails_leaves_no_trace_in_the_next() -> None:
    strategy = sharing()
    trained(strategy, 1, ROUND)
    with pytest.raises(RoundError):
        trained(strategy, 2, {**ROUND, "ann": answer(50.0, 50.0, 50.0), "cyd": Error(0, "out of memory")})
    assert brought(asked(strategy, 2)) == [pytest.approx(MEAN)] * 3
    trained(strategy, 2, {name: answer(7.0, 7.0, 7.0) for name in NAMES.values()})
    assert strategy.probes.average is not None
    assert strategy.probes.average.tolist() == [7.0, 7.0, 7.0]


def test_without_a_training_problem_anywhere_the_last_average_stays() -> None:
    strategy = sharing(aggregation={"weights": "equal"})
    trained(strategy, 1, ROUND)
    trained(strategy, 2, {name: answer(7.0, 7.0, 7.0, examples=0) for name in NAMES.values()})
    assert strategy.probes.average is not None
    assert strategy.probes.average.tolist() == pytest.approx(MEAN)


@pytest.mark.parametrize(("settings", "most"), [({}, 3), ({"largest_change": 3.0}, 50)])
def test_no_more_probes_are_held_than_needed(
    settings: dict[str, float], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {node: f"c{node}" for node in range(1, 51)}
    strategy = sharing(names, aggregation=settings)
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def tracked(*args: Any, **kwargs: Any) -> Tensor:
        probes = read_probes(*args, **kwargs)
        seen.append(weakref.ref(probes))
        alive.append(sum(reference() is not None for reference in seen))
        return probes

    monkeypatch.setattr(sharedprobes, "read_probes", tracked)
    messages = asked(strategy, 1)
    strategy.aggregate_train(1, (Message(answer(1.0, 2.0, 3.0), reply_to=message) for message in messages))
    assert len(alive) == 50
    assert max(alive) <= most
    assert sum(reference() is not None for reference in seen) <= 1, "nothing is held after the round"
    assert strategy.probes.average is not None
    assert strategy.probes.average.tolist() == [1.0, 2.0, 3.0]


# The checkpoint, and where nothing is shared.


def test_a_checkpoint_goes_on_exactly(tmp_path: Path) -> None:
    strategy = sharing()
    trained(strategy, 1, ROUND)
    state, model = json.loads(json.dumps(strategy.state())), strategy.model
    saved = Checkpoint(1, model.adapter, state, model.updates(), strategy.probes.average)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(saved)
    loaded = checkpoints.load()
    assert loaded is not None
    again = sharing()
    again.restore(loaded)
    sent = [[m.content for m in asked(server, 2)] for server in (strategy, again)]
    assert [c.array_records[PROBES]["probes"].data for c in sent[0]] == [
        c.array_records[PROBES]["probes"].data for c in sent[1]
    ]
    for server in (strategy, again):
        trained(server, 2, {n: answer(0.1 * i, 0.2, 0.3, examples=i) for i, n in enumerate(NAMES.values(), start=1)})
    assert strategy.probes.average is not None
    assert again.probes.average is not None
    assert torch.equal(strategy.probes.average, again.probes.average)


def test_every_rounds_checkpoint_has_its_average(tmp_path: Path) -> None:
    whole_run(sharing(train={"rounds": 2}), tmp_path, [])
    for round_, expected in ((2, [2.0] * 3), (1, [1.0] * 3), (0, None)):
        loaded = Checkpoints(tmp_path, 5).load()
        assert loaded is not None
        assert loaded.round == round_
        assert (loaded.probes.tolist() if loaded.probes is not None else None) == expected
        fresh = sharing()
        fresh.restore(loaded)
        assert brought(asked(fresh, round_ + 1)) == [expected] * 3
        for file in (newest := tmp_path / "checkpoints" / f"round-{round_:04d}").iterdir():
            file.unlink()
        newest.rmdir()


@pytest.mark.parametrize("probes", [torch.zeros(4), torch.zeros(3, dtype=torch.float64), torch.zeros(3, 1)])
def test_a_checkpoint_of_other_probes_is_refused(probes: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"those of this run float32 \(3,\)"):
        sharing().restore(Checkpoint(1, make_adapter(0.0), {}, probes=probes))


def test_probes_that_are_not_shared_are_neither_read_nor_sent() -> None:
    strategy = make_strategy(probes=THREE, supervision={"type": "care"})
    trained(strategy, 1, {**ROUND, "bob": train_reply(1.0), "cyd": answer(math.nan)})
    assert strategy.probes.average is None
    assert brought(asked(strategy, 2)) == [None] * 3


def test_sharing_needs_their_number() -> None:
    with pytest.raises(ValueError, match="give the number of a client's probes"):
        make_strategy(supervision={"type": "care", "share_probes": True})
