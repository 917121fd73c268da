"""Responses against private texts, by hand: words in a row, long numbers and canaries, and what public text excuses."""

from __future__ import annotations

import pytest

from fedrlvr.privacy.private_text import PrivateText, letters_of, long_numbers, words_of

PRIVATE = "Mrs Ortega, born in Cádiz, has taken 40 mg of the new drug each day. Her number is 4471-9920-15."
PUBLIC = "A patient has taken 40 mg of the new drug. What is the dose of a week?"


def matches(*responses: str, public: tuple[str, ...] = (), words: int = 5, **more: object) -> list[str | None]:
    private = PrivateText([PRIVATE, "B"], words=words, digits=8, **more)  # type: ignore[arg-type]
    return list(private.matches(responses, public))


def test_words_are_read_in_one_spelling() -> None:
    assert words_of("Straße, ＡＢＣ and_x 3.5!") == ["strasse", "abc", "and", "x", "3", "5"]
    assert words_of("体重を Kg") == ["体", "重", "を", "kg"]
    assert letters_of("Blue-Heron 7") == "blueheron7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("call 4471-9920-15 now", {"4471992015"}),
        ("44719920 and 15", {"44719920"}),
        ("4471 9920", {"44719920"}),
        ("1234567", set()),
        ("digits 1 2 3 4 5 6 7 8 9", set()),
        ("12, 34, 56, 78", set()),
        ("1,234,567.89", {"123456789"}),
        ("12.345.678", {"12345678"}),
    ],
)
def test_long_numbers_are_read_without_their_separators(text: str, expected: set[str]) -> None:
    assert long_numbers(text, 8) == expected


def test_five_words_in_a_row_are_private_and_four_are_not() -> None:
    assert matches("She is BORN in cádiz; has taken it.", "born in Cádiz, has the") == ["words", None]
    assert matches("born in Cádiz has TAKEN", words=6) == [None]


def test_words_that_the_server_has_sent_do_not_count() -> None:
    common = "It has taken 40 mg of the new drug."
    assert matches(common) == ["words"]
    assert matches(common, public=(PUBLIC,)) == [None]
    assert matches("has taken 40 mg of the new drug each", public=(PUBLIC,)) == ["words"], "one word more is private"


def test_a_long_number_is_private_however_it_is_written() -> None:
    assert matches("the number 4471 9920 15", "4471992015", "447199201", "B") == ["number", "number", None, None]
    assert matches("4471992015", public=("the number 4471992015",)) == [None]


def test_a_canary_is_private_wherever_it_stands() -> None:
    canaries = {"canaries": ("Blue Heron 7",)}
    assert matches("see theblue-heron7!", "blue heron", **canaries) == ["canary", None]
    assert matches("Blue Heron 7", public=("Blue Heron 7",), **canaries) == ["canary"], "also if a server has sent it"


def test_short_private_texts_have_no_words_in_a_row() -> None:
    assert matches("The answer is B") == [None]
