r"""Whether a completion's answer is right: 1.0 or 0.0.

- `math`: two plain numbers are compared exactly as rationals (`1,000`, `0.5`, `1/2`, `\frac{1}{2}`, `50\%` read as 50,
  `$`, degrees and a unit in `\text{}` left out), and that settles it; words (`\text{...}`, or four letters and more)
  are compared as text; anything else that is not the same text is asked of math-verify (`symbolic.py`). A unit may
  be left out, but another unit than the gold answer's is wrong.
- `choice`: exactly one letter. `yes_no_maybe`: exactly one of the words.
- `exact`: the same text up to case, width and white space.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from fedrlvr.errors import GradingError
from fedrlvr.tasks.extraction import extract
from fedrlvr.tasks.problem import KINDS, Kind
from fedrlvr.tasks.symbolic import symbolically_equal

_MORE_COMMAS = 16  # an answer may have than the gold one
_MOST_DIGITS = 400  # of a number that is compared as a number: converting grows with the square of the digits

_ALL_TEXT = re.compile(r"\\(?:text|textnormal|textbf|textrm|textit|mbox)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"\\(?:text|textnormal|textbf|textrm|textit|mbox|mathrm)\s*\{([^{}]*)\}((?:\^\{?[0-9]\}?)?)$")
_NOISE = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[()\[\]]|\\?\$|\\?%|\^\\circ|\^\{\\circ\}")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\,)(?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"(?:\\[ ,;:]|~|\s)+")
# A space between two digits or letters is kept: without it `1 1/2` would read 11/2.
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?")
_FRACTION = re.compile(r"([-+]?)\\frac(?:\{(-?[0-9]+)\}|([0-9]))(?:\{(-?[0-9]+)\}|([0-9]))")
_RATIO = re.compile(r"([-+]?[0-9]+)/([0-9]+)")
_WORD = re.compile(r"[^\W\d_]{4,}")


def grade(completion: str, answer: str, kind: Kind) -> float:
    """1.0 if the completion's extracted answer is the gold `answer`, else 0.0.

    Raises:
        GradingError: an unknown kind, or a gold answer that its kind cannot have (so that nothing could score).
    """
    if kind not in KINDS:
        raise GradingError(f"There is no grader for kind {kind!r}. Use one of {', '.join(KINDS)}.")
    if canonical(answer, kind) is None:
        raise GradingError(
            f"A gold answer is not of kind {kind!r} ({_EXPECTED[kind]}), so no response could be right. Mend the "
            "problem's answer or its kind."
        )
    given = extract(completion, kind)
    return float(given is not None and same_answer(answer, given, kind))


def same_answer(gold: str, answer: str, kind: Kind) -> bool:
    """Whether two extracted answers are the same one by the grader of `kind`; the first is the reference."""
    left, right = canonical(gold, kind), canonical(answer, kind)
    if left is None or right is None or (kind == "math" and _units_differ(gold, answer)):
        return False
    if left == right or kind != "math":
        return left == right
    if _is_words(gold) or (_number(left) is not None and (_NUMBER.fullmatch(right) or _number(right) is not None)):
        return False
    # A number is no list; and math-verify takes seconds over an answer that lists everything.
    if _commas(right) > (0 if _number(left) is not None else _commas(left) + _MORE_COMMAS):
        return False
    return symbolically_equal(_tidy(gold), _tidy(answer))


def canonical(answer: str, kind: Kind) -> str | None:
    """One spelling for answers that are plainly the same, to cluster by; None for what is no answer of `kind`.

    Numbers become a reduced `p/q` or an integer; two spellings of one formula may still differ (`same_answer` decides).
    """
    if kind == "math":
        return _canonical_math(answer) or None
    if kind == "exact":
        return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()) or None
    bare = _ALL_TEXT.sub(r"\1", answer).replace("$", "").strip().strip("*").rstrip(".").strip()
    if kind == "yes_no_maybe":
        return bare.lower() if bare.lower() in ("yes", "no", "maybe") else None
    letter = re.fullmatch(r"\(?([A-Za-z])\)?", bare)
    return letter[1].upper() if letter else None


_EXPECTED = {
    "math": "a number or formula",
    "choice": "one letter from A to Z",
    "yes_no_maybe": "yes, no or maybe",
    "exact": "any text",
}


def _tidy(text: str) -> str:
    # A full stop, or the negative spaces LaTeX authors set around commas, make math-verify read nothing.
    return text.replace("\\!", "").strip().rstrip(".").strip()


def _canonical_math(answer: str) -> str:
    text = _tidy(answer)
    if words := _ALL_TEXT.fullmatch(text):
        return " ".join(words[1].casefold().split()).rstrip(".")
    text = _THOUSANDS.sub(",", _NOISE.sub("", _UNIT.sub("", text)))
    text = _LOOSE_SPACE.sub("", _SPACE.sub(" ", text))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("−", "-")
    number = _number(text)
    if number is not None:
        return str(number)
    return text.casefold() if _WORD.fullmatch(text) else text


def _number(text: str) -> Fraction | None:
    """The exact value of a plain number or simple fraction."""
    if len(text) > _MOST_DIGITS or not any("0" <= c <= "9" for c in text):
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", "").rstrip("."))
    if match := _FRACTION.fullmatch(text):
        top, bottom = int(match[2] or match[3]), int(match[4] or match[5])
        return Fraction(-top if match[1] == "-" else top, bottom) if bottom else None
    if match := _RATIO.fullmatch(text):
        return Fraction(int(match[1]), int(match[2])) if int(match[2]) else None
    return None


def _is_words(gold: str) -> bool:
    # math-verify reads a word as a product of its letters, for which any anagram is equal.
    text = _tidy(gold)
    return bool(_ALL_TEXT.fullmatch(text) or _WORD.fullmatch(text))


def _commas(text: str) -> int:
    return _GROUPED.sub("", text).count(",")


def _units_differ(gold: str, answer: str) -> bool:
    ours, theirs = _unit(gold), _unit(answer)
    return bool(ours and theirs and ours != theirs)


def _unit(text: str) -> str:
    match = _UNIT.search(_tidy(text))
    if match is None or match.start() == 0:
        return ""
    return re.sub(r"[\s.]", "", match[1].casefold()).rstrip("s") + re.sub(r"[{}]", "", match[2])
