"""Standard streams that survive their reader: after it has ended, output is dropped and the command continues.

A run takes hours. `fedrlvr run | head -1` and `fedrlvr run >&-` must neither end it nor cost a finished round.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


class _Output(io.FileIO):
    """A descriptor for writing that becomes the null device once its reader is gone."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return super().write(data)


def outlive_readers() -> None:
    """Replace sys.stdout and sys.stderr by streams that a closed descriptor or a reader's end cannot break."""
    for descriptor in (0, 1, 2):  # in order, since a file opened later would get the number of a closed one
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)


def _stream(descriptor: int, like: TextIO | None) -> TextIO:
    if like is not None:
        like.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors=getattr(like, "errors", None) or "backslashreplace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
    )
