"""The ways by which text leaves for a terminal or a log. Everything goes by these, and each shows foreign text with its
escapes (`errors.printable`): names, reasons, keys and paths may be somebody else's, and a control character in them
could move the cursor, change a terminal's title or feign a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from fedrlvr.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment


def echo(text: str = "", *, err: bool = False, file: TextIO | None = None) -> None:
    """Print one line, at once; err: to stderr."""
    print(printable(text), file=file or (sys.stderr if err else sys.stdout), flush=True)


def echo_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines."""
    for line in text.split("\n"):
        echo(line, err=err)


class _Plain(logging.Filter):
    """Makes a record's message one printable line, and its traceback printable lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = printable(logging.Formatter().formatException(record.exc_info), keep="\n")
        return True


_PLAIN = _Plain()


def logger(name: str) -> logging.Logger:
    """The logger `fedrlvr.<name>` of a part of the package."""
    log = logging.getLogger(f"fedrlvr.{name}")
    log.addFilter(_PLAIN)
    return log


def console(**options: Any) -> Console:
    """A console of rich, for tables and the live display."""
    from rich import console as rich
    from rich.segment import Segment

    class PlainConsole(rich.Console):
        """Cleans what it renders, before its width is taken."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text, keep="\n"), style, control)

    return PlainConsole(**options)
