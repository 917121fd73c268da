r"""Evaluation of an expression: its value, or its values at fixed points if it has variables.

Two formulas are one if they have the same variables and agree at `POINTS` points whose coordinates are rationals
drawn from the variables' names (Schwartz, 1980; Zippel, 1979). Rational arithmetic is exact, and so is its comparison.
Roots, powers and functions are computed by mpmath at two precisions, and the digits on which both agree are kept: 80,
or more where a formula holds terms of very different sizes, so that the smallest one still counts. So no value depends
on time, order or machine, and no step can run away: irrational values whose terms span more than 630 powers of ten,
magnitudes beyond 2^12,000 and factorials beyond 3,000 have no value.

Odd roots of negative numbers are real, as at school. Where an expression without i has no real value, the point lies
outside its domain.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cached_property, lru_cache
from operator import add, mul
from typing import Any

from fedrlvr.tasks.answers.expressions import TRIGONOMETRIC, Node, symbols

POINTS = 6
_BITS = 12_000  # of a magnitude: both an exact integer's length and a float's exponent
_FACTORIAL = 3_000
_FEWEST_DIGITS = 80
_MOST_DIGITS = 1_280
_GUARD = 40
_SCALES = (Fraction(1), Fraction(1, 10), Fraction(2), Fraction(15), Fraction(500), Fraction(300))

Value = Any  # a Fraction or an mpmath number


_lock = threading.RLock()  # mpmath's precision belongs to its context, which all threads share


class _Mpmath:
    """A context of our own, so that nobody else's precision changes; mpmath is imported when it is first needed."""

    @cached_property
    def context(self) -> Any:
        import mpmath

        return mpmath.MPContext()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)


mp: Any = _Mpmath()


class _UndefinedError(Exception):
    """There is no value: division by zero, or too large to compute."""


@lru_cache(maxsize=8_192)
def values(node: Node) -> tuple[str, ...] | None:
    """An expression's value in one spelling, or with variables its values at the points; None where it has none."""
    sampled = _sampled(node, digits_needed(node))
    return None if sampled is None else tuple(_spelled(value) for value in sampled)


@lru_cache(maxsize=8_192)
def agree(first: Node, second: Node) -> bool:
    """Whether two expressions of the same variables have equal values, by as many digits as the pair needs."""
    if values(first) is None or values(second) is None:
        return False
    if values(first) == values(second):
        return True
    digits = max(digits_needed(first), digits_needed(second))
    pairs = zip(_sampled(first, digits) or (), _sampled(second, digits) or (), strict=True)
    return all(_in_digits(a, digits) == _in_digits(b, digits) if type(a) is not type(b) else a == b for a, b in pairs)


@lru_cache(maxsize=8_192)
def digits_needed(node: Node) -> int:
    """Digits that tell an expression from others of its sizes: over twice the span of its terms' powers of ten.

    A power of two times 80, so that different spellings of a formula mostly need as many.
    """
    names = sorted(symbols(node))
    with _lock:
        spans = [_span(node, _point(names, index)) for index in range(POINTS if names else 1)]
    digits = _FEWEST_DIGITS
    while digits < _MOST_DIGITS and any(digits < 2 * span + 20 <= _MOST_DIGITS for span in spans):
        digits *= 2
    return digits


@lru_cache(maxsize=8_192)
def ratios(node: Node, *, signed: bool) -> tuple[str, ...] | None:
    """Values up to a common factor, of any sign or (signed) a positive one: what `f = 0` and `f < 0` depend on."""
    names = sorted(symbols(node))
    if not names:
        return None
    digits = digits_needed(node)
    working = _working(digits) + _GUARD
    with _lock, mp.workdps(working):
        exact = [_evaluated(node, _point(names, index), working) for index in range(POINTS)]
        first = next((value for value in exact if value is not None and value != 0), None)
        if first is None:
            return None
        scale = abs(first) if signed and _is_real(first) else first
        quotients = [None if value is None else _divided(value, scale) for value in exact]
        return tuple(
            _spelled(value if value is None or isinstance(value, Fraction) else _agreed(value, value, digits))
            for value in quotients
        )


@lru_cache(maxsize=8_192)
def position(node: Node) -> Fraction | None:
    """A constant's place on the real line, to 60 digits; None if it is not real or has no value."""
    if symbols(node):
        return None
    with _lock:
        value = _evaluated(node, {}, _working(digits_needed(node)))
        if value is None or not _is_real(value):
            return None
        return value if isinstance(value, Fraction) else _as_fraction(value)


def exact(node: Node) -> Fraction | None:
    """A constant's exact rational value, if only rational operations lead to it."""
    if symbols(node):
        return None
    with _lock:
        value = _evaluated(node, {}, _FEWEST_DIGITS)
    return value if isinstance(value, Fraction) else None


@lru_cache(maxsize=8_192)
def _sampled(node: Node, digits: int) -> tuple[Fraction | str, ...] | None:
    """A value, or those at the points: exact, in decimal digits, or "none" and "outside"; None where all are none."""
    names = sorted(symbols(node))
    with _lock:
        if not names:
            value = _sample(node, {}, digits)
            return None if value is None else (value,)
        sampled = [_sample(node, _point(names, index), digits) for index in range(POINTS)]
    if all(value is None for value in sampled):
        return None
    real = ["outside" if isinstance(v, str) and v.endswith(" i") else "none" if v is None else v for v in sampled]
    if _imaginary(node) or all(value in ("none", "outside") for value in real):
        return tuple("none" if value is None else value for value in sampled)
    return tuple(real)


def _sample(node: Node, point: Mapping[str, Fraction], digits: int) -> Fraction | str | None:
    rough = _evaluated(node, point, _working(digits))
    if rough is None or isinstance(rough, Fraction):
        return rough
    if 2 * _span(node, point) + 20 > _MOST_DIGITS:
        return None
    fine = _evaluated(node, point, _working(digits) + _GUARD)
    return fine if isinstance(fine, Fraction) else _agreed(rough, fine, digits)


def _working(digits: int) -> int:
    """Digits to compute with, so that `digits` of them remain after terms have cancelled."""
    return digits + digits // 2 + _GUARD


def _span(node: Node, point: Mapping[str, Fraction]) -> int:
    """How many powers of ten lie between the largest and the smallest of a tree's values at a point and 1."""
    exponents = [0]
    _evaluated(node, point, 2 * _FEWEST_DIGITS, exponents)
    return (max(exponents) - min(exponents)) * 3 // 10


def _agreed(rough: Value, fine: Value, digits: int) -> str | None:
    """The digits that both precisions share; a value that shrinks with the precision is zero."""
    if fine is None:
        return None
    with mp.workdps(_working(digits) + _GUARD):
        parts = []
        size = abs(fine)
        for low, high in ((mp.re(rough), mp.re(fine)), (mp.im(rough), mp.im(fine))):
            tiny = abs(high) < size * mp.mpf(10) ** -(digits + 20)
            vanishing = abs(high) < mp.mpf(10) ** -(digits + 20) and abs(low) > abs(high) * 10**20
            if tiny or vanishing or high == 0:
                parts.append("0")
            elif abs(low - high) > abs(high) * mp.mpf(10) ** -(digits + 5):
                return None
            else:
                parts.append(_digits(high, digits))
        return parts[0] if parts[1] == "0" else f"{parts[0]} + {parts[1]} i"


def _in_digits(value: Fraction | str, digits: int) -> str:
    if isinstance(value, str):
        return value
    with _lock, mp.workdps(digits + _GUARD):
        return _digits(_float(value), digits) if value else "0"


def _spelled(value: Fraction | str | None) -> str:
    """A value in one spelling; rationals of up to 38 digits differ within 80 digits, larger ones are written out."""
    if isinstance(value, Fraction):
        if max(abs(value.numerator), value.denominator) < 10**38:
            return _in_digits(value, _FEWEST_DIGITS)
        return f"{value.numerator:#x}/{value.denominator:#x}"
    return value or "none"


def _digits(value: Value, digits: int) -> str:
    return str(mp.nstr(value, digits, min_fixed=1, max_fixed=0))  # always with an exponent


def _imaginary(node: Node) -> bool:
    return node == ("constant", "i") or any(_imaginary(part) for part in node[1:] if isinstance(part, tuple))


def _point(names: list[str], index: int) -> dict[str, Fraction]:
    """Coordinates of sizes from a tenth to a thousand; all positive at every other point, else of both signs."""
    point = {}
    for name in names:
        digest = hashlib.sha256(f"{name} {index}".encode()).digest()
        value = 1 + Fraction(int.from_bytes(digest[:3], "big"), 16_777_259)  # a prime
        value *= _SCALES[(index + digest[4] % 2) % len(_SCALES)]
        point[name] = -value if index % 2 and digest[3] % 4 else value
    return point


def _evaluated(
    node: Node, point: Mapping[str, Fraction], digits: int, exponents: list[int] | None = None
) -> Value | None:
    try:
        with mp.workdps(digits):
            value = _value(node, point, [] if exponents is None else exponents)
            if not isinstance(value, Fraction) and not mp.isfinite(value):
                return None
            return value
    except (_UndefinedError, ValueError, ArithmeticError, mp.NoConvergence):
        return None


def _value(node: Node, point: Mapping[str, Fraction], exponents: list[int]) -> Value:
    """A tree's value; `exponents` receives the binary exponents of all values but sums, which may cancel to noise."""
    value = _operated(node[0], node, point, exponents)
    if node[0] != "+" and value != 0:
        exponents.append(_exponent(value))
    return value


def _operated(operator: str, node: Node, point: Mapping[str, Fraction], exponents: list[int]) -> Value:
    if operator == "number":
        return node[1]
    if operator == "symbol":
        return point[node[1]]
    if operator == "constant":
        return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}[node[1]] + 0
    if operator == "call":
        return _unknown(node[1], [_value(part, point, exponents) for part in node[2:]])
    a, *rest = (_value(part, point, exponents) for part in node[1:])
    if operator == "-":
        return -a
    if operator == "degree":
        return _float(a) * mp.pi / 180
    if operator in ("!", "binomial"):
        return _counted(operator, a, *rest)
    if operator in ("abs", "floor", "ceil"):
        return _rounded(operator, a)
    if operator in TRIGONOMETRIC or operator == "log":
        return _checked(_function(operator, a, *rest))
    b = rest[0]
    if operator == "root":
        return _checked(_power(b, 1 / a))
    return _checked(_BINARY[operator](a, b))


def _alike(a: Value, b: Value) -> tuple[Value, Value]:
    """Both as rationals, or both as floats."""
    return (a, b) if isinstance(a, Fraction) == isinstance(b, Fraction) else (_float(a), _float(b))


def _float(value: Value) -> Value:
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / value.denominator
    return value


def _as_fraction(value: Value) -> Fraction:
    mantissa, exponent = mp.frexp(mp.re(value))
    return Fraction(int(mp.ldexp(mantissa, 220))) * Fraction(2) ** (int(exponent) - 220)


def _is_real(value: Value) -> bool:
    if isinstance(value, Fraction):
        return True
    return bool(abs(mp.im(value)) <= abs(value) * mp.mpf(10) ** -50)


def _divided(a: Value, b: Value) -> Value:
    if b == 0:
        raise _UndefinedError
    a, b = _alike(a, b)
    return a / b


def _exponent(value: Value) -> int:
    """The power of two next to a value other than zero."""
    if isinstance(value, Fraction):
        return value.numerator.bit_length() - value.denominator.bit_length()
    magnitude = mp.mag(value)
    return int(magnitude) if mp.isfinite(magnitude) else 0


def _size(value: Value) -> int:
    """Bits of the larger part of a rational, or the binary exponent's size of a float."""
    if isinstance(value, Fraction):
        return max(abs(value.numerator).bit_length(), value.denominator.bit_length())
    magnitude = mp.mag(value) if value != 0 else 0
    return abs(int(magnitude)) if mp.isfinite(magnitude) else _BITS + 1


def _checked(value: Value) -> Value:
    if _size(value) > _BITS:
        raise _UndefinedError
    return value


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction):
        if base == 0:
            if exponent <= 0:
                raise _UndefinedError
            return Fraction(0)
        if _size(base) * abs(exponent) > 2 * _BITS:
            raise _UndefinedError
        if exponent.denominator == 1:
            return base ** int(exponent)
        if isinstance(base, Fraction) and (root := _rational_root(base, exponent)) is not None:
            return root
        base = _float(base)
        power = mp.mpf(exponent.numerator) / exponent.denominator
        if _is_real(base) and mp.re(base) < 0 and exponent.denominator % 2:
            return (-1 if exponent.numerator % 2 else 1) * abs(base) ** power
        return base**power
    base, exponent = _float(base), _float(exponent)
    if base == 0 or _size(base) * abs(exponent) > 2 * _BITS or _size(exponent) > 200:
        raise _UndefinedError
    return base**exponent


def _rational_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """`base ** exponent` if it is rational."""
    degree = exponent.denominator
    if degree > 64 or (base < 0 and degree % 2 == 0):
        return None
    parts: list[int] = []
    for number in (abs(base.numerator), base.denominator):
        with mp.workprec(number.bit_length() // degree + 40):
            candidate = int(mp.nint(mp.root(number, degree)))
        if candidate**degree != number:
            return None
        parts.append(candidate)
    power: Fraction = Fraction(parts[0] if base > 0 else -parts[0], parts[1]) ** int(exponent.numerator)
    return power


def _counted(operator: str, n: Value, k: Value = Fraction(0)) -> Value:
    if not all(isinstance(v, Fraction) and abs(v) <= _FACTORIAL for v in (n, k)):
        raise _UndefinedError
    if all(v.denominator == 1 for v in (n, k)):
        if n < 0 or k < 0:
            raise _UndefinedError
        return Fraction(math.factorial(int(n)) if operator == "!" else math.comb(int(n), int(k)))
    # Where a variable stands, the gamma function.
    return mp.factorial(_float(n)) if operator == "!" else mp.binomial(_float(n), _float(k))


def _rounded(operator: str, value: Value) -> Value:
    if operator == "abs":
        return abs(value)
    if not isinstance(value, Fraction):
        value = mp.re(value)
        nearest = mp.nint(value)
        if abs(value - nearest) < mp.mpf(10) ** -50:  # an integer but for rounding
            return Fraction(int(nearest))
        return Fraction(int((mp.floor if operator == "floor" else mp.ceil)(value)))
    return Fraction(value.__floor__() if operator == "floor" else value.__ceil__())


def _function(name: str, a: Value, base: Value | None = None) -> Value:
    if _size(a) > 2_000:
        raise _UndefinedError
    a = _float(a)
    if name == "log":
        if a == 0 or (base is not None and (base == 0 or base == 1)):
            raise _UndefinedError
        return mp.log(a) if base is None else mp.log(a) / mp.log(_float(base))
    if reciprocal := {"cot": "tan", "sec": "cos", "csc": "sin"}.get(name):
        return _divided(mp.mpf(1), getattr(mp, reciprocal)(a))
    plain = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
    return getattr(mp, plain)(a)


def _unknown(name: str, arguments: list[Value]) -> Fraction:
    """A value for a function of which only the name is known: drawn from its name and arguments."""
    digits = _FEWEST_DIGITS
    known = (v if isinstance(v, Fraction) else _agreed(v, v, digits) for v in arguments)
    text = f"{name} {' '.join(map(_spelled, known))}"
    return 1 + Fraction(int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big"), 16_777_259)


_BINARY: dict[str, Callable[[Value, Value], Value]] = {
    "+": lambda a, b: add(*_alike(a, b)),
    "*": lambda a, b: mul(*_alike(a, b)),
    "/": _divided,
    "^": _power,
}
