"""Runs beside each other: costs, areas, arms and differences by hand; the terminal, the page and the CSV file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_samples import numbers, run_records, score

from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.reporting.comparison import (
    COSTS,
    ArmInComparison,
    Over,
    RunInComparison,
    area,
    arms_of,
    compare,
    flat_settings,
    height,
    minus,
    moments,
)
from fedrlvr.reporting.comparison_files import read_arms, to_csv
from fedrlvr.reporting.comparison_table import (
    arms_text,
    cost_text,
    difference_text,
    how_text,
    line_style,
    render_comparison,
    show_comparison,
    verdict_of,
)
from fedrlvr.reporting.figures import MOST_COMPARED
from fedrlvr.reporting.scores import Estimate, difference, estimate
from fedrlvr.reporting.spread import Spread

SETTINGS: dict[str, Any] = {
    "run": {"seed": 0},
    "train": {"rounds": 2, "local_steps": 3, "problems_per_step": 4, "learning_rate": 0.1},
    "federation": {"arm": "federated", "clients": ["alpha", "beta"]},
}


def records_of(*rights: float, tokens: int = 100) -> list[dict[str, Any]]:
    """Each round's correct answers of 100 problems of one source, which all rounds evaluate."""
    return [
        {
            "round": round_,
            "clients": {"alpha": numbers(0.5, tokens_sampled=tokens)} if round_ else {},
            "seconds": {"train": 2.0},
            "evaluate": {"alpha": {"sum": score(100, right)}},
        }
        for round_, right in enumerate(rights)
    ]


def run_of(*rights: float, seed: int = 0, name: str = "", tokens: int = 100, **settings: str) -> RunInComparison:
    read = moments(records_of(*rights, tokens=tokens), SETTINGS)
    flat = {"run.seed": str(seed), "train.rounds": str(len(rights) - 1)}
    flat |= {key.replace("__", "."): value for key, value in settings.items()}
    return RunInComparison(name or f"runs/{seed}", seed, flat, read)


def arm_of(name: str, *runs: RunInComparison) -> ArmInComparison:
    return ArmInComparison(name, {run.seed: run for run in runs})


# Costs and curves.


def test_costs_are_sums_since_the_start() -> None:
    read = moments(run_records(), SETTINGS)
    assert [moment.round for moment in read] == [0, 1, 2]
    assert [moment.costs["steps"] for moment in read] == [0, 3, 6]
    assert [moment.costs["tokens"] for moment in read] == [0, 200, 400]
    # Round 0: 10 up and 500 down of each of two clients; later rounds 1,000 and 2,000.
    assert [moment.costs["bytes"] for moment in read] == [1020, 7020, 13020]
    assert [moment.costs["seconds"] for moment in read] == [1.5, 5.5, 11.0]
    assert [moment.held_out is None for moment in read] == [False, True, False]
    assert [moment.reward for moment in read] == [None, pytest.approx(0.15), pytest.approx(0.3)]


def test_labels_are_those_bought_or_else_the_problems_drawn() -> None:
    records = run_records()
    for record in records[1:]:
        for client in record["clients"].values():
            client["num-examples"] = 20
    # 3 steps of 4 problems: 12 of each client in round 1; in round 2 24 were drawn, of 20 that there are.
    assert [moment.costs["labels"] for moment in moments(records, SETTINGS)] == [0, 24, 40]
    records[1]["clients"]["alpha"]["labels_asked"] = 5
    records[2]["clients"]["beta"]["labels_asked"] = 2
    assert [moment.costs["labels"] for moment in moments(records, SETTINGS)] == [0, 5, 7]


def test_a_pooled_client_draws_for_all_and_public_tokens_count() -> None:
    records = run_records()
    for record in records[1:]:
        record["clients"] = {"pooled": numbers(0.5, **{"num-examples": 100, "public_tokens_sampled": 7})}
    central = {**SETTINGS, "federation": {"arm": "central", "clients": ["alpha", "beta"]}}
    read = moments(records, central)
    assert [moment.costs["labels"] for moment in read] == [0, 24, 48]
    assert [moment.costs["tokens"] for moment in read] == [0, 107, 214]


def test_settings_of_another_release_leave_costs_unknown() -> None:
    costs = moments(run_records(), {"run": {}, "train": {}})[1].costs
    assert costs["steps"] is None
    assert costs["labels"] is None
    assert costs["rounds"] == 1


def test_height_and_area() -> None:
    curve = [(0.0, 0.2), (2.0, 0.4), (4.0, 0.4)]
    assert height(curve, 1) == pytest.approx(0.3)
    assert height(curve, 0) == 0.2
    assert height(curve, 4) == 0.4
    for outside in (-1, 5):
        with pytest.raises(ValueError, match="no value"):
            height(curve, outside)
    assert area(curve, 0, 4) == pytest.approx((0.6 + 0.8) / 4)  # trapezoids of 0.6 and 0.8
    assert area(curve, 1, 3) == pytest.approx((0.35 + 0.4) / 2)
    assert area(curve, 0, 0) is None
    assert area(curve, 0, 5) is None
    assert area([], 0, 1) is None


def test_where_a_cost_stands_still_the_last_score_counts() -> None:
    spent_early = [(0.0, 0.2), (10.0, 0.4), (10.0, 0.6)]
    assert height(spent_early, 10) == 0.6
    assert area(spent_early, 0, 10) == pytest.approx(0.4)  # from 0.2 to what was reached at this cost


def test_settings_are_flat() -> None:
    tree = {"a": {"b": {"c": 1}, "d": "x", "e": [1, {"f": None}], "g": {}}}
    assert flat_settings(tree) == {"a.b.c": "1", "a.d": "x", "a.e": '[1, {"f": null}]', "a.g": "{}"}


# Arms and differences.


def test_runs_that_differ_in_the_seed_alone_are_one_arm() -> None:
    runs = [
        run_of(1, 2, seed=0, name="a"),
        run_of(1, 2, seed=1, name="b", run__directory="/elsewhere", run__trackers='["mlflow"]'),
        run_of(1, 2, seed=0, name="c", train__learning_rate="0.1"),
        run_of(1, 2, seed=1, name="d"),
    ]
    arms = arms_of([(None, run) for run in runs])
    assert [(arm.name, list(arm.runs)) for arm in arms] == [("a and 1 more", [0, 1]), ("c", [0]), ("d", [1])]


def test_a_sweep_s_arms_keep_their_names() -> None:
    runs = [run_of(1, 2, seed=seed, name=f"{arm}{seed}") for arm in ("x", "y") for seed in (1, 0)]
    arms = arms_of([(run.name[0], run) for run in runs])
    assert [(arm.name, list(arm.runs)) for arm in arms] == [("x", [0, 1]), ("y", [0, 1])]


def test_seeds_in_both_arms_are_paired() -> None:
    first = arm_of("first", *(run_of(10, right, seed=seed) for seed, right in enumerate((20, 40, 60))))
    second = arm_of("second", *(run_of(10, right, seed=seed) for seed, right in enumerate((25, 45, 68), start=0)))
    gap = minus(second, first, "rounds")
    assert gap is not None
    assert (gap.how, gap.seeds, gap.at, gap.exact) == ("paired", (0, 1, 2), 1.0, True)
    assert isinstance(gap.score, Spread)
    # Differences of 5, 5 and 8 points: mean 6, s = 1.732, t = 4.3027 for two degrees of freedom.
    assert gap.score.mean == pytest.approx(0.06)
    assert gap.score.half == pytest.approx(4.3027 * 0.01732 / 3**0.5, rel=1e-3)
    assert gap.area is not None
    assert gap.area.mean == pytest.approx(0.03)  # both start at 10 %, so half as high on average
    assert verdict_of(gap.score) == "up"
    assert how_text(gap, "rounds") == "paired by seed (0, 1, 2); at 1 rounds"


def test_arms_without_two_seeds_in_common_are_unpaired() -> None:
    first = arm_of("first", run_of(10, 20, seed=0), run_of(10, 30, seed=1))
    second = arm_of("second", run_of(10, 40, seed=1), run_of(10, 50, seed=2))
    gap = minus(second, first, "rounds")
    assert gap is not None
    assert (gap.how, gap.seeds) == ("unpaired", (1, 2, 0, 1))
    assert isinstance(gap.score, Spread)
    assert gap.score.mean == pytest.approx(0.2)
    # Variances of 0.005 each: sqrt(0.0025 + 0.0025), two degrees of freedom, t = 4.3027.
    assert gap.score.half == pytest.approx(4.3027 * 0.005**0.5, rel=1e-3)
    assert verdict_of(gap.score) == ""
    assert "unpaired" in how_text(gap, "rounds")


def test_one_run_each_has_the_interval_over_problems() -> None:
    gap = minus(arm_of("b", run_of(10, 60)), arm_of("a", run_of(10, 20)), "rounds")
    assert gap is not None
    assert gap.how == "one seed"
    assert gap.score == difference(estimate(100, 60, 60), estimate(100, 20, 20))
    assert "over problems" in how_text(gap, "rounds")


def test_an_unfinished_run_is_compared_as_far_as_it_goes() -> None:
    gap = minus(arm_of("b", run_of(10, 60)), arm_of("a", run_of(10, 20, 90, 95)), "rounds")
    assert gap is not None
    assert gap.at == 1
    assert gap.score.mean == pytest.approx(0.4)


def test_between_evaluations_scores_are_interpolated_and_without_an_interval() -> None:
    # b has 300 tokens after its one round; a has 200 after its first and 400 after its second.
    gap = minus(arm_of("b", run_of(10, 30, tokens=300)), arm_of("a", run_of(10, 20, 40, tokens=200)), "tokens")
    assert gap is not None
    assert (gap.at, gap.exact) == (300, False)
    assert isinstance(gap.score, Spread)
    assert gap.score.mean == pytest.approx(0.30 - 0.30)  # a: 20 % at 200 and 40 % at 400
    assert gap.score.half is None
    assert "no interval" in how_text(gap, "tokens")


def test_an_arm_without_a_curve_has_no_difference_and_a_note() -> None:
    blind = RunInComparison("blind", 0, {}, [])
    result = compare([arm_of("a", run_of(10, 20)), arm_of("b", blind)], "tokens")
    assert result.results[1].minus is None
    assert any("blind" in note and "No evaluation" in note for note in result.notes)


def test_notes_on_other_problems_and_other_releases() -> None:
    runs = [
        RunInComparison(name, 3, {}, moments(records_of(1, 2), SETTINGS), digest, version)
        for name, digest, version in (("a", "one", "0.9.0"), ("b", "two", None))
    ]
    notes = compare([arm_of(run.name, run) for run in runs], "rounds").notes
    assert any("seed 3" in note and "problems" in note for note in notes)
    assert any("0.9.0" in note and "unknown" in note for note in notes)
    assert compare([arm_of("a", runs[0])], "rounds").notes == []


def test_settings_that_differ_name_the_arms_by_value() -> None:
    arms = [
        arm_of("a", run_of(1, 2, train__learning_rate="0.1", lora__rank="8")),
        arm_of("b", run_of(1, 2, train__learning_rate="0.2", lora__rank="8")),
        arm_of("c", run_of(1, 2, train__learning_rate="0.1")),
    ]
    assert compare(arms, "rounds").differing == [
        ("lora.rank", {"8": [1, 2], "absent": [3]}),
        ("train.learning_rate", {"0.1": [1, 3], "0.2": [2]}),
    ]


def test_texts() -> None:
    assert arms_text([1, 3, 4, 5, 7]) == "1, 3-5, 7"
    assert cost_text("bytes", 1_300_000) == "1.3 MB"
    assert cost_text("tokens", 1234.0) == "1,234"
    assert cost_text("labels", None) == "–"
    assert difference_text(Spread(0.031, 0.021, {})) == "+3.1 [+1.0, +5.2]"
    assert difference_text(Spread(0.031, None, {})) == "+3.1"
    assert difference_text(Estimate(-0.1, -0.2, -0.05, 9)) == "-10.0 [-20.0, -5.0]"
    assert [line_style(number) for number in (0, 7, 8, 31)] == [
        (1, "solid"),
        (8, "solid"),
        (1, "dashed"),
        (8, "dashdot"),
    ]


# The terminal, the page and the CSV file.


def twenty() -> list[ArmInComparison]:
    return [
        arm_of(f"arm <{number}>", *(run_of(10, 20 + number + seed, seed=seed, rate=str(number)) for seed in (0, 1)))
        for number in range(20)
    ]


def test_twenty_arms_in_the_terminal() -> None:
    for width in (80, 140):
        screen = io.StringIO()
        show_comparison(compare(twenty(), "rounds"), Console(file=screen, width=width))
        text = screen.getvalue()
        assert "arm <19>" in text
        assert "20 minus 1: paired by seed (0, 1)" in text
        assert "+19.0" in text
        assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    "over", [over if over == "tokens" else pytest.param(over, marks=pytest.mark.slow) for over in COSTS]
)
def test_the_page_is_self_contained_whatever_the_cost(over: Over) -> None:
    arms = twenty() if over == "rounds" else twenty()[:2]
    page = render_comparison(compare(arms, over), arms, "fedrlvr compare 'a b'")
    for foreign in ("<script", "http-equiv", "<link", "@import", "src="):
        assert foreign not in page
    assert "arm &lt;1&gt;" in page
    assert "arm <1>" not in page
    assert "fedrlvr compare &#39;a b&#39;" in page
    assert "Held-out pass@1 over" in page
    assert len(page) < 2_000_000


@pytest.mark.slow
def test_arms_beyond_the_styles_are_in_the_tables_alone() -> None:
    arms = [arm_of(f"arm {number}", run_of(10, 20, rate=str(number))) for number in range(MOST_COMPARED + 3)]
    page = render_comparison(compare(arms, "rounds"), arms)
    assert "3 arms are in the tables alone" in page
    assert f"arm {MOST_COMPARED + 2}" in page


def write_run(directory: Path, records: Sequence[dict[str, Any]], seed: int = 0, **train: Any) -> Path:
    directory.mkdir(parents=True)
    settings = {**SETTINGS, "run": {"seed": seed}, "train": {**SETTINGS["train"], **train}}
    (directory / "config.json").write_text(json.dumps(settings), "utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(lines, "utf-8")
    return directory


def test_runs_and_sweeps_are_read(tmp_path: Path) -> None:
    for arm, rate in (("fast", 0.2), ("slow", 0.1)):
        for seed in (0, 1):
            write_run(tmp_path / "sweep" / arm / f"seed-{seed}", records_of(10, 20, 30), seed, learning_rate=rate)
    lone = write_run(tmp_path / "lone", records_of(10, 20), 5)
    arms = read_arms([tmp_path / "sweep", lone, lone])
    assert [(arm.name, list(arm.runs)) for arm in arms] == [
        ("sweep/fast", [0, 1]),
        ("sweep/slow", [0, 1]),
        (str(lone), [5]),
    ]
    assert arms[2].runs[5].notes == ["1 of 2 rounds are done, and are compared as far as they go"]
    assert [arm.name for arm in read_arms([tmp_path / "sweep"])] == ["fast", "slow"]


def test_runs_that_have_no_round_or_are_of_another_release(tmp_path: Path) -> None:
    fresh = write_run(tmp_path / "fresh", [])
    (fresh / "metrics.jsonl").unlink()
    (arm,) = read_arms([fresh])
    assert arm.runs[0].notes == ["no round is finished yet"]
    odd = write_run(tmp_path / "odd", [{"round": 0, "clients": ["a list"]}, {"round": 2, "evaluate": {"a": {"s": 1}}}])
    (arm,) = read_arms([odd])
    assert "not of this release's form" in arm.runs[0].notes[0]
    result = compare(read_arms([fresh, odd, write_run(tmp_path / "good", records_of(1, 2, 3))]), "rounds")
    show_comparison(result, Console(file=io.StringIO()))
    render_comparison(result, read_arms([fresh, odd]))


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "foreign", "list"])
def test_a_directory_that_is_no_run_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_text("{}", "utf-8")
    elif kind != "missing":
        path.mkdir()
    if kind in ("foreign", "list"):
        (path / "config.json").write_text('{"model_type": "llama"}' if kind == "foreign" else "[]", "utf-8")
    with pytest.raises(ConfigError, match=str(path)):
        read_arms([path])


def test_damaged_metrics_are_an_error_that_names_the_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records_of(1, 2))
    (run / "metrics.jsonl").write_text('{"round": 0}\n{\n', "utf-8")
    with pytest.raises(CheckpointError, match="line 2"):
        read_arms([run])


def test_the_csv_file_has_a_line_for_each_round(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(read_arms([write_run(tmp_path / "run", records_of(10, 20))])))))
    assert [row["rounds"] for row in rows] == ["0", "1"]
    assert [row["tokens"] for row in rows] == ["0", "100"]
    assert [row["pass@1"] for row in rows] == ["0.1", "0.2"]
    assert [row["reward"] for row in rows] == ["", "0.5"]
    assert float(rows[1]["low"]) == estimate(100, 20, 20).low
