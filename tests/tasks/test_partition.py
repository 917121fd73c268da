"""Who holds what: each kind by hand on a small list, and what must hold for any list."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks import Holding, Problem, partition, who_holds_what
from fedrlvr.tasks.partition import PartitionType

TYPES = get_args(PartitionType)


def make(**counts: int) -> list[Problem]:
    """`counts` problems of each source, named source-number."""
    return [
        Problem(f"{source} {n}?", "1", f"{source}-{n}", source, "math")
        for source, count in counts.items()
        for n in range(count)
    ]


def sources(parts: dict[str, list[Problem]]) -> dict[str, dict[str, int]]:
    return {client: dict(Counter(p.source for p in held)) for client, held in parts.items()}


def test_iid_deals_evenly() -> None:
    parts = partition(make(a=5, b=5), ["x", "y", "z"], type="iid", seed=0)
    assert [len(held) for held in parts.values()] == [4, 3, 3]
    assert partition(make(a=5, b=5), ["x", "y", "z"], type="iid", seed=1) != parts


def test_source_gives_the_largest_first_to_the_poorest() -> None:
    parts = partition(make(a=6, b=5, c=4, d=3, e=1), ["x", "y"], type="source", seed=0)
    assert sources(parts) == {"x": {"a": 6, "d": 3, "e": 1}, "y": {"b": 5, "c": 4}}
    assert who_holds_what(parts) == [
        Holding("x", "a", 6),
        Holding("x", "d", 3),
        Holding("x", "e", 1),
        Holding("y", "b", 5),
        Holding("y", "c", 4),
    ]


def test_fewer_sources_than_clients_share_the_largest() -> None:
    parts = partition(make(a=9, b=4), ["w", "x", "y", "z"], type="source", seed=0)
    # 9 and 4 with one client each; then a is split in two (4.5 each), then in three (3 each) as 4.5 > 4
    assert sources(parts) == {"w": {"a": 3}, "x": {"a": 3}, "y": {"a": 3}, "z": {"b": 4}}


def test_dirichlet_goes_from_one_holder_to_even_shares() -> None:
    problems, clients = make(a=400, b=400, c=400, d=400), ["w", "x", "y"]

    def largest_shares(alpha: float) -> list[float]:
        held = sources(partition(problems, clients, type="dirichlet", alpha=alpha, seed=0)).values()
        return [max(counts.get(source, 0) for counts in held) / 400 for source in "abcd"]

    assert sum(largest_shares(0.1)) / 4 > 0.7
    assert all(share < 0.36 for share in largest_shares(10_000.0))


def test_dirichlet_shares_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([1.0, 3.0, 4.0])
    monkeypatch.setattr("random.Random.gammavariate", lambda *_: next(draws))
    parts = partition(make(a=16), ["x", "y", "z"], type="dirichlet", alpha=1.0, seed=0)
    assert [len(held) for held in parts.values()] == [2, 6, 8]


def test_a_tiny_alpha_does_not_divide_by_zero() -> None:
    with pytest.raises(DataError, match="is left without problems"):
        partition(make(a=10), ["x", "y"], type="dirichlet", alpha=1e-300, seed=0)


def test_the_same_on_every_machine() -> None:
    problems, clients = make(a=4, b=3), ["x", "y"]
    dealt = {t: [p.id for p in partition(problems, clients, type=t, alpha=1.0, seed=7)["x"]] for t in TYPES}
    assert dealt == {
        "iid": ["a-2", "a-3", "b-2", "b-0"],
        "source": ["a-0", "a-1", "a-2", "a-3"],
        "dirichlet": ["a-2", "b-2", "b-1", "b-0"],
    }


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    clients=st.integers(1, 7),
    type=st.sampled_from(TYPES),
    alpha=st.floats(0.05, 50),
    seed=st.integers(0, 2**32),
)
def test_each_problem_has_one_holder(counts: list[int], clients: int, type: Any, alpha: float, seed: int) -> None:
    problems = make(**{f"s{n}": count for n, count in enumerate(counts)})
    names = [f"client-{n}" for n in range(clients)]
    try:
        parts = partition(problems, names, type=type, alpha=alpha, seed=seed)
    except DataError:
        assert type == "dirichlet" or len(problems) < clients  # the others leave nobody out without need
        return
    assert list(parts) == names
    assert all(parts.values())
    assert Counter(p.id for held in parts.values() for p in held) == Counter(p.id for p in problems)
    assert partition(problems, names, type=type, alpha=alpha, seed=seed) == parts
    assert sum(row.problems for row in who_holds_what(parts)) == len(problems)


@pytest.mark.parametrize("type", ["iid", "source"])
def test_enough_problems_leave_nobody_out(type: Any) -> None:
    assert all(partition(make(a=3, b=1), ["w", "x", "y", "z"], type=type, seed=5).values())


@pytest.mark.parametrize("type", TYPES)
def test_a_client_without_problems_is_named(type: Any) -> None:
    with pytest.raises(
        DataError, match=rf"Client '[xyz]' is left without problems by the partition '{type}' of 2 problems"
    ):
        partition(make(a=2), ["x", "y", "z"], type=type, seed=0)


def test_no_problems_at_all() -> None:
    with pytest.raises(DataError, match="Client 'x' is left without problems"):
        partition([], ["x"], type="source")


@pytest.mark.parametrize(
    ("clients", "options", "message"),
    [
        ([], {"type": "iid"}, "at least one client"),
        (["x", "x"], {"type": "iid"}, "names that differ"),
        (["x"], {"type": "label"}, "no partition 'label'. Use iid, source or dirichlet"),
        (["x"], {"type": "dirichlet", "alpha": 0.0}, "partition.alpha is 0.0"),
        (["x"], {"type": "dirichlet", "alpha": float("inf")}, "partition.alpha is inf"),
    ],
)
def test_bad_arguments(clients: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        partition(make(a=3), clients, **options)
    assert message in str(error.value)
