"""Costs and the numbers made of them."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from benchmarks import tables
from benchmarks.bookkeeping import Replay
from benchmarks.comparison import BASELINE
from benchmarks.measure import MEBI, Meter, Phases, cpu_seconds, ratios, summary


def test_summary_is_median_and_range() -> None:
    assert summary([3.0, 1.0, 2.0]).shown() == "2.00 (1.00 to 3.00)"
    assert summary([1.5]).shown(1) == "1.5"
    with pytest.raises(ValueError, match="nothing"):
        summary([])


def test_ratios_are_of_pairs() -> None:
    result = ratios([10.0, 12.0, 8.0], [2.0, 3.0, 1.0])  # 5, 4, 8
    assert (result.n, result.median, result.low, result.high) == (3, 5.0, 4.0, 8.0)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_cpu_seconds_count_children_but_not_sleep() -> None:
    before = cpu_seconds()
    time.sleep(0.2)
    assert cpu_seconds() - before < 0.15
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert cpu_seconds() - before > 0.35


def test_the_peak_is_what_was_held_for_a_moment() -> None:
    meter = Meter()
    meter.start(memory=True)
    held = torch.ones(64 * MEBI // 4)
    del held
    cost = meter.stop(10, 5, {})
    assert cost.peak is not None
    assert cost.before is not None
    assert 60 * MEBI < cost.peak - cost.before < 120 * MEBI
    meter.start(memory=False)
    assert meter.stop(1, 1, {}).peak is None


def test_phases_are_taken_once() -> None:
    phases = Phases()
    assert phases.timed("add", lambda a, b: a + b)(1, b=2) == 3
    assert set(phases.take()) == {"add"}
    assert phases.take() == {}


def test_replay_gives_what_was_given_in_order() -> None:
    replay = Replay(lambda x: 2 * x)
    assert [replay(1), replay(2)] == [2, 4]
    replay.replaying = True
    assert [replay(9), replay(9), replay(9)] == [2, 4, 2]


def cost(cpu: float, tokens: int, peak: int = 0) -> dict[str, Any]:
    return {
        "cpu": cpu,
        "wall": cpu,
        "before": 300 * MEBI,
        "peak": peak * MEBI,
        "tokens_sampled": tokens,
        "tokens_trained": tokens,
        "phases": {"sample": cpu / 4, "train": cpu / 2},
    }


def side(costs: list[dict[str, Any]], peak: int) -> dict[str, Any]:
    resident = {"imported": 200 * MEBI, "set_up": 250 * MEBI}
    return {"rounds": costs, "memory": cost(1.0, 1, peak), "resident": resident}


def test_the_table_of_a_case() -> None:
    pair = {
        "first": side([cost(8.0, 1000), cost(6.0, 1000)], 1000),
        "second": side([cost(2.0, 1000), cost(1.0, 1000)], 400),
    }
    floor = {"seconds": [0.5, 1.0, 0.75], "gflop": 12.0, "shapes": 3, "calls": 4000}
    result = {
        "rows": {BASELINE: pair},
        "floor": floor,
        "baseline floor": {**floor, "seconds": [3.0]},
        "splits": {"8": {"cpu": 2.0, "clients": 2, "memory": cost(1, 1, 500)}},
        "per_device": 8,
    }
    text = tables.comparison(result)
    # Pairs 8 / 2 and 6 / 1; peaks above imports 800 and 200, above the round's start 700 and 100.
    assert (
        "| Flower + TRL, tuned | 2 | 7.00 (6.00 to 8.00) | 7.00 (6.00 to 8.00) | 7000 (6000 to 8000) | "
        "5.00 (4.00 to 6.00) | 1,000 | 800 | 700 |" in text
    )
    assert (
        "| fedrlvr | 2 | 1.50 (1.00 to 2.00) | 1.50 (1.00 to 2.00) | 1500 (1000 to 2000) |  | 400 | 200 | 100 |" in text
    )
    assert tables.gap(result).median == pytest.approx(1.5 / 0.75)
    assert "2.00 (1.33 to 2.67) times that" in text
    assert (
        "Those of a round of Flower + TRL, tuned: 4,000 calls, 3 shapes, 12 GFLOP: alone they take 3.00 CPU-s" in text
    )
    assert "| fedrlvr | the rest | 0.375 | 25.0 % |" in text


def test_the_table_of_sweeps_adds_the_five_runs() -> None:
    def run(cpu: float) -> dict[str, float]:
        return {"cpu": cpu, "wall": 2 * cpu}

    text = tables.sweep([{"sweep": run(10.0), "runs": [run(6.0)] * 5, "apart": run(15.0)}])
    assert "| five runs | 1 | 30.0 | 60.0 | 3.00 |" in text
    assert "| five in one process | 1 | 15.0 | 30.0 | 1.50 |" in text


def test_the_table_of_growth() -> None:
    points = {"2": {"first": side([cost(4.0, 1000)], 1), "second": side([cost(1.0, 500)], 1)}}
    assert "| 2 | 4.00 | 1.00 | 4000 | 2000 | 4.00 |" in tables.growth(points, "clients")
