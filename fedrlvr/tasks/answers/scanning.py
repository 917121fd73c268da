r"""Where a normalised text can be cut: at the separators and relations that stand within no bracket."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from fedrlvr.tasks.answers.normalise import WORD

RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in"}
OTHER_RELATIONS = {
    r"\approx", r"\sim", r"\simeq", r"\cong", r"\equiv", r"\to", r"\Rightarrow", r"\iff", r"\notin", r"\subset",
    r"\subseteq", r"\propto", r"\not", r"\nless", r"\ngtr", r"\nleq", r"\ngeq", r"\ll", r"\gg", r"\mapsto", r"\doteq",
    r"\perp", r"\parallel", r"\neg", r"\lnot", r"\lor", r"\land", r"\vee", r"\wedge", r"\cancel", r"\prec", r"\succ",
}  # fmt: skip
_TOKEN = re.compile(rf"\\[a-zA-Z]+|\\.|{WORD}[^\W\d_]+|[a-zA-Z]+|.", re.DOTALL)
_OPENING = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"}
_CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"}
_GROUPED = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")


def tokens(text: str) -> Iterator[tuple[str, int, int, int]]:
    """Each token with its span and the depth of brackets round it; a bracket has the depth outside it."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _CLOSING:
            depth -= 1
        yield token, match.start(), match.end(), depth
        if token in _OPENING:
            depth += 1


def balanced(text: str) -> bool:
    """Whether as many brackets open as close, of whatever shape, and none closes before one opens."""
    depth = 0
    for token, _, _, depth in tokens(text):
        if depth < 0:
            return False
        depth += token in _OPENING
    return depth == 0


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) if one pair of brackets encloses the whole text."""
    found = list(tokens(text))
    if len(found) < 2 or found[0][0] not in _OPENING or found[-1][0] not in _CLOSING:
        return None
    if any(depth <= 0 for _, _, _, depth in found[1:-1]) or found[-1][3] != 0:
        return None
    return found[0][0], text[found[0][2] : found[-1][1]].strip(), found[-1][0]


def listed(text: str, *, grouped: bool = True) -> list[str]:
    """Parts between top-level commas, semicolons, "and" and "or"; grouped: a comma may group a number's digits."""
    skip = [match.span() for match in _GROUPED.finditer(text)] if grouped else []
    cuts = []
    for token, start, end, depth in tokens(text):
        if depth:
            continue
        if token in (",", ";") and any(low < start < high for low, high in skip):
            continue
        if token in (",", ";") or token.removeprefix(WORD).casefold() in ("and", "or"):
            cuts.append((start, end))
    parts = cut(text, cuts)
    if not cuts or not parts[0] or not parts[-1]:  # `1, 2 or`
        return [text]
    return [part for part in parts if part]


def related(text: str) -> tuple[list[str], list[str]] | None:
    """(sides, relations) of a text with relations at the top level; None where one is not among `RELATIONS`."""
    cuts, operators = [], []
    for token, start, end, depth in tokens(text):
        if depth == 0 and token in OTHER_RELATIONS:
            return None
        if depth == 0 and token in RELATIONS:
            cuts.append((start, end))
            operators.append(token)
    return cut(text, cuts), operators


def split_at(text: str, separator: str) -> list[str]:
    """Parts between a separator's top-level occurrences."""
    return cut(text, [(start, end) for token, start, end, depth in tokens(text) if depth == 0 and token == separator])


def cut(text: str, cuts: list[tuple[int, int]]) -> list[str]:
    """The stripped parts between spans."""
    edges = [(0, 0), *cuts, (len(text), len(text))]
    return [text[left[1] : right[0]].strip() for left, right in pairwise(edges)]
