"""Votes: clusters by the grader's equivalence, ties, answers that could not be read."""

from __future__ import annotations

from fractions import Fraction

import pytest

from fedrlvr.supervision import majority
from fedrlvr.supervision.majority import clusters


def near(answer: str, other: str) -> bool:
    """An equivalence that is not transitive."""
    return abs(int(answer) - int(other)) <= 1


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["4", "5", "5"], ("5", 2)),
        (["4", "5", "5", "4"], ("4", 2)),
        (["5", "4", "4", "5"], ("5", 2)),
        (["1", "2", "3"], ("1", 1)),
        ([None, "7", None], ("7", 1)),
        ([None, "7", "8", None, "8"], ("8", 2)),
        ([None, None], (None, 0)),
        ([], (None, 0)),
        (["", "", "4"], ("", 2)),
    ],
)
def test_the_largest_cluster_wins_and_a_tie_goes_to_the_earliest(
    answers: list[str | None], expected: tuple[str | None, int]
) -> None:
    assert majority(answers) == expected


def test_the_grader_says_what_is_the_same_and_the_first_answer_is_the_label() -> None:
    assert majority(["3", "1/2", "0.5"], lambda answer, other: Fraction(answer) == Fraction(other)) == ("1/2", 2)


def test_an_answer_joins_the_first_cluster_whose_first_member_it_equals() -> None:
    result = clusters(["1", "2", "3", "2", "9"], near)
    assert result.labels == ("1", "3", "9")
    assert result.members == (0, 0, 1, 0, 2)
    assert result.sizes == (3, 1, 1)


def test_what_the_grader_would_not_equate_is_still_the_same_if_it_is_the_same_text() -> None:
    assert majority(["x", "x"], lambda answer, other: False) == ("x", 2)


def test_the_grader_is_asked_with_the_later_answer_first_and_never_about_what_could_not_be_read() -> None:
    asked = []

    def same(answer: str, other: str) -> bool:
        asked.append((answer, other))
        return False

    clusters(["a", None, "b", "c"], same)
    assert asked == [("b", "a"), ("c", "a"), ("c", "b")]


def test_pseudo_rewards_and_the_others_of_a_group() -> None:
    result = clusters(["a", None, "b", "a", "c"])
    assert (result.majority, result.label, result.votes, result.valid) == (0, "a", 2, 4)
    assert result.pseudo_rewards == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert result.others == [False, False, True, False, True]


def test_a_group_that_could_not_be_read_has_no_majority_and_no_rewards() -> None:
    result = clusters([None, None])
    assert (result.majority, result.label, result.votes, result.valid) == (None, None, 0, 0)
    assert result.pseudo_rewards == [0.0, 0.0]
    assert result.others == [False, False]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 1, 0], (True, 0)),
        ([1, 0, 0, 0, 0], (True, 0)),  # one of the majority suffices
        ([0, 0, 1, 0, 0], (False, 2)),  # its whole cluster counts
        ([0, 0, 1, 0, 1], (False, 2)),
        ([0, 0, 0, 0, 0], (False, 0)),
        ([0, 1, 0, 0, 0], (False, 0)),  # unreadable
        ([0, 0, 0.5, 0, 0], (False, 0)),  # partial credit is not correct
    ],
)
def test_a_label_judges_the_majority_and_counts_who_is_right_outside_it(
    rewards: list[float], expected: tuple[bool, int]
) -> None:
    assert clusters(["a", None, "b", "a", "b"]).judged(rewards) == expected


def test_judging_takes_one_reward_for_each_response() -> None:
    with pytest.raises(ValueError, match="1 rewards for 2 responses"):
        clusters(["a", "b"]).judged([1.0])
