r"""Numbers as people write them, to exact rationals; never through a float.

Integers, decimals, digits grouped by a comma, a space or an apostrophe, fractions of two integers, mixed numbers, and
repeating decimals (`0.\overline{3}`), and scientific notation. Arithmetic that is still to be done (`9+9`, `2^{10}`,
`--18`) is no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from fedrlvr.tasks.answers.normalise import WORD

MOST_DIGITS = 1_000
LARGEST_EXPONENT = 4_000
"""Powers of ten beyond this are no numbers: an exact integer of that size is already 13,000 bits."""

_GROUPED = r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+|(?:'[0-9]{3})+)"
_INTEGER = rf"(?:{_GROUPED}|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.(?:[0-9]{{3}}(?: [0-9]{{3}})*(?: [0-9]{{1,3}})|[0-9]*))?|\.[0-9]+)"
_SIGN = r"(?:[-+]\s*)?"
_PART = rf"(?:\{{\s*({_SIGN}{_INTEGER})\s*\}}|\s*([0-9]))"
_FRACTION = rf"\\frac\s*{_PART}\s*{_PART}"
_SLASHED = rf"[({{]?\s*({_SIGN}{_INTEGER})\s*[)}}]?\s*/\s*[({{]?\s*({_SIGN}{_INTEGER})\s*[)}}]?"
_PROPER = r"(?:\\frac\s*(?:\{\s*([0-9]+)\s*\}|\s*([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|\s*([0-9]))|([0-9]+)\s*/\s*([0-9]+))"
_TEN = r"\{?10\}?\s*(?:\^|\*\*)\s*\{?\s*\(?\s*(?P<exponent>[-+]?\s*[0-9]+)\s*\)?\s*\}?"

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALED = re.compile(rf"(.*[\d}}])\s*{WORD}?({'|'.join(_SCALES)})s?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number's exact value, and for a decimal how many significant digits it is written with (else 0)."""

    value: Fraction
    digits: int = 0


def numeral(text: str) -> Numeral | None:
    """The number that the whole normalised text is, or None."""
    text = text.strip()
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}") and not set("(){},") & set(text[1:-1].strip("(){} ")):
        text = text[1:-1].strip()
    if len(text) > MOST_DIGITS or not any("0" <= c <= "9" for c in text):
        return None
    if match := _SCALED.fullmatch(text):
        base = numeral(match[1])
        return Numeral(base.value * _SCALES[match[2]]) if base else None
    for pattern, read in _WRITTEN:
        if match := pattern.fullmatch(text):
            try:
                return read(match)
            except ZeroDivisionError:
                return None
    return None


def _integer(text: str) -> int:
    return int(re.sub(r"[,' +]", "", text))


def _decimal(sign: str, text: str) -> Numeral:
    text = re.sub(r"[,' ]", "", text)
    factor = -1 if "-" in sign else 1
    digits = text.replace(".", "").lstrip("0")
    return Numeral(factor * Fraction(text.rstrip(".")), len(digits) if "." in text.rstrip(".") else 0)


def _fraction(match: re.Match[str]) -> Numeral:
    sign, top, short_top, bottom, short_bottom = match.groups()
    value = Fraction(_integer(top or short_top), _integer(bottom or short_bottom))
    return Numeral(-value if "-" in sign else value)


def _slashed(match: re.Match[str]) -> Numeral:
    return Numeral(Fraction(_integer(match[1]), _integer(match[2])))


def _mixed(match: re.Match[str]) -> Numeral | None:
    sign, whole, space, *parts = match.groups()
    top, bottom = int(parts[0] or parts[1] or parts[4]), int(parts[2] or parts[3] or parts[5])
    if not 0 < top < bottom or (parts[4] and not space):
        return None
    value = int(whole) + Fraction(top, bottom)
    return Numeral(-value if "-" in sign else value)


def _repeating(match: re.Match[str]) -> Numeral:
    sign, whole, start, *period = match.groups()
    digits = period[0] or period[1]
    value = int((whole + start) or 0) + Fraction(int(digits), 10 ** len(digits) - 1)
    return Numeral(value / 10 ** len(start) * (-1 if "-" in sign else 1))


def _scientific(match: re.Match[str]) -> Numeral | None:
    size = match["exponent"].replace(" ", "")
    if len(size) > 6 or abs(int(size)) > LARGEST_EXPONENT:
        return None
    base = _decimal(match[1], match[2] or "1")
    return Numeral(base.value * Fraction(10) ** int(size), base.digits if base.value else 0)


_WRITTEN: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Numeral | None]]] = [
    (re.compile(pattern), read)
    for pattern, read in (
        (rf"({_SIGN})({_DECIMAL})", lambda match: _decimal(match[1], match[2])),
        (rf"({_SIGN}){_FRACTION}", _fraction),
        (_SLASHED, _slashed),
        (rf"({_SIGN})([0-9]+)(\s*){_PROPER}", _mixed),
        (rf"({_SIGN})(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*|{WORD}?[xX])\s*)?{_TEN}", _scientific),
        (rf"({_SIGN})({_DECIMAL})\s*{WORD}?[eE]\s*(?:\{{\s*)?(?P<exponent>[-+]?\s*[0-9]+)\s*\}}?", _scientific),
        (rf"({_SIGN})([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{{\s*([0-9]+)\s*\}}|([0-9]))", _repeating),
    )
]


def spelled(value: Fraction) -> str:
    """One spelling of a rational: `p` or `p/q` in lowest terms, in hexadecimal beyond 4,000 bits."""
    if max(abs(value.numerator), value.denominator).bit_length() <= 4_000:
        return str(value)
    return f"{value.numerator:#x}/{value.denominator:#x}"


def close(one: Numeral, other: Numeral) -> bool:
    """Whether two numbers are equal, or one is a decimal of six or more digits that is the other, rounded.

    A decimal of 15 digits and more may also differ in its last two, which a computer's arithmetic does not hold.
    """
    if one.value == other.value:
        return True
    return _rounded(one, other) or _rounded(other, one)


def _rounded(decimal: Numeral, exact: Numeral) -> bool:
    if decimal.digits < 6 or exact.value == 0 or exact.value.denominator == 1:
        return False
    error = abs(decimal.value - exact.value) / abs(exact.value)
    if exact.digits:  # two decimals: only a computer's rounding separates them
        return decimal.digits >= 15 and error < Fraction(1, 10**14)
    # Half a unit in the last digit of a decimal with this many digits.
    return abs(decimal.value - exact.value) * 2 <= _unit(decimal)


def _unit(decimal: Numeral) -> Fraction:
    """The value of one in the last digit that a decimal is written with."""
    size, value = 0, abs(decimal.value)
    while value >= 10:
        value, size = value / 10, size + 1
    while 0 < value < 1:
        value, size = value * 10, size - 1
    return Fraction(10) ** (size - decimal.digits + 1)
