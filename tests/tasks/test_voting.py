"""What a majority is counted by: answers as the grader reads them, and as it compares them."""

from __future__ import annotations

import random

import pytest

from fedrlvr.supervision import clusters
from fedrlvr.tasks.extraction import wrap
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import Kind
from fedrlvr.tasks.voting import answers, sameness


def members(kind: Kind, *given: str) -> tuple[int | None, ...]:
    """The clusters of responses that box these answers."""
    return clusters(answers([wrap(answer, kind) for answer in given], kind), sameness(kind)).members


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("math", ["1/2", "0.5", r"\frac12", r"\frac{1}{2}", ".50", r"\dfrac{2}{4}", "0.51"], [0, 0, 0, 0, 0, 0, 1]),
        ("math", ["1,000", "1000", "1000.0", "100"], [0, 0, 0, 1]),
        ("math", [r"5\text{ cm}", "5", r"5 \text{ kg}", "5 centimeters"], [0, 1, 2, 0]),
        ("math", [r"\frac{10}{\sqrt3}", r"\frac{10\sqrt3}{3}", r"(1,2)", r"\{1,2\}"], [0, 0, 1, 2]),
        ("math", ["x^2+1", "1+x^2", "x^2-1"], [0, 0, 1]),
        ("math", ["0", "0.0", "-0"], [0, 0, 0]),
        ("choice", ["B", "(B)", "b", r"\text{B}", "C"], [0, 0, 0, 0, 1]),
        ("yes_no_maybe", ["yes", "Yes.", r"\text{YES}", "no", "maybe"], [0, 0, 0, 1, 2]),
        ("exact", ["Red  fox", "red fox", "RED FOX", "redfox"], [0, 0, 0, 1]),
    ],
)
def test_answers_that_the_grader_takes_for_one_are_one(kind: Kind, given: list[str], expected: list[int]) -> None:
    assert list(members(kind, *given)) == expected


@pytest.mark.parametrize("kind", ["math", "choice", "yes_no_maybe", "exact"])
def test_a_majority_that_is_the_gold_answer_has_the_graders_rewards(kind: Kind) -> None:
    given = {
        "math": ["1/2", "0.5", "2", r"\frac12"],
        "choice": ["A", "(a)", "B", "A."],
        "yes_no_maybe": ["no", "No", "yes", "NO"],
        "exact": ["one two", "One Two", "three", "ONE  TWO"],
    }[kind]
    completions = [wrap(answer, kind) for answer in given]
    result = clusters(answers(completions, kind), sameness(kind))
    assert result.pseudo_rewards == [1.0, 1.0, 0.0, 1.0]
    assert result.pseudo_rewards == [grade(completion, given[0], kind) for completion in completions]


def test_an_answer_is_kept_as_it_stands_and_what_cannot_be_read_is_none() -> None:
    completions = [r"so \boxed{ \frac12 }", "the answer is 7", "", r"\boxed{}", "#### 1,000", r"\boxed{0}"]
    assert answers(completions, "math") == [r"\frac12", None, None, None, "1,000", "0"]


def test_an_answer_that_the_kind_cannot_have_does_not_vote() -> None:
    assert answers([r"\boxed{AB}", r"\boxed{A}", r"\boxed{7}"], "choice") == [None, "A", None]
    assert answers([r"\boxed{perhaps}", r"\boxed{maybe}"], "yes_no_maybe") == [None, "maybe"]
    assert members("choice", "AB", "7") == (None, None)


def test_nothing_that_cannot_be_read_is_the_same_as_anything() -> None:
    assert not sameness("choice")("AB", "AB")
    assert not sameness("yes_no_maybe")("perhaps", "perhaps")


def test_clusters_do_not_depend_on_the_order() -> None:
    given = ["5", r"5\text{ cm}", "5 m", "x=5", "5.0", r"50\%", "0.5", "1/2", "9+9", "18", "x^2=4", "4"]
    for seed in range(5):
        random.Random(seed).shuffle(given)
        result = members("math", *given)
        assert {frozenset(given[i] for i, c in enumerate(result) if c == cluster) for cluster in result} == {
            frozenset(group) for group in ({"5", "5.0"}, {r"5\text{ cm}"}, {"5 m"}, {"x=5"}, {r"50\%"}, {"0.5", "1/2"})
        } | {frozenset({text}) for text in ("9+9", "18", "x^2=4", "4")}
