"""scripts/words.py: names that are no nouns are found in the tests too, sentences are read in the package alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import words

SHOP = '''"""In all files of a shop, one finds this sentence."""


def total(prices):
    """Of prices."""
    return sum(one for one in prices)
'''


@pytest.mark.parametrize(
    "source",
    [
        "one = 1",
        "def size(one): ...",
        "lambda *, one=1: 0",
        "for one in (): ...",
        "[0 for _, (one, *_) in ()]",
        "with open('x') as one: ...",
        "site.one = 1",
        "(one := 1)",
        "async def size(*one): ...",
        "one: int",
        "one += 1",
        "try: ...\nexcept OSError as one: ...",
        "match 1:\n    case [one]: ...",
        "match 1:\n    case [*one]: ...",
        "match 1:\n    case {**one}: ...",
    ],
)
def test_a_vague_name_is_found_wherever_it_is_bound(source: str) -> None:
    assert len(list(words.vague_names(source, "tests/a.py"))) == 1


def test_what_a_name_is_used_for_or_called_with_is_not_a_binding() -> None:
    assert not list(words.vague_names("first = one.own(told=1, **mine)\nonly = {'one': one}", "tests/a.py"))


def test_the_tests_are_searched_for_names_and_the_package_for_sentences_too(tmp_path: Path) -> None:
    for part in words.PARTS:
        (tmp_path / part).mkdir()
        (tmp_path / part / "shop.py").write_text(SHOP)
    lines = [line.partition(": ")[0] for line in words.all_problems(tmp_path)]
    names = [f"{part}/shop.py:6 one" for part in ("benchmarks", "examples", "fedrlvr", "scripts", "tests")]
    sentences = ["fedrlvr/shop.py:1", "fedrlvr/shop.py:4 total", "fedrlvr/shop.py:4 total"]
    assert sorted(lines) == sorted([*names, *sentences])
