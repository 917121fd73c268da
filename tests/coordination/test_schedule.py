"""When exchanges come, and which public problems each is about."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrlvr.coordination import public_batch, stretches

SIZES = st.integers(1, 30).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size)))


@given(SIZES, st.integers(0, 200), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_batch_has_as_many_different_problems_as_are_asked_for(
    sizes: tuple[int, int], exchange: int, seed: int
) -> None:
    size, count = sizes
    batch = public_batch(size, count, exchange, seed)
    assert len(batch) == len(set(batch)) == count
    assert set(batch) <= set(range(size))


@given(SIZES, st.integers(0, 20), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_cycle_takes_no_problem_twice_and_leaves_out_only_what_fills_no_batch(
    sizes: tuple[int, int], cycle: int, seed: int
) -> None:
    size, count = sizes
    batches = size // count
    taken = [
        problem
        for exchange in range(cycle * batches, (cycle + 1) * batches)
        for problem in public_batch(size, count, exchange, seed)
    ]
    assert len(taken) == len(set(taken)) == size - size % count


def test_a_count_that_divides_the_size_takes_every_problem_once_a_cycle() -> None:
    for cycle in range(5):
        taken = [problem for i in range(3) for problem in public_batch(12, 4, 3 * cycle + i, seed=7)]
        assert sorted(taken) == list(range(12))


def test_what_is_left_over_changes_with_the_cycle() -> None:
    """10 problems in batches of 4 leave out 2 a cycle; none of them is left out for good."""
    taken = [set(public_batch(10, 4, 2 * c, 0)) | set(public_batch(10, 4, 2 * c + 1, 0)) for c in range(30)]
    assert all(len(cycle) == 8 for cycle in taken)
    assert len({frozenset(cycle) for cycle in taken}) > 10
    assert set.union(*taken) == set(range(10))


def test_the_whole_set_in_each_exchange_is_another_order_each_time() -> None:
    batches = [public_batch(8, 8, exchange, 3) for exchange in range(6)]
    assert all(sorted(batch) == list(range(8)) for batch in batches)
    assert len({tuple(batch) for batch in batches}) == 6


def test_other_cycles_and_other_seeds_have_other_orders() -> None:
    by_cycle = {tuple(public_batch(20, 5, 4 * cycle, 0)) for cycle in range(10)}
    by_seed = {tuple(public_batch(20, 5, 0, seed)) for seed in range(10)}
    assert len(by_cycle) == len(by_seed) == 10


def test_it_depends_on_the_exchange_and_the_seed_alone() -> None:
    """So all clients get the same, in whatever order exchanges are asked for, and a resumed run goes on with it."""
    first = [public_batch(20, 6, exchange, 5) for exchange in range(9)]
    random.seed(1)
    random.random()
    assert [public_batch(20, 6, exchange, 5) for exchange in reversed(range(9))] == first[::-1]


def test_the_shared_random_generator_is_left_alone() -> None:
    random.seed(1)
    before = random.getstate()
    public_batch(20, 6, 3, 5)
    assert random.getstate() == before


@pytest.mark.parametrize(("size", "count"), [(5, 6), (5, 0), (5, -1), (0, 1), (0, 0)])
def test_a_batch_that_the_set_cannot_give_is_refused(size: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} public problems .* {size}"):
        public_batch(size, count, 0, 0)


@pytest.mark.parametrize(
    ("steps", "exchanges", "expected"),
    [(5, 0, [5]), (5, 1, [5]), (5, 2, [3, 2]), (6, 3, [2, 2, 2]), (7, 3, [3, 2, 2]), (4, 4, [1, 1, 1, 1])],
)
def test_stretches_by_hand(steps: int, exchanges: int, expected: list[int]) -> None:
    assert stretches(steps, exchanges) == expected


@given(st.integers(1, 200), st.integers(1, 200))
def test_stretches_are_equal_up_to_one_step_and_add_up(steps: int, exchanges: int) -> None:
    if exchanges > steps:
        with pytest.raises(ValueError, match="do not fit"):
            stretches(steps, exchanges)
        return
    cut = stretches(steps, exchanges)
    assert sum(cut) == steps
    assert len(cut) == exchanges
    assert max(cut) - min(cut) <= 1
    assert cut == sorted(cut, reverse=True)


def test_a_negative_number_of_exchanges_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 exchanges do not fit"):
        stretches(5, -1)
