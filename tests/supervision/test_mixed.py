"""The probability that a group is mixed, against every outcome of small groups."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product

import pytest

from fedrlvr.supervision import Clusters, clusters, true_worth
from fedrlvr.supervision.cag import mixed_chance

TRUTHS = {"a": 0.5, "b": 0.2, "c": 0.1, "nobody's": 0.2}
"""The right answer of a problem and its chance."""


def sizes(votes: Clusters) -> tuple[int, ...]:
    """What tells groups apart: votes, then the other clusters, then what could not be read."""
    others = sorted(n for at, n in enumerate(votes.sizes) if at != votes.majority)
    return (votes.votes, *others, votes.members.count(None))


@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_calibrated_probes_give_the_expected_value_of_a_label(group: int) -> None:
    """Every way to answer in the letters a, b, c or not at all, under every truth."""
    total: dict[tuple[int, ...], float] = defaultdict(float)
    right: dict[tuple[int, ...], float] = defaultdict(float)
    outside: dict[tuple[int, ...], float] = defaultdict(float)
    worth: dict[tuple[int, ...], float] = defaultdict(float)
    for answers in product(["a", "b", "c", None], repeat=group):
        votes = clusters(answers)
        for truth, chance in TRUTHS.items():
            rewards = [float(answer == truth) for answer in answers]
            is_right, y = votes.judged(rewards)
            key = sizes(votes)
            total[key] += chance
            right[key] += chance * is_right
            outside[key] += chance * (y > 0)
            worth[key] += chance * true_worth(votes, rewards, "mixed")
    assert len(total) == {1: 2, 2: 4, 3: 7, 4: 11}[group]
    for key, chance in total.items():
        estimate = mixed_chance(group, key[0], right[key] / chance, outside[key] / chance)
        assert math.sqrt(group) * estimate == pytest.approx(worth[key] / chance, abs=1e-12), key


@pytest.mark.parametrize(
    ("votes", "reliable", "outside", "chance"),
    [(5, 0.7, 0.2, 0.9), (8, 0.7, 0.0, 0.0), (0, 0.3, 0.0, 0.0), (7, 1.0, 0.0, 1.0), (4, 0.8, 0.4, 1.2)],
)
def test_chances_by_hand(votes: int, reliable: float, outside: float, chance: float) -> None:
    assert mixed_chance(8, votes, reliable, outside) == pytest.approx(chance)
