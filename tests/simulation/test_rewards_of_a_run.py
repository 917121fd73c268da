"""Whole runs on several rewards: what is trained on, what is reported, and what decides whether a response is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import CLIENTS, Configs, adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.errors import GradingError

BOTH = [{"use": "small_runs:parity", "weight": 0.25}, {"use": "small_runs:length_of", "weight": 0.5}]


def trained(configured: Configs, directory: Path, rewards: Any, **changes: Any) -> list[dict[str, Any]]:
    fedrlvr.run(configured(directory, data={"rewards": rewards}, **changes))
    return without_seconds(directory)


def test_the_weighted_sum_is_trained_on_and_each_mean_is_reported(configured: Configs, tmp_path: Path) -> None:
    records = trained(configured, tmp_path / "both", BOTH)
    for record in records[1:]:
        for numbers in record["clients"].values():
            parts = numbers["reward_1"], numbers["reward_2"]
            assert numbers["reward"] == pytest.approx(0.25 * parts[0] + 0.5 * parts[1], rel=1e-6)
            assert numbers["pass@1"] == pytest.approx(parts[0]), "without the grader the first reward decides"
            assert parts[1] > 1, "its sum would call every response right"
    for client in CLIENTS:
        noted = (tmp_path / "both" / "clients" / client / "responses.jsonl").read_text("utf-8").splitlines()
        for response in map(json.loads, noted):
            assert response["grade"] == float(sum(map(ord, response["text"])) % 2 == 0)
            assert response["reward"] == 0.25 * response["grade"] + 0.5 * (2 + len(response["text"]))


def test_one_reward_has_no_numbers_of_its_own(configured: Configs, tmp_path: Path) -> None:
    alone = trained(configured, tmp_path / "alone", "small_runs:parity")
    assert "reward_1" not in json.dumps(alone)
    # A second reward that counts nothing changes no sample and no adapter.
    beside = trained(configured, tmp_path / "beside", ["small_runs:parity", {**BOTH[1], "weight": 0}])
    assert adapter_bytes(tmp_path / "alone") == adapter_bytes(tmp_path / "beside")
    for record in beside[1:]:
        for numbers in record["clients"].values():
            assert numbers.pop("reward_1") == numbers["reward"]
            assert numbers.pop("reward_2") > 1
    for record in (*alone, *beside):
        for numbers in record["clients"].values():
            numbers.pop("bytes_up", None)  # of two numbers more
    assert [record["clients"] for record in beside] == [record["clients"] for record in alone]


def test_a_named_reward_is_reported_by_its_name(configured: Configs, tmp_path: Path) -> None:
    named = [BOTH[0], {**BOTH[1], "name": "brevity"}]
    by_place, by_name = (
        trained(configured, tmp_path / name, rewards, train={"rounds": 1})
        for name, rewards in (("place", BOTH), ("name", named))
    )
    for client in CLIENTS:
        numbers, others = by_name[1]["clients"][client], by_place[1]["clients"][client]
        assert numbers["reward_brevity"] == others["reward_2"]
        assert numbers["reward_1"] == others["reward_1"]
        assert "reward_2" not in numbers


def test_a_function_that_hangs_ends_the_run_by_its_name_and_not_the_next_run(
    configured: Configs, tmp_path: Path
) -> None:
    hanging = [{"use": "small_runs:hangs", "time_limit": 1.0}]
    with pytest.raises(GradingError, match="small_runs:hangs took longer than 1 s"):
        trained(configured, tmp_path / "hangs", hanging)
    assert len(trained(configured, tmp_path / "next", "small_runs:parity")) == 3
