"""What a client's supervision sees of its labels: paid for once, within a budget, now or when people have the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ledgers import query

from fedrlvr.errors import GradingError, LedgerError
from fedrlvr.labels.answers import Answers
from fedrlvr.labels.client_ledger import DAY, AllLabels, Budget, ClientLedger, NoLabels
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.rl import Group, Response
from fedrlvr.supervision import Selection, Spending, Step, clusters
from fedrlvr.supervision.types import Ledger
from fedrlvr.tasks.extraction import wrap
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.rewards import grader_for
from fedrlvr.tasks.voting import sameness

PROBLEMS = [Problem(f"What is {n} + {n}?", str(2 * n), f"p{n}", "sums", "math") for n in range(1, 9)]
SEALED = Answers("clinic-a", PROBLEMS, grader_for(None))
P1, P2 = PROBLEMS[0].question, PROBLEMS[1].question
TWO, FOUR, NONE = wrap("2", "math"), wrap("4", "math"), "none"


class Clock:
    """Unix seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LabelLedger]:
    ledger = LabelLedger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def dataset(disk: LabelLedger, clock: Clock, **budget: Any) -> ClientLedger:
    return ClientLedger(disk, SEALED, Budget(**budget), desk=False, clock=clock)


def desk(disk: LabelLedger, clock: Clock, **budget: int) -> ClientLedger:
    return ClientLedger(disk, SEALED, Budget(**budget), desk=True, clock=clock)


# Ledgers without a price.


def test_who_has_every_label_asks_nothing() -> None:
    ledger: Ledger = AllLabels(SEALED)
    assert ledger.grade(P1, [TWO, FOUR, NONE]) == [1.0, 0.0, 0.0]
    assert not ledger.awaited(P1)
    assert ledger.room() == 0
    with pytest.raises(ValueError, match="nobody is there to be asked"):
        ledger.ask(query("p1"))


def test_where_the_data_set_has_no_answer_nothing_can_be_graded() -> None:
    sealed = Answers("clinic-a", [Problem("?", "", "p1", "sums", "math")], grader_for(None))
    with pytest.raises(GradingError, match="clinic-a: problem 'p1' has no answer"):
        AllLabels(sealed).grade(P1, [TWO])


def test_who_wants_no_label_has_none_and_can_ask_nobody() -> None:
    ledger: Ledger = NoLabels()
    assert ledger.grade(P1, [TWO]) is None
    assert not ledger.awaited(P1)
    assert ledger.room() == 0
    with pytest.raises(ValueError, match="nobody"):
        ledger.ask(query("p1"))


# Bought from a data set.


def test_an_answer_is_unknown_until_it_is_paid_for_and_then_there_at_once(disk: LabelLedger, clock: Clock) -> None:
    ledger: Ledger = dataset(disk, clock)
    assert ledger.grade(P1, [TWO, FOUR]) is None
    assert not ledger.awaited(P1)
    ledger.ask(query("p1", majority="4", step=3))
    assert ledger.grade(P1, [TWO, FOUR, NONE]) == [1.0, 0.0, 0.0]
    assert ledger.grade(P2, [TWO, FOUR]) is None
    (entry,) = disk.entries()
    assert (entry.problem, entry.step, entry.asked_at, entry.label) == ("p1", 3, 1_000_000.0, "2")
    assert [(opinion.expert, opinion.answer) for opinion in entry.opinions] == [("dataset", "2")]


def test_an_answer_is_bought_once(disk: LabelLedger, clock: Clock) -> None:
    ledger = dataset(disk, clock, total=2)
    for _ in range(3):
        ledger.ask(query("p1"))
    assert ledger.room() == 1
    assert len(disk.entries()[0].opinions) == 1


def test_what_the_data_set_has_no_answer_to_cannot_be_bought(disk: LabelLedger, clock: Clock) -> None:
    sealed = Answers("clinic-a", [Problem("?", "", "p1", "sums", "math")], grader_for(None))
    ledger = ClientLedger(disk, sealed, Budget(), desk=False, clock=clock)
    with pytest.raises(LedgerError, match="'p1' is empty"):
        ledger.ask(query("p1"))
    assert disk.asked() == 0


# From people.


def test_a_question_to_people_is_awaited_until_somebody_answers(disk: LabelLedger, clock: Clock) -> None:
    ledger = desk(disk, clock)
    ledger.ask(query("p1", majority="2"))
    assert ledger.grade(P1, [TWO]) is None
    assert ledger.awaited(P1)
    disk.answer("p1", "skip", None, expert="eve", at=1.0)
    assert ledger.grade(P1, [TWO]) is None
    disk.answer("p1", "accept", None, expert="eve", at=2.0)
    assert ledger.grade(P1, [TWO, FOUR]) == [1.0, 0.0]


def test_what_people_say_counts_and_not_what_the_data_set_says(disk: LabelLedger, clock: Clock) -> None:
    ledger = desk(disk, clock)
    ledger.ask(query("p1", majority="2"))
    disk.answer("p1", "correct", "8/2", expert="eve", at=1.0)
    assert ledger.grade(P1, [TWO, FOUR]) == [0.0, 1.0]
    assert [opinion.expert for opinion in disk.entries()[0].opinions] == ["eve"]


def test_two_experts_who_write_one_answer_differently_agree(disk: LabelLedger, clock: Clock) -> None:
    ledger = desk(disk, clock)
    ledger.ask(query("p1", majority="2"))
    disk.ask_second("p1", at=1.0)
    disk.answer("p1", "correct", "1/2", expert="eve", at=1.0)
    assert ledger.grade(P1, [wrap("0.5", "math")]) is None
    assert ledger.awaited(P1)
    disk.answer("p1", "correct", r"\frac12", expert="adam", at=2.0)
    assert ledger.grade(P1, [wrap("0.5", "math"), TWO]) == [1.0, 0.0]


@pytest.mark.parametrize("second", [None, "8"])
def test_what_nobody_can_answer_or_agree_on_is_never_asked_again(
    disk: LabelLedger, clock: Clock, second: str | None
) -> None:
    ledger = desk(disk, clock, total=5)
    ledger.ask(query("p1"))
    if second is None:
        disk.answer("p1", "unanswerable", None, expert="eve", at=1.0)
    else:
        disk.ask_second("p1", at=1.0)
        disk.answer("p1", "correct", "6", expert="eve", at=1.0)
        disk.answer("p1", "correct", second, expert="adam", at=2.0)
    assert ledger.grade(P1, [TWO]) is None
    assert ledger.awaited(P1)
    assert ledger.room() == 4


# Budgets.


def test_without_a_budget_of_its_own_there_is_always_room(disk: LabelLedger, clock: Clock) -> None:
    ledger = dataset(disk, clock)
    ledger.ask(query("p1"))
    assert ledger.room() is None


def test_the_total_counts_every_question_whoever_answered(disk: LabelLedger, clock: Clock) -> None:
    ledger = desk(disk, clock, total=3)
    assert ledger.room() == 3
    for n in (1, 2):
        ledger.ask(query(f"p{n}"))
    disk.answer("p1", "accept", None, expert="eve", at=1.0)
    clock.now += 100 * DAY
    assert ledger.room() == 1
    ledger.ask(query("p3"))
    assert ledger.room() == 0
    # A smaller budget than was spent leaves nothing, and no less.
    assert dataset(disk, clock, total=1).room() == 0


def test_the_day_slides(disk: LabelLedger, clock: Clock) -> None:
    ledger, start = desk(disk, clock, per_day=3), clock.now
    ledger.ask(query("p1"))
    clock.now = start + 0.75 * DAY
    ledger.ask(query("p2"))
    ledger.ask(query("p3"))
    assert ledger.room() == 0
    clock.now = start + DAY - 1
    assert ledger.room() == 0
    clock.now = start + DAY + 1  # 24 hours after the first, whatever the date
    assert ledger.room() == 1
    ledger.ask(query("p4"))
    assert ledger.room() == 0
    clock.now = start + 1.75 * DAY + 1
    assert ledger.room() == 2
    clock.now = start + 3 * DAY
    assert ledger.room() == 3


def test_a_day_is_24_hours() -> None:
    assert DAY == 24 * 60 * 60


def test_of_total_and_day_the_smaller_binds(disk: LabelLedger, clock: Clock) -> None:
    ledger = desk(disk, clock, total=4, per_day=3)
    assert ledger.room() == 3
    for n in (1, 2, 3):
        ledger.ask(query(f"p{n}"))
    assert ledger.room() == 0
    clock.now += 2 * DAY
    assert ledger.room() == 1


def step(number: int) -> Step:
    """All eight problems; responses say 2, 2 and 4."""
    responses = [TWO, TWO, FOUR]
    groups = [Group(p.question, [1], [Response([5], [-1.0], t, True) for t in responses]) for p in PROBLEMS]
    votes = [clusters(["2", "2", "4"], sameness("math")) for _ in groups]
    return Step(number, groups, votes, None, Random(0))


@pytest.mark.parametrize(
    ("share", "budget", "asked"),
    [
        (0.25, {}, [2, 4, 6, 8]),
        (0.25, {"total": 5}, [2, 4, 5, 5]),
        (0.25, {"per_day": 3}, [2, 3, 5, 6]),  # two steps a day
        (0.5, {"total": 7, "per_day": 3}, [3, 3, 6, 6]),
        (1.0, {}, [8, 8, 8, 8]),
    ],
)
def test_share_total_and_day_each_bind(
    disk: LabelLedger, clock: Clock, share: float, budget: dict[str, int], asked: Sequence[int]
) -> None:
    """The first step of each day is at its beginning, the second twelve hours later."""
    method, ledger, result = (
        Selection("entropy", spending=Spending(share), rest="masked"),
        dataset(disk, clock, **budget),
        [],
    )
    start = clock.now
    for number in range(4):
        clock.now = start + (number % 2) * DAY / 2 + (number // 2) * (DAY + 1) * 2
        method.supervise(step(number), ledger)
        result.append(disk.asked())
    assert result == asked


def test_a_share_is_of_the_problems_of_the_run_and_what_the_ledger_has_of_them_counts(
    disk: LabelLedger, clock: Clock
) -> None:
    problems = frozenset(["p1", "p2", "p3"])
    ledger = dataset(disk, clock, share=2, problems=problems)
    assert ledger.room() == 2
    ledger.ask(query("p1"))
    assert ledger.room() == 1
    ledger.ask(query("p6"))  # of another run
    assert ledger.room() == 1
    assert dataset(disk, clock, total=2, share=2, problems=problems).room() == 0


def test_a_label_was_used_once_a_step_of_this_run_has(disk: LabelLedger, clock: Clock) -> None:
    ledger = dataset(disk, clock)
    ledger.ask(query("p1"))
    assert not ledger.used(P1)
    disk.use("p1", 3)
    assert ledger.used(P1)
    assert disk.uses("p1", this_run=True) == 1


def test_a_label_that_another_run_used_is_new_to_this_one(tmp_path: Path, clock: Clock) -> None:
    earlier, later = (LabelLedger(tmp_path / "shared.sqlite", run=run) for run in ("earlier", "later"))
    dataset(earlier, clock).ask(query("p1"))
    earlier.use("p1", 3)
    assert dataset(earlier, clock).used(P1)
    assert not dataset(later, clock).used(P1)
    assert later.uses("p1") == 1
    earlier.close()
    later.close()


def test_rewards_are_by_what_was_bought_and_else_the_majoritys(disk: LabelLedger, clock: Clock) -> None:
    ledger, method = dataset(disk, clock), Selection("entropy", spending=Spending(0.25), rest="masked")
    result = method.supervise(step(0), ledger)
    assert [(group.rewards, group.true) for group in result[:3]] == [
        ([1.0, 1.0, 0.0], True),  # 1 + 1
        ([0.0, 0.0, 1.0], True),  # 2 + 2, where the majority says 2
        ([1.0, 1.0, 0.0], False),
    ]
    assert [group.true for group in method.supervise(step(1), ledger)] == [True] * 4 + [False] * 4


def test_people_answer_between_two_steps(disk: LabelLedger, clock: Clock) -> None:
    ledger, method = desk(disk, clock), Selection("entropy", spending=Spending(0.25), rest="masked")
    assert [group.true for group in method.supervise(step(0), ledger)] == [False] * 8
    disk.answer("p2", "correct", "4", expert="eve", at=1.0)
    result = method.supervise(step(1), ledger)
    assert [group.true for group in result] == [False, True] + [False] * 6
    assert (result[1].rewards, result[1].multiplier) == ([0.0, 0.0, 1.0], 1.0)
    assert (result[0].multiplier, disk.asked()) == (0.0, 4)
