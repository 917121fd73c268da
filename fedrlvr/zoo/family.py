"""Problem families, and the writer of their worked solutions, right or wrong.

A worked solution is a few numbers, then `#### ` and the answer. Every number goes through a `Pen`, so that one
description of the right way also yields the wrong ones: a pen may slip, getting a digit of a number wrong (a *diffuse*
error, which the rest of the solution then carries on), or hold the family's misconception (a *systematic* error, which
the family's own `work` acts out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Level = Literal["easy", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "hard")
Operands = tuple[int, ...]


@dataclass
class Pen:
    """Writes the numbers of one worked solution.

    rng: decides on slips and their digits; None for a pen that never slips.
    slip_rate: chance of each number to get one digit wrong, whatever came before it. (A model that samples token by
        token can copy this; a set number of slips a solution it could only copy by noticing the ones it made.)
    misconceived: the writer holds the family's misconception.
    """

    rng: Random | None = None
    slip_rate: float = 0.0
    misconceived: bool = False
    numbers: int = 0
    text: str = ""

    def write(self, number: int, before: str = " ") -> int:
        """Write `before` (left out at the start) and the number; return the number as it was written."""
        if self.rng is not None and self.rng.random() < self.slip_rate:
            number = with_wrong_digit(number, self.rng)
        self.text += f"{before if self.text else ''}{number}"
        self.numbers += 1
        return number


def with_wrong_digit(number: int, rng: Random) -> int:
    """The number with one digit, uniformly chosen, replaced by another; as long as before, so no leading zero."""
    digits = list(str(number))
    place = rng.randrange(len(digits))
    lowest = 1 if place == 0 and len(digits) > 1 else 0
    digits[place] = str(rng.choice([digit for digit in range(lowest, 10) if str(digit) != digits[place]]))
    return int("".join(digits))


@dataclass(frozen=True)
class Family:
    """One family of generated problems, easy and hard.

    draw: operands of a level, uniform over the level's space (a misconception always changes the answer).
    ask: the prompt.
    answer: the right answer, computed directly and not by way of `work`.
    work: writes the solution up to the answer with the pen and returns the answer, from the numbers as written.
    """

    name: str
    domain: Literal["arithmetic", "clinical"]
    error: Literal["diffuse", "systematic"]
    draw: Callable[[Random, Level], Operands]
    ask: Callable[[Operands], str]
    answer: Callable[[Operands], int]
    work: Callable[[Operands, Pen], int]

    def solution(self, operands: Operands, pen: Pen) -> str:
        """The whole response: the chain of thought, `#### ` and the answer."""
        pen.write(self.work(operands, pen), before=" #### ")
        return pen.text


def digits_of(number: int) -> list[int]:
    """Decimal digits of a number, units first."""
    return [int(digit) for digit in reversed(str(number))]


def read_columns(columns: list[int]) -> int:
    """The number whose column totals, units first and carries included, are these."""
    return int(str(columns[-1]) + "".join(str(total % 10) for total in reversed(columns[:-1])))


def times_by_columns(number: int, factor: int, pen: Pen) -> int:
    """`number` x `factor`, each digit's product written with the carry from the one before, units first."""
    columns: list[int] = []
    for digit in digits_of(number):
        carry = columns[-1] // 10 if columns else 0
        columns.append(pen.write(digit * factor + carry))
    return read_columns(columns)
