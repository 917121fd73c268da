"""A reply that waits: the card on disk, the first decision of a person about these very bytes, and the time's end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from factories import make_card

from fedrlvr.errors import EgressError, LedgerError
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.privacy.card import Card, digest_of
from fedrlvr.privacy.rule import SiteRule


class Waiting:
    """A worker that waits in a test: `sleep` lets something happen, then the clock goes on."""

    def __init__(self, state: Path, *steps: Callable[[Approvals], object]) -> None:
        self.now, self.steps = 2.0, list(steps)
        self.approvals = Approvals(state, lambda: self.now)

    def sleep(self, seconds: float) -> None:
        if self.steps:
            self.steps.pop(0)(self.approvals)
        else:
            self.now += 50


def test_a_person_s_first_decision_counts_and_nothing_is_left_behind(tmp_path: Path) -> None:
    card, other = make_card(), make_card(b"other")
    shown: list[Card] = []

    def approve(approvals: Approvals) -> None:
        shown.extend(approvals.waiting())
        with pytest.raises(EgressError, match="No reply"):
            approvals.decide(other.id, allow=True, by="Ruiz")
        with pytest.raises(EgressError, match="not the one that was shown"):
            approvals.decide(card.id, allow=True, by="Ruiz", digest=other.digest)
        with pytest.raises(LedgerError, match="name"):
            approvals.decide(card.id, allow=True, by=" ")
        approvals.decide(card.id, allow=True, by=" Dr.  Ruiz", digest=card.digest)
        with pytest.raises(EgressError, match="No reply"):
            approvals.decide(card.id, allow=False, by="Ames")

    waiting = Waiting(tmp_path, approve)
    decision = waiting.approvals.wait(card, waiting.sleep)
    assert decision is not None
    assert (decision.allow, decision.by, decision.digest) == (True, "Dr. Ruiz", digest_of(b"bytes"))
    assert shown == [card]
    assert list((tmp_path / "egress").iterdir()) == []


def test_a_reply_expires(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    assert waiting.approvals.wait(make_card(), waiting.sleep) is None
    assert waiting.now > 100
    assert waiting.approvals.waiting() == []


def test_a_decision_about_other_bytes_or_of_an_earlier_time_is_none(tmp_path: Path) -> None:
    card = make_card()
    path = tmp_path / "egress" / f"{card.id}.decision"

    def forge(approvals: Approvals) -> None:
        path.write_text('{"allow": true, "by": "x", "digest": "' + "0" * 64 + '", "at": 1}')

    path.parent.mkdir()
    path.write_text('{"allow": true, "by": "x", "digest": "' + card.digest + '", "at": 1}')
    waiting = Waiting(tmp_path, forge)
    assert waiting.approvals.wait(card, waiting.sleep) is None


def test_a_card_that_is_under_another_name_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "egress").mkdir()
    (tmp_path / "egress" / "0123456789abcdef.json").write_text(make_card().model_dump_json())
    (tmp_path / "egress" / f"{make_card().id}.json").write_text("{}")
    assert Approvals(tmp_path, lambda: 2.0).waiting() == []


def test_what_needs_a_person(tmp_path: Path) -> None:
    kinds = ("adapter", "responses", "scores", "numbers")
    needed = {
        approve: [kind for kind in kinds if make_card(kind=kind).needs_person(approve)]  # type: ignore[arg-type]
        for approve in ("none", "adapter", "responses", "all")
    }
    assert needed == {"none": [], "adapter": ["adapter"], "responses": ["responses"], "all": list(kinds)}


RULES = """
import time

def small(card):
    return card["size"] < 10

def person(card):
    return None, f"{card['problems']} problems"

def wrong(card):
    return "yes"

def broken(card):
    raise KeyError("a text that stays here")

def slow(card):
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("name", "size", "expected", "reason"),
    [
        ("small", 5, True, ""),
        ("small", 50, False, ""),
        ("person", 5, None, "40 problems"),
        ("wrong", 5, False, "returned str"),
        ("broken", 5, False, "raised KeyError (site_rules.py, line 14)"),
        ("slow", 5, False, "egress.rule_seconds"),
        ("absent", 5, False, "no function 'absent'"),
    ],
)
def test_a_rule_decides_and_one_that_fails_denies(
    name: str, size: int, expected: bool | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "site_rules.py").write_text(RULES)
    rule = SiteRule(f"site_rules:{name}", tmp_path, 0.5 if name == "slow" else 60.0)
    try:
        allow, said = rule.decide(make_card(size=size))
    finally:
        rule.close()
    assert allow is expected
    assert reason in said
    assert "stays here" not in said
