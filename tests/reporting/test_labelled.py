"""Labels in the report, the terminal and the tracker: sums by hand, drawings, and nothing where there are none."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_samples import numbers, run_records
from test_report import Page, page

from fedrlvr.config import Config, parse_config
from fedrlvr.reporting.figures import draw_calibration, draw_shares
from fedrlvr.reporting.report import render
from fedrlvr.reporting.scores import calibration, calibration_points, label_lines, mean_shares, shares
from fedrlvr.reporting.tables import final_table
from fedrlvr.reporting.trackers import flatten

TENTHS = 10


def table(**bins: tuple[int, float, int]) -> dict[str, list[float]]:
    """Calibration: bin1=(n, sum, right) and so on, the others empty."""
    result: dict[str, list[float]] = {key: [0] * TENTHS for key in ("n", "sum", "right")}
    for name, row in bins.items():
        for key, value in zip(("n", "sum", "right"), row, strict=True):
            result[key][int(name.removeprefix("bin"))] = value
    return result


def label_numbers(asked: int, used: int, held: int, right: float | None, **more: Any) -> dict[str, Any]:
    """The numbers that a client adds to its own where labels are asked for."""
    return {"labels_asked": asked, "labels_used": used, "labels_total": held, "majority_right": right, **more}


def labelled_records(audit: bool = True) -> list[dict[str, Any]]:
    """Two rounds of two clients; beta asks for nothing in the second."""
    fates = {"share_query": 0.2, "share_known": 0.1, "share_reliable": 0.3, "share_masked": 0.4}
    later = {"share_query": 0.0, "share_known": 0.2, "share_reliable": 0.2, "share_masked": 0.6}
    only = {"audit_reliable_right": 0.9, "audit_gap_correlation": 0.5, "audit_majority_right": 0.4} if audit else {}
    last = {"audit_reliable_right": 0.7, "audit_gap_correlation": -0.1, "audit_majority_right": 0.5} if audit else {}
    tables = {"calibration": table(bin2=(4, 1.0, 2))}
    if audit:
        tables["audit_calibration"] = table(bin2=(8, 2.0, 1), bin9=(2, 1.9, 2))
    records = run_records()
    rows = {
        (1, "alpha"): label_numbers(4, 6, 4, 0.5, **fates, **only, **tables),
        (2, "alpha"): label_numbers(4, 2, 8, 1.0, **later, **last),
        (1, "beta"): label_numbers(3, 2, 3, 0.0, **later),
        (2, "beta"): label_numbers(0, 0, 3, None, **later),
    }
    for (round_, client), numbers_told in rows.items():
        client_numbers = records[round_]["clients"][client]
        client_numbers.update(numbers_told)
        if not audit:
            client_numbers["pass@1"] = None
    return records


def words(result: Page) -> str:
    return re.sub(r"\s+", " ", result.words)


CARE = {"supervision": {"type": "care", "audit": True}}


def test_sums_of_each_client_and_of_all_by_hand() -> None:
    alpha, beta, everybody = label_lines(labelled_records())
    assert (alpha.client, alpha.asked, alpha.used, alpha.held) == ("alpha", 8, 8, 8)
    assert alpha.majority_right == pytest.approx((6 * 0.5 + 2 * 1.0) / 8)
    assert alpha.trusted_right == pytest.approx((0.3 * 0.9 + 0.2 * 0.7) / 0.5)
    assert alpha.gap == pytest.approx(0.2)
    assert (beta.asked, beta.used, beta.held, beta.majority_right) == (3, 2, 3, 0.0)
    assert (beta.trusted_right, beta.gap) == (None, None)
    assert (everybody.client, everybody.asked, everybody.used, everybody.held) == (None, 11, 10, 11)
    assert everybody.majority_right == pytest.approx((6 * 0.5 + 2 * 1.0 + 2 * 0.0) / 10)


def test_without_labels_asked_for_there_is_no_line() -> None:
    assert label_lines(run_records()) == []
    assert label_lines([]) == []


def test_shares_by_client_and_their_mean_by_hand() -> None:
    result = shares(labelled_records())
    assert list(result) == ["alpha", "beta"]
    assert result["alpha"] == [(1, (0.2, 0.1, 0.3, 0.4)), (2, (0.0, 0.2, 0.2, 0.6))]
    assert mean_shares(result)[0] == (1, pytest.approx((0.1, 0.15, 0.25, 0.5)))
    assert mean_shares({"a": result["alpha"], "b": result["beta"][1:]})[0] == (1, (0.2, 0.1, 0.3, 0.4))
    assert shares(run_records()) == {}
    assert mean_shares({}) == []


def test_calibrations_are_added_bin_by_bin() -> None:
    records = labelled_records()
    records[2]["clients"]["beta"]["audit_calibration"] = table(bin9=(2, 1.9, 0))
    result = calibration(records, "audit_calibration")
    assert result == table(bin2=(8, 2.0, 1), bin9=(4, 3.8, 2))
    assert result is not None
    assert calibration_points(result) == [(0.25, 0.125, 8), (0.95, 0.5, 4)]
    assert calibration(run_records(), "calibration") is None
    assert calibration([{"round": 1, "clients": {"a": {"calibration": table()}}}], "calibration") is None


def test_the_section_of_the_report() -> None:
    result = page(labelled_records(), parse_config(CARE))
    text = words(result)
    assert "alpha 8 8 8 62.5 % 82.0 % 0.20" in text
    assert "beta 3 2 3 0.0 % – –" in text
    assert "all 11 10 11 50.0 % 82.0 % 0.20" in text
    for title in (
        "Labels asked for; used dashed",
        "Labels in the ledger",
        "Reward trained on; true pass@1 dashed",
        "All problems whose majority is right",
        "Correlation of the score S with a label's true value",
        "S and the true value",
        "Calibration of P1",
        "labelled problems, before they were learnt from",
        "masked",
        "supervision.audit is set",
    ):
        assert title in text
    assert len(result.ids) == len(set(result.ids))
    assert "supervision care (budget 20 %)" in text


def test_what_was_not_audited_is_not_told_of() -> None:
    text = words(page(labelled_records(audit=False), parse_config({"supervision": {"type": "care"}})))
    assert "alpha 8 8 8 62.5 %" in text
    assert "labelled problems, before they were learnt from" in text
    for absent in ("S and the true value", "true pass@1", "all problems", "supervision.audit is set", "of trusted"):
        assert absent not in text


def test_a_run_with_all_labels_has_no_such_section() -> None:
    text = words(page(run_records()))
    assert "in the ledger" not in text
    assert "Calibration" not in text
    assert "supervision labels, coordination none" in text


def test_where_nobody_is_asked_nothing_is_drawn_of_asking() -> None:
    records = run_records()
    for record in records[1:]:
        for client_numbers in record["clients"].values():
            client_numbers.update(label_numbers(0, 0, 0, None, share_reliable=1.0, audit_majority_right=0.5))
    text = words(page(records, parse_config({"supervision": {"type": "majority", "audit": True}})))
    assert "Labels asked for" not in text
    assert "Calibration" not in text
    assert "Reward trained on; true pass@1 dashed" in text
    screen = io.StringIO()
    final_table(records, Config(), Path("nowhere"), Console(file=screen, width=120))
    assert "in the ledger" not in screen.getvalue()


def test_many_clients_are_one_bundle_of_shares_and_folded() -> None:
    names = [f"client-{i}" for i in range(1, 61)]
    clients = {name: numbers() | label_numbers(1, 1, 1, 0.5, share_query=0.5, share_masked=0.5) for name in names}
    text = render(parse_config(CARE), [{"round": r, "clients": clients, "seconds": {}} for r in (1, 2)])
    result = Page(text)
    assert "<h3>mean of the clients</h3>" in text
    assert "<h3>client-5</h3>" not in text
    assert "60 clients" in result.words
    assert "all 120 120 60 50.0 %" in words(result)


def test_drawings_are_the_same_each_time_and_take_their_colours_from_the_page() -> None:
    rows = shares(labelled_records())["alpha"]
    bars = draw_shares("Shares", rows, [1, 3, 2, None])
    assert bars == draw_shares("Shares", rows, [1, 3, 2, None])
    for colour in ("--line-1", "--line-3", "--line-2", "--rule"):
        assert f"var({colour})" in bars
    assert "--line-4" not in bars
    points = [(0.25, 0.5, 4.0), (0.9, 1.0, 2.0)]
    assert "var(--line-2)" in draw_calibration("P1", [points, points])
    assert "var(--line-2)" not in draw_calibration("P1", [points, []])
    assert not re.findall(r"(?:fill|stroke): #", bars + draw_calibration("P1", [points]))


def test_bars_stand_on_each_other() -> None:
    svg = draw_shares("Shares", [(1, (0.25, 0.75))], [1, None])
    heights = {}
    for path, colour in re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--([a-z0-9-]*)\)', svg):
        numbers_drawn = [float(number) for number in re.findall(r"[0-9.]+", path)]
        heights[colour] = (max(numbers_drawn[1::2]), min(numbers_drawn[1::2]))  # bottom and top: y grows downwards
    (low, edge), (other_edge, high) = heights["line-1"], heights["rule"]
    assert other_edge == edge
    assert edge - high == pytest.approx(3 * (low - edge), rel=1e-4)


def test_the_report_of_labels_is_the_same_each_time() -> None:
    config = parse_config(CARE)
    assert render(config, labelled_records()) == render(config, labelled_records())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "majority"}, "supervision majority, coordination"),
        ({"type": "care", "share_probes": True}, "care (budget 20 %, probes averaged)"),
        (
            {"type": "random", "budget": 0.05, "budget_total": 1200, "rest": "pseudo"},
            "random (budget 5 %, at most 1,200 labels a client, rest pseudo)",
        ),
        (
            {"type": "care", "labels_from": "desk", "budget_per_day": 30},
            "care (budget 20 %, at most 30 a day, by people)",
        ),
    ],
)
def test_the_method_says_how_many_labels_are_asked_for_and_of_whom(given: dict[str, Any], said: str) -> None:
    assert said in words(page([], parse_config({"supervision": given})))


def test_the_terminal_s_table_of_labels(tmp_path: Path) -> None:
    screen = io.StringIO()
    final_table(labelled_records(), Config(), tmp_path, Console(file=screen, width=120))
    text = re.sub(r"\s+", " ", screen.getvalue())
    assert "client asked for used in the ledger majority right" in text
    assert "alpha 8 8 8 62.5 %" in text
    assert "all 11 10 11 50.0 %" in text
    screen = io.StringIO()
    final_table(run_records(), Config(), tmp_path, Console(file=screen, width=120))
    assert "in the ledger" not in screen.getvalue()


def test_a_tracker_gets_numbers_alone() -> None:
    result = dict(flatten(labelled_records()[1]))
    assert result["alpha/labels_asked"] == 4
    assert not any("calibration" in name for name in result)
    assert all(isinstance(value, int | float) for value in result.values())
