"""The ledger: paid once, two experts, second opinions, going back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from ledgers import asked, given, query, same

from fedrlvr.errors import FedrlvrError, LedgerError
from fedrlvr.labels.ledger import LONGEST_ANSWER, Counts, Entry, LabelLedger, Opinion, expert_name, outcome

# Asking and answering.


def test_what_was_asked_and_answered_is_all_there_after_opening_again(path: Path, ledger: LabelLedger) -> None:
    assert ledger.ask(query(), at=10.0)
    ledger.answer("p1", "correct", " 5 ", expert="Ann", at=20.0)
    ledger.use("p1", 3)
    ledger.close()
    again = LabelLedger(path)
    assert again.entries() == [
        Entry(
            problem="p1",
            prompt="What is 2 + 2?",
            kind="math",
            source="sums",
            step=1,
            rank=1,
            score=2.5,
            reliable=0.75,
            majority="4",
            votes=5,
            group=8,
            responses=("It is 4", "It is 5"),
            asked_at=10.0,
            opinions=(Opinion("Ann", "correct", "5", 20.0),),
            wanted=1,
            state="labelled",
            label="5",
            uses=1,
        )
    ]
    again.close()


def test_a_problem_is_paid_for_once(ledger: LabelLedger) -> None:
    assert ledger.ask(query(), at=10.0)
    assert not ledger.was_asked("p2")
    assert not ledger.ask(query(step=7), at=20.0)
    assert ledger.ask(query("p2", step=7), at=20.0)
    assert ledger.was_asked("p2")
    assert (ledger.asked(), ledger.asked(since=20.0), ledger.asked(since=20.5)) == (2, 1, 0)


def test_a_question_nobody_has_answered_takes_the_newer_vote_and_an_answered_one_does_not(ledger: LabelLedger) -> None:
    asked(ledger, "p1", "p2")
    ledger.answer("p2", "accept", None, expert="Ann", at=1.0)
    for problem in ("p1", "p2"):
        ledger.ask(query(problem, step=5, rank=3, majority="9", responses=("nine",), score=None), at=2.0)
    old, new = sorted(ledger.entries(), key=lambda entry: entry.step)
    assert (old.problem, old.majority, old.label, old.rank) == ("p2", "4", "4", 2)
    assert (new.problem, new.majority, new.responses, new.score, new.step, new.rank, new.asked_at) == (
        "p1",
        "9",
        ("nine",),
        None,
        5,
        3,
        0.0,
    )


def test_a_question_somebody_is_looking_at_keeps_its_vote(ledger: LabelLedger) -> None:
    asked(ledger, "p1")
    ledger.next_open("Ann", at=0.0, lease=60.0)
    ledger.ask(query(step=2, majority="9"), at=59.0)
    assert ledger.entries()[0].majority == "4"
    ledger.ask(query(step=2, majority="9"), at=60.0)
    assert ledger.entries()[0].majority == "9"


def test_accept_is_of_the_answer_that_was_shown_even_if_the_vote_has_changed_since(ledger: LabelLedger) -> None:
    asked(ledger, "p1", "p2")
    ledger.next_open("Ann", at=0.0, lease=60.0)
    ledger.ask(query(step=2, majority="9"), at=61.0)
    ledger.answer("p1", "accept", None, expert="Ann", at=62.0)
    ledger.answer("p1", "accept", None, expert="Bob", at=63.0)
    ledger.answer("p2", "accept", "7", expert="Bob", at=64.0)
    by_problem = {entry.problem: entry.opinions for entry in ledger.entries()}
    assert by_problem["p1"] == (Opinion("Ann", "correct", "4", 62.0), Opinion("Bob", "accept", "9", 63.0))
    assert by_problem["p2"] == (Opinion("Bob", "correct", "7", 64.0),)


def test_an_experts_later_word_replaces_the_earlier_and_the_log_keeps_both(path: Path, ledger: LabelLedger) -> None:
    asked(ledger, "p1")
    ledger.answer("p1", "accept", None, expert="Ann", at=1.0)
    ledger.answer("p1", "correct", "6", expert=" Ann ", at=2.0)
    assert ledger.entries()[0].opinions == (Opinion("Ann", "correct", "6", 2.0),)
    log = (
        sqlite3.connect(path).execute("SELECT problem, expert, verdict, answer, at FROM log ORDER BY entry").fetchall()
    )
    assert log == [("p1", "Ann", "accept", "4", 1.0), ("p1", "Ann", "correct", "6", 2.0)]
    ledger.answer("p1", "skip", None, expert="Ann", at=3.0)
    assert ledger.entries()[0].state == "open"


def test_the_data_sets_answer_is_bought_with_the_question_or_not_at_all(ledger: LabelLedger) -> None:
    assert ledger.buy(query(), "12", at=1.0)
    assert not ledger.buy(query(), "13", at=2.0)
    assert ledger.label("p1", same) == "12"
    with pytest.raises(LedgerError, match="empty"):
        ledger.buy(query("p2"), " ", at=3.0)
    assert not ledger.was_asked("p2")


@pytest.mark.parametrize(
    ("problem", "verdict", "answer", "expert", "text"),
    [
        ("p9", "accept", None, "Ann", "'p9'"),
        ("p1", "maybe", None, "Ann", "no verdict 'maybe'"),
        ("p1", "correct", None, "Ann", "empty"),
        ("p1", "correct", " \n", "Ann", "empty"),
        ("p1", "correct", "1" * (LONGEST_ANSWER + 1), "Ann", "1001 characters"),
        ("p1", "correct", "$", "Ann", "kind 'math'"),
        ("p2", "accept", None, "Ann", "no majority"),
        ("p3", "correct", "both A and B", "Ann", "kind 'choice'"),
        ("p1", "accept", None, " ", "name"),
        ("p1", "accept", None, "x" * 101, "name"),
    ],
)
def test_an_answer_that_cannot_be_taken_is_refused_and_changes_nothing(
    ledger: LabelLedger, problem: str, verdict: str, answer: str | None, expert: str, text: str
) -> None:
    ledger.ask(query("p1"), at=0.0)
    ledger.ask(query("p2", majority=None), at=0.0)
    ledger.ask(query("p3", majority="A", kind="choice"), at=0.0)
    before = ledger.entries()
    with pytest.raises(LedgerError, match=text):
        ledger.answer(problem, verdict, answer, expert=expert, at=1.0)  # type: ignore[arg-type]
    assert ledger.entries() == before
    assert isinstance(LedgerError(), FedrlvrError)


def test_the_longest_answer_is_taken_and_a_data_set_may_give_a_longer_one(ledger: LabelLedger) -> None:
    ledger.ask(query(kind="exact"), at=0.0)
    ledger.answer("p1", "correct", "x" * LONGEST_ANSWER, expert="Ann", at=1.0)
    ledger.answer("p1", "correct", "y" * (LONGEST_ANSWER + 1), expert="dataset", at=1.0)
    assert [len(opinion.answer or "") for opinion in ledger.entries()[0].opinions] == [
        LONGEST_ANSWER,
        LONGEST_ANSWER + 1,
    ]


def test_any_text_survives_and_what_cannot_be_utf8_is_spelled_out(ledger: LabelLedger) -> None:
    prompt = "<b>é\x00 \U0001f600</b> '; DROP TABLE question; --"
    ledger.ask(query("a\ud800", prompt=prompt, kind="exact"), at=0.0)
    ledger.answer("a\ud800", "correct", "\udfff", expert="Zoë", at=1.0)
    (entry,) = ledger.entries()
    assert (entry.problem, entry.prompt, entry.label) == ("a\\ud800", prompt, "\\udfff")
    assert entry.opinions[0].expert == "Zoë"
    assert ledger.label("a\ud800", str.__eq__) == "\\udfff"


# What opinions come to.


def opinions(*words: str | None) -> list[Opinion]:
    """An answer, None for unanswerable, "-" for skip."""
    verdicts = {None: "unanswerable", "-": "skip"}
    return [
        Opinion(f"e{n}", verdicts.get(word, "correct"), None if word == "-" else word, float(n))  # type: ignore[arg-type]
        for n, word in enumerate(words)
    ]


@pytest.mark.parametrize(
    ("words", "wanted", "expected"),
    [
        ([], 1, ("open", None)),
        (["-"], 1, ("open", None)),
        (["4"], 1, ("labelled", "4")),
        (["-", "4"], 1, ("labelled", "4")),
        (["4"], 2, ("open", None)),
        (["4", "-"], 2, ("open", None)),
        (["4", "4.0"], 2, ("labelled", "4")),
        (["4", "5"], 2, ("disputed", None)),
        (["4", "5", "5.0"], 2, ("labelled", "5")),
        (["4", "5", "4", "5"], 1, ("disputed", None)),
        ([None], 1, ("unanswerable", None)),
        ([None, "4"], 1, ("disputed", None)),
        ([None, "4", "4"], 1, ("labelled", "4")),
        ([None, "4", None], 1, ("unanswerable", None)),
        ([None, None, "4", "4", "5"], 1, ("disputed", None)),
        (["4", None, "5", "6"], 1, ("disputed", None)),
    ],
)
def test_the_label_is_what_strictly_more_experts_say_than_anything_else(
    words: list[str | None], wanted: int, expected: tuple[str, str | None]
) -> None:
    assert outcome(opinions(*words), wanted, same) == expected


def test_the_grader_decides_what_is_one_answer_and_disagreement_is_kept(ledger: LabelLedger) -> None:
    asked(ledger, "p1")
    assert ledger.label("p1", same) is None
    assert ledger.label("unknown", same) is None
    ledger.answer("p1", "correct", "5", expert="Ann", at=1.0)
    assert ledger.label("p1", same) == "5"
    ledger.answer("p1", "accept", None, expert="Bob", at=2.0)
    assert ledger.label("p1", same) is None
    ledger.answer("p1", "correct", "5.0", expert="Cid", at=3.0)
    assert ledger.label("p1", same) == "5"
    assert ledger.label("p1", str.__eq__) is None
    assert [opinion.answer for opinion in ledger.entries()[0].opinions] == ["5", "4", "5.0"]


def test_counts_add_up(ledger: LabelLedger) -> None:
    asked(ledger, "p1", "p2", "p3", "p4", "p5", "p6")
    ledger.answer("p1", "correct", "0.5", expert="Ann", at=1.0)
    ledger.answer("p1", "correct", "1/2", expert="Bob", at=1.0)
    ledger.answer("p2", "unanswerable", "left over", expert="Ann", at=1.0)
    ledger.answer("p3", "accept", None, expert="Ann", at=1.0)
    ledger.answer("p3", "unanswerable", None, expert="Bob", at=1.0)
    ledger.answer("p4", "skip", None, expert="Bob", at=1.0)
    ledger.answer("p6", "accept", None, expert="Ann", at=1.0)
    ledger.ask_second("p6", at=1.0)
    for step in (1, 2, 2):
        ledger.use("p1", step)
    assert ledger.counts() == Counts(asked=6, open=3, labelled=1, unanswerable=1, disputed=1, uses=2)
    with pytest.raises(LedgerError, match="'p7'"):
        ledger.use("p7", 1)


# Who is given what.


def test_the_newest_step_comes_first_and_in_it_the_most_wanted(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b", step=8)
    asked(ledger, "c", "d", step=9)
    asked(ledger, "e", step=2)  # another run, later
    ledger.ask(query("b", step=2, rank=2), at=0.0)  # asked about again: wanted now
    order = []
    while (problem := given(ledger, "Ann", 1.0)) is not None:
        order.append(problem)
        ledger.answer(problem, "accept", None, expert="Ann", at=1.0)
    assert order == ["e", "b", "c", "d", "a"]


def test_two_experts_look_at_two_problems_until_a_lease_runs_out(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b")
    assert given(ledger, "Ann", 0.0) == "a"
    assert given(ledger, "Bob", 0.0) == "b"
    assert given(ledger, "Cid", 299.0) is None
    assert given(ledger, "Ann", 299.0) == "a"  # which renews it
    assert given(ledger, "Cid", 300.0) == "b"
    assert given(ledger, "Bob", 598.0) is None
    assert given(ledger, "Bob", 599.0) == "a"


def test_an_expert_keeps_a_leased_problem_when_more_wanted_ones_arrive(ledger: LabelLedger) -> None:
    asked(ledger, "a")
    assert given(ledger, "Ann", 0.0) == "a"
    asked(ledger, "b", step=2)
    assert given(ledger, "Ann", 1.0) == "a"
    assert given(ledger, "Ann", 301.0) == "b"  # the lease ran out
    assert given(ledger, "Bob", 301.0) == "a"


def test_who_leaves_or_answers_lets_go_of_the_problem(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b")
    assert given(ledger, "Ann", 0.0) == "a"
    ledger.release("Ann")
    assert given(ledger, "Bob", 1.0) == "a"
    ledger.answer("a", "skip", None, expert="Bob", at=2.0)
    assert given(ledger, "Ann", 3.0) == "a"


def test_what_is_left_is_what_is_open_to_this_expert(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b", "c")
    ledger.answer("a", "accept", None, expert="Ann", at=0.0)
    ledger.ask_second("a", at=0.0)
    ann, bob = ledger.next_open("Ann", at=1.0), ledger.next_open("Bob", at=1.0)
    assert ann is not None
    assert bob is not None
    assert (ann.left, bob.left) == (2, 3)


def test_skipped_problems_come_back_last_and_in_turn(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b", "c")
    for expected in ("a", "b", "c", "a", "b", "c", "a"):
        assert given(ledger, "Ann", 1.0) == expected
        ledger.answer(expected, "skip", None, expert="Ann", at=1.0)
    asked(ledger, "d", step=0)
    assert given(ledger, "Ann", 1.0) == "d"
    assert given(ledger, "Bob", 1.0) == "a"


def test_a_second_opinion_is_another_experts_and_blind(ledger: LabelLedger) -> None:
    asked(ledger, "a")
    ledger.answer("a", "correct", "123456", expert="Ann", at=1.0)
    assert given(ledger, "Bob", 1.0) is None
    ledger.ask_second("a", at=2.0)
    ledger.ask_second("a", at=2.0)
    assert ledger.label("a", same) is None
    assert given(ledger, "Ann", 3.0) is None
    seen = ledger.next_open("Bob", at=3.0)
    assert seen is not None
    assert "123456" not in repr(seen)
    assert "Ann" not in repr(seen)
    ledger.answer("a", "correct", "123456", expert="Bob", at=4.0)
    assert ledger.label("a", same) == "123456"
    assert given(ledger, "Cid", 5.0) is None


def test_a_third_opinion_settles_a_dispute(ledger: LabelLedger) -> None:
    asked(ledger, "a")
    ledger.ask_second("a", at=0.0)  # before the first
    ledger.ask_second("a", at=0.0)
    ledger.answer("a", "correct", "5", expert="Ann", at=1.0)
    assert ledger.entries()[0].state == "open"
    ledger.answer("a", "correct", "6", expert="Bob", at=1.0)
    assert ledger.entries()[0].state == "disputed"
    ledger.ask_second("a", at=2.0)
    assert (given(ledger, "Ann", 3.0), given(ledger, "Bob", 3.0), given(ledger, "Cid", 3.0)) == (None, None, "a")
    ledger.answer("a", "correct", "6", expert="Cid", at=4.0)
    assert ledger.label("a", same) == "6"
    with pytest.raises(LedgerError, match="'b'"):
        ledger.ask_second("b", at=5.0)


def test_nobody_can_be_called_as_the_data_set_is(ledger: LabelLedger) -> None:
    asked(ledger, "a")
    for name, text in (("dataset", "another name"), (" dataset ", "another name"), ("", "name")):
        with pytest.raises(LedgerError, match=text):
            ledger.next_open(name, at=0.0)
    assert expert_name("  Ann \t Lee ") == "Ann Lee"
    assert expert_name("Zoe\u0308") == "Zoë"


# Going back.


def test_a_run_that_goes_back_forgets_what_it_bought_since_and_pays_again(ledger: LabelLedger) -> None:
    ledger.buy(query("a", step=1), "1", at=1.0)
    ledger.buy(query("b", step=2), "2", at=2.0)
    for step in (1, 2, 3):
        ledger.use("a", step)
    ledger.ask(query("c", step=3), at=3.0)  # and then it crashed
    ledger.rewind(2)
    assert [(entry.problem, entry.uses) for entry in ledger.entries()] == [("a", 1)]
    assert ledger.asked(since=0.0) == 1
    assert ledger.label("b", same) is None
    assert ledger.buy(query("b", step=2), "2", at=4.0)
    ledger.use("a", 2)
    assert ledger.counts() == Counts(asked=2, open=0, labelled=2, unanswerable=0, disputed=0, uses=2)


def test_going_back_never_forgets_what_people_said_or_look_at(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b", "c", "d", step=5)
    ledger.answer("b", "correct", "7", expert="Ann", at=1.0)
    ledger.answer("c", "correct", "7", expert="dataset", at=1.0)
    ledger.answer("c", "skip", None, expert="Ann", at=1.0)
    assert given(ledger, "Bob", 2.0) == "a"
    ledger.rewind(5)
    assert sorted(entry.problem for entry in ledger.entries()) == ["a", "b", "c"]
    assert ledger.label("b", same) == "7"
    assert ledger.label("c", same) == "7"


def test_going_back_leaves_open_questions_of_a_desk(ledger: LabelLedger) -> None:
    asked(ledger, "a", step=5)
    ledger.rewind(0)
    assert ledger.was_asked("a")


def test_runs_on_one_ledger_count_their_uses_apart(path: Path, ledger: LabelLedger) -> None:
    asked(ledger, "a")
    other = LabelLedger(path, run="second")
    for run in (ledger, other):
        run.use("a", 1)
        run.use("a", 1)
    assert ledger.counts().uses == 2
    other.rewind(0)
    assert ledger.counts().uses == 1
    other.close()
