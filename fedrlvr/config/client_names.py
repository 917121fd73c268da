"""Rules for client names: a reader must be able to tell each name from every other.

Refused are characters other than letters, digits, - and _; letters of several scripts, within a name or among the
names of a federation, since whole alphabets look alike (Latin a, Cyrillic а); and two names that are the same to the
eye within one script: upper and lower case, accents and other marks, full width, 0 and O, 1 and l and I, 5 and S, 8 and
B, rn and m, vv and w, cl and d, - and _, a katakana and the ideograph of its shape.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MOST_CLIENTS = 4096
LONGEST_NAME = 64
_TOGETHER = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO"), "East Asian")
_ALIKE = str.maketrans("0O1I5S8B_力口二八工夕卜才千又厶彡ヘベペ一日", "oollssbb-カロニハエタトオチヌムミへべぺー曰")
_PAIRS = (("rn", "m"), ("vv", "w"), ("cl", "d"))


def check_client_names(names: Sequence[str]) -> None:
    """Check that a reader can tell each client name from every other.

    Raises:
        ValueError: a name cannot be used, or two could be taken for each other; the text names them.
    """
    if not 1 <= len(names) <= MOST_CLIENTS:
        raise ValueError(f"between 1 and {MOST_CLIENTS} clients")
    if len(set(names)) != len(names):
        raise ValueError("client names must differ")
    written: dict[str, str] = {}  # script -> a name in it
    seen: dict[str, str] = {}  # form -> its name
    for name in names:
        if not name or len(name) > LONGEST_NAME or not all(map(_allowed, name)):
            raise ValueError(f"client name {name!r}: letters, digits 0-9, - and _ only, at most {LONGEST_NAME}")
        scripts = sorted({_script(character) for character in name if character.isalpha()})
        if len(scripts) > 1:
            raise ValueError(f"client name {name!r} mixes letters of several scripts ({', '.join(scripts)})")
        for script in scripts:
            written.setdefault(script, name)
        shape = _plain(name.translate(_ALIKE))
        for pair, letter in _PAIRS:
            shape = shape.replace(pair, letter)
        for form in (_plain(name), shape):
            if seen.setdefault(form, name) != name:
                raise ValueError(f"client names {seen[form]!r} and {name!r} could be taken for each other; rename one")
    if len(written) > 1:
        (script, name), (other_script, other), *_ = written.items()
        raise ValueError(
            f"client names {name!r} ({script}) and {other!r} ({other_script}) are written in different scripts, whose "
            "letters can look the same; write all names in one"
        )


def _allowed(character: str) -> bool:
    return character.isalpha() or character in "0123456789-_"


def _script(letter: str) -> str:
    """The script of a letter by its Unicode name: Latin, Cyrillic, ..."""
    word = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNKNOWN").split()[0]
    return _TOGETHER.get(word, word.capitalize())


def _plain(name: str) -> str:
    """A name without case, marks and variants of letters."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    return "".join(_base(character) for character in decomposed if not unicodedata.combining(character))


def _base(character: str) -> str:
    """The plain letter of a Latin one that has no decomposition: o of ø, i of ı, a of ɑ."""
    title = unicodedata.name(character, "")
    if character.isascii() or not title.startswith("LATIN "):
        return character
    word = title.partition(" WITH ")[0].split()[-1].lower()
    return word if len(word) <= len("ae") else word[0]
