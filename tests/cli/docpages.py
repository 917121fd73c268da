"""README and docs/ as tests read them: fenced blocks, commands, links and anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "results")]
"""Pages that people write; those in docs/results are written by the benches."""
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def directive(self) -> str:
        """The first line without its `# `, where it is a comment: what a snippet is, if not a program."""
        first = self.text.splitlines()[0]
        return first[2:] if first.startswith("# ") else ""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, fence.start()) + 1, fence[1], fence[2].rstrip("\n") + "\n")
        for fence in FENCE.finditer(text)
    ]


def block(page: str, language: str, start: str) -> Block:
    """The one block of a page in a language whose text holds `start`."""
    (match,) = (block for block in blocks(ROOT / page) if block.language == language and start in block.text)
    return match


def commands(shell: Block) -> Iterator[list[str]]:
    """Each command of a block as its words, comments and `&&` taken out."""
    for line in shell.text.splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word == "&&":
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def prose(page: Path) -> str:
    """A page without its fenced and indented blocks, and without code spans."""
    text = FENCE.sub("", page.read_text("utf-8"))
    text = re.sub(r"^    .*$", "", text, flags=re.M)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}
