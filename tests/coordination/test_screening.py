"""What of a correct response other clients may train on: what is seen, ends with the answer and has a usual length."""

from __future__ import annotations

import math
import sys
import unicodedata
from typing import Any

import pytest

from fedrlvr.coordination import flaw, usual_length, usual_lengths
from fedrlvr.coordination.screening import readable

END, SPECIAL = 0, 9

SEEN = (
    "2 + 2 = 4\n\tso \\boxed{4}",
    "Zürich, 北京, Ω ≤ π², 50\u00a0% — „so“ …",
    "\u0939\u093f\u0928\u094d\u0926\u0940 e\u0301",
    "right \u2714\ufe0f and \U0001f600",
)
HIDDEN = {
    "escape": "\x1b[2J",
    "carriage return": "4\r5",
    "null": "\x00",
    "C1 control": "\x9b31m",
    "right to left": "\u202e4",
    "isolate": "\u2066",
    "zero width space": "a\u200bb",
    "zero width joiner": "\u200d",
    "byte order mark": "\ufeff",
    "word joiner": "\u2060",
    "soft hyphen": "\u00ad",
    "tag character": "\U000e0041",
    "private use": "\ue000",
    "private use plane": "\U000f0000",
    "unassigned": "\u0378",
    "no character": "\uffff",
    "surrogate": "\ud800",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "variation selector behind a letter": "a\ufe0f",
    "two variation selectors": "\u2714\ufe0f\ufe0f",
    "variation selector of the second range": "\u2714\U000e0100",
    "grapheme joiner": "a\u034fb",
    "Hangul filler": "\u3164",
    "half-width Hangul filler": "\uffa0",
    "braille blank": "\u2800",
    "Mongolian selector": "\u180b",
    "bytes that are no text": "\ufffd",
}


@pytest.mark.parametrize("text", SEEN)
def test_a_text_of_which_every_character_is_seen_is_readable(text: str) -> None:
    assert readable(text)
    assert flaw(text, 0, [5, END], special={SPECIAL, END}, ends={END}, tail=200) is None


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_hidden_character_is_found_wherever_it_stands(kind: str) -> None:
    for text in (HIDDEN[kind], f"so {HIDDEN[kind]}", f"{HIDDEN[kind]} \\boxed{{4}}", f"2 + 2{HIDDEN[kind]} = 4"):
        assert not readable(text)
        assert flaw(text, 0, [5], special=(), ends=(), tail=200) == "hidden"


def test_no_character_of_these_categories_is_readable() -> None:
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    for code in range(0, sys.maxunicode + 1, 7):
        character = chr(code)
        if unicodedata.category(character) in hidden and character not in "\n\t":
            assert not readable(character), hex(code)


@pytest.mark.parametrize(
    ("tokens", "why"),
    [((5, END), None), ((5,), None), ((5, SPECIAL), "hidden"), ((SPECIAL, 5, END), "hidden"), ((END, 5), "hidden")],
)
def test_tokens_that_a_text_does_not_show_are_hidden(tokens: tuple[int, ...], why: str | None) -> None:
    assert flaw("\\boxed{4}", 0, tokens, special={SPECIAL, END}, ends={END}, tail=200) == why


@pytest.mark.parametrize(("behind", "why"), [(0, None), (200, None), (201, "tail")])
def test_a_response_ends_soon_after_its_answer(behind: int, why: str | None) -> None:
    assert flaw("\\boxed{4}", behind, [5], special=(), ends=(), tail=200) == why


def test_the_usual_length_of_a_client_is_of_its_correct_responses_where_there_are_any() -> None:
    assert usual_length([10, 30, 20], [900]) == 20
    assert usual_length([], [8, 10]) == 9
    assert usual_length([], []) == math.inf


@pytest.mark.parametrize(
    ("lengths", "usual"),
    [
        ({"ann": 20.0, "bob": 24.0}, {"ann": 24.0, "bob": 20.0}),
        ({"ann": 20.0, "bob": 24.0, "cyd": 4000.0}, {"ann": 4000.0, "bob": 4000.0, "cyd": 24.0}),
        ({"ann": 20.0, "bob": 24.0, "cyd": 1.0}, {"ann": 24.0, "bob": 20.0, "cyd": 24.0}),
        (
            {"ann": 20.0, "bob": 24.0, "cyd": 4000.0, "dan": 22.0},
            {"ann": 24.0, "bob": 22.0, "cyd": 22.0, "dan": 24.0},
        ),
        ({"ann": 20.0}, {"ann": math.inf}),
        ({"ann": 20.0, "bob": math.inf}, {"ann": math.inf, "bob": 20.0}),
    ],
)
def test_no_client_decides_by_itself_what_is_usual(lengths: dict[str, Any], usual: dict[str, float]) -> None:
    """A hostile client never sets its own bound, and by short responses it does not lower that of two honest ones."""
    assert usual_lengths(lengths) == usual
