"""The pool: who gave what, whose responses a client gets, and what stays where there are too many."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrlvr.coordination import Pool, PoolEntry, Sent

Given = list[tuple[str, Sent]]


def pool_of(correct: Given, problems: int = 2, per_problem: int = 100, seed: int = 0) -> Pool:
    return Pool.of(correct, problems, per_problem=per_problem, rng=random.Random(seed))


def given_by(entries: list[PoolEntry]) -> list[tuple[str, tuple[int, ...]]]:
    return [(entry.origin, entry.sent.token_ids) for entry in entries]


SENT = st.builds(Sent, problem=st.integers(0, 2), token_ids=st.tuples(st.integers(0, 3)))
GIVEN = st.lists(st.tuples(st.sampled_from(["ann", "bob", "eve"]), SENT), max_size=30)


def test_by_hand() -> None:
    ann, bob, eve = Sent(0, (5, 6), (-0.1, -0.2), age=3), Sent(0, (7,)), Sent(2, (8,))
    pool = pool_of([("ann", ann), ("bob", bob), ("eve", eve)], problems=4)
    assert pool.entries == [
        [PoolEntry("ann", ann), PoolEntry("bob", bob)],
        [],
        [PoolEntry("eve", eve)],
        [],
    ]
    assert (pool.size, pool.unsolved) == (3, 2)
    assert pool.others(0, "ann") == [PoolEntry("bob", bob)]
    assert pool.others(0, "eve") == [PoolEntry("ann", ann), PoolEntry("bob", bob)]
    assert pool.others(1, "ann") == pool.others(2, "eve") == []


def test_a_clients_response_counts_once_however_often_it_gave_it() -> None:
    # Log-probs and age do not make it another response.
    again = [("ann", Sent(0, (5, 6), (-0.1 * i, -0.2), age=i)) for i in range(5)]
    pool = pool_of([*again, ("ann", Sent(0, (5,))), ("ann", Sent(1, (5, 6)))])
    assert given_by(pool.others(0, "bob")) == [("ann", (5, 6)), ("ann", (5,))]
    assert given_by(pool.others(1, "bob")) == [("ann", (5, 6))]
    assert pool.size == 3


def test_repeating_a_response_does_not_make_it_likelier_to_stay() -> None:
    often = [("ann", Sent(0, (5,)))] * 50
    for seed in range(20):
        pool = pool_of([*often, ("bob", Sent(0, (6,)))], per_problem=2, seed=seed)
        assert sorted(given_by(pool.others(0, "eve"))) == [("ann", (5,)), ("bob", (6,))]


def test_the_same_response_of_two_clients_is_two_entries() -> None:
    pool = pool_of([("ann", Sent(0, (5, 6))), ("bob", Sent(0, (5, 6)))])
    assert pool.size == 2
    assert given_by(pool.others(0, "ann")) == [("bob", (5, 6))]
    assert given_by(pool.others(0, "bob")) == [("ann", (5, 6))]


@given(GIVEN, st.integers(1, 4), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_a_pool_holds(correct: Given, per_problem: int, seed: int) -> None:
    pool = pool_of(correct, problems=3, per_problem=per_problem, seed=seed)
    every = [{(client, sent.token_ids) for client, sent in correct if sent.problem == i} for i in range(3)]
    for problem, wanted in enumerate(every):
        entries = given_by(pool.others(problem, "nobody"))
        assert len(set(entries)) == len(entries) == min(per_problem, len(wanted))
        assert set(entries) <= wanted
        assert all(entry.sent.problem == problem for entry in pool.entries[problem])
        for client in ("ann", "bob", "eve"):
            others = given_by(pool.others(problem, client))
            assert others == [entry for entry in entries if entry[0] != client]
    assert pool.size == sum(min(per_problem, len(wanted)) for wanted in every)
    assert pool.unsolved == sum(not wanted for wanted in every)


def test_which_entries_stay_is_drawn_from_all_clients_and_not_by_who_came_first() -> None:
    """12 entries, 4 places, 600 seeds: each stays 200 times, with a standard deviation of sqrt(600 x 2/9) = 11.5."""
    correct = [
        (client, Sent(0, (client_id, i))) for client_id, client in enumerate(("ann", "bob", "eve")) for i in range(4)
    ]
    stayed: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for seed in range(600):
        stayed.update(given_by(pool_of(correct, per_problem=4, seed=seed).others(0, "nobody")))
    assert len(stayed) == 12
    assert all(abs(times - 200) < 50 for times in stayed.values()), stayed


def test_a_client_that_gives_much_cannot_shut_out_another() -> None:
    # Of 21 entries one is of the last client; with 7 places it stays in a third of 300 draws, give or take 8.2.
    correct = [("ann", Sent(0, (i,))) for i in range(20)] + [("bob", Sent(0, (99,)))]
    stays = sum(bool(pool_of(correct, per_problem=7, seed=seed).others(0, "ann")) for seed in range(300))
    assert 60 < stays < 140


def test_each_problem_has_a_bound_of_its_own() -> None:
    correct = [("ann", Sent(problem, (i,))) for problem, count in ((0, 5), (1, 2)) for i in range(count)]
    assert [len(entries) for entries in pool_of(correct, per_problem=3).entries] == [3, 2]
    assert [len(entries) for entries in pool_of(correct, per_problem=5).entries] == [5, 2]


def test_the_same_seed_keeps_the_same_entries() -> None:
    correct = [("ann", Sent(0, (i,))) for i in range(10)]
    kept = [pool_of(correct, per_problem=3, seed=seed).entries for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]


def test_an_empty_pool_has_solved_nothing() -> None:
    pool = pool_of([], problems=3)
    assert (pool.size, pool.unsolved) == (0, 3)
    assert [pool.others(problem, "ann") for problem in range(3)] == [[], [], []]


@pytest.mark.parametrize("problem", [-1, 2, 100])
def test_a_response_to_a_problem_that_was_not_asked_is_refused(problem: int) -> None:
    with pytest.raises(ValueError, match=f"a response to problem {problem} of 2"):
        pool_of([("ann", Sent(0, (5,))), ("ann", Sent(problem, (5,)))])
