"""Which slots take whose responses: the counts by hand, and what holds for every group and every seed."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrlvr.coordination import SWAP_RULES, swap, wanted
from fedrlvr.rl import CORRECT, group_advantages

REWARDS = st.lists(st.sampled_from([0.0, 0.5, 0.999, 1.0]), min_size=2, max_size=9)
GROUPS = st.lists(st.tuples(REWARDS, st.integers(0, 9)), min_size=1, max_size=4)
"""For each problem the rewards of the client's own responses and how many others gave that are correct."""


def swapped(
    groups: list[tuple[list[float], int]], rule: str, seed: int = 0
) -> list[tuple[list[float], int, dict[int, int]]]:
    """Each problem's rewards and pool size with its swaps."""
    swaps = swap([r for r, _ in groups], [range(size) for _, size in groups], rule=rule, rng=random.Random(seed))
    return [(rewards, size, slots) for (rewards, size), slots in zip(groups, swaps, strict=True)]


def after(rewards: list[float], slots: dict[int, int]) -> list[float]:
    """Rewards of the mixed group: what comes from the pool is correct."""
    return [1.0 if slot in slots else reward for slot, reward in enumerate(rewards)]


def right(rewards: list[float]) -> int:
    return sum(reward >= CORRECT for reward in rewards)


@pytest.mark.parametrize(
    ("rule", "correct", "group", "pool", "count"),
    [
        ("balanced", 0, 4, 9, 2),  # ceil(4 / 2) - 0
        ("balanced", 1, 4, 9, 1),
        ("balanced", 2, 4, 9, 0),
        ("balanced", 3, 4, 9, 0),  # 2 - 3 is not below zero
        ("balanced", 0, 5, 9, 3),  # ceil(5 / 2) = 3
        ("balanced", 2, 5, 9, 1),
        ("balanced", 3, 5, 9, 0),
        ("balanced", 0, 8, 3, 3),  # the pool has no more
        ("balanced", 0, 8, 0, 0),
        ("balanced", 0, 1, 9, 1),
        ("random", 1, 8, 9, 3),
        ("random", 1, 8, 2, 2),
        ("random", 4, 8, 9, 0),
        ("full", 0, 4, 9, 4),
        ("full", 3, 4, 9, 1),
        ("full", 1, 8, 5, 5),
        ("full", 4, 4, 9, 0),
        ("none", 0, 4, 9, 0),
    ],
)
def test_how_many_are_swapped_by_hand(rule: str, correct: int, group: int, pool: int, count: int) -> None:
    rewards = [1.0] * correct + [0.0] * (group - correct)
    ((_, _, slots),) = swapped([(rewards, pool)], rule)
    assert len(slots) == count
    assert min(wanted(correct, group, rule), pool) == count


@given(GROUPS, st.integers(0, 2**32))
@settings(deadline=None)
def test_the_counts_are_those_of_the_formulas(groups: list[tuple[list[float], int]], seed: int) -> None:
    for rule in SWAP_RULES:
        for rewards, pool, slots in swapped(groups, rule, seed):
            half, correct = math.ceil(len(rewards) / 2), right(rewards)
            wrong = len(rewards) - correct
            balanced = min(max(0, half - correct), wrong, pool)
            assert (
                len(slots)
                == {
                    "balanced": balanced,
                    "random": balanced,
                    "full": min(wrong, pool),
                    "none": 0,
                }[rule]
            )


@given(GROUPS, st.integers(0, 2**32), st.sampled_from(["balanced", "full"]))
@settings(deadline=None)
def test_nothing_but_incorrect_responses_is_replaced(
    groups: list[tuple[list[float], int]], seed: int, rule: str
) -> None:
    for rewards, _, slots in swapped(groups, rule, seed):
        assert all(rewards[slot] < CORRECT for slot in slots)
        assert right(after(rewards, slots)) == right(rewards) + len(slots)


@given(GROUPS, st.integers(0, 2**32))
@settings(deadline=None)
def test_a_balanced_swap_makes_no_more_than_half_correct(groups: list[tuple[list[float], int]], seed: int) -> None:
    for rewards, pool, slots in swapped(groups, "balanced", seed):
        half = math.ceil(len(rewards) / 2)
        mixed = right(after(rewards, slots))
        assert mixed <= max(half, right(rewards))
        if pool >= half:
            assert mixed >= half


@given(st.integers(2, 9), st.integers(0, 9), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_group_that_is_all_correct_is_untouched(group: int, pool: int, seed: int) -> None:
    for rule in SWAP_RULES:
        ((_, _, slots),) = swapped([([1.0] * group, pool)], rule, seed)
        assert slots == {}


@given(GROUPS, st.integers(0, 2**32))
@settings(deadline=None)
def test_draws_are_without_replacement_and_within_the_group_and_the_pool(
    groups: list[tuple[list[float], int]], seed: int
) -> None:
    for rule in SWAP_RULES:
        for rewards, pool, slots in swapped(groups, rule, seed):
            assert len(set(slots.values())) == len(slots)
            assert set(slots) <= set(range(len(rewards)))
            assert set(slots.values()) <= set(range(pool))


@given(GROUPS, st.integers(0, 2**32), st.sampled_from(list(SWAP_RULES)))
@settings(deadline=None)
def test_the_same_seed_gives_the_same_swaps(groups: list[tuple[list[float], int]], seed: int, rule: str) -> None:
    assert swapped(groups, rule, seed) == swapped(groups, rule, seed)


@pytest.mark.parametrize("rule", ["balanced", "random", "full"])
def test_other_seeds_give_other_swaps(rule: str) -> None:
    result = {str(swapped([([0.0] * 6, 9)], rule, seed)) for seed in range(20)}
    assert len(result) > 10


def test_problems_of_one_client_are_drawn_apart() -> None:
    groups = [([0.0] * 8, 9) for _ in range(4)]
    assert len({str(slots) for *_, slots in swapped(groups, "balanced")}) == 4


def test_a_reward_below_one_is_incorrect() -> None:
    # Partial credit may be replaced like a zero; a rounding error below 1 may not.
    ((_, _, slots),) = swapped([([1.0, 0.99999, 0.5, 1.0 - 1e-7], 9)], "full")
    assert set(slots) == {1, 2}
    # c = 0 of 4, so two of these are replaced.
    ((_, _, slots),) = swapped([([0.9, 0.9, 0.9, 0.9], 9)], "balanced")
    assert len(slots) == 2


def test_a_random_swap_also_replaces_correct_responses() -> None:
    """What sets it apart from a balanced one: over many seeds each of its slots is taken, the correct ones too."""
    taken = Counter(
        slot for seed in range(200) for slot in swapped([([1.0, 0.0, 0.0, 0.0, 0.0, 1.0], 9)], "random", seed)[0][2]
    )
    assert set(taken) == set(range(6))


# 3,000 seeds. Of a share s the count has the standard deviation sqrt(3000 s (1 - s)): at most 28; the bound is 120.
SEEDS, SLACK = 3000, 120


def test_slots_and_entries_of_a_balanced_swap_are_drawn_uniformly() -> None:
    slots: Counter[int] = Counter()
    entries: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for seed in range(SEEDS):
        ((_, _, taken),) = swapped([([0.0, 1.0, 0.0, 0.0, 0.0], 3)], "balanced", seed)  # 2 of 4 slots, 2 of 3 entries
        slots.update(taken.keys())
        entries.update(taken.values())
        pairs.update(taken.items())
    assert {slot: abs(n - SEEDS / 2) < SLACK for slot, n in slots.items()} == dict.fromkeys([0, 2, 3, 4], True)
    assert {entry: abs(n - SEEDS * 2 / 3) < SLACK for entry, n in entries.items()} == dict.fromkeys(range(3), True)
    assert len(pairs) == 12
    assert all(abs(n - SEEDS / 6) < SLACK for n in pairs.values())  # 1/2 x 2/3 x 1/2: which slot takes which


def test_slots_of_a_random_swap_are_drawn_uniformly_from_all() -> None:
    slots = Counter(
        slot for seed in range(SEEDS) for slot in swapped([([0.0, 1.0, 0.0, 0.0, 0.0], 3)], "random", seed)[0][2]
    )
    assert {slot: abs(n - SEEDS * 2 / 5) < SLACK for slot, n in slots.items()} == dict.fromkeys(range(5), True)


@given(st.integers(2, 9), st.integers(1, 9), st.sampled_from(["balanced", "random"]), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_group_that_was_all_wrong_regains_a_gradient(group: int, pool: int, rule: str, seed: int) -> None:
    ((rewards, _, slots),) = swapped([([0.0] * group, pool)], rule, seed)
    assert group_advantages(torch.tensor([rewards])).tolist() == [[0.0] * group]
    advantages = group_advantages(torch.tensor([after(rewards, slots)]))[0]
    assert all((advantage > 0) == (slot in slots) for slot, advantage in enumerate(advantages.tolist()))
    assert bool((advantages != 0).all())


@pytest.mark.parametrize("correct", [0, 1, 2, 3, 4])
def test_a_group_brought_to_exactly_half_correct_has_advantages_plus_and_minus_one(correct: int) -> None:
    ((rewards, _, slots),) = swapped([([1.0] * correct + [0.0] * (8 - correct), 9)], "balanced")
    mixed = after(rewards, slots)
    expected = [1.0 if reward else -1.0 for reward in mixed]
    assert sum(expected) == 0
    assert group_advantages(torch.tensor([mixed]))[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_full_swap_from_a_rich_pool_leaves_no_gradient() -> None:
    ((rewards, _, slots),) = swapped([([1.0, 0.0, 0.0, 0.0], 3)], "full")
    assert group_advantages(torch.tensor([after(rewards, slots)])).tolist() == [[0.0] * 4]
    ((rewards, _, slots),) = swapped([([0.0, 0.0, 0.0, 0.0], 3)], "full")
    assert right(after(rewards, slots)) == 3  # a poorer pool leaves one incorrect, and a gradient


@pytest.mark.parametrize("rule", SWAP_RULES)
def test_nothing_is_changed_in_place(rule: str) -> None:
    rewards, pool = [[0.0, 1.0, 0.0, 0.0]], [["x", "y"]]
    swap(rewards, pool, rule=rule, rng=random.Random(0))
    assert (rewards, pool) == ([[0.0, 1.0, 0.0, 0.0]], [["x", "y"]])


def test_no_problems_no_swaps() -> None:
    assert swap([], [], rng=random.Random(0)) == []


def test_the_rule_is_balanced_unless_another_is_asked_for() -> None:
    assert len(swap([[0.0] * 4], [range(9)], rng=random.Random(0))[0]) == 2


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="balanced, random, full, none, got 'all'"):
        swap([[0.0, 1.0]], [[]], rule="all", rng=random.Random(0))
    with pytest.raises(ValueError, match="a pool of 2 problems for groups of 1"):
        swap([[0.0, 1.0]], [[], []], rng=random.Random(0))
    for correct in (-1, 5):
        with pytest.raises(ValueError, match=f"{correct} correct responses of 4"):
            wanted(correct, 4, "balanced")
