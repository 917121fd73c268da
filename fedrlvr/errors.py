"""Every error fedrlvr raises on purpose.

One root, so that `except FedrlvrError` catches all of ours and nothing else; each child also inherits the
standard type a caller would expect. A message is one paragraph that names the file, row, field, client or
round, and says what to do; the command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class FedrlvrError(Exception):
    """Root of all errors raised on purpose by fedrlvr. The text is one line of printable characters, whatever foreign
    names, keys or reasons it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(FedrlvrError, ValueError):
    """The configuration is wrong: an unknown key, a wrong type, a setting that would have no effect."""


class DataError(FedrlvrError, ValueError):
    """A problem file or row cannot be used."""


class GradingError(FedrlvrError, ValueError):
    """A reward function or grader cannot be used as configured."""


class ModelError(FedrlvrError, ValueError):
    """A model or tokenizer cannot be loaded or used."""


class SamplerError(FedrlvrError, RuntimeError):
    """A sampler that is another program cannot be started, does not answer, or answers what cannot be used."""


class AdapterError(FedrlvrError, ValueError):
    """An adapter does not fit the model, or is not a finite tensor set of the right shapes."""


class MessageError(FedrlvrError, ValueError):
    """A message from another party is malformed or beyond its bounds."""


class LimitError(FedrlvrError, ValueError):
    """A server asks for more than an organisation's own limits allow."""


class FloorError(FedrlvrError, ValueError):
    """A client has trained on too little for anything to leave it."""


class CheckpointError(FedrlvrError, OSError):
    """A checkpoint cannot be written or read."""


class ReleaseError(CheckpointError):
    """A file was written by another release of fedrlvr, and this release cannot continue with it."""


class LedgerError(FedrlvrError, ValueError):
    """A label ledger cannot be opened, or an answer or a table of answers cannot go into it."""


class EgressError(FedrlvrError, ValueError):
    """A decision about a reply that waits for approval and cannot be taken."""


class RoundError(FedrlvrError, RuntimeError):
    """A round of the run cannot be completed."""


class OverdueError(RoundError):
    """The answer to a message took longer than the site allows."""


class MemoryLimitError(FedrlvrError, MemoryError):
    """The memory of a GPU or of the machine ran out (out_of_memory.py).

    public: the phase and the names of the settings to change, without sizes and values. Sizes depend on private
    prompts, so an organisation sends this text alone.
    """

    def __init__(self, text: str, public: str = "") -> None:
        super().__init__(text)
        self.public = printable(public)


class MissingExtraError(FedrlvrError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""


def printable(text: str, keep: str = "") -> str:
    """Foreign text as it may reach a terminal, log or page: what no terminal prints stands as its escape sequence.

    That is control and format characters (terminal escapes, new lines, text direction, zero width), unusual spaces and
    lone surrogates.

    keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def suggestion(word: str, known: Sequence[str], prefix: str = "") -> str:
    """A hint about an unknown word: the nearest known one, or all of them.

    prefix: stands before the known words in the hint, for example the section of a key.
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {prefix + close[0]!r}?" if close else f"known there: {', '.join(known)}"


def validation_text(error: ValidationError, most: int | None = None) -> str:
    """Pydantic's findings as text, with the dotted names of the fields."""
    texts = []
    for item in error.errors(include_url=False)[:most]:
        field, text = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")
        texts.append(f"{field}: {text}" if field else text)
    return printable("; ".join(texts))  # a field's name may be the sender's
