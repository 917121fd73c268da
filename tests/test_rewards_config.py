"""The setting data.rewards: its short forms, and lists that cannot be used."""

from __future__ import annotations

from typing import Any

import pytest
from factories import refused

from fedrlvr.config import parse_config


def test_rewards_may_be_written_as_their_import_paths() -> None:
    text, several = (parse_config({"data": {"rewards": stated}}) for stated in ("mine:f", ["grader", "mine:f"]))
    assert [(entry.use, entry.weight) for entry in text.data.rewards] == [("mine:f", 1.0)]
    assert [entry.use for entry in several.data.rewards] == ["grader", "mine:f"]
    assert (text.data.graded_by_kind, several.data.graded_by_kind) == (False, True)
    assert parse_config({}).data.graded_by_kind
    assert text.with_absolute_paths().run.started_in is not None
    assert parse_config({"data": {"rewards": "grader"}}).with_absolute_paths().run.started_in is None


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ([{"use": "mine:f"}, {"use": "mine:f", "weight": 2}], "'mine:f' is there twice"),
        ([f"mine:f{i}" for i in range(9)], "at most 8"),
        ([{"use": "mine:f", "weight": 0}], "every weight is 0"),
        ([{"use": "grader", "time_limit": 3}], "time_limit has no effect"),
        ([{"use": "mine:f", "time_limit": 0}], "time_limit"),
        ([{"use": "mine:f", "weight": "x"}], "data.rewards.0.weight"),
        ([{"use": "mine:f", "name": "Long answers"}, "grader"], "data.rewards.0.name"),
        ([{"use": "mine:f", "name": "short"}, {"use": "mine:g", "name": "short"}], "'short' is there twice"),
        ([{"use": "mine:f", "name": "short"}], "has no effect with one reward"),
    ],
)
def test_rewards_that_cannot_be_used(rewards: Any, reason: str) -> None:
    assert reason in refused({"data": {"rewards": rewards}})


def test_votes_go_with_one_reward_of_weight_1() -> None:
    weighted = ["grader", {"use": "mine:f", "weight": 0.2}]
    for tree in ({"data": {"rewards": weighted}}, {"data": {"rewards": [{"use": "mine:f", "weight": 2}]}}):
        reason = refused({**tree, "supervision": {"type": "care"}})
        assert "data.rewards" in reason
        assert "supervision.type" in reason
    deviating = {"federation": {"deviations": {"client-1": {"rewards": weighted}}}}
    assert "deviations.client-1.rewards" in refused({**deviating, "supervision": {"type": "care"}})
    parse_config({"data": {"rewards": "mine:f"}, "supervision": {"type": "care"}})
    parse_config({"data": {"rewards": weighted}, **deviating})
