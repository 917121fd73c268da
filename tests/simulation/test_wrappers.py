"""Flower's own strategies that wrap another one wrap ours: `start(hooks=...)` calls them in our place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from small_runs import Configs, adapter_bytes

import fedrlvr.simulation.run as engine
from fedrlvr.config import aggregation, load_resolved, parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.policy.peft_format import load_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.run import Federation, new_cohort, settled


def adapter_after(tree: dict[str, Any], directory: Path) -> dict[str, torch.Tensor]:
    engine.run(parse_config(tree))
    return dict(load_peft(directory / "adapter").tensors())


def test_server_side_clipping_of_flowers_bounds_what_a_round_changes(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [tmp_path / name for name in ("plain", "clipped")]
    changes = {
        "train": {"rounds": 1},
        "federation": {"clients": ["ann", "bob"]},
        "aggregation": {"server_learning_rate": 1},
    }
    trees = [configured(directory, **changes) for directory in directories]
    plain = adapter_after(trees[0], directories[0])
    start, norm = FederatedRLVR.start, 0.25

    def wrapped(self: FederatedRLVR, *args: object, **kwargs: object) -> object:
        hooks = DifferentialPrivacyServerSideFixedClipping(self, 0.0, norm, 2)
        return start(self, *args, **{**kwargs, "hooks": hooks})  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FederatedRLVR, "start", wrapped)
        clipped = adapter_after(trees[1], directories[1])
    # B starts at zero, so its norm is what the round changed of it: at most the clipping norm, and less than without.
    moved = {
        name: sum(float(t.square().sum()) for key, t in tensors.items() if key.endswith(".B")) ** 0.5
        for name, tensors in (("plain", plain), ("clipped", clipped))
    }
    assert moved["plain"] > norm
    assert 0 < moved["clipped"] <= norm + 1e-6


def test_a_wrapped_strategy_has_the_plain_mean_unless_a_step_is_set(configured: Configs, tmp_path: Path) -> None:
    config = settled(parse_config(configured(tmp_path / "wrapped", train={"rounds": 1})), tmp_path / "wrapped")
    Federation(config, tmp_path / "wrapped", new_cohort(config), Observer(), wrap=WrappingStrategy).go(resume=False)
    written = load_resolved(tmp_path / "wrapped" / "config.json")
    assert written.aggregation.server_learning_rate == 1
    plain = configured(tmp_path / "plain", train={"rounds": 1}, aggregation={"server_learning_rate": 1})
    engine.run(parse_config(plain))
    assert adapter_bytes(tmp_path / "wrapped") == adapter_bytes(tmp_path / "plain")


def test_a_wrapped_strategy_sees_adapters_in_float32(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` chooses int8 for an adapter of this size, and float32 with a strategy around ours."""
    monkeypatch.setattr(aggregation, "SMALL", 10)
    for wrap, chosen in ((None, "int8"), (WrappingStrategy, "float32")):
        directory = tmp_path / chosen
        config = settled(parse_config(configured(directory, train={"rounds": 1})), directory)
        Federation(config, directory, new_cohort(config), Observer(), wrap=wrap).go(resume=False)
        assert load_resolved(directory / "config.json").aggregation.precision == chosen


def test_a_wrapped_strategy_and_a_rounded_adapter_do_not_go_together(configured: Configs, tmp_path: Path) -> None:
    changed = configured(tmp_path / "run", train={"rounds": 1}, aggregation={"precision_down": "int8"})
    config = settled(parse_config(changed), tmp_path / "run")
    federation = Federation(config, tmp_path / "run", new_cohort(config), Observer(), wrap=WrappingStrategy)
    with pytest.raises(ConfigError, match=r"aggregation\.precision_down"):
        federation.go(resume=False)
