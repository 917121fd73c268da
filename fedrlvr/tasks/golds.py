r"""Search for gold answers that no marked answer can match, before training instead of in a reward that stays 0.

A model marks a short answer: `\boxed{B}`, not the option's text; `\boxed{2}`, not a sentence. So each gold is tested
through the grader against its own short spellings. A gold in plain form is its own first spelling. A gold with
something around the answer (an option's text, a sentence, Markdown, tags, `####`) is met only if the grader takes the
answer without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from fedrlvr.errors import DataError, GradingError
from fedrlvr.output import logger
from fedrlvr.tasks.extraction import last_box, wrap
from fedrlvr.tasks.grading import grade
from fedrlvr.tasks.problem import Kind, Problem

_log = logger("tasks")

_TAGS = re.compile(r"<(\w+)>\s*(.*?)\s*</\1>", re.DOTALL)
_MARKDOWN = re.compile(r"(\*\*|__|\*|`+)(.+?)\1\.?|#{1,6} +(.+)", re.DOTALL)
_MATH_MODE = re.compile(r"\$+([^$]+)\$+|\\\((.+)\\\)|\\\[(.+)\\\]", re.DOTALL)
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence),? +)?(?:the +)?(?:(?:final|correct|best|right) +)?"
    r"(?:answer|option|choice|result|solution)(?: +is\b *:?| *[:=]| (?=\(?[A-Z]\)?\.?$)) *(.+?)\.?",
    re.IGNORECASE | re.DOTALL,
)
_OPTION = re.compile(r"\(?([A-Z])(?:\)|[.:]|\s+-)\s*\s(\S.*)", re.DOTALL)
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{1,2}")
_COMMAND = re.compile(r"\\[a-zA-Z]+|\$[^$]*\$")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"[-+]?[0-9](?:[0-9,]*[0-9])?(?:\.[0-9]+)?(?:/[0-9]+)?")
_WHOLE = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)")
_RATIO = re.compile(r"([0-9]+)/([0-9]+)|\\d?frac\{([0-9]+)\}\{([0-9]+)\}")
_EXPONENT, _MATH_SIGNS = "is a number with an exponent", "holds the signs of math mode"
_HARMLESS = (_EXPONENT, _MATH_SIGNS)  # where the grader reads through them
_LISTED = 5  # gold answers of each sort, in a message
_SHOWN = 60  # characters of a prompt
_LONG_WORDS = 6
"""Words from which a gold without a number is a sentence that nobody repeats; with a number it is one from 4 on."""


class Spellings(NamedTuple):
    """Short answers that mean a gold answer.

    fault: what stands around the gold's answer, to follow "the gold answer"; "" for a gold in plain form.
    """

    fault: str
    answers: list[str]


class GoldFault(NamedTuple):
    """A gold answer that is not in plain form, or that no marked answer can meet (`reachable` is False), and why."""

    reachable: bool
    reason: str


def spellings(gold: str, kind: Kind) -> Spellings:
    """The short answers that a model may mark to give `gold`."""
    if kind in ("exact", "whole"):
        return Spellings("", [gold])
    if kind == "choice":
        letter = re.fullmatch(r"\(?([A-Za-z])\)?", gold)
        return Spellings("", [gold, letter[1], f"({letter[1]})"] if letter else [gold])
    fault, text = _bare(gold)
    if kind == "math" and (match := _OPTION.fullmatch(text)):
        return Spellings("is an option's letter with its text", [match[1], match[2]])
    if kind == "math" and not fault and _SCIENTIFIC.fullmatch(text):
        return Spellings(_EXPONENT, [format(Decimal(text), "f")])
    words = len(_WORD.findall(_COMMAND.sub(" ", text)))
    numbers = _NUMBER.findall(text)
    if words >= _LONG_WORDS or (words >= 4 and numbers):
        return Spellings("is a sentence", numbers[-1:])
    if fault:
        return Spellings(fault, [text])
    return Spellings("", [gold, *_numbers_alike(text)] if kind == "math" else [gold])


def examine(problem: Problem) -> GoldFault | None:
    """Describe the fault in a problem's gold answer; None if there is none.

    The text begins with the first words of the prompt, by which the row can be found, and holds nothing of the answer.
    """
    fault, answers = spellings(problem.answer, problem.kind)
    try:
        reachable = any(_is_right(answer, problem) for answer in answers)
    except GradingError as error:
        return GoldFault(False, f"{_beginning(problem.prompt)!r}: {error}")
    if reachable and fault in ("", *_HARMLESS):
        return None
    reason = f"the gold answer {fault}" if fault else "the gold answer does not even meet itself"
    met = "a short answer meets it all the same" if reachable else "no marked answer can meet it"
    remedy = "Give the short answer alone." if fault else "Correct it."
    return GoldFault(reachable, f"{_beginning(problem.prompt)!r}: {reason}, and {met}. {remedy}")


def misgraded(problem: Problem) -> list[str]:
    """The spellings of a plain gold answer that the grader takes for wrong, where it takes another for right."""
    fault, answers = spellings(problem.answer, problem.kind)
    wrong = [answer for answer in answers if not _is_right(answer, problem)]
    return [] if fault or len(wrong) == len(answers) else wrong


def check_golds(problems: Mapping[str, Sequence[Problem]], most: float) -> None:
    """Report how many gold answers no marked answer can match, and which are not in plain form, before training.

    problems: by the name of who holds them. Those without an answer are left out.
    most: share of the gold answers up to which the problems are accepted (data.unreachable_golds).

    Raises:
        DataError: more of them cannot be met; the text names the first problems and the reasons.
    """
    answered = sum(bool(problem.answer) for held in problems.values() for problem in held)
    lost: list[str] = []
    odd: list[str] = []
    for holder, held in problems.items():
        for problem in held:
            if problem.answer and (finding := examine(problem)):
                (odd if finding.reachable else lost).append(f"{holder}, problem {problem.id}, {finding.reason}")
    listed = " ".join([*lost[:_LISTED], *odd[:_LISTED]])
    if lost:
        message = (
            f"{len(lost)} of {answered} gold answers earn a reward of 0 whatever a model marks as its answer. {listed} "
            "`fedrlvr validate` names more of them."
        )
        if len(lost) > most * answered:
            raise DataError(f"{message} Correct them: data.unreachable_golds = {most:g} is the largest accepted share.")
        _log.warning("%s", message)
    elif odd:
        _log.warning("%d of %d gold answers are more than a short answer. %s", len(odd), answered, listed)


def _beginning(prompt: str) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _is_right(answer: str, problem: Problem) -> bool:
    return grade(wrap(answer, problem.kind), problem.answer, problem.kind) == 1.0


def _bare(gold: str) -> tuple[str, str]:
    """What stands around a gold's answer (the outermost thing, or ""), and the answer without any of it."""
    fault, text = "", gold.strip()
    while True:
        if "####" in text:
            what, inner = "holds '####'", text.rpartition("####")[2]
        elif match := _TAGS.search(text):
            what, inner = f"stands in <{match[1]}> tags", match[2]
        elif (box := last_box(text)) is not None:
            what, inner = "holds a box of its own", box
        elif match := _MARKDOWN.fullmatch(text):
            what, inner = "holds Markdown", match[2] or match[3]
        elif match := _MATH_MODE.fullmatch(text):
            what, inner = _MATH_SIGNS, match[1] or match[2] or match[3]
        elif match := _LEAD.fullmatch(text):
            what, inner = "is a sentence", match[1]
        else:
            return fault, text
        if not inner.strip():
            return fault, text
        fault, text = fault or what, inner.strip()


def _numbers_alike(text: str) -> list[str]:
    """Other spellings of a whole number or of a fraction of two."""
    if _WHOLE.fullmatch(text):
        digits = text.replace(",", "")
        return [digits, f"{int(digits):,}"] if len(digits) < 30 else [digits]
    if match := _RATIO.fullmatch(text):
        top, bottom = match[1] or match[3], match[2] or match[4]
        return [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}"]
    return []
