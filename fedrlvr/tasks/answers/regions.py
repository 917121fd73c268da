r"""Intervals, their unions, and inequalities in one variable: regions of the real line in one spelling."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from fedrlvr.tasks.answers.evaluation import position
from fedrlvr.tasks.answers.forms import Bound, Expression, Form, Infinite, Number, Region

Piece = tuple[Bound, Bound]

LOWEST = Bound(None, "-infinity", False)
HIGHEST = Bound(None, "infinity", False)
REALS = Region(((LOWEST, HIGHEST),))
_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


def bound(form: Form | None, closed: bool) -> Bound | None:
    """An interval's end; None for what lies nowhere on the real line."""
    if isinstance(form, Number):
        return Bound(form.value, form.key, closed)
    if isinstance(form, Infinite):
        return HIGHEST if form.positive else LOWEST
    if isinstance(form, Expression) and (place := position(form.node)) is not None:
        return Bound(place, form.key, closed)
    return None


def interval(low: Form | None, high: Form | None, closed_low: bool, closed_high: bool) -> Region | None:
    """The interval between two ends, if the first lies below the second."""
    left, right = bound(low, closed_low), bound(high, closed_high)
    if left is None or right is None or left is HIGHEST or right is LOWEST:
        return None
    if left.place is not None and right.place is not None and left.place >= right.place:
        return None
    return Region(((left, right),))


def point(form: Form) -> Piece | None:
    """The piece that holds one point only."""
    end = bound(form, True)
    return None if end is None or end.place is None else (end, end)


def half(operator: str, form: Form | None, *, mirrored: bool = False) -> list[Piece] | None:
    """Where `x operator form` holds; mirrored: where `form operator x` does."""
    operator = _MIRRORED[operator] if mirrored else operator
    end = bound(form, operator in (r"\le", r"\ge"))
    if end is None or end.place is None:
        holds_everywhere = (end is HIGHEST and operator == "<") or (end is LOWEST and operator == ">")
        return [(LOWEST, HIGHEST)] if holds_everywhere else None
    below, above = (LOWEST, end), (end, HIGHEST)
    return {"<": [below], r"\le": [below], ">": [above], r"\ge": [above], r"\ne": [below, above]}[operator]


def union(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces in order, those that touch made one."""
    result: list[Piece] = []
    for low, high in sorted(pieces, key=_by_start):
        if result and _touch(result[-1][1], low):
            result[-1] = (result[-1][0], max(result[-1][1], high, key=_end))
        else:
            result.append((low, high))
    return tuple(result)


def intersection(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """What lies in both."""
    common = []
    for low, high in left:
        for other_low, other_high in right:
            start, end = max(low, other_low, key=_start), min(high, other_high, key=_end)
            if _start(start)[0] < _end(end)[0] or (start.place == end.place and start.closed and end.closed):
                common.append((start, end))
    return common


def without(form_points: list[Form]) -> Region | None:
    """The real line without some points."""
    pieces: list[Piece] = [(LOWEST, HIGHEST)]
    for form in form_points:
        halves = half(r"\ne", form)
        if halves is None:
            return None
        pieces = intersection(pieces, halves)
    return Region(union(pieces))


def combined(parts: list[Region], how: Callable[[list[Piece], list[Piece]], list[Piece]]) -> Region:
    """Regions of one variable joined by `how`."""
    pieces = list(parts[0].pieces)
    for part in parts[1:]:
        pieces = how(pieces, list(part.pieces))
    return Region(union(pieces), parts[0].variable)


def _start(end: Bound) -> tuple[Fraction | float, int]:
    if end.place is None:
        return (float("inf") if end is HIGHEST or end.key == "infinity" else float("-inf")), 0
    return end.place, 0 if end.closed else 1


def _end(end: Bound) -> tuple[Fraction | float, int]:
    place, _ = _start(end)
    return place, 1 if end.closed else 0


def _by_start(piece: Piece) -> tuple[Fraction | float, int]:
    return _start(piece[0])


def _touch(high: Bound, low: Bound) -> bool:
    if high.place is None:
        return True
    if low.place is None:
        return True
    return low.place < high.place or (low.place == high.place and (low.closed or high.closed))
