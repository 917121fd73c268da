"""The selections that CARE is compared with: what they ask about, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
from fakeledger import FakeLedger, group, step, voted

from fedrlvr.supervision import Fate, Selection, Spending, Step
from fedrlvr.tasks.problem import Question

LETTERS = {"p0": "aaaa", "p1": "aaab", "p2": "aabb", "p3": "abcd", "p4": "aab-", "p5": "a---"}


class Peek:
    """True rewards where b is always right; keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, problem: Question, completions: Sequence[str]) -> list[float]:
        self.seen.append(problem.id)
        return [float(text.endswith(": b")) for text in completions]


def test_entropy_asks_where_the_answers_are_most_spread() -> None:
    ledger = FakeLedger()
    Selection("entropy", spending=Spending(1.0), rest="masked").supervise(step(LETTERS, number=4), ledger)
    assert ledger.names == ["p3", "p2", "p4", "p1", "p0", "p5"]
    third = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    quarter = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    scores = [query.score for query in ledger.asked]
    assert scores == pytest.approx([math.log(4), math.log(2), third, quarter, 0.0, 0.0])
    assert [(query.rank, query.step, query.reliable) for query in ledger.asked] == [(n, 4, None) for n in range(1, 7)]


def test_probability_asks_where_the_policy_is_least_sure() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    groups = [
        group("p", "ab", [[half, half], [half]]),  # 0.5
        group("q", "ab", [[quarter], [0.0, half]]),  # (0.25 + 0.75) / 2 = 0.5
        group("r", "ab", [[quarter, half, quarter], [quarter]]),  # (1/3 + 0.25) / 2
        group("s", "ab", [[0.0], [0.0]]),  # 1
    ]
    ledger = FakeLedger()
    drawn = Step(0, groups, [voted("ab")] * 4, None, Random(0))
    Selection("probability", spending=Spending(0.75), rest="masked").supervise(drawn, ledger)
    assert ledger.names == ["r", "p", "q"]
    assert [query.score for query in ledger.asked] == pytest.approx([-7 / 24, -0.5, -0.5])


def test_the_oracle_beside_masked_problems_asks_where_the_group_has_a_gradient() -> None:
    drawn = step({"p0": "aaaa", "p1": "abbb", "p2": "aac-", "p3": "aacb", "p4": "bbbb", "p5": "aaab"})
    ledger = FakeLedger("b")
    Selection("oracle", spending=Spending(0.6), rest="masked", peek=Peek()).supervise(drawn, ledger)
    assert ledger.names == ["p1", "p3", "p5", "p0"]  # three are mixed; then the earliest of those worth nothing
    assert [query.score for query in ledger.asked] == pytest.approx([2.0, 2.0, 2.0, 0.0])
    voted_on = Selection("oracle", spending=Spending(0.6), rest="pseudo", peek=Peek())
    assert (voted_on.worth, Selection("random", spending=Spending(1), rest="masked").worth) == ("gap", "mixed")


def test_the_oracle_asks_where_a_label_changes_most() -> None:
    ledger, peek = FakeLedger("b"), Peek()
    drawn = step({"p0": "aaaa", "p1": "abbb", "p2": "aac-", "p3": "aacb", "p4": "aabb", "p5": "aaab"})
    Selection("oracle", spending=Spending(0.6), rest="masked", peek=peek, worth="gap").supervise(drawn, ledger)
    # Votes and right ones of four: 2 and 2, 3 and 1 (odds of 1 both), 2 and 1 (odds of 1/3), 2 and none (one side
    # has advantages). Unanimous or right is no gap.
    assert ledger.names == ["p4", "p5", "p3", "p2"]
    gaps = [math.sqrt(8 * 2), math.sqrt(8 * 2), math.sqrt(8 * (1 + math.sqrt(1 / 3))), 2.0]
    assert [query.score for query in ledger.asked] == pytest.approx(gaps)


def test_the_oracle_sees_more_than_it_pays_for_and_trains_on_no_more() -> None:
    ledger, peek = FakeLedger("b", known=["p1"]), Peek()
    drawn = step({"p0": "aaaa", "p1": "aaab", "p2": "aabb", "p3": "aaab"})
    result = Selection("oracle", spending=Spending(0.25), rest="masked", peek=peek).supervise(drawn, ledger)
    assert peek.seen == ["p0", "p2", "p3"]
    assert ledger.names == ["p2"]
    assert [group.true for group in result] == [False, True, True, False]
    assert result[3].rewards == [1.0, 1.0, 1.0, 0.0]
    assert [group.multiplier for group in result] == [0.0, 1.0, 1.0, 0.0]


def test_random_asks_as_the_steps_own_chance_says() -> None:
    rng = Random(3)
    draws = [rng.random() for _ in LETTERS]
    assert draws == pytest.approx([0.238, 0.544, 0.370, 0.604, 0.626, 0.066], abs=5e-4)
    ledger = FakeLedger()
    Selection("random", spending=Spending(0.5), rest="masked").supervise(step(LETTERS, seed=3), ledger)
    assert ledger.names == ["p4", "p3", "p1"]
    assert {query.score for query in ledger.asked} == {None}


@pytest.mark.parametrize("by", ["random", "entropy", "probability", "oracle"])
def test_the_share_is_of_the_whole_step_whatever_is_known(by: str) -> None:
    ledger = FakeLedger("b", known=["p0", "p1", "p2"])
    peek = Peek() if by == "oracle" else None
    result = Selection(by, spending=Spending(0.5), rest="masked", peek=peek).supervise(step(LETTERS), ledger)
    assert sorted(ledger.names) == ["p3", "p4", "p5"]
    assert [group.fate for group in result] == [Fate.KNOWN] * 3 + [Fate.QUERIED] * 3
    assert all(group.true and group.multiplier == 1.0 for group in result)


@pytest.mark.parametrize("by", ["random", "entropy", "probability", "oracle"])
def test_a_total_that_is_spent_ends_the_asking(by: str) -> None:
    ledger = FakeLedger("b", most=3)
    method = Selection(by, spending=Spending(0.34), rest="masked", peek=Peek() if by == "oracle" else None)
    asked = []
    for number in range(4):
        method.supervise(step({f"{number}{name}": letters for name, letters in LETTERS.items()}), ledger)
        asked.append(len(ledger.asked))
    assert asked == [3, 3, 3, 3]


def test_the_rest_is_masked_or_trained_on_as_voted() -> None:
    answers = {"p0": "aab", "p1": "abc", "p2": "---"}
    masked = Selection("entropy", spending=Spending(0.1), rest="masked").supervise(step(answers), FakeLedger("c"))
    voted_on = Selection("entropy", spending=Spending(0.1), rest="pseudo").supervise(step(answers), FakeLedger("c"))
    assert [group.fate for group in masked] == [Fate.MASKED, Fate.QUERIED, Fate.MASKED]
    assert [group.fate for group in voted_on] == [Fate.TRUSTED, Fate.QUERIED, Fate.TRUSTED]
    assert [group.multiplier for group in masked] == [0.0, 1.0, 0.0]
    assert [group.multiplier for group in voted_on] == [1.0, 1.0, 1.0]
    for result in (masked, voted_on):
        assert [group.rewards for group in result] == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        assert [group.true for group in result] == [False, True, False]


def test_what_is_awaited_is_not_asked_again_and_is_as_the_rest() -> None:
    answers = {"p0": "aab", "p1": "abc"}
    for rest, multiplier, fate in (("masked", 0.0, Fate.MASKED), ("pseudo", 1.0, Fate.TRUSTED)):
        ledger = FakeLedger("c", at_once=False)
        method = Selection("entropy", spending=Spending(0.5), rest=rest)  # type: ignore[arg-type]
        first = method.supervise(step(answers), ledger)
        assert (first[1].fate, first[1].multiplier, first[1].true) == (Fate.QUERIED, multiplier, False)
        second = method.supervise(step(answers), ledger)
        assert ledger.names == ["p1", "p0"]
        assert (second[1].fate, second[1].multiplier, second[1].true) == (fate, multiplier, False)
        ledger.arrive("p1")
        third = method.supervise(step(answers), ledger)
        assert (third[1].fate, third[1].rewards, third[1].true) == (Fate.KNOWN, [0.0, 0.0, 1.0], True)
        assert ledger.names == ["p1", "p0"]


def test_a_selection_reads_votes_and_learns_nothing() -> None:
    method = Selection("random", spending=Spending(0.5), rest="masked")
    assert method.reads_votes
    assert not method.reads_states
    assert method.learn() == {}


def test_only_the_oracle_looks_at_answers() -> None:
    with pytest.raises(ValueError, match="'oracle'"):
        Selection("oracle", spending=Spending(0.5), rest="masked")
    others: tuple[str, ...] = ("random", "entropy", "probability")
    for by in others:
        with pytest.raises(ValueError, match=f"selection by '{by}' must not have a look"):
            Selection(by, spending=Spending(0.5), rest="masked", peek=Peek())
