r"""What an expression is worth: its value, or its values at fixed points if it has variables.

Two formulas are one if they have the same variables and agree at `POINTS` points whose coordinates are rationals
drawn from the variables' names (Schwartz, 1980; Zippel, 1979). Rational arithmetic is exact. Roots, powers and
functions are computed by mpmath with 80 and with 160 digits, and 40 digits on which both agree are kept. So no value
depends on time, order or machine, and no step can run away: magnitudes beyond 2^12,000 and factorials beyond 3,000 have
no value.

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
_DIGITS = (80, 160)
_KEPT = 40
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
    names = sorted(symbols(node))
    with _lock:
        if not names:
            value = _spelled_value(node, {})
            return None if value is None else (value,)
        found = [_spelled_value(node, _point(names, index)) for index in range(POINTS)]
    if all(value is None for value in found):
        return None
    real = ["none" if value is None else "outside" if value.endswith(" i") else value for value in found]
    if _imaginary(node) or all(value in ("none", "outside") for value in real):
        return tuple(value or "none" for value in found)
    return tuple(real)


@lru_cache(maxsize=8_192)
def ratios(node: Node, *, signed: bool) -> tuple[str, ...] | None:
    """Values up to a common factor, of any sign or (signed) a positive one: what `f = 0` and `f < 0` depend on."""
    names = sorted(symbols(node))
    if not names:
        return None
    with _lock, mp.workdps(_DIGITS[1]):
        exact = [_evaluated(node, _point(names, index), _DIGITS[1]) for index in range(POINTS)]
        first = next((value for value in exact if value is not None and value != 0), None)
        if first is None:
            return None
        scale = abs(first) if signed and _is_real(first) else first
        return tuple("none" if value is None else _spelled(_divided(value, scale)) for value in exact)


@lru_cache(maxsize=8_192)
def position(node: Node) -> Fraction | None:
    """A constant's place on the real line, to 60 digits; None if it is not real or has no value."""
    if symbols(node):
        return None
    with _lock:
        value = _evaluated(node, {}, _DIGITS[0])
        if value is None or not _is_real(value):
            return None
        return value if isinstance(value, Fraction) else _as_fraction(value)


def exact(node: Node) -> Fraction | None:
    """A constant's exact rational value, if only rational operations lead to it."""
    if symbols(node):
        return None
    with _lock:
        value = _evaluated(node, {}, _DIGITS[0])
    return value if isinstance(value, Fraction) else None


def _spelled_value(node: Node, point: Mapping[str, Fraction]) -> str | None:
    rough = _evaluated(node, point, _DIGITS[0])
    if rough is None or isinstance(rough, Fraction):
        return None if rough is None else _spelled(rough)
    return _agreed(rough, _evaluated(node, point, _DIGITS[1]))


def _agreed(rough: Value, fine: Value) -> str | None:
    """The digits that both precisions share; a value that shrinks with the precision is zero."""
    if fine is None:
        return None
    if isinstance(fine, Fraction):
        return _spelled(fine)
    with mp.workdps(_DIGITS[1]):
        parts = []
        size = abs(fine)
        for low, high in ((mp.re(rough), mp.re(fine)), (mp.im(rough), mp.im(fine))):
            tiny = abs(high) < size * mp.mpf(10) ** -60
            vanishing = abs(high) < mp.mpf(10) ** -120 and abs(low) > abs(high) * 10**20
            if tiny or vanishing or high == 0:
                parts.append("0")
            elif abs(low - high) > abs(high) * mp.mpf(10) ** -50:
                return None
            else:
                parts.append(_digits(high))
        return parts[0] if parts[1] == "0" else f"{parts[0]} + {parts[1]} i"


def _spelled(value: Value) -> str:
    if isinstance(value, Fraction):
        with mp.workdps(_DIGITS[0]):
            return _digits(_float(value)) if value else "0"
    return _agreed(value, value) or "none"


def _digits(value: Value) -> str:
    return str(mp.nstr(value, _KEPT, min_fixed=1, max_fixed=0))  # always with an exponent


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


def _evaluated(node: Node, point: Mapping[str, Fraction], digits: int) -> Value | None:
    try:
        with mp.workdps(digits):
            value = _value(node, point)
            if not isinstance(value, Fraction) and not mp.isfinite(value):
                return None
            return value
    except (_UndefinedError, ValueError, ArithmeticError, mp.NoConvergence):
        return None


def _value(node: Node, point: Mapping[str, Fraction]) -> Value:
    operator = node[0]
    if operator == "number":
        return node[1]
    if operator == "symbol":
        return point[node[1]]
    if operator == "constant":
        return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}[node[1]] + 0
    if operator == "call":
        return _unknown(node[1], [_value(part, point) for part in node[2:]])
    a, *rest = (_value(part, point) for part in node[1:])
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
    text = f"{name} {' '.join(_spelled(value) for value in arguments)}"
    return 1 + Fraction(int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big"), 16_777_259)


_BINARY: dict[str, Callable[[Value, Value], Value]] = {
    "+": lambda a, b: add(*_alike(a, b)),
    "*": lambda a, b: mul(*_alike(a, b)),
    "/": _divided,
    "^": _power,
}
