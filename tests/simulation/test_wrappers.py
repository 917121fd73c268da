"""Flower's own strategies that wrap another one wrap ours: `start(hooks=...)` calls them in our place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

import fedrlvr.simulation.run as engine
from fedrlvr.config import parse_config
from fedrlvr.policy.peft_format import load_peft
from fedrlvr.server.strategy import FederatedRLVR


def _run(directory: Path) -> dict[str, torch.Tensor]:
    config = parse_config(
        {
            "run": {"directory": directory},
            "federation": {"clients": 2},
            "data": {"train_size": 64, "test_size": 16},
            "sampling": {"max_new_tokens": 32},
            "train": {"rounds": 1, "local_steps": 2, "problems_per_step": 4, "learning_rate": 1e-2},
            "engine": {"threads": 1},
        }
    )
    engine.run(config)
    return dict(load_peft(directory / "adapter").tensors())


def test_server_side_clipping_of_flowers_bounds_what_a_round_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _run(tmp_path / "plain")
    start, norm = FederatedRLVR.start, 0.25

    def wrapped(self: FederatedRLVR, *args: object, **kwargs: object) -> object:
        hooks = DifferentialPrivacyServerSideFixedClipping(self, 0.0, norm, 2)
        return start(self, *args, **{**kwargs, "hooks": hooks})  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FederatedRLVR, "start", wrapped)
        clipped = _run(tmp_path / "clipped")
    # B starts at zero, so its norm is what the round changed of it: at most the clipping norm, and less than without.
    moved = {
        name: sum(float(t.square().sum()) for key, t in tensors.items() if key.endswith(".B")) ** 0.5
        for name, tensors in (("plain", plain), ("clipped", clipped))
    }
    assert moved["plain"] > norm
    assert 0 < moved["clipped"] <= norm + 1e-6
