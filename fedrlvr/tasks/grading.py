r"""Grading of a completion's answer: 1.0 if it is right, else 0.0.

- `math`: the answer is read as a typed value and compared by the table of `answers.matching`.
- `choice`: exactly one option letter. `yes_no_maybe`: exactly one of the words.
- `exact`: the same text up to case, width and white space.

`canonical` gives the key that votes are counted by; a gold answer may accept more than its own key (`18 eggs` for 18).
"""

from __future__ import annotations

import unicodedata

from fedrlvr.errors import GradingError
from fedrlvr.tasks.answers import matches, option_letter, parse, word_of
from fedrlvr.tasks.extraction import extract
from fedrlvr.tasks.problem import KINDS, Kind


def grade(completion: str, answer: str, kind: Kind, *, in_thought: bool = False, arithmetic: bool = False) -> float:
    """1.0 if the completion's extracted answer is the gold `answer`, else 0.0.

    in_thought: the prompt ends within a thought (a template that ends in `<think>`), so that nothing counts before the
        completion closes it.
    arithmetic: an answer of kind math may be an expression that still has to be computed, such as `9+9` for 18.

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
    given = extract(completion, kind, in_thought=in_thought)
    return float(given is not None and is_right(given, answer, kind, arithmetic=arithmetic))


def is_right(given: str, answer: str, kind: Kind, *, arithmetic: bool = False) -> bool:
    """Whether an extracted answer is the gold `answer` to the grader of `kind`."""
    if kind == "math":
        return matches(answer, given, arithmetic=arithmetic)
    key = canonical(given, kind)
    return key is not None and key == canonical(answer, kind)


def canonical(answer: str, kind: Kind) -> str | None:
    """The key of an extracted answer: equal for two answers that plainly say the same; None if it is none of `kind`.

    The key of a plain number is its reduced `p/q` or integer.
    """
    if kind == "math":
        form = parse(answer)
        return None if form is None else form.key
    if kind in ("exact", "whole"):
        return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()) or None
    return word_of(answer) if kind == "yes_no_maybe" else option_letter(answer)


_EXPECTED = {
    "math": "a number or formula",
    "choice": "one letter from A to Z",
    "yes_no_maybe": "yes, no or maybe",
    "exact": "any text",
    "whole": "any text",
}
