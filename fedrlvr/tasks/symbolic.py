"""Symbolic equality by math-verify, in a child process (`child.py`), and never on what plainly would not end."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from fedrlvr.tasks.child import GraderChild
from fedrlvr.tasks.extraction import LONGEST_ANSWER, balanced

# A numeric exponent that is itself a power, as in `^{9^{9`, and whether a third power sits on top.
_TOWER = re.compile(r"\^[\s{(]*[-+]?([0-9]+)[\s)}]*\^[\s{(]*([0-9]+)(\s*\^)?")
_HUGE = re.compile(r"\^[\s{(]*[-+]?[0-9]{6}|[0-9]{4}\s*!|!\s*!")

_child = GraderChild("math_verify")


@lru_cache(maxsize=65_536)
def symbolically_equal(gold: str, answer: str) -> bool:
    """Whether math-verify finds `answer` equal to `gold`; verdicts are remembered for the life of the process.

    Longer than 1,000 characters, unbalanced braces, explosive, or undecided within 5 s: unequal.

    Raises:
        GradingError: math-verify cannot be used at all.
    """
    if max(len(gold), len(answer)) > LONGEST_ANSWER or not (balanced(gold) and balanced(answer)):
        return False
    if explosive(gold) or explosive(answer):
        return False
    return _child.ask({"gold": gold, "answer": answer}) == 1.0


def explosive(text: str) -> bool:
    """Whether evaluating `text` would plainly take for ever, so that no check need run into its wall limit.

    An exponent of 100,000 and more (written out, or as a power), a tower of four numbers, the factorial of a number
    of four digits, a factorial's factorial. The wall limit, not this list, is the guarantee.
    """
    text = text.replace("**", "^")
    if _HUGE.search(text):
        return True
    return any(
        third or len(base) + len(power) > 8 or int(power) * math.log10(max(int(base), 1)) >= 5
        for base, power, third in _TOWER.findall(text)
    )
