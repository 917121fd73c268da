"""Kinds of absence: why a client's reply does not count in a round, by the reason that its record gives.

The server writes these words into the key `left_out` of metrics.jsonl, and `absence` reads them there.
"""

from __future__ import annotations

import re
from enum import IntEnum

LATE_WORDS = "no answer within"
WITHHELD_WORDS = "withheld by its own rules"
FAILED_WORDS = "the client failed"
NOT_CONNECTED = "not connected"
CONNECTION_LOST = "its connection was lost"

_PLACE = re.compile(r"round \d+(?:, [^:]{0,200})?: ")


class Standing(IntEnum):
    """A client's part in a round: whether it was asked, answered, or failed to; the more serious the larger."""

    NOT_ASKED = 0
    TOOK_PART = 1
    WITHHELD = 2
    LATE = 3
    NOT_CONNECTED = 4
    FAILED = 5
    REFUSED = 6

    @property
    def words(self) -> str:
        """The standing in the words of a page."""
        return self.name.lower().replace("_", " ")


def absence(reason: str) -> Standing:
    """The kind of absence that a reason in `left_out` stands for; `REFUSED`: the reply came and cannot be used.

    Only what follows round and client counts, so that a client's own words within a reason change nothing.
    """
    text = _PLACE.sub("", reason, count=1)
    for words, standing in (
        (WITHHELD_WORDS, Standing.WITHHELD),
        (LATE_WORDS, Standing.LATE),
        (f"{FAILED_WORDS} ({NOT_CONNECTED}", Standing.NOT_CONNECTED),
        (f"{FAILED_WORDS} ({CONNECTION_LOST}", Standing.NOT_CONNECTED),
        (FAILED_WORDS, Standing.FAILED),
    ):
        if text.startswith(words):
            return standing
    return Standing.REFUSED
