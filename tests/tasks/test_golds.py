"""Gold answers that no marked answer can meet are named, counted, and refused above a share."""

from __future__ import annotations

import logging

import pytest

from fedrlvr.errors import DataError
from fedrlvr.tasks import Kind, Problem, grader_for, validate
from fedrlvr.tasks.golds import check_golds, examine, spellings


def problem(answer: str, kind: Kind = "math", name: str = "p") -> Problem:
    return Problem("What?", answer, name, "s", kind)


MORE_THAN_AN_ANSWER = [
    ("B. Heparin", "option"),
    ("(C) the left kidney", "option"),
    ("The answer is 2.", "sentence"),
    ("Answer: 4", "sentence"),
    ("She has 5 apples left.", "sentence"),
    ("Paris is the capital city of France", "sentence"),
    ("**3**", "Markdown"),
    ("`3`", "Markdown"),
    ("<answer>7</answer>", "tags"),
    ("so 3 + 4 = 7\n#### 7", "####"),
]
UNREACHABLE = ["B. Heparin", "(C) the left kidney", "She has 5 apples left.", "<answer>7</answer>"]


@pytest.mark.parametrize(("gold", "fault"), MORE_THAN_AN_ANSWER)
def test_what_stands_around_the_answer_is_seen(gold: str, fault: str) -> None:
    assert fault in spellings(gold, "math").fault


@pytest.mark.parametrize(("gold", "fault"), MORE_THAN_AN_ANSWER)
def test_golds_that_are_more_than_an_answer_are_named_before_training(gold: str, fault: str) -> None:
    finding = examine(problem(gold))
    assert finding is not None
    assert fault in finding.reason
    assert gold not in finding.reason
    assert finding.reason.startswith("'What?'")  # the row can be found by its prompt
    verdict = validate([problem("4"), problem(gold, name="bad")], grader_for(None), attacked=0)
    named = verdict.notes if finding.reachable else verdict.failures
    assert [(failure.id, fault in failure.reason) for failure in named] == [("bad", True)]
    assert len(verdict.failures) + len(verdict.notes) == 1
    with_it = {"ann": [problem("4"), problem(gold)]}
    if finding.reachable:
        check_golds(with_it, 0.0)
    else:
        with pytest.raises(DataError, match=r"1 of 2 gold answers"):
            check_golds(with_it, 0.0)


@pytest.mark.parametrize("gold", UNREACHABLE)
def test_an_options_text_a_sentence_and_tags_are_met_by_no_short_answer(gold: str) -> None:
    finding = examine(problem(gold))
    assert finding is not None
    assert not finding.reachable


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        *[(gold, "math") for gold in ("2", "-7", "1,000", "0.00005", "1/2", r"\frac{3}{4}", r"12\%", "x=5", r"\pi")],
        *[(gold, "math") for gold in (r"(2,\infty)", r"x \in [-2,7]", r"\text{(C)}", "even", "no solution", "18 eggs")],
        *[(gold, "math") for gold in ("3.", r"3 \text{ feet}", r"\text{June 20}", "all real numbers")],
        ("B", "choice"),
        ("(b)", "choice"),
        ("maybe", "yes_no_maybe"),
        ("B. Heparin", "exact"),
        ("The answer is 2.", "exact"),
        ("**3**", "exact"),
    ],
)
def test_golds_in_plain_form_pass(gold: str, kind: Kind) -> None:
    assert examine(problem(gold, kind)) is None
    verdict = validate([problem(gold, kind)], grader_for(None), attacked=0)
    assert (verdict.failures, verdict.notes) == ([], [])


def test_a_gold_that_cannot_meet_itself_is_named() -> None:
    for gold in ("<answer>7</answer>", "x" * 1001):  # tags within tags; longer than any answer may be
        finding = examine(problem(gold, "exact"))
        assert finding is not None
        assert not finding.reachable


def test_spellings_by_hand() -> None:
    assert spellings("B. Heparin", "math").answers == ["B", "Heparin"]
    assert spellings("**The answer is 2.**", "math") == ("holds Markdown", ["2"])
    assert spellings("**2", "math").fault == ""
    assert set(spellings("1,000", "math").answers) == {"1,000", "1000"}
    assert set(spellings("1/2", "math").answers) == {"1/2", r"\frac{1}{2}"}
    assert spellings("5e-05", "math").answers == ["0.00005"]
    assert set(spellings("(b)", "choice").answers) == {"(b)", "b"}


def test_a_reward_of_the_users_own_is_asked_for_the_gold_itself_only() -> None:
    def contains(completion: str, problem: Problem) -> float:
        return float(problem.answer in completion)

    assert validate([problem("The answer is 2.")], contains, attacked=0).ok


def test_their_share_decides(caplog: pytest.LogCaptureFixture) -> None:
    bad = [problem("B. Heparin", name=f"bad-{n}") for n in range(2)]
    held = {"ann": [problem("3")] * 15 + bad[:1], "bo": [problem("3")] * 3 + bad[1:], "cy": [problem("")] * 100}
    check_golds(held, 0.1)  # 2 of 20: the problems without an answer do not count
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 of 20 gold answers" in record.getMessage()
    with pytest.raises(DataError, match=r"ann, problem bad-0.*bo, problem bad-1.*data\.unreachable_golds = 0\.09"):
        check_golds(held, 0.09)
    caplog.clear()
    check_golds({"ann": [problem("3")]}, 0.0)
    check_golds({"cy": [problem("")]}, 0.0)
    assert caplog.records == []
