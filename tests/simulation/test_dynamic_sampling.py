"""Dynamic sampling in whole runs: which problems are drawn again, what is counted, and that runs resume exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import CLIENTS, Configs, adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.rl import Group
from fedrlvr.simulation.run import resume
from fedrlvr.tasks.client_data import ClientData

TWICE: dict[str, Any] = {
    "train": {"rounds": 2, "local_steps": 2, "problems_per_step": 2, "dynamic_sampling": 2},
    "evaluate": {"every": 1},
}


def run_of(configured: Configs, directory: Path, **changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    fedrlvr.run(configured(directory, **changes))
    return without_seconds(directory)


def test_with_a_reward_that_is_always_the_same_every_draw_is_used_and_counted(
    configured: Configs, tmp_path: Path
) -> None:
    for record in run_of(configured, tmp_path / "run", **TWICE, data={"rewards": "small_runs:zero"})[1:]:
        for numbers in record["clients"].values():
            # 2 steps x 2 problems, and 2 further draws of as many: 8 more. All 12 have 4 responses.
            assert numbers["problems_redrawn"] == 8
            assert numbers["tokens_sampled"] == pytest.approx(numbers["response_length"] * 12 * 4)
            assert numbers["zero_variance_groups"] == 1.0
            assert numbers["tokens_trained"] == 0


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every draw of problems: whose, after how many, and how many."""
    seen: list[tuple[str, int, int]] = []
    real = ClientData.draw

    def draw(self: ClientData, cursor: int, count: int, seed: int) -> Any:
        seen.append((self.name, cursor, count))
        return real(self, cursor, count, seed)

    monkeypatch.setattr(ClientData, "draw", draw)
    return seen


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[Group]]]:
    """The groups of every local step as they are trained on."""
    seen: list[dict[str, list[Group]]] = []
    real = Cohort.learn

    def learn(self: Cohort, groups: Mapping[str, Sequence[Group]], *others: Any, **more: Any) -> Any:
        seen.append({row: list(of_client) for row, of_client in groups.items()})
        return real(self, groups, *others, **more)

    monkeypatch.setattr(Cohort, "learn", learn)
    return seen


def test_problems_without_variance_make_way_for_the_next_ones(
    configured: Configs, tmp_path: Path, drawn: list[tuple[str, int, int]], learnt: list[dict[str, list[Group]]]
) -> None:
    train = {"rounds": 1, "local_steps": 3, "problems_per_step": 3, "dynamic_sampling": 1}
    sampling = {"group_size": 2, "max_new_tokens": 8}  # two responses are both right or both wrong half of the time
    (_, record) = run_of(configured, tmp_path / "run", train=train, sampling=sampling)
    redrawn = {client: record["clients"][client]["problems_redrawn"] for client in CLIENTS}
    assert all(0 < count < 9 for count in redrawn.values()), "every client draws some again, and none all"
    for client in CLIENTS:
        cursor = 0
        for name, after, count in drawn:
            if name == client:
                assert after == cursor, "problems come in the order of the client's permutation, without a gap"
                cursor += count
        assert cursor == 9 + redrawn[client]
    steps = learnt[-3:]  # those before are the check at the start
    for groups in steps:
        assert all(len(of_client) == 3 for of_client in groups.values())
    kept = sum(group.same_rewards for step in steps for of_client in step.values() for group in of_client)
    assert kept < sum(redrawn.values()), "one further draw mends about half of them"


def test_off_is_the_default_and_changes_nothing(configured: Configs, tmp_path: Path) -> None:
    records = run_of(configured, tmp_path / "run")
    assert "problems_redrawn" not in records[1]["clients"]["ann"]
    assert "dynamic_sampling" not in parse_config({}).train.model_dump_json(), "messages are as they were"


def test_resumed_and_one_client_after_another_it_is_the_same(configured: Configs, tmp_path: Path) -> None:
    whole = run_of(configured, tmp_path / "whole", **TWICE)
    fedrlvr.run(configured(tmp_path / "parts", **{**TWICE, "train": {**TWICE["train"], "rounds": 1}}))
    resume(tmp_path / "parts", ["train.rounds=2"])
    assert without_seconds(tmp_path / "parts") == whole
    assert adapter_bytes(tmp_path / "parts") == adapter_bytes(tmp_path / "whole")
    apart = run_of(configured, tmp_path / "apart", **TWICE, engine={"cohort": False})
    for record, other in zip(whole[1:], apart[1:], strict=True):
        for client in CLIENTS:
            for name in ("problems_redrawn", "tokens_sampled", "reward"):
                assert record["clients"][client][name] == other["clients"][client][name]


def test_with_exchanges_the_public_problems_stay(configured: Configs, tmp_path: Path) -> None:
    exchanges = {"type": "pubswap", "exchanges": 2, "public_problems": 2, "public_steps": 1}
    changes = {"data": {"public_size": 4, "rewards": "small_runs:zero"}, "coordination": exchanges}
    for numbers in run_of(configured, tmp_path / "run", **TWICE, **changes)[1]["clients"].values():
        assert numbers["problems_redrawn"] == 8


@pytest.mark.parametrize("method", ["care", "random", "entropy"])
def test_it_is_refused_where_a_drawn_problem_may_cost_a_label(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.dynamic_sampling.*supervision\.type = '{method}'"):
        parse_config({"train": {"dynamic_sampling": 1}, "supervision": {"type": method}})
    parse_config({"train": {"dynamic_sampling": 1}, "supervision": {"type": "majority"}})
