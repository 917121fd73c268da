r"""Which part of a completion is the answer: strict, documented, linear in the completion's length.

Only the last 20,000 characters are looked at. Reasoning between `<think>` and `</think>` is no answer: what counts is
the text after the last `</think>`, up to a `<think>` that opens after it. Then the first of these markers that occurs
decides, and nothing falls back to a later one when its content is unusable:

1. the last well-formed `<answer>...</answer>`; a single `\boxed{}` or `\fbox{}` around its whole content is taken off;
2. the last `\boxed{...}` or `\fbox{...}` whose braces balance;
3. the rest of the line after the last `####` (exactly four);
4. for `choice` and `yes_no_maybe` only, a last line that is nothing but the answer: `B`, `(B)`, `B.`, `Answer: B`,
   `The answer is B`, and the same with yes, no or maybe.

An answer that is empty, longer than 1,000 characters, holds control characters or another box is no answer. No marker,
no answer: in particular the last number of a text is never taken for one.
"""

from __future__ import annotations

import re

from fedrlvr.tasks.problem import Kind

LOOKED_AT = 20_000
"""Characters at the end of a completion in which an answer is looked for."""
LONGEST_ANSWER = 1_000
"""Characters of the longest text that counts as an answer."""

# One token of a brace scan: a box's opening, an escaped character (so that `\{` opens nothing), or a brace.
_BRACES = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox) ?\{)|\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\b")
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LEAD = r"(?:(?:(?:so|thus|therefore|hence),? )?(?:the )?(?:final |correct |best )?answer(?: is)? ?:? ?)?"
_LAST_LINE = {
    "choice": re.compile(rf"(?i:{_LEAD})\(?([A-Z])\)?[.)]?"),
    "yes_no_maybe": re.compile(rf"(?i:{_LEAD}(yes|no|maybe))\.?"),
}
_LAST_LINE_LENGTH = 80
_INSTRUCTIONS = {
    "math": r"Reason step by step and put your final answer in \boxed{}.",
    "choice": r"Reason step by step and put the letter of the right option in \boxed{}.",
    "yes_no_maybe": r"Reason step by step and put your final answer, one of yes, no and maybe, in \boxed{}.",
    "exact": "Reason step by step and put your final answer between answer tags: <answer></answer>.",
}


def extract(completion: str, kind: Kind) -> str | None:
    """The answer a completion gives, stripped, or None; see the module for the rules."""
    text = _after_thinking(completion[-LOOKED_AT:])
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if start >= 0:
        tagged = text[start + len("<answer>") : close].strip()
        return _usable(_unboxed(tagged))
    boxed = last_box(text)
    if boxed is not None:
        return _usable(boxed)
    if lines := _HASHES.findall(text):
        return _usable(lines[-1])
    if kind in _LAST_LINE:
        last = text.rstrip().rpartition("\n")[2].replace("*", "").strip()
        if len(last) <= _LAST_LINE_LENGTH and (match := _LAST_LINE[kind].fullmatch(last)):
            return match[1]
    return None


def last_box(text: str) -> str | None:
    r"""Content of the `\boxed{}` or `\fbox{}` that closes last, unstripped; None if none closes."""
    found = None
    stack: list[int] = []  # where each open brace's content starts; negative for a brace that is no box
    for token in _BRACES.finditer(text):
        if token["box"]:
            stack.append(token.end())
        elif token[0] == "{":
            stack.append(-1)
        elif token[0] == "}" and stack and (start := stack.pop()) >= 0:
            found = (start, token.start())
    return text[slice(*found)] if found else None


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
    r"""A completion that gives `answer` and nothing else: tags for `exact` (free text may hold braces), else a box."""
    return f"<answer>{answer}</answer>" if kind == "exact" else rf"\boxed{{{answer}}}"


def instruction(kind: Kind) -> str:
    """What to append to a prompt so that a chat model marks its answer as `extract` expects.

    Its own markers are empty, so that a response which repeats the prompt gives no answer.
    """
    return _INSTRUCTIONS[kind]


def _after_thinking(text: str) -> str:
    return text.rpartition("</think>")[2].partition("<think>")[0]


def _unboxed(text: str) -> str:
    match = _BRACES.match(text)
    if match and match["box"]:
        content = last_box(text)
        if content is not None and match.end() + len(content) + 1 == len(text):
            return content
    return text


def _usable(text: str) -> str | None:
    text = text.strip()
    if not text or len(text) > LONGEST_ANSWER or _CONTROL.search(text) or _BOX.search(text):
        return None
    return text
