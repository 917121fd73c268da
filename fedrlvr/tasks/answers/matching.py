r"""Equality of answers: the one table of the pairs of types that are compared at all (`_TABLE`; docs/data.md).

Every other pair is unequal. On golds the relation is symmetric. An answer, though, may not leave more to be computed
than the gold: where the gold is a number, arithmetic is no answer to it, nor is `\sin 60^\circ` one to
`\frac{\sqrt3}{2}`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedrlvr.tasks.answers.amounts import Numeral, close, same
from fedrlvr.tasks.answers.choices import option_letter
from fedrlvr.tasks.answers.evaluation import agree, position, ratios
from fedrlvr.tasks.answers.forms import (
    Based,
    Colons,
    Compound,
    Expression,
    Form,
    Infinite,
    Letter,
    Matrix,
    Named,
    Number,
    Percent,
    Quantity,
    Region,
    Relation,
    open_interval,
)
from fedrlvr.tasks.answers.parsing import parse, readings

_MOST_PAIRED = 24
"""Items of a list that are paired one by one; longer lists are equal by their keys only."""


@lru_cache(maxsize=65_536)
def matches(gold: str, answer: str, *, arithmetic: bool = False) -> bool:
    """Whether an answer of kind math is the gold one.

    arithmetic: an answer may be an expression that still has to be computed.
    """
    first = parse(gold)
    if first is None:
        return False
    if isinstance(first, Letter):  # a bare small letter is a variable
        return option_letter(answer, alone=True) == first.letter and not answer.strip().islower()
    others = list(readings(answer))
    if any(equal(first, reading, arithmetic=arithmetic) for reading in others):
        return True
    # A gold `5m` is a product by itself, and a length to an answer that is one.
    lengths = [reading for reading in readings(gold) if isinstance(reading, Quantity)]
    amounts = [other for other in others if isinstance(other, Quantity)]
    return any(equal(length, amount, arithmetic=arithmetic) for length in lengths for amount in amounts)


def equal(gold: Form, answer: Form, *, arithmetic: bool = True) -> bool:
    """Whether two typed answers are equal by the table; symmetric unless arithmetic is False."""
    if gold.key == answer.key:
        return True
    if (compare := _TABLE.get((type(gold), type(answer)))) is not None:
        return compare(gold, answer, _Rule(arithmetic))
    if (compare := _TABLE.get((type(answer), type(gold)))) is not None:
        return compare(answer, gold, _Rule(arithmetic, turned=True))
    return False


@dataclass(frozen=True, slots=True)
class _Rule:
    """How the parts of a pair are compared. turned: the pair's first member is the answer."""

    arithmetic: bool
    turned: bool = False

    def equal(self, first: Form, second: Form) -> bool:
        """`equal` of two parts, with gold and answer in their own places."""
        gold, answer = (second, first) if self.turned else (first, second)
        return equal(gold, answer, arithmetic=self.arithmetic)


def _percentage(number: Number, percent: Percent, _: _Rule) -> bool:
    hundredth = Numeral(percent.numeral.value / 100, percent.numeral.digits)
    return close(number.numeral, percent.numeral) or close(number.numeral, hundredth)


def _value_of_expression(formula: Expression, number: Number, rule: _Rule) -> bool:
    if not formula.constant or (rule.turned and not rule.arithmetic):  # turned: the gold is the number
        return False
    if formula.exact is not None:
        return formula.exact == number.value
    if agree(formula.node, ("number", number.value)):
        return True
    place = position(formula.node)
    return place is not None and close(Numeral(place), number.numeral)


def _expressions(gold: Expression, answer: Expression, rule: _Rule) -> bool:
    if gold.variables != answer.variables or not agree(gold.node, answer.node):
        return False
    return rule.arithmetic or not gold.constant or answer.left_to_compute <= gold.left_to_compute


def _groups(gold: Compound, answer: Compound, rule: _Rule) -> bool:
    shapes = {gold.shape, answer.shape}
    if len(shapes) > 1 and shapes != {"list", "set"}:
        return False
    left, right = list(gold.items), list(answer.items)
    if "set" in shapes:
        left, right = (list({item.key: item for item in side}.values()) for side in (left, right))
    if len(left) != len(right) or len(left) > _MOST_PAIRED:
        return False
    if gold.ordered or _names_one_side(left, right):
        return all(rule.equal(a, b) for a, b in zip(left, right, strict=True))
    return _paired(left, right, rule.equal)


def _names_one_side(left: list[Form], right: list[Form]) -> bool:
    """Whether one side names its items differently (`a=1, b=2`) and the other relies on their order."""
    named = [[item.name for item in side if isinstance(item, Named)] for side in (left, right)]
    # Names that differ in the index alone are an unknown's roots, whose order is free.
    return any(
        len({name.partition("_")[0] for name in names}) > 1 and not opposite for names, opposite in (named, named[::-1])
    )


def _paired(left: Sequence[Form], right: Sequence[Form], alike: Callable[[Form, Form], bool]) -> bool:
    """Whether the items can be paired one to one (augmenting paths, since equality of golds is not transitive)."""
    partner: dict[int, int] = {}

    def assign(item: int, seen: set[int]) -> bool:
        for candidate in range(len(right)):
            if candidate in seen or not alike(left[item], right[candidate]):
                continue
            seen.add(candidate)
            if candidate not in partner or assign(partner[candidate], seen):
                partner[candidate] = item
                return True
        return False

    return all(assign(item, set()) for item in range(len(left)))


def _matrices(gold: Matrix, answer: Matrix, rule: _Rule) -> bool:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    pairs = zip(sum(gold.rows, ()), sum(answer.rows, ()), strict=True)
    return all(rule.equal(a, b) for a, b in pairs)


def _equation_of_name(named: Named, relation: Relation, _: _Rule) -> bool:
    """Whether `name = formula` is an equation between variables in another form."""
    if not isinstance(named.value, Expression) or named.value.constant or len(named.name) != 1:
        return False
    content = ratios(("+", ("symbol", named.name), ("-", named.value.node)), signed=False)
    names = sorted(named.value.variables | {named.name})
    return content is not None and Relation("=", f"{' '.join(names)};{' '.join(content)}").key == relation.key


_TABLE: dict[tuple[type, type], Callable[[Any, Any, _Rule], bool]] = {
    (Named, Named): lambda left, right, rule: left.name == right.name and rule.equal(left.value, right.value),
    (Named, Relation): _equation_of_name,
    **{
        (Named, other): lambda named, value, rule: rule.equal(named.value, value)
        for other in (Number, Infinite, Percent, Quantity, Based, Expression, Compound, Matrix, Region, Colons)
    },
    (Number, Number): lambda left, right, _: close(left.numeral, right.numeral),
    (Number, Percent): _percentage,
    (Percent, Percent): lambda left, right, _: close(left.numeral, right.numeral),
    **{
        (bare, Quantity): lambda amount, quantity, rule: rule.equal(amount, quantity.amount)
        for bare in (Number, Expression)
    },
    (Quantity, Quantity): lambda left, right, rule: (
        same(left.unit, right.unit) and rule.equal(left.amount, right.amount)
    ),
    (Expression, Number): _value_of_expression,
    (Expression, Expression): _expressions,
    (Compound, Compound): _groups,
    (Matrix, Matrix): _matrices,
    (Region, Region): lambda left, right, _: (
        left.spelled == right.spelled and (left.variable == right.variable or not (left.variable and right.variable))
    ),
    (Region, Compound): lambda region, pair, _: (
        (between := open_interval(pair)) is not None and between.spelled == region.spelled
    ),
    (Colons, Colons): lambda left, right, _: (
        left.time == right.time and left.parts == right.parts and not (left.half and right.half)
    ),
}
