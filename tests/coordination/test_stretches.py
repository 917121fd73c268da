"""How a round's local steps are cut by its exchanges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrlvr.coordination import stretches


@pytest.mark.parametrize(
    ("steps", "exchanges", "expected"),
    [(5, 0, [5]), (5, 1, [5]), (5, 2, [3, 2]), (6, 3, [2, 2, 2]), (7, 3, [3, 2, 2]), (4, 4, [1, 1, 1, 1])],
)
def test_by_hand(steps: int, exchanges: int, expected: list[int]) -> None:
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
