"""Means and intervals over seeds, by hand and against published quantiles; and what is written of them."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from fedrlvr.reporting.scores import t95
from fedrlvr.reporting.spread import spread
from fedrlvr.reporting.sweep_table import show_sweep, tabulate, to_json, to_markdown

ABOUT = {"command": "fedrlvr sweep", "date": "2026-11-21 10:00", "seeds": [3, 4], "machine": "2 cores", "fedrlvr": "1"}


@pytest.mark.parametrize(
    ("freedom", "t"),
    # Two-sided 95 % points of Student's distribution as printed in any statistics table.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (29, 2.045), (30, 2.042),
     (60, 2.000), (120, 1.980), (4095, 1.961)],
)  # fmt: skip
def test_quantiles_of_students_distribution(freedom: int, t: float) -> None:
    assert t95(freedom) == pytest.approx(t, abs=6e-4)


def test_the_quantiles_that_have_a_closed_form() -> None:
    assert t95(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)  # Cauchy
    assert t95(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    with pytest.raises(ValueError, match="one degree"):
        t95(0)


def test_mean_and_interval_by_hand() -> None:
    """1, 2, 4, 5: mean 3, squared distances 4 + 1 + 1 + 4 = 10, s = sqrt(10 / 3), half = 3.18245 s / 2."""
    result = spread({0: 1.0, 1: 2.0, 2: 4.0, 3: 5.0})
    assert result is not None
    assert (result.mean, result.by_seed) == (3.0, {0: 1.0, 1: 2.0, 2: 4.0, 3: 5.0})
    assert result.half == pytest.approx(2.905164, abs=1e-5)
    same = spread({0: 7.0, 1: 7.0})
    assert same is not None
    assert same.half == 0.0
    single = spread({5: 0.25})
    assert single is not None
    assert (single.mean, single.half) == (0.25, None)
    assert spread({}) is None


def run_of(before: int, after: int, tokens: int, up: int) -> list[dict[str, Any]]:
    """A run of one round: so many of 10 problems are solved before and after; two clients."""

    def evaluated(right: int) -> dict[str, Any]:
        return {"ann": {"sum": {"n": 10, "total": float(right), "squares": float(right)}}}

    clients = {name: {"tokens_sampled": tokens, "bytes_up": up * factor} for name, factor in (("ann", 1), ("bob", 3))}
    return [
        {"round": 0, "clients": {}, "seconds": {}, "evaluate": evaluated(before)},
        {"round": 1, "clients": clients, "seconds": {}, "evaluate": evaluated(after)},
    ]


ARMS = [("weights=examples", {"aggregation.weights": "examples"}), ("weights=equal", {"aggregation.weights": "equal"})]
RECORDS = {
    ("weights=examples", 3): run_of(1, 4, 100, 10),
    ("weights=examples", 4): run_of(3, 8, 110, 10),
    ("weights=equal", 3): run_of(1, 5, 100, 20),
    ("weights=equal", 4): run_of(3, 7, 140, 20),
}


def test_a_line_for_each_arm() -> None:
    first, second = tabulate(ARMS, RECORDS)
    assert (first.name, first.settings, first.seeds) == (*ARMS[0], [3, 4])
    assert first.before is not None
    assert first.after is not None
    assert first.before.mean == pytest.approx(0.2)
    assert first.after.by_seed == pytest.approx({3: 0.4, 4: 0.8})
    # Two values a and b: half = 12.7062 |a - b| / 2.
    assert first.after.half == pytest.approx(12.7062 * 0.2, rel=1e-4)
    assert first.minus_first is None
    assert second.minus_first is not None
    assert second.minus_first.by_seed == pytest.approx({3: 0.1, 4: -0.1})
    assert second.minus_first.mean == pytest.approx(0.0)
    assert second.minus_first.half == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert second.tokens_sampled is not None
    assert second.bytes_up is not None
    assert second.tokens_sampled.by_seed == {3: 200.0, 4: 280.0}  # both clients'
    assert (second.bytes_up.mean, second.bytes_up.half) == (40.0, 0.0)  # mean of 20 and 60


def test_arms_are_compared_on_the_seeds_both_have() -> None:
    records = {key: value for key, value in RECORDS.items() if key != ("weights=equal", 3)}
    _, second = tabulate(ARMS, {**records, ("weights=equal", 5): run_of(1, 9, 1, 1)})
    assert second.seeds == [4, 5]
    assert second.minus_first is not None
    assert second.minus_first.by_seed == pytest.approx({4: -0.1})
    assert second.minus_first.half is None
    first, second = tabulate(ARMS, {("weights=equal", 4): RECORDS["weights=equal", 4]})
    assert (first.seeds, first.before, first.after, first.tokens_sampled) == ([], None, None, None)
    assert second.minus_first is None


def test_nothing_evaluated_leaves_the_scores_out() -> None:
    bare = [{key: value for key, value in line.items() if key != "evaluate"} for line in run_of(1, 4, 100, 10)]
    (line,) = tabulate(ARMS[:1], {("weights=examples", 3): bare})
    assert (line.before, line.after) == (None, None)
    assert line.tokens_sampled is not None


def test_markdown_says_how_it_was_made() -> None:
    text = to_markdown(tabulate(ARMS, RECORDS), ABOUT).splitlines()
    assert text[0] == "`fedrlvr sweep`, 2026-11-21 10:00, 2 cores, fedrlvr 1."
    assert text[1].startswith("Seeds 3 to 4. pass@1")
    assert "95 % interval" in text[1]
    assert (
        text[3]
        == "| arm | seeds | before, % | after, % | minus the first, points | tokens sampled | bytes up, a client |"
    )
    assert text[5] == "| weights=examples | 2 | 20.0 ± 127.1 | 60.0 ± 254.1 |  | 210 ± 127 | 20 B ± 0 B |"
    assert text[6] == "| weights=equal | 2 | 20.0 ± 127.1 | 60.0 ± 127.1 | 0.0 ± 127.1 | 240 ± 508 | 40 B ± 0 B |"


def test_one_seed_has_no_interval_and_says_so() -> None:
    lines = tabulate(ARMS, {key: value for key, value in RECORDS.items() if key[1] == 4})
    text = to_markdown(lines, {**ABOUT, "seeds": [4]})
    assert "Seed 4. " in text
    assert "One seed: no interval." in text
    assert "±" not in text
    assert "| weights=equal | 1 | 30.0 | 70.0 | -10.0 | 280 | 40 B |" in text


def test_json_holds_every_seeds_numbers() -> None:
    tree = json.loads(to_json(tabulate(ARMS, RECORDS), ABOUT, {"x/seed-9": "its disk"}))
    assert {key: tree[key] for key in ABOUT} == ABOUT
    assert tree["failed"] == {"x/seed-9": "its disk"}
    assert tree["arms"][1]["settings"] == {"aggregation.weights": "equal"}
    assert tree["arms"][1]["after"]["by_seed"] == {"3": 0.5, "4": 0.7}
    assert tree["arms"][0]["minus_first"] is None


def test_the_terminals_table_shows_every_arm() -> None:
    for width, apart in ((200, " "), (80, "\n")):
        out = io.StringIO()
        show_sweep(tabulate([("a[b]=1", {}), *ARMS], RECORDS), [3, 4], Console(file=out, width=width))
        shown = out.getvalue()
        for part in ("a[b]=1", "weights=equal", "60.0", "± 127.1", "240", "± 508", "40 B", "± 0 B", "Seeds 3 to 4."):
            assert part in shown, width
        assert ("240 ± 508" in shown) == (apart == " ")
