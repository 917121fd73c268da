r"""The option letter, or the word yes, no or maybe, that a marked span or a last line gives: exactly one, or none."""

from __future__ import annotations

import re

from fedrlvr.tasks.answers.normalise import CURRENCY, WORD, normalise

_LETTER = r"""[({\["]*\s*(?P<letter>[A-Za-z])(?![a-zA-Z'])\s*[)}\]"]*"""
_BEST = r"(?:(?:correct|right|best|final|single|most\s+likely|most\s+appropriate|appropriate)\s+)*"
_OPENING = r"(?:(?:so|thus|therefore|hence|in\s+conclusion)\b\s*,?\s*)?(?:i\s+(?:think|believe)\s+(?:that\s+)?)?"
_NOUN = r"(?:answer|ans|option|choice|letter|diagnosis|response)"
_LEAD = (
    rf"{_OPENING}(?:i\s+(?:would\s+)?(?:choose|pick|select)\s+|(?:the\s+|my\s+)?{_BEST}{_NOUN}\s*"
    r"(?:(?:is|would\s+be|must\s+be|=|-)(?![a-z])|:)?\s*:?\s*)(?:(?:option|choice|letter|answer)\s*:?\s*)?"
)
_CONFIRMED = (
    r"\s*is\s+(?:the\s+answer|(?:the\s+)?(?:(?:correct|right|best|final|most\s+likely)\s*)+(?:answer|option|choice)?)"
)
_IS_CONFIRMED = re.compile(_CONFIRMED, re.IGNORECASE)
_MARKED = [re.compile(rf"(?:{_LEAD})?{_LETTER}(?P<rest>.*)", re.IGNORECASE | re.DOTALL)]
_UNMARKED = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"{_LEAD}{_LETTER}(?P<rest>.*)",
        rf"{_OPENING}(?:option|choice)\s+{_LETTER}(?P<rest>.*)",
        rf"{_OPENING}{_LETTER}(?P<rest>(?:{_CONFIRMED})?[.!)]*)",
        r"\(?(?P<letter>[A-J])(?P<rest>[).:]\s+(?:[^\W_]|\().*)",  # an option with its text
    )
]
_REASON = re.compile(r"[\s,;:-]*(?:because|since|as|for|given|due\s+to|which)\b.*", re.IGNORECASE | re.DOTALL)
_DELIMITED = re.compile(
    r"\s*(?:[.:](?![0-9])|[)\]]|-(?=\s)|,(?=\s*[A-Za-z][a-z])|(?=\([^()]*\)$))\s*(?P<option>.*)", re.DOTALL
)
# Another letter: nothing but letters, a letter offered at the end, or another option with its own text.
_ANOTHER = re.compile(
    r"^(?:[\s,;/&()]|and\b|or\b|not\b|but\b|nor\b|vs\b)*\(?[A-Ja-j](?![a-zA-Z'])(?:[\s,;/&().]|and\b|or\b|\b[A-Z]\b)*$"
    r"|\b(?:and|or|not|nor)\s+(?:option\s+|choice\s+)?\(?[A-J]\)?[.):]*\s*$"
    r"|(?:^|[\s(,;/])\(?[A-J][).]\s+\(?[A-Z]|\boption\s+[A-J]\b"
    r"|(?:\b(?i:no|not|wait|actually|perhaps|maybe|probably|possibly|then|sorry|hmm|thought|rather|instead|mean|correction|otherwise|sure"
    r"|is)\b[\s,.:;-]*|\.\.+\s*)(?:(?:it|its|the\s+answer|option)\s+(?:is\s+)?)?\(?[A-J]\)?\W*$",
)
_OPTION_FOLLOWS = re.compile(
    r"\s*[A-Za-z\"]|\s+(?:[^\s\\+*/^=<>!%|&~,;_]|[<>+]\s*[0-9]|\\(?:frac|sqrt|pi|text)(?![a-z]))"
)
_NAMES_IN_PAIRS = re.compile(  # "Vitamins A and D", not "is B or C"
    r"(?<![a-zA-Z])(?!(?:is|are|be|either|both|options?|answers?|choices?|letters?)\b)[a-zA-Z]*[a-z]\w*\s+"
    r"[A-Z]\s*(?:,|and|or)\s*[A-Z]\)?\.?\s*$"
)
_DOUBT = re.compile(
    r"^\W*(?:is|was|are)\s+(?:not\s+(?:correct|right|true|the)|wrong|incorrect|false|excluded)\b"
    r"|^\W*(?:is|was)\s+(?:the\s+)?(?:wrong|incorrect|false)\b"
    r"|^\W*(?:wrong|incorrect|false|not|or|maybe|perhaps|(?-i:no))\W*$|^\W*(?:[\w-]+\W+){0,3}\?\s*$"
    r"|^\W*(?:wait|hm+|actually|oops)\b(?=\W*$|\s*[,.:;!?-]|\s+no\b)|^\W*neither\W*$|^\W*no\s*,|\bnot\s+(?:sure|certain)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(rf"(?:{_LEAD})?\(?(?P<word>yes|no|maybe)\)?(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_OTHER_WORD = re.compile(r"\b(?:yes|no|maybe|not|or)\b|\?", re.IGNORECASE)


def option_letter(span: str, *, led: bool = False, alone: bool = False) -> str | None:
    """The one letter that a span gives as its answer, in upper case; None for none, two, or a negated one.

    `B`, `(B)`, `B.`, `B. Heparin`, `Option B`, `The correct option is B`, `B is correct`, in any markup. A letter in an
    option's own words (`B. Vitamin K`) is not a second letter; one that is offered beside the first (`B or C`) is.
    led: letters count only alone or behind words such as "Answer:", as on a line that nothing marks.
    alone: the letter has no option's text, as where the gold of a calculation is a letter.
    """
    text = _plain(span)
    matches = (pattern.fullmatch(text) for pattern in (_UNMARKED if led else _MARKED))
    match = next((match for match in matches if match), None)
    if match is None:
        return None
    letter, rest = match["letter"].upper(), match["rest"]
    labelled = re.search(r":[\s(]*$", text[: match.start("letter")]) and not rest.strip(" .")  # `Answer: b`
    if led and not (match["letter"].isupper() or labelled):
        return None
    if not rest.strip(" *!.") or _IS_CONFIRMED.fullmatch(rest.strip(" *!.")):
        return letter
    if match.start("letter") > 3 and _REASON.fullmatch(rest):
        return letter
    if alone:
        return None
    delimited = _DELIMITED.fullmatch(rest)
    bracketed = text[match.end("letter") : match.start("rest")].strip() and _OPTION_FOLLOWS.match(rest)
    if not (delimited or bracketed) or re.match(r"\W*(?:or|and|nor|but)\b", rest, re.IGNORECASE):
        return None
    option = delimited["option"] if delimited else rest
    if option.strip(" .()") == letter:  # figures are often labelled as their options
        return letter
    if _DOUBT.search(option) or (_ANOTHER.search(option) and not _NAMES_IN_PAIRS.search(option)):
        return None
    return letter


def offers_another(line: str, letter: str) -> bool:
    """Whether what stands behind a marked letter on its line takes it back, or offers another."""
    if option_letter(line, led=True) == letter:
        return False
    return not _REASON.fullmatch(line) and any(_plain(line)) and option_letter(f"{letter}. {line}") is None


def word_of(span: str, *, led: bool = False) -> str | None:
    """The one word of yes, no and maybe that a span gives; None for none or more.

    led: the word is all that there is, as on a line that nothing marks.
    """
    match = _WORDS.fullmatch(_plain(span))
    if match is None:
        return None
    rest = match["rest"].strip(" *!.")
    explained = re.match(r"\s*[,.;:-]", match["rest"]) and not _OTHER_WORD.search(rest)
    return match["word"].lower() if not rest or (explained and not led) else None


def _plain(span: str) -> str:
    text = normalise(re.sub("[*`]", "", span).replace("#", " "), lead=False)
    for mark in (WORD, CURRENCY, "{", "}"):
        text = text.replace(mark, "")
    return " ".join(re.sub(r"'([A-Za-z])'", r"\1", text).split())
