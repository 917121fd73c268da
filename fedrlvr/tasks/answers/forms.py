r"""The types that an answer can have, and the algebra of regions of the real line.

Each type has a `key`: one string for all spellings of what is plainly the same. Keys of different types differ in
their first word, except for a plain number, whose key is `p` or `p/q` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any, Literal

from fedrlvr.tasks.answers.amounts import Numeral, Unit, spelled
from fedrlvr.tasks.answers.evaluation import position
from fedrlvr.tasks.answers.expressions import Node


class _Keyed:
    __slots__ = ()

    @property
    def key(self) -> str:
        """One string for all spellings of what is plainly the same."""
        return _key(self)


@dataclass(frozen=True, slots=True)
class Number(_Keyed):
    """An exact rational number, as numerator and denominator."""

    numeral: Numeral

    @property
    def value(self) -> Fraction:
        """The number's exact value as a fraction."""
        return self.numeral.value


@dataclass(frozen=True, slots=True)
class Infinite(_Keyed):
    """The number plus or minus infinity, by its sign."""

    positive: bool


@dataclass(frozen=True, slots=True)
class Percent(_Keyed):
    """A number of hundredths; `numeral` is the number before the sign."""

    numeral: Numeral


@dataclass(frozen=True, slots=True)
class Expression(_Keyed):
    """A formula, or a constant that is written as arithmetic.

    values: its value or its values at fixed points.
    left_to_compute: families of functions in it, see `expressions.operations`.
    exact: the rational that a constant is, if only rational operations lead to it.
    """

    node: Node
    values: tuple[str, ...]
    variables: frozenset[str]
    left_to_compute: frozenset[str]
    exact: Fraction | None = None

    @property
    def constant(self) -> bool:
        """Whether the expression has no variables."""
        return not self.variables


@dataclass(frozen=True, slots=True)
class Quantity(_Keyed):
    """A number or a constant with a unit or a counted noun."""

    amount: Number | Expression
    unit: Unit


@dataclass(frozen=True, slots=True)
class Based(_Keyed):
    """Digits in a number base other than ten."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Colons(_Keyed):
    """A time of day, a duration or a ratio: numbers between colons. Nothing is cancelled in a time."""

    parts: tuple[Fraction, ...]
    time: bool
    half: str = ""


@dataclass(frozen=True, slots=True)
class Compound(_Keyed):
    """Several answers in one: an unordered list or set, or a tuple, a vector or a sequence with an order."""

    shape: Literal["list", "set", "tuple", "vector", "array", "words"]
    items: tuple[Form, ...]

    @property
    def ordered(self) -> bool:
        """Whether the order of the items counts."""
        return self.shape not in ("list", "set")


@dataclass(frozen=True, slots=True)
class Matrix(_Keyed):
    """A matrix, as rows of equal length."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """An interval's end: where it lies on the real line (None: at infinity), what it is, whether it belongs to it."""

    place: Fraction | None
    key: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Region(_Keyed):
    """A union of intervals, sorted and merged.

    variable: of the inequality that it was written as; "" for a union of intervals.
    """

    pieces: tuple[tuple[Bound, Bound], ...]
    variable: str = ""

    @property
    def spelled(self) -> str:
        """The intervals as text, without the variable."""
        return " u ".join(
            f"{'[' if low.closed else '('}{low.key} , {high.key}{']' if high.closed else ')'}"
            for low, high in self.pieces
        )


@dataclass(frozen=True, slots=True)
class Named(_Keyed):
    """A value with its name, as in `name = value`."""

    name: str
    value: Form


@dataclass(frozen=True, slots=True)
class Relation(_Keyed):
    """An equation or inequality that is no `name = value` and no region of one variable, up to a factor.

    content: what is compared with zero.
    """

    operator: str
    content: str


@dataclass(frozen=True, slots=True)
class Letter(_Keyed):
    """One capital letter, in any wrapping: an option, or the name of something."""

    letter: str


@dataclass(frozen=True, slots=True)
class Text(_Keyed):
    """Everything else: words, and what no other type consumed whole. Without markup, in one case."""

    text: str


Form = (
    Number | Infinite | Percent | Expression | Quantity | Based | Colons | Compound | Matrix | Region | Named | Relation
    | Letter | Text
)  # fmt: skip


def _key(form: Any) -> str:
    match form:
        case Number(numeral):
            return spelled(numeral.value)
        case Infinite(positive):
            return "infinity" if positive else "-infinity"
        case Percent(numeral):
            return f"{spelled(numeral.value)} percent"
        case Expression(values=values, variables=names) if names:
            return f"expression {' '.join(sorted(names))};{' '.join(values)}"
        case Expression(values=values, left_to_compute=functions):
            return f"constant {' '.join(sorted(functions))};{values[0]}"
        case Quantity(amount, unit):
            return f"quantity {amount.key} {unit.key}"
        case Based(digits, base):
            return f"base {base} {digits}"
        case Colons(parts, time, half):
            return f"{'time' if time else 'ratio'} {':'.join(map(spelled, parts))} {half}".rstrip()
        case Compound(shape, items):
            keys = [item.key for item in items]
            keys = sorted(set(keys) if shape == "set" else keys) if not form.ordered else keys
            return f"{shape} ({' | '.join(keys)})"
        case Matrix(rows):
            return f"matrix {' / '.join(' | '.join(item.key for item in row) for row in rows)}"
        case Region(variable=variable):
            return f"region {variable} {form.spelled}"
        case Named(name, value):
            return f"named {name} = {value.key}"
        case Relation(operator, content):
            return f"relation {operator} {content}"
        case Letter(letter):
            return f"letter {letter}"
    return f"text {form.text}"


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


def open_interval(form: Form) -> Region | None:
    """A tuple of two as the interval without its ends, if it is one."""
    if isinstance(form, Compound) and form.shape == "tuple" and len(form.items) == 2:
        return interval(*form.items, False, False)
    return None


def point(form: Form) -> Piece | None:
    """The piece that holds one point only."""
    end = bound(form, True)
    return None if end is None or end.place is None else (end, end)


def half_line(operator: str, form: Form | None, *, mirrored: bool = False) -> list[Piece] | None:
    """Intervals on which `x operator form` is true; mirrored: on which `form operator x` is."""
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
    for low, high in sorted(pieces, key=lambda piece: _start(piece[0])):
        if result and _touch(result[-1][1], low):
            result[-1] = (result[-1][0], max(result[-1][1], high, key=_end))
        else:
            result.append((low, high))
    return tuple(result)


def intersection(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """Intervals that lie in both sets of intervals."""
    common = []
    for low, high in left:
        for other_low, other_high in right:
            start, end = max(low, other_low, key=_start), min(high, other_high, key=_end)
            if _start(start)[0] < _end(end)[0] or (start.place == end.place and start.closed and end.closed):
                common.append((start, end))
    return common


def reals_without(form_points: list[Form]) -> Region | None:
    """The real line without some points."""
    halves = [half for form in form_points if (half := half_line(r"\ne", form))]
    return Region(union(reduce(intersection, halves, list(REALS.pieces)))) if len(halves) == len(form_points) else None


def joined(parts: list[Region], how: Callable[[list[Piece], list[Piece]], list[Piece]]) -> Region:
    """Regions of one variable joined by `how`."""
    return Region(union(reduce(how, [list(part.pieces) for part in parts])), parts[0].variable)


def _start(end: Bound) -> tuple[Fraction | float, int]:
    if end.place is None:
        return (float("inf") if end is HIGHEST or end.key == "infinity" else float("-inf")), 0
    return end.place, 0 if end.closed else 1


def _end(end: Bound) -> tuple[Fraction | float, int]:
    place, _ = _start(end)
    return place, 1 if end.closed else 0


def _touch(high: Bound, low: Bound) -> bool:
    if high.place is None or low.place is None:
        return True
    return low.place < high.place or (low.place == high.place and (low.closed or high.closed))
