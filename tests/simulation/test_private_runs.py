"""Runs with site-level differential privacy on the local engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord
from safetensors.torch import load
from small_runs import Configs, adapter_bytes, without_seconds

from fedrlvr.client.request import Release
from fedrlvr.config import parse_config
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.simulation.run import resume, run


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """All replies of the runs of a test, as they reach the server."""
    seen: list[Message] = []

    class Recording(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            replies = list(super().send_and_receive(messages, timeout=timeout))
            seen.extend(replies)
            return replies

    monkeypatch.setattr(run_module, "LocalGrid", Recording)
    return seen


def private(configured: Configs, directory: Path, rule: str = "fedit", **privacy: Any) -> Any:
    return parse_config(
        configured(
            directory,
            privacy={"unit": "site", "epsilon": 8.0, **privacy},
            aggregation={"weights": "equal", "type": rule},
        )
    )


def flat(directory: Path) -> torch.Tensor:
    """All numbers of a run's adapter, end to end."""
    (data,) = adapter_bytes(directory).values()
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(load(data).items())])


@pytest.mark.parametrize("rule", ["fedit", "ffa", "rolora", "flora"])
def test_numbers_and_scores_stay_with_every_rule(
    configured: Configs, tmp_path: Path, replies: list[Message], rule: str
) -> None:
    run(private(configured, tmp_path / "run", rule))
    assert len(replies) == 2 * 3, "two rounds of three clients, and no evaluation"
    for reply in replies:
        assert set(reply.content) == {"arrays", "metrics"}
        numbers = reply.content["metrics"]
        assert isinstance(numbers, MetricRecord)
        assert dict(numbers) == {"num-examples": 1}
    spent = [line.get("privacy", {}).get("epsilon") for line in without_seconds(tmp_path / "run")]
    assert spent[0] is None
    assert 0 < spent[1] < spent[2] == pytest.approx(8.0, abs=1e-6)


def test_a_frozen_half_gets_no_noise(configured: Configs, tmp_path: Path, replies: list[Message]) -> None:
    run(private(configured, tmp_path / "run", "ffa"))
    assert all(name.startswith("B.") for reply in replies for name in reply.content["arrays"])


def test_scores_are_measured_where_that_is_asked_for(configured: Configs, tmp_path: Path) -> None:
    run(private(configured, tmp_path / "run", unnoised_scores=True))
    lines = without_seconds(tmp_path / "run")
    assert all(lines[round_]["evaluate"] for round_ in (0, 2))


def test_every_client_has_noise_of_its_own_and_a_resumed_run_spends_the_same(
    configured: Configs, tmp_path: Path, replies: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = private(configured, tmp_path / "run")
    real, calls = LocalGrid.send_and_receive, []

    def breaks(self: LocalGrid, *arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **more)

    monkeypatch.setattr(LocalGrid, "send_and_receive", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    resume(tmp_path / "run")
    data = [array.data for reply in replies for array in reply.content["arrays"].values()]
    assert len(set(data)) == len(data) == 2 * 2 * 3
    assert without_seconds(tmp_path / "run")[-1]["privacy"]["epsilon"] == pytest.approx(8.0, abs=1e-6)


def with_normal(monkeypatch: pytest.MonkeyPatch, normal: Any) -> None:
    monkeypatch.setattr(run_module, "Release", lambda **settings: Release(normal=normal))


def test_seeded_noise_gives_the_same_run_again_and_the_system_s_never_does(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in ("one", "two", "system"):
        if name == "system":
            monkeypatch.undo()
        else:
            generator = torch.Generator().manual_seed(5)
            with_normal(monkeypatch, lambda n, g=generator: torch.randn(n, dtype=torch.float64, generator=g))
        run(private(configured, tmp_path / name))
        results.append(flat(tmp_path / name))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_clip_and_noise_are_all_that_differs_from_a_plain_run(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_normal(monkeypatch, lambda n: torch.zeros(n, dtype=torch.float64))
    run(private(configured, tmp_path / "wide", clip=1e6))
    run(private(configured, tmp_path / "narrow", clip=1e-6))
    plain = configured(tmp_path / "plain", aggregation={"weights": "equal", "server_learning_rate": 1})
    run(parse_config(plain))
    wide, narrow, plainly = (flat(tmp_path / name) for name in ("wide", "narrow", "plain"))
    assert float((wide - plainly).abs().max()) < 1e-5
    assert float((narrow - plainly).norm()) > 1e-2
