"""FGRPO's gains by what the server grades itself: a client's own numbers do not count, and what is missing is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import NAMES, make_strategy
from flwr.app import Message, MetricRecord, RecordDict
from small_runs import Configs, exchanges, lines

import fedrlvr
from fedrlvr.config import Config, parse_config
from fedrlvr.deployment.superlink.disclosure import travels
from fedrlvr.errors import ConfigError
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import METRICS, adapter_to_arrays, read_numbers
from fedrlvr.wire.public_messages import RESPONSES, SHARE

PUBLIC = {"weights": "fgrpo", "fgrpo_gain_from": "public"}
PUBSWAP = {"type": "pubswap", "exchanges": 2, "public_problems": 2}


def parsed(aggregation: dict[str, Any], coordination: dict[str, Any] | None = None, **more: Any) -> Config:
    tree = {"data": {"public_size": 8}, "aggregation": aggregation, "coordination": coordination or {"type": "none"}}
    return parse_config({**tree, **more})


@pytest.mark.parametrize(
    ("aggregation", "coordination", "named"),
    [
        (PUBLIC, None, ["aggregation.fgrpo_gain_from", "coordination.type"]),
        ({"weights": "fgrpo", "fgrpo_baseline": "peers"}, PUBSWAP, ["fgrpo_baseline", "fgrpo_gain_from"]),
        ({**PUBLIC, "fgrpo_beta": 0.5}, PUBSWAP, ["fgrpo_beta", "peers"]),
        ({"fgrpo_shrink": True}, PUBSWAP, ["fgrpo_shrink", "weights"]),
    ],
)
def test_what_has_no_effect_is_refused(
    aggregation: dict[str, Any], coordination: dict[str, Any] | None, named: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(aggregation, coordination)
    assert all(name in str(error.value) for name in named)


def test_the_baseline_of_public_gains_is_the_round_unless_it_is_set() -> None:
    assert parsed(PUBLIC, PUBSWAP).aggregation.fgrpo == {"baseline": "peers", "shrink": False}
    assert parsed({**PUBLIC, "fgrpo_baseline": "ema"}, PUBSWAP).aggregation.fgrpo["baseline"] == "ema"
    assert "baseline" not in parsed({"weights": "fgrpo"}).aggregation.fgrpo


def test_public_gains_need_no_label() -> None:
    assert parsed(PUBLIC, PUBSWAP, supervision={"type": "majority"})
    with pytest.raises(ConfigError, match="verified"):
        parsed({"weights": "fgrpo"}, supervision={"type": "majority"})


def test_organisations_are_told_that_their_responses_travel() -> None:
    text = "responses to the public problems"
    texts = {
        source: "\n".join(travels(parsed({**PUBLIC, "fgrpo_gain_from": source}, {**PUBSWAP, "swap": "none"})))
        for source in ("public", "reported")
    }
    assert text in texts["public"]
    assert text not in texts["reported"]


class Recording(LocalGrid):
    """Keeps what travels, and lets a client claim numbers of its own."""

    seen: list[Message]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if METRICS in reply.content:
                record = reply.content[METRICS]
                assert isinstance(record, MetricRecord)
                record["public_correct"], record["public_asked"] = 1000.0, 1000.0
                record["reward"] = 1.0
        self.seen += [*messages, *replies]
        return replies


@pytest.mark.parametrize("swap", ["balanced", "none"])
def test_the_servers_own_grades_decide_with_and_without_a_swap(
    swap: str, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recording.seen = []
    monkeypatch.setattr(run_module, "LocalGrid", Recording)
    free = {"deviations": {"bob": {"free_rider": True}}}
    changes = exchanges(tmp_path, coordination={"swap": swap}, federation=free)
    fedrlvr.run(configured(tmp_path / "run", **changes, aggregation=PUBLIC))
    sent = [m for m in Recording.seen if RESPONSES in m.content]
    assert len(sent) == 2 * 2 * 3, "three clients in two exchanges of two rounds"
    assert any(SHARE in m.content for m in Recording.seen) == (swap == "balanced")
    for line in lines(tmp_path / "run")[1:]:
        correct = dict.fromkeys(("ann", "bob", "cyd"), 0)
        for exchange in line["exchanges"]:
            for client, numbers in exchange["clients"].items():
                correct[client] += numbers["correct"]
                assert numbers["sent"] == (0 if client == "bob" else 8)
        rewards = {client: count / 16 for client, count in correct.items()}
        mean = sum(rewards.values()) / 3
        for client, numbers in line["clients"].items():
            assert numbers["public_correct"] == correct[client]
            assert (numbers["public_asked"], numbers["public_problems"]) == (16, 4)
            assert numbers["gain"] == pytest.approx(max(-1.0, min(1.0, (rewards[client] - mean) / mean)))
        assert line["clients"]["bob"]["gain"] == -1.0, "it answers nothing, whatever it claims"
        assert min(line["clients"], key=lambda client: line["clients"][client]["weight"]) == "bob"


def test_numbers_of_the_servers_grades_cannot_come_from_a_client() -> None:
    reply = RecordDict({METRICS: MetricRecord({"num-examples": 1, "public_correct": 9, "public_asked": 9})})
    message = Message(reply, 1, "train")
    assert read_numbers(message, place="ann") == {"num-examples": 1.0}


def test_a_reward_that_a_gain_cannot_be_shrunk_by_leaves_its_client_out() -> None:
    strategy = make_strategy(weights="fgrpo", fgrpo_shrink=True, quorum=0.6, server_learning_rate=1)
    strategy.participation.record = RoundRecord(1)
    strategy.participation.asked = 3
    replies = []
    for node, name in NAMES.items():
        numbers = MetricRecord({"num-examples": 4, "reward": 3.0 if name == "bob" else 0.5})
        content = RecordDict({"arrays": adapter_to_arrays(strategy.adapter), METRICS: numbers})
        replies.append(Message(content, reply_to=_asked(node)))
    strategy.aggregate_train(1, replies)
    assert "aggregation.fgrpo_shrink" in strategy.record.left_out["bob"]
    assert strategy.record.clients["ann"]["weight"] == 0.5


def _asked(node: int) -> Message:
    from fedrlvr.simulation.grid import delivered

    return delivered(RecordDict(), run_id=1, node_id=node, message_type="train", group_id="1", message_id=f"m{node}")
