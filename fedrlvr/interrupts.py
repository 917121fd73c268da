"""Ctrl-C and SIGTERM: a command ends with one line, which says what is kept and how to go on.

The first signal lets the command clean up. The second ends it at once, with the same line: every file of a run is
written as a whole, so a run can be killed at any moment.

The first one is a KeyboardInterrupt, and this can get lost: a library in C that calls Python may raise an exception of
its own instead, or drop it. So any exception after a signal ends the command as the signal does, and no round is saved
that was finished after one (`raise_again`).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fedrlvr.output import echo

_last_lines: list[Callable[[], str]] = []
"""What makes the last line; the innermost `interruptible` counts."""
_received: list[int] = []
"""Signals so far."""
_said: list[str] = []
"""Last lines that were made."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, with the line that the command ends with."""


@contextlib.contextmanager
def interruptible(last_line: str | Callable[[], str]) -> Iterator[None]:
    """Turn an interrupt into `Interrupted`. last_line: what is kept and how to go on.

    Raises:
        Interrupted: Ctrl-C was pressed, or the process was asked to end.
    """
    _last_lines.append(last_line if callable(last_line) else lambda: str(last_line))
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(_line()) from None
    except Interrupted:
        raise
    except Exception as error:
        if not received():
            raise
        raise Interrupted(_line()) from error
    finally:
        _last_lines.pop()


@contextlib.contextmanager
def resumable(directory: Path, again: Sequence[str]) -> Iterator[None]:
    """`interruptible`, whose line names the run's directory and the command `again` that goes on with it.

    Raises:
        Interrupted: as `interruptible`.
    """

    def last_line() -> str:
        if any(
            (place / "config.json").is_file() for place in (directory, *directory.glob("*"), *directory.glob("*/*"))
        ):
            return f"finished rounds are kept in {directory}; go on with: {shlex.join(again)}"
        return f"nothing was written to {directory} yet; give the same command again"

    with interruptible(last_line):
        yield


def install() -> None:
    """Handle SIGINT and SIGTERM as this module says. A signal that this process was started to ignore stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


def received() -> bool:
    """Whether a signal has come since `install`."""
    return bool(_received)


def raise_again() -> None:
    """Nothing, unless a signal has come.

    Raises:
        KeyboardInterrupt: one has, and what it raised at first got lost.
    """
    if received():
        raise KeyboardInterrupt


def exit_code() -> int:
    """The exit code of an interrupted command: 128 and the signal's number."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def end(line: str = "interrupted") -> NoReturn:
    """End the process with this line, at once: another signal while the interpreter ends would have no handler."""
    with contextlib.suppress(OSError, ValueError):
        echo(line, err=True)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code())


def _handle(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if len(_received) == 1:
        raise KeyboardInterrupt
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        os.write(2, f"{_line()}\n".encode(errors="backslashreplace"))
    os._exit(exit_code())


def _line() -> str:
    if _last_lines:
        _said.append(f"interrupted; {_last_lines[-1]()}")
    return _said[-1] if _said else "interrupted"
