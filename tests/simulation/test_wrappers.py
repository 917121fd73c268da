"""Flower's own strategies that wrap another one wrap ours: `start(hooks=...)` calls them in our place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping
from small_runs import Configs

import fedrlvr.simulation.run as engine
from fedrlvr.config import parse_config
from fedrlvr.policy.peft_format import load_peft
from fedrlvr.server.strategy import FederatedRLVR


def adapter_after(tree: dict[str, Any], directory: Path) -> dict[str, torch.Tensor]:
    engine.run(parse_config(tree))
    return dict(load_peft(directory / "adapter").tensors())


def test_server_side_clipping_of_flowers_bounds_what_a_round_changes(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [tmp_path / name for name in ("plain", "clipped")]
    trees = [configured(d, train={"rounds": 1}, federation={"clients": ["ann", "bob"]}) for d in directories]
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
