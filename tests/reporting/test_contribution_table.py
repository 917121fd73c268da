"""Contributions from records made up by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from rich.console import Console

from fedrlvr.reporting.contribution_table import (
    MEANING,
    contributions,
    show_contributions,
    to_json,
    to_markdown,
)

Scores = dict[str, dict[str, tuple[int, float]]]
N = {"a": 10, "b": 30, "c": 60}


def run(**right: float) -> list[dict[str, Any]]:
    """A run whose last evaluation has these numbers of right answers out of N; the first one and a round have none."""
    scores = {client: {"s": {"n": N[client], "total": value, "squares": value}} for client, value in right.items()}
    nothing = {client: {"s": {"n": N[client], "total": 0.0, "squares": 0.0}} for client in right}
    return [{"round": 0, "evaluate": nothing}, {"round": 1}, {"round": 2, "evaluate": scores}]


FULL = {0: run(a=8, b=15, c=30), 1: run(a=8, b=18, c=30)}
WITHOUT = {
    ("a", 0): run(a=2, b=12, c=24),
    ("a", 1): run(a=2, b=12, c=24),
    ("b", 0): run(a=9, b=15, c=40),
    ("b", 1): run(a=8, b=18, c=30),
    ("c", 0): run(a=8, b=15, c=0),
}


def test_a_contribution_is_the_difference_over_all_problems_of_the_others() -> None:
    lines = {line.client: line for line in contributions(["a", "b", "c"], FULL, WITHOUT)}
    a = lines["a"]
    assert a.seeds == [0, 1]
    assert a.others is not None
    assert a.everyone is not None
    # (15 + 30 - 12 - 24) / 90 and (18 + 30 - 36) / 90; of all clients 100 problems, with a's own 8 - 2.
    assert a.others.by_seed == pytest.approx({0: 9 / 90, 1: 12 / 90})
    assert a.everyone.by_seed == pytest.approx({0: 15 / 100, 1: 18 / 100})
    half = 12.706204736 * (3 / 90 / math.sqrt(2)) / math.sqrt(2)
    assert (a.others.low, a.others.high) == pytest.approx((10.5 / 90 - half, 10.5 / 90 + half))
    assert a.others.interval == "seeds"
    assert lines["b"].others is not None
    assert lines["b"].others.by_seed == pytest.approx({0: -11 / 70, 1: 0.0})


def test_one_seed_has_an_unpaired_interval_over_problems() -> None:
    (line,) = contributions(["c"], FULL, WITHOUT)
    assert line.seeds == [0]
    assert line.others is not None
    assert line.everyone is not None
    assert line.others.interval == "problems"
    assert line.others.mean == 0.0, "a and b score the same with and without c"
    # About 1.96 sqrt(2 p (1 - p) / n), with p = 23/40 and n = 40; Wilson's is a little narrower.
    assert line.others.high == pytest.approx(1.96 * math.sqrt(2 * 0.575 * 0.425 / 40), rel=0.06)
    assert line.others.low == pytest.approx(-line.others.high)
    assert line.everyone.mean == pytest.approx(0.30)


def test_the_worst_comes_last_and_a_client_without_runs_after_it() -> None:
    lines = contributions(["b", "d", "a"], FULL, WITHOUT)
    assert [line.client for line in lines] == ["a", "b", "d"]
    assert (lines[-1].others, lines[-1].seeds) == (None, [])
    unmeasured = contributions(["a"], {0: [{"round": 0}]}, {("a", 0): FULL[0]})
    assert unmeasured[0].others is None


def test_every_output_has_the_order_the_numbers_and_the_meaning_of_a_negative_one() -> None:
    lines = contributions(["b", "a", "c"], FULL, WITHOUT)
    about = {"command": "x", "date": "d", "machine": "m", "fedrlvr": "0", "cost": "Twice.", "seeds": [0, 1]}
    markdown = to_markdown(lines, about)
    assert [row.split("|")[1].strip() for row in markdown.splitlines() if row.startswith("| ")][2:] == ["a", "c", "b"]
    assert MEANING in markdown
    assert "+11.7" in markdown
    assert "unpaired" in markdown, "c has one seed"
    tree = json.loads(to_json(lines, about, {}))
    assert [client["client"] for client in tree["clients"]] == ["a", "c", "b"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_contributions(lines, console)
    text = " ".join(console.export_text().split())
    assert MEANING in text
    assert text.index("+11.7") < text.index("-7.9")
