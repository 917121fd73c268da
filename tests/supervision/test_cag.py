"""The corrective advantage gap: definition, closed form, and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from fedrlvr.supervision import cag, corrective_advantage_gap

EVERY = [(g, v, y) for g in range(1, 17) for v in range(g + 1) for y in range(g + 1 - v)]


def vectors(group: int, votes: int, correct: int) -> tuple[list[float], list[float]]:
    """True rewards and pseudo-rewards of a group whose majority is wrong."""
    rest = group - votes - correct
    return [0.0] * votes + [1.0] * correct + [0.0] * rest, [1.0] * votes + [0.0] * (correct + rest)


def test_the_closed_form_is_the_definition_for_every_group_up_to_16() -> None:
    assert len(EVERY) == 968
    for sizes in EVERY:
        assert cag(*sizes) == pytest.approx(corrective_advantage_gap(*vectors(*sizes)), rel=0, abs=1e-9), sizes


@pytest.mark.parametrize(
    ("group", "votes", "correct", "squared"),
    [
        (2, 1, 1, 8),  # (1, -1) against (-1, 1)
        (8, 4, 4, 32),
        (4, 2, 1, 8 * (1 + math.sqrt(1 / 3))),  # 2 (1 + 1/sqrt 3)^2 + (1 + sqrt 3)^2 + (1 - 1/sqrt 3)^2
        (8, 5, 2, 16 * (1 + math.sqrt(5) / 3)),  # odds of 10/18
        (8, 5, 0, 8),
        (8, 0, 3, 8),
        (8, 8, 0, 0),
        (8, 0, 8, 0),
        (8, 0, 0, 0),
        (1, 1, 0, 0),
    ],
)
def test_by_hand(group: int, votes: int, correct: int, squared: float) -> None:
    assert cag(group, votes, correct) == pytest.approx(math.sqrt(squared), rel=0, abs=1e-12)
    assert corrective_advantage_gap(*vectors(group, votes, correct)) == pytest.approx(math.sqrt(squared), abs=1e-12)


@pytest.mark.parametrize("right", range(9))
def test_a_majority_that_is_right_leaves_no_gap(right: int) -> None:
    rewards = [1.0] * right + [0.0] * (8 - right)
    assert corrective_advantage_gap(rewards, rewards) == 0.0


def test_a_unanimous_wrong_vote_cannot_be_seen() -> None:
    assert corrective_advantage_gap([0.0] * 8, [1.0] * 8) == 0.0


def test_the_gap_grows_with_the_votes_of_a_wrong_majority() -> None:
    gaps = [cag(8, votes, 2) for votes in range(2, 7)]
    assert gaps == sorted(set(gaps))


def test_rewards_that_differ_by_rounding_only_are_all_equal() -> None:
    assert corrective_advantage_gap([0.5, 0.5 + 1e-9], [0.0, 1.0]) == pytest.approx(math.sqrt(2))


def test_the_order_of_responses_does_not_matter_as_long_as_it_is_one() -> None:
    assert corrective_advantage_gap([0, 1, 0, 0], [1, 0, 0, 1]) == pytest.approx(cag(4, 2, 1), abs=1e-12)
    assert corrective_advantage_gap([1, 0, 0, 0], [1, 0, 0, 1]) < cag(4, 2, 1)


@pytest.mark.parametrize(
    ("true", "pseudo", "message"),
    [
        ([], [], "0 true rewards"),
        ([1.0], [1.0, 0.0], "1 true rewards and 2 pseudo-rewards"),
        ([math.nan, 0.0], [1.0, 0.0], "finite"),
        ([1.0, 0.0], [math.inf, 0.0], "finite"),
    ],
)
def test_rewards_that_are_no_group_are_refused(true: list[float], pseudo: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrective_advantage_gap(true, pseudo)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (8, -1, 0), (8, 0, -1), (8, 5, 4), (8, 9, 0)])
def test_counts_that_do_not_fit_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit a group"):
        cag(*sizes)
