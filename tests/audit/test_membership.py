"""Attacks on membership, by hand: scores of few problems, the views, and what is told in words."""

from __future__ import annotations

from typing import Any

import pytest

from fedrlvr.audit.behaviour import Behaviour
from fedrlvr.audit.membership import ATTACKS, VIEWS, Figures, ProblemScores, curve, problem_scores
from fedrlvr.reporting.audit_page import audit_page, sentences


def test_the_scores_of_each_attack() -> None:
    seen = [Behaviour(1.0, 0.2, 3.0, 0.5), Behaviour(0.0, 0.4, 2.0, -0.5)]
    assert ATTACKS["gain"](seen) == [1.0, 0.0]
    assert ATTACKS["drift"](seen) == [0.2, 0.4]
    assert ATTACKS["loss"](seen) == [-3.0, -2.0]
    assert ATTACKS["reference"](seen) == [0.5, -0.5]
    assert ATTACKS["diba"](seen) == pytest.approx([0.0, 0.0]), "of two, one leads in gain as far as the other in drift"


def test_scores_are_standardised_over_both_sides() -> None:
    """Gains 3, 1 and 1, -1 have mean 1 and deviation sqrt(2)."""
    seen = [Behaviour(gain, 0, 0, 0) for gain in (3.0, 1.0, 1.0, -1.0)]
    scores = problem_scores("gain", seen[:2], seen[2:])
    assert scores.members == pytest.approx([2**0.5, 0.0])
    assert scores.others == pytest.approx([0.0, -(2**0.5)])
    joined = scores.joined(ProblemScores([9.0], [8.0]))
    assert (joined.members[-1], joined.others[-1]) == (9.0, 8.0)


def test_the_public_has_no_log_probs() -> None:
    assert VIEWS["public"] == ("gain",)
    assert set(VIEWS["server"]) == set(ATTACKS)


def test_figures_hold_no_score() -> None:
    tree = Figures.of(ProblemScores([0.123456, 2.0], [0.0, 1.0])).to_json()
    assert (tree["members"], tree["others"], tree["auc"]["value"]) == (2, 2, 0.75)
    assert list(tree["true_positives"]) == ["0.01", "0.001"]
    assert "0.123456" not in str(tree)


def test_the_curve_at_equal_steps() -> None:
    assert curve(ProblemScores([3.0, 1.0], [2.0, 0.0]), points=2) == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]


def audited(low: float, high: float, rise: float = 0.0) -> dict[str, Any]:
    area = {"value": (low + high) / 2, "low": low, "high": high}
    canary = {"client": "<i>", "times": 10, "exposure": 1.0 + rise, "base": 1.0, "most": 3.0, "returned": 0.25}
    return {
        "round": 4,
        "clients": ["<b>"],
        "membership": [
            {
                "view": "site",
                "attack": "diba",
                "members": 20,
                "others": 30,
                "auc": area,
                "true_positives": {"0.01": area},
            },
            {
                "view": "site",
                "attack": "gain",
                "members": 20,
                "others": 30,
                "auc": area,
                "true_positives": {"0.01": area},
            },
        ],
        "canaries": {"site": [canary], "public": []},
        "returned": {"site": {"responses": 40, "private": 1}},
        "notes": [],
    }


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.71, 0.9, "can tell"),
        (0.51, 0.9, "a little better"),
        (0.4, 0.62, "up to 0.62 is not excluded"),
        (0.3, 0.4, "the wrong way"),
    ],
)
def test_the_words_go_by_the_interval(low: float, high: float, word: str) -> None:
    first, *_ = sentences(audited(low, high))
    assert word in first
    assert "20 training and 30 other" in first


@pytest.mark.parametrize(("rise", "word"), [(1.0, "10 times learnt"), (0.9, "10 times not learnt")])
def test_a_canary_is_learnt_from_one_bit_on(rise: float, word: str) -> None:
    _, canaries, returned = sentences(audited(0.4, 0.6, rise))
    assert word in canaries
    assert "25 %" in canaries
    assert "1 of 40" in returned


def test_the_page_is_self_contained_and_escapes_names() -> None:
    page = audit_page("<run>", audited(0.4, 0.6), {"site": {"diba": [(0.0, 0.0), (1.0, 1.0)]}})
    assert "<b>" not in page.replace("<b>", "", page.count("</b>"))
    assert "&lt;run&gt;" in page
    assert "src=" not in page
    assert "href=" not in page
