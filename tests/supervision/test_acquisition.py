"""Who is asked about, who is trusted, who is left out: CARE's rule and those it is compared with."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from fedrlvr.supervision.acquisition import (
    Acquired,
    Rest,
    Spending,
    answer_entropy,
    care,
    highest,
    mean_probability,
    quota,
    true_worth,
)
from fedrlvr.supervision.majority import clusters

P1 = [0.9, 0.1, 0.8, 0.5, 0.5, 0.2, 0.3, 0.4]
S = [3.0, 0.5, 0.25, 2.0, 2.0, 1.0, 4.0, 0.0]


@pytest.mark.parametrize(
    ("share", "problems", "count"),
    [(0.2, 64, 13), (0.25, 64, 16), (0.25, 12, 3), (0.2, 3, 1), (0.07, 100, 7), (0.0, 9, 0), (1.0, 9, 9), (0.2, 0, 0)],
)
def test_a_quota_is_rounded_up_but_not_for_a_rounding_error(share: float, problems: int, count: int) -> None:
    assert quota(share, problems) == count


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        quota(share, 8)


def test_care_trusts_the_most_reliable_and_asks_about_the_largest_scores_among_the_rest() -> None:
    step = care(P1, S, queries=2, steps_done=20)
    assert step == Acquired((6, 3), (0, 2), (1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0))


def test_care_trusts_nobody_in_the_vote_free_steps() -> None:
    for steps_done in (0, 19):
        assert care(P1, S, queries=2, steps_done=steps_done, vote_free_steps=20) == Acquired(
            (6, 0), (), (1, 0, 0, 0, 0, 0, 1, 0)
        )


def test_ties_go_to_the_earlier_problem() -> None:
    assert care([0.5] * 8, [1.0] * 8, queries=2, steps_done=20) == Acquired((2, 3), (0, 1), (1, 1, 1, 1, 0, 0, 0, 0))


def test_where_too_few_are_left_the_first_trusted_are_asked_about_so_that_the_budget_is_spent() -> None:
    assert care([0.5], [1.0], queries=1, steps_done=20) == Acquired((0,), (), (1.0,))
    assert care([0.1, 0.8, 0.2, 0.9, 0.1], [5, 4, 3, 2, 1], queries=4, steps_done=99) == Acquired(
        (0, 2, 4, 1), (3,), (1, 1, 1, 1, 1)
    )
    assert care(P1, S, queries=99, steps_done=20).multipliers == (1.0,) * 8


def test_no_problems_are_no_queries() -> None:
    assert care([], [], queries=3, steps_done=20) == Acquired((), (), ())


@pytest.mark.parametrize(
    ("reliable", "scores", "queries", "message"),
    [
        ([0.5], [1.0, 2.0], 1, "1 reliabilities and 2 scores"),
        ([math.nan], [1.0], 1, "finite"),
        ([0.5], [math.inf], 1, "finite"),
        ([0.5], [1.0], -1, "-1 queries"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    reliable: list[float], scores: list[float], queries: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        care(reliable, scores, queries=queries, steps_done=0)


def test_a_selection_masks_the_rest_or_trains_on_it_as_voted() -> None:
    assert highest([1, 3, 2, 3], queries=2, rest="masked") == Acquired((1, 3), (), (0, 1, 0, 1))
    assert highest([1, 3, 2, 3], queries=2, rest="pseudo") == Acquired((1, 3), (0, 2), (1, 1, 1, 1))


def test_all_labels_and_majority_only_are_the_two_ends() -> None:
    assert highest([0, 0, 0], queries=3, rest="masked") == Acquired((0, 1, 2), (), (1, 1, 1))
    assert highest([0, 0, 0], queries=0, rest="pseudo") == Acquired((), (0, 1, 2), (1, 1, 1))
    assert highest([0, 0, 0], queries=0, rest="masked") == Acquired((), (), (0, 0, 0))


def test_an_unknown_fate_or_value_or_number_is_refused() -> None:
    unknown: Rest = "dropped"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="masked or pseudo, not 'dropped'"):
        highest([1.0], queries=1, rest=unknown)
    with pytest.raises(ValueError, match="finite"):
        highest([math.nan], queries=1, rest="masked")
    with pytest.raises(ValueError, match="-2 queries"):
        highest(drawn_values(3, random.Random(0)), queries=-2, rest="masked")


def drawn_values(problems: int, rng: random.Random) -> list[float]:
    return [rng.random() for _ in range(problems)]


def test_a_random_selection_is_its_generators_and_even() -> None:
    first = highest(drawn_values(5, random.Random(3)), queries=2, rest="pseudo")
    assert first == highest(drawn_values(5, random.Random(3)), queries=2, rest="pseudo")
    assert (len(first.queries), len(first.trusted), first.multipliers) == (2, 3, (1.0,) * 5)
    rng = random.Random(0)
    drawn = Counter(highest(drawn_values(5, rng), queries=2, rest="masked").queries for _ in range(2000))
    assert len(drawn) == 20  # every ordered pair
    assert min(drawn.values()) > 60  # 100 expected; the standard deviation is below 10


def test_entropy_is_of_the_answers_that_could_be_read() -> None:
    assert answer_entropy(clusters(["a"] * 4 + ["b"] * 2 + ["c"] * 2)) == pytest.approx(1.5 * math.log(2))
    assert answer_entropy(clusters(["a", "b", None, None])) == pytest.approx(math.log(2))
    assert answer_entropy(clusters(["a", "a", None])) == 0
    assert answer_entropy(clusters([None, None])) == 0


def test_mean_probability_is_a_mean_over_responses_of_means_over_tokens() -> None:
    assert mean_probability([[math.log(0.5), math.log(0.25)], [0.0]]) == pytest.approx(0.6875)


@pytest.mark.parametrize("logps", [[], [[0.0], []]])
def test_a_response_without_tokens_has_no_probability(logps: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        mean_probability(logps)


def test_the_oracle_sees_the_gap_and_entropy_prefers_what_is_worth_less() -> None:
    confident, spread = clusters(["a"] * 6 + ["b"] * 2), clusters(["a"] * 3 + ["b"] * 2 + ["c", "d", "e"])
    answer_b = [[0.0] * 6 + [1.0] * 2, [0.0] * 3 + [1.0] * 2 + [0.0] * 3]
    gaps = [true_worth(votes, rewards, "gap") for votes, rewards in zip((confident, spread), answer_b, strict=True)]
    # odds of 12 / (2 * 6) and 6 / (5 * 6)
    assert gaps == pytest.approx([math.sqrt(16 * 2), math.sqrt(16 * (1 + math.sqrt(0.2)))])
    assert answer_entropy(confident) < answer_entropy(spread)
    assert gaps[0] > gaps[1]


def test_the_oracle_sees_nothing_where_the_majority_is_right() -> None:
    assert true_worth(clusters(["a", "a", "b"]), [1, 1, 0], "gap") == 0
    assert true_worth(clusters(["a", "a", "b"]), [1, 0, 0], "gap") == 0  # a grader that splits the majority's cluster
    assert true_worth(clusters(["a", "a"]), [0, 0], "gap") == 0  # unanimous and wrong
    assert true_worth(clusters([None, None]), [0, 0], "gap") == 0


def test_the_share_to_trust_is_of_the_whole_step_where_only_some_of_it_is_ranked() -> None:
    # ceil(0.25 * 8) = 2 against ceil(0.25 * 16) = 4
    assert care(P1, S, queries=0, steps_done=20).trusted == (0, 2)
    assert care(P1, S, queries=0, steps_done=20, of=16).trusted == (0, 2, 3, 4)
    assert care(P1, S, queries=0, steps_done=20, of=99).trusted == (0, 2, 3, 4, 7, 6, 5, 1)
    assert care([], [], queries=2, steps_done=20, of=16) == Acquired((), (), ())


def test_the_share_to_trust_and_the_vote_free_steps_are_settings() -> None:
    assert care(P1, S, queries=2, steps_done=20, trusted_share=0.5) == Acquired(
        (6, 5), (0, 2, 3, 4), (1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    )
    assert care(P1, S, queries=2, steps_done=20, trusted_share=0.0).trusted == ()
    assert care(P1, S, queries=2, steps_done=4, vote_free_steps=5).trusted == ()
    assert care(P1, S, queries=2, steps_done=5, vote_free_steps=5).trusted == (0, 2)
    assert care(P1, S, queries=2, steps_done=0).trusted == (0, 2)
    with pytest.raises(ValueError, match="from 0 to 1"):
        care(P1, S, queries=2, steps_done=0, trusted_share=1.5)


def test_a_bar_keeps_the_less_reliable_of_the_share_from_trust_and_nobody_takes_their_place() -> None:
    assert care(P1, S, queries=2, steps_done=20, trusted_share=0.5, min_reliability=0.75).trusted == (
        0,
        2,
    )  # 0.8 and 0.9
    assert care(P1, S, queries=2, steps_done=20, trusted_share=0.5, min_reliability=0.8).trusted == (0, 2)
    assert care(P1, S, queries=2, steps_done=20, trusted_share=0.25, min_reliability=0.5).trusted == (0, 2)
    step = care(P1, S, queries=2, steps_done=20, min_reliability=0.95)
    assert step == care(
        P1, S, queries=2, steps_done=0, vote_free_steps=1
    )  # p0 has the second largest score and may be asked about
    assert step.trusted == ()


# When a budget is spent.


def test_an_early_budget_asks_for_its_share_of_each_step_and_the_ledger_ends_it() -> None:
    spending = Spending(0.2, "early", problems=48, steps=120)
    assert spending.labels == 10  # ceil(9.6)
    assert [spending.queries(step, 4) for step in (0, 50, 119)] == [1, 1, 1]
    assert Spending(0.2).queries(7, 20) == 4


def test_an_even_budget_is_spread_over_the_steps_of_the_run() -> None:
    spending = Spending(0.2, "even", problems=48, steps=24)
    by_step = [spending.queries(step, 4) for step in range(24)]
    assert sum(by_step) == spending.labels == 10
    assert max(by_step) == 1  # never two at once: ten labels in 24 steps
    assert by_step[:6] == [0, 0, 1, 0, 1, 0]  # floor(10 k / 24) for k = 1, 2, ... is 0 0 1 1 2 2
    assert [spending.queries(step, 4) for step in (24, 25, 99)] == [0, 0, 0]  # steps beyond the run's


def test_a_few_steps_ask_for_several_labels_each() -> None:
    assert [Spending(0.5, "even", problems=20, steps=4).queries(step, 8) for step in range(4)] == [2, 3, 2, 3]


# The value of a label.


def test_the_value_beside_masked_problems_is_whether_the_group_is_mixed() -> None:
    right, wrong = clusters(["a", "a", "b"]), clusters(["a", "a", "a"])
    assert true_worth(right, [1, 1, 0], "mixed") == pytest.approx(math.sqrt(3))  # a right majority: its gap is 0
    assert true_worth(right, [0, 0, 1], "mixed") == pytest.approx(math.sqrt(3))
    assert true_worth(right, [0, 0, 0], "mixed") == 0  # nobody is right: its gap is sqrt(3)
    assert true_worth(right, [0, 0, 0], "gap") == pytest.approx(math.sqrt(3))
    assert true_worth(wrong, [1, 1, 1], "mixed") == true_worth(wrong, [0, 0, 0], "mixed") == 0
