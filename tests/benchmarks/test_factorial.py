"""Main effects and interactions of a factorial design, worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.factorial import Switched, effects, effects_over_seeds, subsets


def of(*factors: str) -> Switched:
    return frozenset(factors)


def test_combinations_begin_with_none_and_end_with_all() -> None:
    assert subsets("ab") == [of(), of("a"), of("b"), of("a", "b")]
    assert len(subsets("abc")) == 8


def test_two_factors_by_hand() -> None:
    # a: ((14 - 10) + (25 - 15)) / 2 = 7. b: ((15 - 10) + (25 - 14)) / 2 = 8. Both: ((25 - 15) - (14 - 10)) / 2 = 3.
    results = {of(): 10.0, of("a"): 14.0, of("b"): 15.0, of("a", "b"): 25.0}
    assert effects("ab", results) == {of("a"): 7.0, of("b"): 8.0, of("a", "b"): 3.0}


def test_three_factors_by_hand() -> None:
    # y = 50 + 4 a - 2 b + 6 a c, with a, b, c of 0 or 1: without c the effect of a is 4, with it 10.
    results = {
        cell: 50.0 + 4 * ("a" in cell) - 2 * ("b" in cell) + 6 * (cell >= of("a", "c")) for cell in subsets("abc")
    }
    expected = {of("a"): 7.0, of("b"): -2.0, of("c"): 3.0, of("a", "b"): 0.0, of("a", "c"): 3.0}
    assert effects("abc", results) == {**expected, of("b", "c"): 0.0, of("a", "b", "c"): 0.0}
    # One cell away from that: it moves every effect by a quarter, with the sign of the factors that it lacks.
    moved = {**results, of("a"): results[of("a")] + 4.0}
    gap = {term: value - effects("abc", results)[term] for term, value in effects("abc", moved).items()}
    assert gap == {
        of("a"): 1.0,
        of("b"): -1.0,
        of("c"): -1.0,
        of("a", "b"): -1.0,
        of("a", "c"): -1.0,
        of("b", "c"): 1.0,
        of("a", "b", "c"): 1.0,
    }


def test_effects_are_taken_within_a_seed() -> None:
    # Seeds differ by 100, which no effect sees; seed 9 is not everywhere.
    results = {of(): {0: 1.0, 1: 101.0, 9: 5.0}, of("a"): {0: 3.0, 1: 105.0}}
    value = effects_over_seeds("a", results)[of("a")]
    assert value.by_seed == {0: 2.0, 1: 4.0}
    assert value.mean == 3.0


def test_a_missing_combination_is_named() -> None:
    with pytest.raises(ValueError, match=r"lacks a, a \+ b"):
        effects("ab", {of(): 1.0, of("b"): 2.0})
    with pytest.raises(ValueError, match="seed"):
        effects_over_seeds("a", {of(): {0: 1.0}, of("a"): {1: 1.0}})
