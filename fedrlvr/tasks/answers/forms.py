r"""The types that an answer can have. Each has a `key`: one string for all spellings of what is plainly the same.

Keys of different types differ in their first word, except for a plain number, whose key is `p` or `p/q` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fedrlvr.tasks.answers.expressions import Node
from fedrlvr.tasks.answers.numerals import Numeral, spelled
from fedrlvr.tasks.answers.units import Unit


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational."""

    numeral: Numeral

    @property
    def value(self) -> Fraction:
        """The exact value."""
        return self.numeral.value

    @property
    def key(self) -> str:
        """`p` or `p/q` in lowest terms."""
        return spelled(self.value)


@dataclass(frozen=True, slots=True)
class Infinite:
    """Plus or minus infinity."""

    positive: bool

    @property
    def key(self) -> str:
        """`infinity`, with a minus before it if it is negative."""
        return "infinity" if self.positive else "-infinity"


@dataclass(frozen=True, slots=True)
class Percent:
    """A number of hundredths; `value` is the number before the sign."""

    numeral: Numeral

    @property
    def key(self) -> str:
        """The number and a percent sign."""
        return spelled(self.numeral.value) + " percent"


@dataclass(frozen=True, slots=True)
class Expression:
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
        """Whether it has no variables."""
        return not self.variables

    @property
    def key(self) -> str:
        """Its variables and values; for constants also what is left to compute."""
        if self.variables:
            return f"expression {' '.join(sorted(self.variables))};{' '.join(self.values)}"
        # The values hold 40 digits, which is too few for a large integer.
        worth = spelled(self.exact) if self.exact and _large(self.exact) else self.values[0]
        return f"constant {' '.join(sorted(self.left_to_compute))};{worth}"


def _large(value: Fraction) -> bool:
    return max(abs(value.numerator), value.denominator) >= 10**18


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or a constant with a unit or a counted noun."""

    amount: Number | Expression
    unit: Unit

    @property
    def key(self) -> str:
        """The amount's key and the unit in one spelling."""
        return f"quantity {self.amount.key} {self.unit.key}"


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a number base other than ten."""

    digits: str
    base: int

    @property
    def key(self) -> str:
        """Digits and base."""
        return f"base {self.base} {self.digits}"


@dataclass(frozen=True, slots=True)
class Colons:
    """A time of day, a duration or a ratio: numbers between colons. Nothing is cancelled in a time."""

    parts: tuple[Fraction, ...]
    time: bool
    half: str = ""

    @property
    def key(self) -> str:
        """The parts, and am or pm."""
        return f"{'time' if self.time else 'ratio'} {':'.join(map(spelled, self.parts))} {self.half}".rstrip()


@dataclass(frozen=True, slots=True)
class Compound:
    """Several answers in one: an unordered list or set, or a tuple, a vector or a sequence with an order."""

    shape: Literal["list", "set", "tuple", "vector", "array", "words"]
    items: tuple[Form, ...]

    @property
    def ordered(self) -> bool:
        """Whether the items' order counts."""
        return self.shape not in ("list", "set")

    @property
    def key(self) -> str:
        """The items' keys, sorted where order does not count; a set holds each once."""
        keys = [item.key for item in self.items]
        if self.shape == "set":
            keys = sorted(set(keys))
        elif self.shape == "list":
            keys.sort()
        return f"{self.shape} ({' | '.join(keys)})"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: tuple[tuple[Form, ...], ...]

    @property
    def key(self) -> str:
        """The entries' keys by row."""
        return f"matrix {' / '.join(' | '.join(item.key for item in row) for row in self.rows)}"


@dataclass(frozen=True, slots=True)
class Bound:
    """An interval's end: where it lies on the real line (None: at infinity), what it is, whether it belongs to it."""

    place: Fraction | None
    key: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals, sorted and merged.

    variable: of the inequality that it was written as; "" for a union of intervals.
    """

    pieces: tuple[tuple[Bound, Bound], ...]
    variable: str = ""

    @property
    def spelled(self) -> str:
        """The intervals, without the variable."""
        return " u ".join(
            f"{'[' if low.closed else '('}{low.key} , {high.key}{']' if high.closed else ')'}"
            for low, high in self.pieces
        )

    @property
    def key(self) -> str:
        """The variable, if there is one, and the intervals."""
        return f"region {self.variable} {self.spelled}"


@dataclass(frozen=True, slots=True)
class Named:
    """`name = value`."""

    name: str
    value: Form

    @property
    def key(self) -> str:
        """Name and the value's key."""
        return f"named {self.name} = {self.value.key}"


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality that is no `name = value` and no region of one variable, up to a factor."""

    operator: str
    content: str

    @property
    def key(self) -> str:
        """The operator, and what is compared with zero."""
        return f"relation {self.operator} {self.content}"


@dataclass(frozen=True, slots=True)
class Letter:
    """One capital letter, in any wrapping: an option, or the name of something."""

    letter: str

    @property
    def key(self) -> str:
        """The letter."""
        return f"letter {self.letter}"


@dataclass(frozen=True, slots=True)
class Text:
    """Everything else: words, and what no other type consumed whole."""

    text: str

    @property
    def key(self) -> str:
        """The text without markup, in one case."""
        return f"text {self.text}"


Form = (
    Number
    | Infinite
    | Percent
    | Expression
    | Quantity
    | Based
    | Colons
    | Compound
    | Matrix
    | Region
    | Named
    | Relation
    | Letter
    | Text
)
