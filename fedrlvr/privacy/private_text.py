"""The check of responses to public problems against a site's own private texts.

A response is held back where it has one of these in common with a private prompt or answer:

1. `words` words in a row (n-grams), blind to case, width and punctuation. A character of Chinese or Japanese is a word.
2. A number of at least `digits` digits, blind to the separators in it.
3. A canary: a text that the site has planted in its problems or lists for this check.

Words and numbers that stand in the public problems of the same message do not count, since the server has sent them.
The check finds text as it is written. It finds no translation, spelling in another form, or text of fewer words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

Match = Literal["words", "number", "canary"]
"""Kinds of private text in a response."""
LEAST_CANARY = 6
"""Smallest number of letters and digits of a canary."""
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")
_NUMBER = re.compile(r"\d+(?:[ .,'/_-]\d{2,})*")


def words_of(text: str) -> list[str]:
    """The words of a text, in order, in one spelling of case and width."""
    return _WORD.findall(_plain(text))


def long_numbers(text: str, digits: int) -> set[str]:
    """Numbers of at least so many digits in a text, as their digits alone."""
    found_digits = (re.sub(r"\D", "", match) for match in _NUMBER.findall(_plain(text)))
    return {number for number in found_digits if len(number) >= digits}


def letters_of(text: str) -> str:
    """The letters and digits of a text end to end, in one spelling of case and width."""
    return "".join(words_of(text))


class Texts:
    """The words in a row and the long numbers of some texts.

    words: length of the n-grams; shorter texts have none. digits: of the shortest number.
    """

    def __init__(self, texts: Iterable[str], *, words: int, digits: int) -> None:
        self.words, self.digits = words, digits
        self.grams: set[int] = set()
        self.numbers: set[str] = set()
        for text in texts:
            self.grams.update(self._grams(text))
            self.numbers |= long_numbers(text, digits)

    def _grams(self, text: str) -> Iterator[int]:
        words = words_of(text)
        # Their hashes take a tenth of the room, and two of 64 bits are alike by chance once in a million sites.
        return (hash(tuple(words[i : i + self.words])) for i in range(len(words) - self.words + 1))

    def common(self, text: str, public: Texts) -> Match | None:
        """Kind of text that another text has in common with these and not with the public ones."""
        if any(gram in self.grams and gram not in public.grams for gram in self._grams(text)):
            return "words"
        if (long_numbers(text, self.digits) & self.numbers) - public.numbers:
            return "number"
        return None


class PrivateText:
    """A site's private texts, to which responses are compared.

    texts: prompts and answers. words, digits, canaries: as in the module's description.
    """

    def __init__(self, texts: Iterable[str], *, words: int, digits: int, canaries: Iterable[str] = ()) -> None:
        self._texts = Texts(texts, words=words, digits=digits)
        self._canaries = [letters_of(canary) for canary in canaries]

    def matches(self, responses: Iterable[str], public: Iterable[str]) -> list[Match | None]:
        """Kind of private text in each response; None where there is none.

        public: the texts that the server sent along, prompts and answers.
        """
        known = Texts(public, words=self._texts.words, digits=self._texts.digits)
        return [self._match(response, known) for response in responses]

    def _match(self, response: str, public: Texts) -> Match | None:
        letters = letters_of(response)
        if any(canary in letters for canary in self._canaries):
            return "canary"
        return self._texts.common(response, public)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
