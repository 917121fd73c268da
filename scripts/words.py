"""Finds sentences that do not stand alone, and names that are no nouns: `python -m scripts.words`.

A sentence is the docstring of a setting or of a public module, class, function or constant of the package. It is
flagged if it is shorter than six words, begins with a word that leans on the line before it, or repeats the docstring
before it. "Whether" may begin the sentence of a yes-or-no question only. A name is flagged if it is in `VAGUE`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("fedrlvr", "benchmarks", "examples", "scripts", "tests")
LEAST_WORDS = 6
ALIKE = 0.93
"""Share of two texts in common above which one repeats the other."""
_LEANING = """
about above according after against along among and as at because before below besides between beyond but by due during
except for from how if in inside into like near nor of off on onto or outside over since so such than that through to
toward towards under until upon what whatever when where whereas which while who whoever whom whose why with within
without
"""
LEANING = frozenset(_LEANING.split())
"""First words that need a noun before them."""
VAGUE = frozenset(("found", "mine", "one", "own", "theirs", "told", "whose"))
"""Names of variables, parameters and attributes that say nothing of their value."""


@dataclass(frozen=True)
class Sentence:
    """The first paragraph of a docstring.

    name: of what it describes, with the file and line. boolean: it describes a yes-or-no question.
    """

    name: str
    text: str
    boolean: bool = False


def faults(sentence: Sentence, before: str = "") -> Iterator[str]:
    """Every reason why a sentence does not stand alone, given the text `before` it."""
    words = sentence.text.split()
    if len(words) < LEAST_WORDS:
        yield f"shorter than {LEAST_WORDS} words"
    first = words[0].strip("`'\"(,.:;").lower() if words else ""
    if first in LEANING:
        yield f"begins with {words[0]!r}"
    if first == "whether" and not sentence.boolean:
        yield "begins with 'Whether' and is no yes-or-no question"
    if before and SequenceMatcher(None, before.lower(), sentence.text.lower(), autojunk=False).ratio() > ALIKE:
        yield "repeats the docstring before it"


def sentences(source: str, name: str) -> Iterator[Sentence]:
    """Every sentence of a Python module, in order; `name` stands for its file."""
    tree = ast.parse(source)
    if (text := ast.get_docstring(tree)) is not None:
        yield Sentence(f"{name}:1", _first_paragraph(text))
    yield from _of_body(tree.body, name)


def _of_body(body: list[ast.stmt], name: str, prefix: str = "") -> Iterator[Sentence]:
    for statement, following in zip_longest(body, body[1:]):
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if not statement.name.startswith("_"):
                if (text := ast.get_docstring(statement)) is not None:
                    place, text = f"{name}:{statement.lineno} {prefix}{statement.name}", _first_paragraph(text)
                    boolean = False
                    if not isinstance(statement, ast.ClassDef):
                        boolean = _is_bool(statement.returns)
                        text = "" if re.match(r"[a-z_]+(, [a-z_]+)*: ", text) else text  # parameters, and no summary
                    yield Sentence(place, text, boolean)
                if isinstance(statement, ast.ClassDef):
                    yield from _of_body(statement.body, name, f"{prefix}{statement.name}.")
            case ast.AnnAssign(target=ast.Name(id=key)) | ast.Assign(targets=[ast.Name(id=key)]):
                if not key.startswith("_") and (text := _docstring(following)) is not None:
                    boolean = isinstance(statement, ast.AnnAssign) and _is_bool(statement.annotation)
                    yield Sentence(f"{name}:{statement.lineno} {prefix}{key}", _first_paragraph(text), boolean)


def _docstring(statement: ast.stmt | None) -> str | None:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return statement.value.value if isinstance(statement.value.value, str) else None
    return None


def _is_bool(annotation: ast.expr | None) -> bool:
    return annotation is not None and "bool" in ast.unparse(annotation)


def _first_paragraph(text: str) -> str:
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return "" if paragraph.startswith("Raises:") else paragraph


def vague_names(source: str, name: str) -> Iterator[str]:
    """A line for every variable, parameter and attribute of a Python module that is named in `VAGUE`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Name(id=key, ctx=ast.Store())
                | ast.Attribute(attr=key, ctx=ast.Store())
                | ast.arg(arg=key)
                | ast.ExceptHandler(name=key)
                | ast.MatchAs(name=key)
                | ast.MatchStar(name=key)
                | ast.MatchMapping(rest=key)
            ) if key in VAGUE:
                yield f"{name}:{node.lineno} {key}: name the value by a noun"


def problems(source: str, name: str) -> Iterator[str]:
    """A line for every sentence of a Python module that does not stand alone."""
    before = ""
    for sentence in sentences(source, name):
        yield from (f"{sentence.name}: {reason}: {sentence.text!r}" for reason in faults(sentence, before))
        before = sentence.text


def all_problems(root: Path = ROOT) -> Iterator[str]:
    """A line for every problem of a source tree: sentences of the package, names of the package and all beside it."""
    for path in (path for part in PARTS for path in sorted((root / part).rglob("*.py"))):
        source, name = path.read_text("utf-8"), path.relative_to(root).as_posix()
        if name.startswith("fedrlvr/"):
            yield from problems(source, name)
        yield from vague_names(source, name)


def main() -> int:
    """Print every problem of the repository. 1 if there is one."""
    lines = list(all_problems())
    print("\n".join(lines) if lines else "every sentence stands alone, every name is a noun")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
