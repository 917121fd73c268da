"""Numbers of many clients over many rounds: kept, averaged, and drawn with few points. Worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from watched import everything, large_records, write_run

from fedrlvr.reporting.absence import Standing
from fedrlvr.reporting.figures import Curve
from fedrlvr.reporting.watch import views
from fedrlvr.reporting.watch.charts import chart_of_clients
from fedrlvr.reporting.watch.number_table import MOST_POINTS, NumberTable, band, decimated, mean
from fedrlvr.reporting.watch.watched_run import WatchedRun, finite

NAN = float("nan")


def test_a_table_keeps_clients_that_come_later_and_numbers_that_are_missing() -> None:
    table = NumberTable(["reward", "never"])
    table.add(0, {})
    table.add(1, {"b": {"reward": 1, "other": "x"}, "a": {"reward": None}})
    table.add(3, {"c": {"reward": 3.5}, "a": {"reward": float("inf")}, "b": {}})
    assert table.clients == ["b", "a", "c"]
    assert table.rounds.tolist() == [0, 1, 3]
    grid = table.grid("reward")
    assert grid is not None
    np.testing.assert_array_equal(grid, [[NAN] * 3, [1, NAN, NAN], [NAN, NAN, 3.5]])
    assert table.grid("never") is table.grid("other") is None
    assert table.last("reward") == {"b": 1.0, "c": 3.5}
    assert table.total("reward") == {"b": 1.0, "c": 3.5}


@pytest.mark.parametrize("bad", [{"a": {"reward": "x"}}, {"a": {"reward": []}}, {"a": 3}, {"a": {"reward": 10**400}}])
def test_a_round_with_another_value_leaves_the_table_as_it_was(bad: dict[str, dict[str, object]]) -> None:
    table = NumberTable(["reward"])
    table.add(1, {"a": {"reward": 1.0}})
    with pytest.raises((ValueError, TypeError, AttributeError, OverflowError)):
        table.add(2, {"new": {"reward": 1.0}, **bad})
    with pytest.raises(ValueError, match="round 1"):
        table.add(1, {"a": {"reward": 2.0}})
    assert (table.shape, table.clients) == ((1, 1), ["a"])


def test_the_mean_and_the_band_of_a_round_are_of_known_values() -> None:
    row = [*range(1, 12), NAN]  # 1 to 11: a tenth of the steps between them lies at either end
    grid = np.array([row, [NAN] * 12, [5.0] + [NAN] * 11])
    np.testing.assert_array_equal(mean(grid), [6, NAN, 5])
    low, high = band(grid)
    np.testing.assert_array_equal(low, [2, NAN, 5])
    np.testing.assert_array_equal(high, [10, NAN, 5])


def test_few_rounds_are_drawn_as_they_are() -> None:
    rounds, lines = np.arange(5.0), np.ones((2, 5))
    xs, points = decimated(rounds, lines, most=5)
    assert xs is rounds
    assert points is lines


def test_many_rounds_keep_their_peaks_and_ends() -> None:
    rounds = np.arange(10.0)
    line = np.array([[0, 1, 9, 2, 3, 3, -7, 4, 5, 6]], dtype=float)
    xs, points = decimated(rounds, line, most=6)  # two parts: rounds 1 to 4, and 5 to 8
    assert xs.tolist() == [0, 1, 4, 5, 8, 9]
    assert points.tolist() == [[0, 1, 9, -7, 5, 6]]
    gap = np.array([[NAN] * 9 + [1.0]])
    assert np.isnan(decimated(rounds, gap, most=6)[1][0, :-1]).all()


def test_a_long_run_is_drawn_with_a_bounded_number_of_points(tmp_path: Path) -> None:
    run = WatchedRun(write_run(tmp_path / "run", list(large_records(500, 9)), rounds=500))
    run.refresh()
    chart = chart_of_clients(run, Curve("grad_norm", "Gradient norm"), ["site-3", "nobody"])
    assert chart is not None
    assert len(chart["x"]) <= MOST_POINTS
    assert [(line["name"], line["role"]) for line in chart["lines"]] == [
        ("low", "low"),
        ("high", "high"),
        ("mean", "mean"),
        ("site-3", "client"),
    ]
    grid = run.table.grid("grad_norm")
    assert grid is not None
    peak = np.nanmax(grid[:, run.table.clients.index("site-3")])
    assert max(value for value in chart["lines"][3]["values"] if value is not None) == finite(peak)
    strip = views.view(run, "clients")["strip"]
    assert {len(row["cells"]) for row in strip["rows"]} == {views.MOST_CELLS}
    assert set(strip["rows"][0]["cells"]) == {str(int(Standing.TOOK_PART)), str(int(Standing.LATE))}


def test_the_standing_of_each_client_is_that_of_the_newest_round(tmp_path: Path) -> None:
    run = WatchedRun(write_run(tmp_path / "run", everything()))
    run.refresh()
    shown = views.view(run, "clients")
    assert [(row["name"], row["standing"], row["took_part"], row["left_out"]) for row in shown["clients"]] == [
        ("ann", "took part", 4, 0),
        ("bob", "late", 3, 1),
        ("cyd", "failed", 2, 2),
    ]
    assert [row["cells"] for row in shown["strip"]["rows"]] == ["1111", "1113", "2115"]
    assert [(entry["round"], entry["client"], entry["standing"]) for entry in shown["absences"]] == [
        (4, "cyd", "failed"),
        (4, "bob", "late"),
        (1, "cyd", "withheld"),
    ]
    (tile,) = (tile for tile in views.overview(run)["tiles"] if tile["title"] == "Took part")
    assert (tile["value"], tile["note"]) == ("1 of 3", "1 late, 1 failed")


def test_a_client_that_takes_much_longer_than_the_others_is_slow(tmp_path: Path) -> None:
    records = everything()[:2]
    records[1]["clients"]["bob"]["seconds_train"] = 60.0
    run = WatchedRun(write_run(tmp_path / "run", records))
    run.refresh()
    rows = {row["name"]: row for row in views.view(run, "clients")["clients"]}
    assert (rows["bob"]["slow"], rows["bob"]["times_typical"]) == (True, pytest.approx(61 / 3, rel=1e-5))
    assert not rows["ann"]["slow"]
