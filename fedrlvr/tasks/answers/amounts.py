r"""Formulas, and amounts with a unit, a noun or a currency."""

from __future__ import annotations

import re

from fedrlvr.tasks.answers.evaluation import exact, values
from fedrlvr.tasks.answers.expressions import expression, operations, symbols
from fedrlvr.tasks.answers.forms import Expression, Number, Quantity
from fedrlvr.tasks.answers.normalise import CURRENCY, WORD
from fedrlvr.tasks.answers.numerals import numeral
from fedrlvr.tasks.answers.units import GLUED, Unit, unit

_SYMBOL = rf"{WORD}?(?:US|USD|EUR|GBP|Rs\.?)?\s*[{CURRENCY}€£¥₹]|{WORD}?(?:USD|EUR|GBP|Rs\.?)\s"
_MONEY_BEFORE = re.compile(rf"([-+]?)\s*({_SYMBOL})\s*([-+]?.*)", re.DOTALL)
_NOUN_START = re.compile(rf"{WORD}[^\W\d_]|(?<![\\a-zA-Z{WORD}])[a-zA-Zμ]|[°€£¥₹¢{CURRENCY}]|\\mu(?![a-zA-Z])")


def formula(text: str) -> Expression | None:
    """The expression that a whole text is, if it has a value."""
    if WORD in text:
        return None
    node = expression(text)
    worth = None if node is None else values(node)
    if node is None or worth is None:
        return None
    variables = symbols(node)
    return Expression(node, worth, variables, operations(node), None if variables else exact(node))


def quantity(text: str, *, guess: bool = False) -> Quantity | None:
    """An amount and the unit or noun behind it, or a currency before it.

    guess: one letter glued to the number may be a unit as well.
    """
    if (match := _MONEY_BEFORE.fullmatch(text)) is not None:
        return _money(*match.groups())
    for start in _NOUN_START.finditer(text):
        amount, phrase = text[: start.start()].rstrip(), text[start.start() :]
        if not amount:
            return None
        if amount.endswith("(") and phrase.endswith(")") and len(phrase.lstrip(WORD)) > 2:  # `5 (eggs)`
            amount, phrase = amount[:-1].rstrip(), phrase[:-1]
        if amount.endswith(("(", "{", "^")):
            continue
        if amount.endswith("/") and (phrase[0] == WORD or len(phrase) > 2):  # `5/hour`
            amount, phrase = amount[:-1].rstrip(), "/" + phrase
        marked = phrase.lstrip("/")[0] in WORD + "°€£¥₹¢" + CURRENCY
        glued = text[start.start() - 1].isalnum() and not marked
        single = glued and len(phrase) == 1
        if single and not (guess and phrase in GLUED):
            continue
        measured = unit(phrase, glued=glued and not single)
        if measured is None:
            continue
        if (number := numeral(amount)) is not None:
            return Quantity(Number(number), measured)
        constant = formula(amount) if phrase[0] in WORD + "°" or (measured.measures and not glued) else None
        if constant is not None and not constant.left_to_compute and (constant.constant or phrase[0] == WORD):
            return Quantity(constant, measured)
    return None


def _money(sign: str, symbol: str, rest: str) -> Quantity | None:
    currency = unit(re.sub(rf"{WORD}|US(?=\s*{CURRENCY})", "", symbol).strip())
    if currency is None:
        return None
    if (number := numeral(sign + rest)) is not None:
        return Quantity(Number(number), currency)
    behind = quantity(sign + rest)
    if behind is None:
        return None
    repeated = dict(currency.measures).items() <= dict(behind.unit.measures).items()
    a_rate = any(power < 0 for _, power in behind.unit.measures)
    if not (repeated or a_rate or not behind.unit.measures):  # `$5 kg`
        return None
    merged = tuple(sorted({*currency.measures, *behind.unit.measures}))
    return Quantity(behind.amount, Unit(merged, behind.unit.nouns))
