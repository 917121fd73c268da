"""From what is to be asked, trusted and masked to rewards and multipliers, with a ledger in the hand."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from fakeledger import FakeLedger, group, step, voted

from fedrlvr.supervision import Fate, Query, Step, Supervised
from fedrlvr.supervision.acquisition import Acquired, Spending
from fedrlvr.supervision.settling import LONGEST_SHOWN, Drawn, look_up, settle
from fedrlvr.tasks.problem import Question

FIVE = {"p0": "aab", "p1": "abb", "p2": "aab", "p3": "aab", "p4": "abb"}


def acquired(open_: int, queries: Sequence[int] = (), trusted: dict[int, float] | None = None) -> Acquired:
    """An acquisition for `open_` problems: the places to ask about, and the multiplier of each trusted place."""
    multipliers = [1.0 if at in queries else (trusted or {}).get(at, 0.0) for at in range(open_)]
    return Acquired(tuple(queries), tuple(trusted or ()), tuple(multipliers))


def waiting(*names: str, **ledger: object) -> FakeLedger:
    """A ledger that was asked about these, and nobody has answered."""
    result = FakeLedger(at_once=False, **ledger)  # type: ignore[arg-type]
    for name in names:
        result.ask(Query(Question("", name, "", "exact"), 0, 1, None, None, "a", 2, 3, ()))
    return result


def settled(drawn: Step, ledger: FakeLedger, queries: Sequence[int], **options: object) -> list[Supervised]:
    """Settled with these of the open problems asked about and nobody trusted."""
    known = look_up(drawn, ledger, Spending(1.0))
    return settle(drawn, ledger, known, acquired(len(known.without), queries), **options)  # type: ignore[arg-type]


# What the ledger says.


def test_what_has_a_label_or_is_awaited_is_not_open() -> None:
    ledger = waiting("p3", known=["p1"])
    # ceil(0.4 * 5), though only three are open
    assert look_up(step(FIVE), ledger, Spending(0.4)) == Drawn({1: [1.0, 0.0, 0.0]}, [0, 2, 4], 2, (3,))


@pytest.mark.parametrize(
    ("budget", "most", "queries"),
    [(0.2, 99, 1), (0.21, 99, 2), (1.0, 99, 5), (0.0, 99, 0), (1.0, 3, 3), (0.4, 3, 2), (1.0, 0, 0), (1.0, -1, 0)],
)
def test_the_share_is_of_the_whole_step_and_within_what_is_left(budget: float, most: int, queries: int) -> None:
    assert look_up(step(FIVE), FakeLedger(most=most), Spending(budget)).queries == queries
    assert look_up(step(FIVE), FakeLedger(most=most, known=["p0", "p1", "p2"]), Spending(budget)).queries == queries


def test_a_budget_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        look_up(step(FIVE), FakeLedger(), Spending(1.5))


def test_a_label_that_says_nobody_is_right_is_a_label() -> None:
    assert look_up(step({"p0": "aab"}), FakeLedger("z", known=["p0"]), Spending(1.0)) == Drawn(
        {0: [0.0, 0.0, 0.0]}, [], 1
    )


# What becomes of each problem.


def test_each_problem_has_the_fate_that_the_table_says() -> None:
    batch, ledger = step(FIVE), waiting("p3", truth={"p1": "b", "p4": "a"}, known=["p1"])
    ledger.at_once = True
    known = look_up(batch, ledger, Spending(0.4))
    result = settle(batch, ledger, known, acquired(3, queries=[2], trusted={0: 0.5}))
    assert result == [
        Supervised([1.0, 1.0, 0.0], 0.5, Fate.TRUSTED, true=False),
        Supervised([0.0, 1.0, 1.0], 1.0, Fate.KNOWN, true=True),
        Supervised([1.0, 1.0, 0.0], 0.0, Fate.MASKED, true=False),
        Supervised([1.0, 1.0, 0.0], 0.0, Fate.MASKED, true=False),
        Supervised([1.0, 0.0, 0.0], 1.0, Fate.QUERIED, true=True),  # the majority said b
    ]
    assert ledger.names == ["p3", "p4"]


def test_an_answer_that_does_not_come_at_once_is_masked_and_counts_when_it_is_there() -> None:
    batch, ledger = step({"p": "aab", "q": "aab"}), FakeLedger("b", at_once=False)
    assert settled(batch, ledger, [1])[1] == Supervised([1.0, 1.0, 0.0], 0.0, Fate.QUERIED, true=False)
    assert settled(batch, ledger, [])[1] == Supervised([1.0, 1.0, 0.0], 0.0, Fate.MASKED, true=False)
    assert ledger.names == ["q"]
    ledger.arrive("q")
    assert settled(batch, ledger, [0])[1] == Supervised([0.0, 0.0, 1.0], 1.0, Fate.KNOWN, true=True)
    assert ledger.names == ["q", "p"]


def test_where_the_rest_counts_as_voted_so_does_what_is_asked_or_awaited_without_an_answer() -> None:
    batch, ledger = step({"p": "aab", "q": "aab", "r": "aab"}), waiting("p", truth="b")
    drawn = look_up(batch, ledger, Spending(1.0))
    assert settle(batch, ledger, drawn, acquired(2, queries=[0], trusted={1: 1.0}), rest=1.0) == [
        Supervised([1.0, 1.0, 0.0], 1.0, Fate.TRUSTED, true=False),
        Supervised([1.0, 1.0, 0.0], 1.0, Fate.QUERIED, true=False),
        Supervised([1.0, 1.0, 0.0], 1.0, Fate.TRUSTED, true=False),
    ]


def test_a_label_is_paid_for_once_however_often_its_problem_is_drawn() -> None:
    ledger = FakeLedger("b")
    for number in range(3):
        (result,) = settled(step({"p": "aab"}, number=number), ledger, [0] if number == 0 else [])
        assert result == Supervised([0.0, 0.0, 1.0], 1.0, Fate.KNOWN if number else Fate.QUERIED, true=True)
    assert ledger.names == ["p"]


@pytest.mark.parametrize("rest", [0.0, 1.0])
def test_a_problem_drawn_twice_in_a_step_is_asked_about_once_and_its_label_counts_for_both(rest: float) -> None:
    batch, ledger = step([("p", "aab"), ("q", "aab"), ("p", "bba")]), FakeLedger("b")
    assert look_up(batch, ledger, Spending(1.0)).without == [0, 1]
    result = settled(batch, ledger, [0], rest=rest)
    assert result[0] == Supervised([0.0, 0.0, 1.0], 1.0, Fate.QUERIED, true=True)
    assert result[2] == Supervised([1.0, 1.0, 0.0], 1.0, Fate.KNOWN, true=True)
    assert ledger.names == ["p"]


def test_a_problem_drawn_twice_without_an_answer_counts_as_all_others_the_second_time() -> None:
    batch = step([("p", "aab"), ("p", "bba")])
    result = settled(batch, FakeLedger("b", at_once=False), [0])
    assert result == [
        Supervised([1.0, 1.0, 0.0], 0.0, Fate.QUERIED, true=False),
        Supervised([1.0, 1.0, 0.0], 0.0, Fate.MASKED, true=False),
    ]


def test_an_expert_who_has_not_answered_yet_gets_the_newest_vote() -> None:
    ledger = FakeLedger("b", at_once=False)
    settled(step({"p": "aab"}, number=1), ledger, [0])
    settled(step({"q": "aab", "p": "bbc"}, number=4), ledger, [0])
    assert ledger.names == ["p", "q"]
    (again,) = ledger.reminded
    assert (again.question.id, again.step, again.rank) == ("p", 4, 2)
    assert (again.majority, again.votes, again.responses) == ("b", 2, ("0: b", "2: c"))


def test_a_group_in_which_nothing_could_be_read_can_be_asked_about_and_has_no_votes() -> None:
    ledger = FakeLedger("a")
    (asked,) = settled(step({"p": "---"}), ledger, [0])
    assert asked == Supervised([0.0, 0.0, 0.0], 1.0, Fate.QUERIED, true=True)
    (query,) = ledger.asked
    assert (query.majority, query.votes, query.group) == (None, 0, 3)
    assert query.responses == ("0: -",)
    (left,) = settled(step({"p": "---"}), FakeLedger("a"), [])
    assert left == Supervised([0.0, 0.0, 0.0], 0.0, Fate.MASKED, true=False)


def test_a_tie_goes_to_the_answer_that_came_first() -> None:
    (result,) = settled(step({"p": "baab"}), FakeLedger(), [])
    assert result.rewards == [1.0, 0.0, 0.0, 1.0]


# What the ledger is told.


def test_a_query_says_why_the_label_is_wanted() -> None:
    batch, ledger = step({"p": "aab", "q": "aaa", "r": "cbb"}, number=7), FakeLedger(known=["p"])
    drawn = look_up(batch, ledger, Spending(1.0))
    scores, reliable = [9.0, 1.5, 2.5], [0.9, 0.25, 0.75]
    settle(batch, ledger, drawn, acquired(2, queries=[1, 0]), score=scores.__getitem__, reliable=reliable.__getitem__)
    assert ledger.asked == [
        Query(Question("What is r?", "r", "letters", "exact"), 7, 1, 2.5, 0.75, "b", 2, 3, ("1: b", "0: c")),
        Query(Question("What is q?", "q", "letters", "exact"), 7, 2, 1.5, 0.25, "a", 3, 3, ("0: a",)),
    ]


def test_a_query_that_nothing_ranked_has_no_score() -> None:
    ledger = FakeLedger()
    settled(step({"p": "aab"}), ledger, [0])
    assert (ledger.asked[0].score, ledger.asked[0].reliable) == (None, None)


@pytest.mark.parametrize(
    ("letters", "shown"),
    [
        ("caab", ("1: a", "0: c")),  # one of the majority, one of the earliest of the others
        ("caabb", ("1: a", "3: b")),  # the largest of the others
        ("a-ab", ("0: a", "3: b")),  # another answer rather than none
        ("-aa", ("1: a", "0: -")),
        ("aa", ("0: a",)),
        ("ba", ("0: b", "1: a")),
    ],
)
def test_the_responses_shown_disagree_and_the_majoritys_comes_first(letters: str, shown: tuple[str, ...]) -> None:
    ledger = FakeLedger()
    settled(step({"p": letters}), ledger, [0])
    assert ledger.asked[0].responses == shown


def test_of_a_long_response_the_end_is_shown() -> None:
    batch, ledger = Step(0, [group("p", "a")], [voted("a")], None, Random(0)), FakeLedger()
    batch.groups[0].responses[0].text = "x" * LONGEST_SHOWN + "the end"
    settled(batch, ledger, [0])
    (shown,) = ledger.asked[0].responses
    assert len(shown) == LONGEST_SHOWN
    assert shown.endswith("xthe end")
