"""A free rider sends back the bytes that it was sent, with every method, and the others train as without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from safetensors.torch import load_file
from small_runs import Configs, exchanges, lines

import fedrlvr
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import ARRAYS

FREE = {"deviations": {"bob": {"free_rider": True}}}
BOB = 2


class Comparing(LocalGrid):
    """Notes for each round whether each client's reply holds the arrays that its message brought."""

    same: list[dict[int, bool]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if messages and messages[0].metadata.message_type == "train" and ARRAYS in messages[0].content:
            brought = {m.metadata.dst_node_id: m.content[ARRAYS].to_numpy_ndarrays() for m in messages}
            given = {m.metadata.src_node_id: m.content[ARRAYS].to_numpy_ndarrays() for m in replies}
            self.same.append(
                {
                    node: all(a.tobytes() == b.tobytes() for a, b in zip(brought[node], given[node], strict=True))
                    for node in brought
                }
            )
        return replies


def test_a_free_rider_sends_back_the_bytes_that_it_was_sent(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Comparing.same = []
    monkeypatch.setattr(run_module, "LocalGrid", Comparing)
    fedrlvr.run(configured(tmp_path, federation=FREE, train={"weight_decay": 0.1, "optimizer_state": "keep"}))
    assert Comparing.same == [{1: False, BOB: True, 3: False}] * 2
    last = lines(tmp_path)[-1]
    assert last["clients"]["bob"]["reward"] == 1.0
    assert last["clients"]["bob"]["tokens_sampled"] == 0
    assert last["clients"]["bob"]["num-examples"] == 8
    assert last["clients"]["bob"]["weight"] == pytest.approx(1 / 3)
    assert sum(score["n"] for score in last["evaluate"]["bob"].values()) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"cohort": False}},
        {"engine": {"sampled_logps": False, "cohort": False}, "aggregation": {"type": "flora", "weights": "fgrpo"}},
        {"aggregation": {"type": "fedex", "precision": "int8"}},
        {"supervision": {"type": "care", "share_probes": True}, "prompt": {"instruction": ""}},
        {"aggregation": {"server_learning_rate": "auto", "server_agreement": "clients"}},
    ],
    ids=["one at a time", "fgrpo", "int8", "care", "server step"],
)
def test_a_free_rider_goes_with_every_method(
    configured: Configs, tmp_path: Path, changes: dict[str, Mapping[str, Any]]
) -> None:
    result = fedrlvr.run(configured(tmp_path, federation=FREE, **changes))
    assert result.records[-1]["clients"]["bob"]["num-examples"] == 8


@pytest.mark.parametrize("cohort", [True, False])
def test_a_free_rider_gives_nothing_to_an_exchange(configured: Configs, tmp_path: Path, cohort: bool) -> None:
    changes = exchanges(tmp_path, engine={"cohort": cohort, "sampled_logps": cohort})
    result = fedrlvr.run(configured(tmp_path, federation=FREE, **changes))
    for line in result.records[1:]:
        for exchange in line["exchanges"]:
            assert exchange["clients"]["bob"]["sent"] == 0
            assert exchange["clients"]["ann"]["sent"] > 0


def test_alone_a_free_rider_keeps_the_adapter_that_the_run_starts_from(configured: Configs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path, federation={"arm": "local", **FREE}))
    size = {
        client: max(
            float(tensor.abs().max())
            for name, tensor in load_file(tmp_path / "adapter" / client / "adapter_model.safetensors").items()
            if "lora_B" in name
        )
        for client in ("ann", "bob")
    }
    assert size["bob"] == 0.0 < size["ann"]
