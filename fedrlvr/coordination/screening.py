"""Screening of correct responses before other clients get them. A client could hide text in a correct response, append
text to it, or make it as long as allowed, and every receiver would train on it.

    hidden    it has a token or a character that no reader sees, or a token behind its end token
    tail      more than `coordination.pool_tail` characters stand behind its answer
    unusual   it has more tokens than `coordination.pool_length` x the usual number

The server screens what it pools, and each client screens its share once more. The usual number of tokens is never that
of the sender: at the server it is the median over the other clients of each one's median, at a client that of its
own responses. One client can so neither get its own long responses through nor, by short ones, keep another client's
from a third.
"""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Collection, Mapping, Sequence

SCREENED = ("hidden", "tail", "unusual")
"""Reasons for which a correct response is not passed on."""
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\ufffd")
"""Characters without a shape in categories that otherwise have one: joiners, fillers, blanks; and the sign for bytes
that are no text."""
_WITHOUT_SHAPE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_SELECTORS = frozenset(chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
"""Variation selectors, of which a run can carry any text unseen."""
_EMOJI_STYLE = "\ufe0e\ufe0f"
"""The selectors that stand behind a symbol in honest text, one at a time."""


def flaw(
    text: str, behind: int, token_ids: Sequence[int], *, special: Collection[int], ends: Collection[int], tail: int
) -> str | None:
    """Name the flaw for which a correct response is not passed on (`hidden`, `tail`); None if there is none.

    text: of the response. behind: characters of it behind its answer. special: tokens that have no text. ends: end
    tokens, with which a response may end. tail: most characters behind an answer.
    """
    *inner, last = token_ids
    if any(token in special or token in ends for token in inner) or (last in special and last not in ends):
        return "hidden"
    if not readable(text):
        return "hidden"
    return "tail" if behind > tail else None


def readable(text: str) -> bool:
    """Whether a reader sees every character of a text: letters, marks, numbers, punctuation, symbols, spaces, new
    lines and tabs; none of control, format (direction, zero width, tags), private use, surrogates or unassigned, and
    none of those that have no shape."""
    plain = text.translate({ord("\n"): None, ord("\t"): None})
    if plain.isascii():
        return plain.isprintable()
    before = ""
    for character in plain:
        if character in _SELECTORS:
            if character not in _EMOJI_STYLE or unicodedata.category(before or " ") != "So":
                return False
        elif character in _UNSEEN or unicodedata.category(character) in _WITHOUT_SHAPE:
            return False
        before = character
    return True


def usual_length(correct: Sequence[int], others: Sequence[int]) -> float:
    """The usual number of tokens of one client's responses: the median of its correct ones, or of the others where
    none is correct; infinite without any.

    correct, others: numbers of tokens of its correct responses and of its other ones.
    """
    lengths = correct or others
    return statistics.median(lengths) if lengths else math.inf


def usual_lengths(by_client: Mapping[str, float]) -> dict[str, float]:
    """Usual length by client, to which its responses are compared: the median over the other clients (with an even
    number, the larger of the two in the middle); infinite where no other client has one.

    by_client: `usual_length` of each.
    """
    usual = {}
    for client in by_client:
        others = [length for other, length in by_client.items() if other != client and math.isfinite(length)]
        usual[client] = statistics.median_high(others) if others else math.inf
    return usual
