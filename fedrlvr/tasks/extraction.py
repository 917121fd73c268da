r"""Extraction of the answer from a completion: strict, documented, linear in the completion's length.

Reasoning between `<think>` and `</think>` is no answer: what counts is the text after the last `</think>`, up to a
`<think>` that opens after it, and of that the last 20,000 characters. Where the prompt itself opened the thought,
nothing counts before `</think>`. Then the first of these markers that occurs decides, and nothing falls back to a
later one when its content is unusable:

1. the last well-formed `<answer>...</answer>`; a single box in it that only markup surrounds is taken off;
2. the last `\boxed{...}` or `\fbox{...}` whose braces balance, or a lone `\boxed 7` at its line's end; for `math`,
   boxes side by side that only a comma, "and" or "or" separates are one list, unless they say the same;
3. the rest of the line after the last `####` (exactly four);
4. for `choice` and `yes_no_maybe` only, a last line that is nothing but the answer: `B`, `(B)`, `Answer: B. Heparin`,
   `The correct option is B`, and the same with yes, no or maybe. A bare option (`B. Heparin`) counts if no line
   above gives another.

A response to a problem of the kind `whole` is an answer and nothing else: that text, without white space around it.

Marked answers that contradict each other are no answer: for `math` another marker behind the one that decides, for
`choice` and `yes_no_maybe` any two.

An answer that is empty, longer than 1,000 characters, holds control characters or another box is no answer. No marker,
no answer: in particular the last number of a text is never taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from fedrlvr.tasks.answers import matches, offers_another, option_letter, word_of
from fedrlvr.tasks.problem import Kind

LOOKED_AT = 20_000
"""Characters at the end of a completion in which an answer is looked for."""
LONGEST_ANSWER = 1_000
"""Characters of the longest text that counts as an answer."""

# One token of a brace scan: a box's opening, an escaped character (so that `\{` opens nothing), or a brace.
_BRACES = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox) ?\{)|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\\(?:boxed|fbox)\s+([^\s{}$\\,;]+)(?=[\s.$*]*(?:\n|$))")
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FILLER = re.compile(r"\\q?quad(?![a-zA-Z])|\\text(?![a-zA-Z])|\\[,;:)(\]\[ ]|[\s${}]")
_JOINTS = {",", ";", "and", "or", ",and", ",or"}
_AROUND_A_BOX = re.compile(
    r"(?:[\s$*.:()\[\]\\]|\b(?:so|thus|therefore|hence|the|final|correct|answer|option|is)\b)*", re.IGNORECASE
)
_LAST_LINE_LENGTH = 300
_CLOSED = re.compile("</answer>")
_OPTION_LINE = re.compile(r"^\s*\(?([A-J])[).:]\s+\S", re.MULTILINE)
_INSTRUCTIONS = {
    "math": r"Reason step by step and put your final answer in \boxed{}.",
    "choice": r"Reason step by step and put the letter of the right option in \boxed{}.",
    "yes_no_maybe": r"Reason step by step and put your final answer, one of yes, no and maybe, in \boxed{}.",
    "exact": "Reason step by step and put your final answer between answer tags: <answer></answer>.",
    "whole": "",
}
_ONE_OF: dict[str, Callable[..., str | None]] = {"choice": option_letter, "yes_no_maybe": word_of}


class Box(NamedTuple):
    """A box that closes: where it starts, and its content's span."""

    at: int
    start: int
    end: int


class Mark(NamedTuple):
    """A marked answer: where its mark starts and ends, and the answer; None if it cannot be used."""

    at: int
    end: int
    answer: str | None


def extract(completion: str, kind: Kind, *, in_thought: bool = False) -> str | None:
    """The answer a completion gives, stripped, or None; see the module for the rules.

    in_thought: the prompt ends within a thought.
    """
    text = _after_thinking(completion, in_thought)[-LOOKED_AT:]
    if kind == "whole":
        return _unmarked(text)
    marked = _marked(text, kind)
    if kind in _ONE_OF:
        return _agreed(text, marked, kind)
    if not marked:
        return None
    at, _, answer = marked[0]
    if answer is None or kind != "math":
        return answer
    behind = [other.answer for other in marked[1:] if other.at > at]
    return answer if all(other is not None and _same(answer, other) for other in behind) else None


def behind_answer(completion: str, kind: Kind) -> int:
    """Characters of a completion behind the mark that decides its answer, or behind its last line if none does."""
    after = completion.rpartition("</think>")[2]
    text = _after_thinking(completion, in_thought=False)[-LOOKED_AT:]
    uncounted = len(after) - len(after.partition("<think>")[0])
    marked = _marked(text, kind) if kind != "whole" else []
    return uncounted + len(text) - (marked[0].end if marked else len(text.rstrip()))


def last_box(text: str) -> str | None:
    r"""Content of the `\boxed{}` or `\fbox{}` that closes last, unstripped; None if none closes."""
    boxes = _boxes(text)
    return text[boxes[-1].start : boxes[-1].end] if boxes else None


def balanced(text: str) -> bool:
    """Whether every brace of `text` has its partner; escaped braces do not count."""
    depth = 0
    for token in _BRACES.finditer(text):
        depth += token[0][-1] == "{" and (token[0] == "{" or token["box"] is not None)
        depth -= token[0] == "}"
        if depth < 0:
            return False
    return depth == 0


def wrap(answer: str, kind: Kind) -> str:
    r"""A completion that gives `answer` and nothing else: tags for `exact` (free text may hold braces), the bare answer
    for `whole`, else a box."""
    if kind == "whole":
        return answer
    return f"<answer>{answer}</answer>" if kind == "exact" else rf"\boxed{{{answer}}}"


def instruction(kind: Kind) -> str:
    """Text to append to a prompt, so that a chat model marks its answer as `extract` expects.

    Its own markers are empty, so that a response which repeats the prompt gives no answer.
    """
    return _INSTRUCTIONS[kind]


def _after_thinking(text: str, in_thought: bool) -> str:
    _, closed, after = text.rpartition("</think>")
    if in_thought and not closed:
        return ""
    return after.partition("<think>")[0]


def _marked(text: str, kind: Kind) -> list[Mark]:
    """The last mark of each kind, in the order in which they decide."""
    marks: list[Mark] = []
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if start >= 0:
        answer = _usable(_unboxed(text[start + len("<answer>") : close].strip()))
        marks.append(Mark(start, close + len("</answer>"), answer))
        text = text[:start] + " " * (close - start) + text[close:]  # its own box is no second mark
    if boxes := _boxes(text):
        joined = _side_by_side(text, boxes) if kind == "math" else boxes[-1:]
        contents = [_usable(text[box.start : box.end]) for box in joined]
        usable = [content for content in contents if content is not None]
        if usable and all(_same(content, usable[-1]) for content in usable):  # one answer in two spellings
            usable, contents = usable[-1:], contents[-1:]
        answer = ", ".join(usable) if len(usable) == len(contents) else None
        marks.append(Mark(joined[0].at, joined[-1].end + (text[joined[-1].end : joined[-1].end + 1] == "}"), answer))
    if lines := list(_HASHES.finditer(text)):
        marks.append(Mark(*lines[-1].span(), _usable(lines[-1][1])))
    return marks


def _agreed(text: str, marked: list[Mark], kind: Kind) -> str | None:
    """The deciding answer of a kind that is one word, if every mark in the text that can be read says the same."""
    read = _ONE_OF[kind]
    last = text.rstrip().rpartition("\n")[2].strip()
    led = read(last, led=True) if len(last) <= _LAST_LINE_LENGTH and "\\boxed" not in last else None
    if not marked:
        an_option = kind == "choice" and _OPTION_LINE.match(last)
        return None if an_option and len(set(_OPTION_LINE.findall(text))) > 1 else led
    everywhere = [text[box.start : box.end] for box in _boxes(text)]
    everywhere += [match[1] for match in re.finditer(r"<answer>([^<]{1,200})</answer>", text)]
    readings = {read(answer) for answer in (*(mark.answer for mark in marked if mark.answer), *everywhere[-50:])}
    behind = _behind_marks(text)
    readings |= {led, *(read(line, led=True) for line in behind)}
    answers = [answer for answer in readings if answer is not None]
    if len(answers) > 1 or (kind == "choice" and any(offers_another(line, *answers) for line in behind if answers)):
        return None
    return marked[0].answer


def _behind_marks(text: str) -> list[str]:
    """What stands behind the last box and the last tags on their lines."""
    ends = [box.end + 1 for box in _boxes(text)[-1:]] + [match.end() for match in _CLOSED.finditer(text)][-1:]
    return [text[end:].partition("\n")[0][:_LAST_LINE_LENGTH].strip(" .,;:$*") for end in ends]


def _boxes(text: str) -> list[Box]:
    """The boxes that close and lie in no other that closes, in order; else a lone one of one token without braces."""
    boxes: list[Box] = []
    stack: list[tuple[int, int]] = []  # where each open brace's box and content start; negative for no box
    for token in _BRACES.finditer(text):
        if token["box"]:
            stack.append((token.start(), token.end()))
        elif token[0] == "{":
            stack.append((-1, -1))
        elif token[0] == "}" and stack and (opened := stack.pop())[0] >= 0:
            while boxes and boxes[-1].at > opened[0]:
                boxes.pop()
            boxes.append(Box(*opened, token.start()))
    if not boxes and len(_BOX.findall(text)) == 1 and (match := _UNBRACED.search(text)):
        boxes.append(Box(match.start(), *match.span(1)))
    return boxes


def _side_by_side(text: str, boxes: list[Box]) -> list[Box]:
    """The last box, with those before it that only a comma, "and" or "or" separates from the next."""
    joined = boxes[-1:]
    for box in reversed(boxes[:-1]):
        if _FILLER.sub("", text[box.end + 1 : joined[0].at]).casefold() not in _JOINTS:
            break
        joined.insert(0, box)
    return joined


def _same(left: str, right: str) -> bool:
    return matches(left, right) or matches(right, left)


def _unboxed(text: str) -> str:
    boxes = _boxes(text)
    if len(boxes) == 1:
        (box,) = boxes
        if _AROUND_A_BOX.fullmatch(text[: box.at] + text[box.end + 1 :]):
            return text[box.start : box.end]
    return text


def _usable(text: str) -> str | None:
    return None if _BOX.search(text) else _unmarked(text)


def _unmarked(text: str) -> str | None:
    text = text.strip()
    return None if not text or len(text) > LONGEST_ANSWER or _CONTROL.search(text) else text
