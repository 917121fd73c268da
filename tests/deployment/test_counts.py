"""Counts over all runs and servers: by day, by task and by run, on disk, and never smaller by what a server sends."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.site.counts import DAYS, AnsweredCounts, PrivacyLoss
from fedrlvr.errors import CheckpointError, LimitError
from fedrlvr.privacy.accountant import epsilon_of

NOON = 1_795_867_200.0 - 1_795_867_200.0 % 86_400 + 43_200
DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def count(state: Path, limits: Limits, clock: Clock | None = None, run: str = "r", **changes: Any) -> None:
    fields: dict[str, Any] = {"kind": "query.respond", "labels": None, "task": "main", **changes}
    AnsweredCounts(state, clock or Clock()).count(limits, "ann", fields.pop("task"), run, **fields)


def test_messages_of_a_day_whatever_the_run_and_task(tmp_path: Path) -> None:
    limits, clock = Limits(messages_per_day=3), Clock()
    for run, task in (("a", "main"), ("b", "main"), ("c", "other")):
        count(tmp_path, limits, clock, run, task=task)
    before = (tmp_path / "answered.json").read_text()
    with pytest.raises(LimitError, match=r"^ann .* 3 .*limits\.messages_per_day"):
        count(tmp_path, limits, clock, "d")
    assert (tmp_path / "answered.json").read_text() == before, "what is refused does not count"
    clock.now = NOON + DAY / 2  # midnight, UTC
    count(tmp_path, limits, clock, "d")


def test_adapters_of_a_task_over_all_runs(tmp_path: Path) -> None:
    limits, clock = Limits(rounds=2), Clock()
    for run in ("a", "b"):
        count(tmp_path, limits, clock, run, kind="train")
        clock.now += DAY
    count(tmp_path, limits, clock, "c")  # no adapter is asked for
    count(tmp_path, limits, clock, "c", kind="train", task="other")
    with pytest.raises(LimitError, match=r"limits\.rounds"):
        count(tmp_path, limits, clock, "c", kind="train")
    clock.now = NOON + (DAYS - 1) * DAY
    with pytest.raises(LimitError, match=r"limits\.rounds"):
        count(tmp_path, limits, clock, "c", kind="train")
    clock.now = NOON + DAYS * DAY  # the first of them is too long ago
    count(tmp_path, limits, clock, "c", kind="train")


def test_evaluations_of_a_task_in_a_day(tmp_path: Path) -> None:
    limits, clock = Limits(evaluations_per_day=2), Clock()
    for run in ("a", "b"):
        count(tmp_path, limits, clock, run, kind="evaluate")
    with pytest.raises(LimitError, match=r"limits\.evaluations_per_day"):
        count(tmp_path, limits, clock, "c", kind="evaluate")
    count(tmp_path, limits, clock, "c", kind="evaluate", task="other")
    count(tmp_path, limits, clock, "c", kind="train")
    clock.now += DAY
    count(tmp_path, limits, clock, "c", kind="evaluate")


def test_a_clock_that_is_set_back_starts_no_count_anew(tmp_path: Path) -> None:
    limits, clock = Limits(messages_per_day=3, evaluations_per_day=2), Clock()
    for _ in range(2):
        count(tmp_path, limits, clock, kind="evaluate")
    clock.now -= 3 * DAY
    with pytest.raises(LimitError, match=r"limits\.evaluations_per_day"):
        count(tmp_path, limits, clock, kind="evaluate")
    count(tmp_path, limits, clock)
    with pytest.raises(LimitError, match=r"limits\.messages_per_day"):
        count(tmp_path, limits, clock)
    clock.now += 4 * DAY
    count(tmp_path, limits, clock, kind="evaluate")


def test_counts_that_start_at_zero_are_told(tmp_path: Path) -> None:
    lines: list[str] = []
    counts = AnsweredCounts(tmp_path, Clock(), lines.append)
    for deleted in (False, False, True):
        if deleted:
            counts.path.unlink()
        counts.count(Limits(), "ann", "main", "r", "train", None)
    assert len(lines) == 2, "at first, and after the file was deleted"
    assert all("answered.json" in line for line in lines)


def test_the_first_message_with_a_request_is_remembered(tmp_path: Path) -> None:
    clock = Clock()
    counts = AnsweredCounts(tmp_path, clock)
    assert counts.first("request", "one") == "one"
    clock.now += (DAYS - 1) * DAY
    assert AnsweredCounts(tmp_path, clock).first("request", "two") == "one"
    assert counts.first("other", "two") == "two"
    clock.now += DAY
    assert counts.first("request", "three") == "three"


def test_labels_are_reserved_for_a_run_and_all_runs_share_the_limit(tmp_path: Path) -> None:
    limits = Limits(labels=10)
    count(tmp_path, limits, run="a", labels=6)
    count(tmp_path, limits, run="a", labels=6)  # the same ones
    count(tmp_path, limits, run="b", labels=4)
    count(tmp_path, limits, run="c", labels=10, task="other")
    for run, labels in (("c", 1), ("a", 7), ("b", 5)):
        with pytest.raises(LimitError, match=r"limits\.labels"):
            count(tmp_path, limits, run=run, labels=labels)
    count(tmp_path, limits, run="a", labels=3)  # which gives nothing back
    with pytest.raises(LimitError, match=r"limits\.labels"):
        count(tmp_path, limits, run="c", labels=1)


def test_all_that_is_exceeded_is_named(tmp_path: Path) -> None:
    limits = Limits(messages_per_day=1, rounds=1)
    count(tmp_path, limits, kind="train")
    with pytest.raises(LimitError, match=r"limits\.messages_per_day.*limits\.rounds"):
        count(tmp_path, limits, kind="train")


def _count_many(state: Path, times: int) -> None:
    for _ in range(times):
        count(state, Limits(messages_per_day=10_000))


@pytest.mark.slow
def test_two_processes_lose_no_count(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_many, args=(tmp_path, 20)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (entry,) = json.loads((tmp_path / "answered.json").read_text())["days"].values()
    assert entry["messages"] == 40


def test_privacy_loss_adds_up_over_tasks_and_runs_and_never_expires(tmp_path: Path) -> None:
    limits, clock = Limits(epsilon=epsilon_of(0.5, 1e-6) + 1e-9, delta=1e-6), Clock()
    assert AnsweredCounts(tmp_path, clock).privacy_loss(limits) == PrivacyLoss(0, 0.0, 0.0, limits.epsilon)
    count(tmp_path, limits, clock, "a", kind="train", mu=0.3)
    clock.now += 400 * DAY
    count(tmp_path, limits, clock, "b", task="other", kind="train", mu=0.4)  # 0.09 + 0.16 = 0.25
    loss = AnsweredCounts(tmp_path, clock).privacy_loss(limits)
    assert (loss.rounds, loss.mu) == (2, pytest.approx(0.5))
    assert loss.epsilon == pytest.approx(epsilon_of(0.5, 1e-6), abs=1e-6)
    assert loss.left == pytest.approx(0.0, abs=1e-6)
    before = (tmp_path / "answered.json").read_text()
    with pytest.raises(LimitError, match=r"limits\.epsilon"):
        count(tmp_path, limits, clock, "c", kind="train", mu=0.01)
    assert (tmp_path / "answered.json").read_text() == before
    count(tmp_path, Limits(), clock, "d", kind="train", mu=1.0)  # without a budget it is counted all the same
    assert AnsweredCounts(tmp_path, clock).privacy_loss(Limits()).mu == pytest.approx(math.sqrt(1.25))


def test_the_same_loss_costs_more_at_a_smaller_delta(tmp_path: Path) -> None:
    epsilon = epsilon_of(0.5, 1e-5)
    count(tmp_path, Limits(epsilon=epsilon + 1e-9, delta=1e-5), kind="train", mu=0.5)
    (tmp_path / "other").mkdir()
    with pytest.raises(LimitError, match=r"limits\.epsilon"):
        count(tmp_path / "other", Limits(epsilon=epsilon, delta=1e-9), kind="train", mu=0.5)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{}",
            "[" * 100_000,
            '{"days": {"x": {"messages": 1, "requests": {}, "tasks": {}}}, "labels": {}}',
            "\xff",
        ),
        *(
            '{"days": {"2026-01-01": {"messages": -1, "requests": {}, "tasks": {}}}, "labels": {}}',
            '{"days": {}, "labels": {"a": [1]}}',
            '{"days": {}, "labels": {}, "privacy": {"main": {"rounds": -1, "mu_squared": 0.0}}}',
            '{"days": {}, "labels": {}, "privacy": {"main": {"rounds": 1, "mu_squared": NaN}}}',
            '{"days": {}, "labels": {}, "privacy": {"main": {"rounds": 1}}}',
        ),
    ],
)
def test_a_file_that_is_damaged_stops_messages(text: str, tmp_path: Path) -> None:
    (tmp_path / "answered.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match=r"answered\.json is damaged"):
        count(tmp_path, Limits())
