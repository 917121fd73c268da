"""Paired differences and their intervals, worked out by hand; what is written of a verdict, and read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from run_samples import run_records

from fedrlvr.config import Config
from fedrlvr.errors import CheckpointError
from fedrlvr.reporting.report import render
from fedrlvr.reporting.tables import verdict_table
from fedrlvr.reporting.verdict import ClientVerdict, MatrixRow, PairedDifference, Verdict, read_verdict

T3 = 3.182446
"""The 97.5 % quantile of Student's distribution with 3 degrees of freedom, from a table."""


def test_four_problems_with_one_response_each() -> None:
    """d = 1, 0, 0, 0: m = 1/4, s^2 = (9/16 + 3 x 1/16) / 3 = 1/4, and the half width is t sqrt(1/16)."""
    difference = PairedDifference.of([1, 1, 0, 1], [0, 1, 0, 1])
    assert (difference.n, difference.mean, difference.variance) == (4, 0.25, 0.25)
    assert difference.estimate.low == pytest.approx(0.25 - T3 / 4, abs=1e-6)
    assert difference.estimate.high == 1.0, "0.25 + 0.80 is cut"
    assert difference.word == "unclear"


def test_four_problems_with_two_responses_each() -> None:
    """d = 1/2, 0, 0, 1/2: m = 1/4, s^2 = 4 x 1/16 / 3 = 1/12, and the half width is t sqrt(1/48)."""
    difference = PairedDifference.of([1, 0.5, 1, 0.5], [0.5, 0.5, 1, 0])
    assert (difference.mean, difference.variance) == (0.25, pytest.approx(1 / 12))
    assert difference.estimate.low == pytest.approx(0.25 - T3 * (1 / 48) ** 0.5, abs=1e-6)
    assert difference.estimate.high == pytest.approx(0.25 + T3 * (1 / 48) ** 0.5, abs=1e-6)


def test_pairs_tell_more_than_two_means() -> None:
    """The same rates in another order have the same mean difference, and another variance: it goes by problem."""
    alone = [0, 0, 0, 0, 1, 1, 1, 1]
    paired = PairedDifference.of([0, 0, 1, 1, 1, 1, 1, 1], alone)
    crossed = PairedDifference.of([1, 1, 1, 1, 1, 1, 0, 0], alone)
    assert paired.mean == crossed.mean == 0.25
    assert paired.variance == pytest.approx(1.5 / 7)
    assert crossed.variance == pytest.approx(5.5 / 7)


@pytest.mark.parametrize(
    ("differences", "word"),
    [([-1] * 6 + [0] * 2, "worse"), ([1] * 6 + [0] * 2, "better"), ([1, -1] * 4, "unclear")],
)
def test_the_word_goes_by_the_interval(differences: list[int], word: str) -> None:
    alone = [1 if d < 0 else 0 for d in differences]
    difference = PairedDifference.of([a + d for a, d in zip(alone, differences, strict=True)], alone)
    assert difference.word == word


@pytest.mark.parametrize(
    ("n", "each", "low", "high"),
    # q = 1 - 0.025^(1/n): 0.6024 for 4 problems, 0.4593 for 6, 0.975 for one.
    [(4, 0, -0.6024, 0.6024), (6, -1, -1, -0.0815), (4, -1, -1, 0.2047), (1, 1, -0.95, 1)],
)
def test_equal_differences_of_few_problems_are_no_certainty(n: int, each: int, low: float, high: float) -> None:
    estimate = PairedDifference(n, each, 0.0).estimate
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_rates_of_other_problems_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="longer"):
        PairedDifference.of([1], [1, 0])
    with pytest.raises(ValueError, match="at least one problem"):
        PairedDifference.of([], [])


RATES = {"base": [0] * 8, "alone": [1] * 6 + [0] * 2, "federated": [0] * 8, "personal": [1] * 8}


def made() -> Verdict:
    """Ann is worse, bob unclear with a personal adapter that decides, and cyd holds no test problem."""
    ann = ClientVerdict.of("ann", {k: v for k, v in RATES.items() if k != "personal"})
    bob = ClientVerdict.of("bob", RATES)
    cyd = ClientVerdict.of("cyd", {"base": [], "alone": [], "federated": []})
    rows = [
        MatrixRow.of("federated", None, {"ann": [1, 0], "bob": [1], "cyd": []}),
        MatrixRow.of("alone", "ann", {"ann": [0.5, 0], "bob": [0], "cyd": []}),
    ]
    return Verdict(5, [ann, bob, cyd], {"seed": 3}, ["A note on <fractions>."], rows)


def test_the_personal_adapter_decides_where_there_is_one() -> None:
    verdict = made()
    assert [client.word for client in verdict.clients] == ["worse", "unclear", "no problems"]
    assert verdict.worse == ["ann"]
    assert verdict.clients[1].minus_alone["federated"].word == "worse"


def test_a_verdict_is_read_as_it_was_written_until_the_run_goes_on(tmp_path: Path) -> None:
    verdict = made()
    tree = json.loads(verdict.write(tmp_path).read_text("utf-8"))
    assert tree["clients"]["ann"]["minus_alone"]["federated"].keys() == {"n", "mean", "variance", "low", "high"}
    assert tree["matrix"][1] == {"model": "alone", "client": "ann", "pass@1": {"ann": 0.25, "bob": 0.0, "cyd": None}}
    read = read_verdict(tmp_path, 5)
    assert read is not None
    assert (read.clients, read.matrix, read.notes) == (verdict.clients, verdict.matrix, verdict.notes)
    assert read_verdict(tmp_path, 6) is None
    assert read_verdict(tmp_path / "elsewhere", 5) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"clients": {"ann": {}}}', '{"clients": {}, "matrix": [], "notes": []}'])
def test_a_damaged_verdict_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"verdict\.json"):
        read_verdict(tmp_path, 5)


@pytest.mark.parametrize(("number", "value"), [("n", "0"), ("n", "-3"), ("mean", "1e999"), ("variance", "-1.0")])
def test_a_verdict_of_impossible_numbers_is_damaged(number: str, value: str, tmp_path: Path) -> None:
    path = made().write(tmp_path)
    tree = json.loads(path.read_text("utf-8"))
    tree["clients"]["ann"]["minus_alone"]["federated"][number] = "HERE"
    path.write_text(json.dumps(tree).replace('"HERE"', value), "utf-8")
    with pytest.raises(CheckpointError, match=r"verdict\.json"):
        read_verdict(tmp_path, 5)


def test_a_line_a_client_in_the_terminal() -> None:
    out = io.StringIO()
    one_model_less = Verdict(5, [made().clients[0]])
    verdict_table(one_model_less, Console(file=out, width=80))
    (line,) = [line for line in out.getvalue().splitlines() if line.strip().startswith("ann")]
    assert line.split()[1:] == ["8", "0.0", "75.0", "0.0", "-75.0", "[-100.0,", "-36.3]", "worse"]
    verdict_table(made(), Console(file=out, width=80))
    assert "ann, alone" in out.getvalue()
    assert "personal - alone" in out.getvalue()
    assert "…" not in out.getvalue(), "nothing is cut"
    assert any(line.startswith((" bob", "bob")) for line in out.getvalue().splitlines())


def test_the_report_has_both_tables() -> None:
    page = render(Config(), run_records(), None, made())
    assert "federated minus alone" in page
    assert "personal minus alone" in page
    assert "A note on &lt;fractions&gt;." in page
    assert "<b>25.0 %</b>" in page
    assert "What each client gains" not in render(Config(), run_records())
