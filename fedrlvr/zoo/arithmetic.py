"""Sum, difference, product, remainder. Columns are worked from the units up, each total with its carry.

| family     | easy           | hard            | error                                                       |
|------------|----------------|-----------------|-------------------------------------------------------------|
| sum        | 2 + 2 digits   | 4 + 4 digits    | diffuse                                                     |
| difference | 3 - 2 digits   | 4 - 3 digits    | systematic: the smaller digit from the larger, no borrowing |
| product    | 3 x 1 digits   | 4 x 1 digits    | diffuse                                                     |
| remainder  | 3 mod 1 digits | 4 mod 1 digits  | systematic: the quotient for the remainder                  |
"""

from __future__ import annotations

from random import Random

from fedrlvr.zoo.family import Family, Level, Operands, Pen, digits_of, read_columns, times_by_columns


def _number(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _draw_sum(rng: Random, level: Level) -> Operands:
    digits = 2 if level == "easy" else 4
    return _number(rng, digits), _number(rng, digits)


def _work_sum(operands: Operands, pen: Pen) -> int:
    """47+85: "12 13", read off as 132."""
    columns: list[int] = []
    for first, second in zip(*map(digits_of, operands), strict=True):
        carry = columns[-1] // 10 if columns else 0
        columns.append(pen.write(first + second + carry))
    return read_columns(columns)


SUM = Family(
    name="sum",
    domain="arithmetic",
    error="diffuse",
    draw=_draw_sum,
    ask=lambda operands: f"{operands[0]} plus {operands[1]}?",
    answer=lambda operands: operands[0] + operands[1],
    work=_work_sum,
)


def _draw_difference(rng: Random, level: Level) -> Operands:
    """The units need a borrow, so that the misconception shows in the first digits written."""
    digits = 3 if level == "easy" else 4
    while True:
        upper, lower = _number(rng, digits), _number(rng, digits - 1)
        if upper % 10 < lower % 10:
            return upper, lower


def _work_difference(operands: Operands, pen: Pen) -> int:
    """325-47: "15-7=8 11-4=7 2", the upper digits as borrowed to and from; 1325-147: "15-7=8 11-4=7 12-1=11".

    The last column takes what is left of the upper number. With the misconception, which takes the smaller digit from
    the larger and never borrows, 325-47 is "7-5=2 4-2=2 3".
    """
    upper, lower = operands
    columns: list[int] = []
    for _ in range(2):
        top, bottom = upper % 10, lower % 10
        borrowed = int(top < bottom and not pen.misconceived)
        columns.append(_subtract(top + 10 * borrowed, bottom, pen))
        upper, lower = upper // 10 - borrowed, lower // 10
    columns.append(_subtract(upper, lower, pen) if lower else pen.write(upper))
    return read_columns(columns)


def _subtract(first: int, second: int, pen: Pen) -> int:
    """Write the larger minus the smaller and what it makes."""
    larger, smaller = max(first, second), min(first, second)
    pen.write(larger)
    pen.write(smaller, before="-")
    return pen.write(larger - smaller, before="=")


DIFFERENCE = Family(
    name="difference",
    domain="arithmetic",
    error="systematic",
    draw=_draw_difference,
    ask=lambda operands: f"{operands[0]} minus {operands[1]}?",
    answer=lambda operands: operands[0] - operands[1],
    work=_work_difference,
)


def _draw_product(rng: Random, level: Level) -> Operands:
    return _number(rng, 3 if level == "easy" else 4), rng.randrange(2, 10)


PRODUCT = Family(
    name="product",
    domain="arithmetic",
    error="diffuse",
    draw=_draw_product,
    ask=lambda operands: f"{operands[0]} times {operands[1]}?",
    answer=lambda operands: operands[0] * operands[1],
    work=lambda operands, pen: times_by_columns(operands[0], operands[1], pen),
)


def _draw_remainder(rng: Random, level: Level) -> Operands:
    return _number(rng, 3 if level == "easy" else 4), rng.randrange(3, 10)


def _work_remainder(operands: Operands, pen: Pen) -> int:
    """347 mod 6 by long division: "0r3 5r4 7r5", and r for taking the remainder, 5, or q for the quotient, 57."""
    number, divisor = operands
    remainder, quotient = 0, ""
    for digit in reversed(digits_of(number)):
        here = remainder * 10 + digit
        quotient += str(pen.write(here // divisor))
        remainder = pen.write(here % divisor, before="r")
    pen.text += " q" if pen.misconceived else " r"
    return int(quotient) if pen.misconceived else remainder


REMAINDER = Family(
    name="remainder",
    domain="arithmetic",
    error="systematic",
    draw=_draw_remainder,
    ask=lambda operands: f"{operands[0]} mod {operands[1]}?",
    answer=lambda operands: operands[0] % operands[1],
    work=_work_remainder,
)
