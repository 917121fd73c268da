"""GeoMin as we read it: odds by hand, who is trusted, and what is remembered."""

from __future__ import annotations

import math

import pytest
import torch
from fakeledger import FakeLedger, step, voted

from fedrlvr.supervision import Fate, Spending, Step
from fedrlvr.supervision.features import features
from fedrlvr.supervision.geomin import Geomin, TwoGaussians


def geomin(*, budget: float = 0.0, trusted: float = 1.0, vote_free_steps: int = 0) -> Geomin:
    return Geomin(1, spending=Spending(budget), trusted=trusted, vote_free_steps=vote_free_steps)


def of(drawn: dict[str, tuple[str, list[float]]], number: int = 0) -> Step:
    """Problems by name, with their answers as letters and their responses' hidden states."""
    letters = [letters for letters, _ in drawn.values()]
    hidden = torch.tensor([states for _, states in drawn.values()]).unsqueeze(2)
    seen = features(torch.zeros(len(drawn), 1), hidden, [voted(text) for text in letters], [[1] * 4] * len(drawn), 4)
    return step(dict(zip(drawn, letters, strict=True)), number=number, features=seen)


KNOWN = {"known": ("bbaa", [3.0, 5.0, -1.0, 1.0])}
"""Where b is right: right responses at 3 and 5, wrong ones at -1 and 1. Means 4 and 0, common variance 1."""


def test_odds_by_hand() -> None:
    gaussians = TwoGaussians(1)
    gaussians.add(torch.tensor([[3.0], [5.0], [-1.0], [1.0]]), torch.tensor([True, True, False, False]))
    # (h^2 - (h - 4)^2) / 2 = 4 h - 8
    assert gaussians.log_odds(torch.tensor([[2.0], [4.0], [1.0]])).tolist() == pytest.approx([0, 8, -4])
    gaussians.add(torch.tensor([[-1.0], [1.0]]), torch.tensor([False, False]))
    assert gaussians.log_odds(torch.tensor([[2.0]])).item() == pytest.approx(math.log(2 / 4))


def test_too_few_responses_of_a_kind_are_no_distribution() -> None:
    gaussians = TwoGaussians(1)
    gaussians.add(torch.tensor([[3.0], [5.0], [0.0]]), torch.tensor([True, True, False]))
    assert not gaussians.known
    with pytest.raises(ValueError, match="too few"):
        gaussians.log_odds(torch.zeros(1, 1))


DRAWN = {
    "right": ("aaac", [4.0, 4.0, 1.0, -9.0]),  # mean L of the votes 4 (what else was answered does not count)
    "wrong": ("aaac", [1.0, 1.0, 1.0, 9.0]),  # -4
    "likely": ("aabc", [5.0, 5.0, 0.0, 0.0]),  # 12
    "none": ("----", [9.0, 9.0, 9.0, 9.0]),
}


@pytest.mark.parametrize(("trusted", "names"), [(1.0, ["right", "likely"]), (0.25, ["likely"]), (0.0, [])])
def test_votes_are_trusted_whose_responses_look_right(trusted: float, names: list[str]) -> None:
    method, ledger = geomin(trusted=trusted), FakeLedger("b", known=["known"])
    method.supervise(of(KNOWN), ledger)
    result = method.supervise(of(DRAWN, 1), ledger)
    assert [name for name, verdict in zip(DRAWN, result, strict=True) if verdict.fate is Fate.TRUSTED] == names
    assert [verdict.multiplier for verdict in result] == [float(name in names) for name in DRAWN]


def test_nothing_is_trusted_early_or_before_both_kinds_are_known() -> None:
    method, ledger = geomin(vote_free_steps=2), FakeLedger("b", known=["known"])
    assert {verdict.fate for verdict in geomin().supervise(of(DRAWN), ledger)} == {Fate.MASKED}
    method.supervise(of(KNOWN), ledger)
    assert {verdict.fate for verdict in method.supervise(of(DRAWN, 1), ledger)} == {Fate.MASKED}
    assert Fate.TRUSTED in {verdict.fate for verdict in method.supervise(of(DRAWN, 2), ledger)}


def test_labels_are_asked_for_by_chance_and_learned_from() -> None:
    method, ledger = geomin(budget=0.25), FakeLedger("b")
    method.supervise(of(DRAWN), ledger)
    assert len(ledger.asked) == 1
    assert method.gaussians.count_C.sum() == 4


def test_it_goes_on_exactly_from_its_state() -> None:
    method, other = geomin(), geomin()
    method.supervise(of(KNOWN), FakeLedger("b", known=["known"]))
    other.load(*method.state())
    probe = torch.tensor([[2.5]])
    assert torch.equal(other.gaussians.log_odds(probe), method.gaussians.log_odds(probe))
    with pytest.raises(ValueError, match="width 2"):
        Geomin(2, spending=Spending(0.0), trusted=1.0, vote_free_steps=0).load(*method.state())
    with pytest.raises(ValueError, match="hidden states"):
        method.supervise(step({"p": "aaab"}), FakeLedger())
