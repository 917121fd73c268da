"""A LoRA rule with a state: what it remembers lies in the checkpoint, and a resumed run goes on with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from factories import make_adapter, make_strategy
from fakes import answering, contexts, scores_reply
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import RULES, LoraAggregation, LoraRule, Result
from fedrlvr.aggregation.averaging import mean
from fedrlvr.aggregation.lora_rule import Pairs
from fedrlvr.errors import CheckpointError
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import LocalGrid


class Momentum(LoraAggregation):
    """v <- v / 2 + mean - before, adapter = before + v."""

    def __init__(self) -> None:
        self.velocity: dict[str, Tensor] = {}

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        assert before is not None
        means, starts = dict(mean(pairs, rule="Momentum").tensors()), dict(before.tensors())
        self.velocity = {n: self.velocity.get(n, torch.zeros(())) / 2 + means[n] - starts[n] for n in means}
        return Result(Adapter.from_tensors({n: starts[n] + v for n, v in self.velocity.items()}, before.alpha))

    def state(self) -> dict[str, Tensor]:
        return dict(self.velocity)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.velocity = dict(state)


@pytest.fixture(autouse=True)
def momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule's file, and its entry in the table."""
    monkeypatch.setitem(sys.modules, "fedrlvr.aggregation.momentum", SimpleNamespace(Momentum=Momentum))  # type: ignore[arg-type]
    monkeypatch.setitem(RULES, "momentum", LoraRule("momentum", "momentum.Momentum"))


def after(strategy: FederatedRLVR, directory: Path, first_round: int = 0) -> float:
    """The global adapter's one value after rounds in which each client adds 1 to every number."""

    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type == "evaluate":
            return scores_reply(["s"], [1], [0.0], [0.0])
        values = message.content.array_records["arrays"].to_torch_state_dict()
        numbers = MetricRecord({"num-examples": 1})
        return RecordDict({"arrays": ArrayRecord({n: v + 1 for n, v in values.items()}), "metrics": numbers})

    directory.mkdir(exist_ok=True)
    grid, checkpoints = LocalGrid(answering(answer), contexts()), Checkpoints(directory, 2)
    adapter = strategy.start(grid, checkpoints, first_round=first_round)
    (value,) = {float(number) for _, tensor in adapter.tensors() for number in tensor.flatten()}
    return value


def test_a_resumed_run_goes_on_with_the_rules_state(tmp_path: Path) -> None:
    """v is 1, 1.5, 1.75; a run that forgot it would end at 1 + 1 + 1.5 = 3.5."""
    assert after(make_strategy(rounds=3, type="momentum"), tmp_path / "whole") == 1 + 1.5 + 1.75
    assert after(make_strategy(rounds=1, type="momentum"), tmp_path / "parts") == 1
    checkpoint = Checkpoints(tmp_path / "parts", 2).load()
    assert checkpoint is not None
    assert sorted(checkpoint.rule) == ["down.A", "down.B", "up.A", "up.B"]
    resumed = make_strategy(rounds=3, type="momentum")
    resumed.restore(checkpoint)
    assert after(resumed, tmp_path / "parts", first_round=2) == 1 + 1.5 + 1.75


def test_a_rule_without_a_state_refuses_anothers() -> None:
    assert make_strategy().combiner.rule.state() == {}
    with pytest.raises(CheckpointError, match="FedIT has no state"):
        make_strategy().restore(Checkpoint(1, make_adapter(1.0), {}, rule={"up.A": torch.zeros(2, 3)}))
