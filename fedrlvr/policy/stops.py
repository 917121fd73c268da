"""Stop strings: a response ends with the first token after which its text holds one of them.

The text after n tokens is what the tokenizer decodes them to, so a stop string may be spread over tokens, or end in the
middle of one. The token that completes it belongs to the response, and its text ends with the stop string. Deciding
this costs little for most tokens: one whose own text has no stop string's last character cannot complete it. For the
others the last few tokens are decoded, as many as hold every stop string that could end there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

_MARGIN = 8
"""Characters at the beginning of a text decoded from its middle that may differ: a space, or bytes of a character."""
_PART = "\ufffd"
"""Sign that a tokenizer decodes to where bytes are no whole character yet."""


class StopStrings:
    """Strings that end a response, found in the tokens that it is sampled as.

    strings: at least one, none of them empty. decode: token ids -> text.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self.strings, self._decode = tuple(strings), decode
        self._longest = max(map(len, strings))
        self._last = {text[-1] for text in strings}
        self._pieces: dict[int, tuple[bool, int]] = {}

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the text of these tokens holds a stop string, where that of all but the last one holds none."""
        may, length = self._piece(ids[-1])
        if not may:
            return False
        least, width = self._longest + length + _MARGIN, self._longest + _MARGIN
        while True:
            start = max(len(ids) - width, 0)
            text = self._decode(list(ids[start:]))
            if start == 0 or len(text) >= least:
                return any(stop in text for stop in self.strings)
            width *= 2

    def end(self, ids: Sequence[int]) -> int | None:
        """Number of tokens up to the one that completes a stop string, included; None if no token does."""
        return next((n for n in range(1, len(ids) + 1) if self.complete(ids[:n])), None)

    def cut(self, text: str) -> str:
        """The text up to the end of its first stop string, or the whole text if it has none."""
        ends = [start + len(stop) for stop in self.strings if (start := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _piece(self, token: int) -> tuple[bool, int]:
        """Whether a token can complete a stop string, and the number of characters of its text."""
        if token not in self._pieces:
            text = self._decode([token])
            # A space at the beginning of a text may be lost when a token is decoded alone.
            may = " " in self._last or _PART in text or any(character in text for character in self._last)
            self._pieces[token] = may, len(text) + 1
        return self._pieces[token]


def ended(ids: Sequence[int], ends: Collection[int], stops: StopStrings | None) -> bool:
    """Whether a response ended by itself: in an end token, or in the token that completes a stop string.

    ends: end tokens. stops: None where there are no stop strings.
    """
    return ids[-1] in ends or (stops is not None and stops.end(ids) == len(ids))


def overruns(ids: Sequence[int], stops: StopStrings | None) -> bool:
    """Whether tokens follow the one that completes a stop string, as in no response that was sampled."""
    return stops is not None and stops.end(ids[:-1]) is not None


class StopWatch:
    """Looks for stop strings in the rows of a batch while they are decoded.

    lengths: of all rows, the number of tokens up to a stop string; `most` + 1 where there is none.

    ends: end tokens. ended_R: rows that are not looked at from the start. most: tokens of the longest response.
    """

    def __init__(self, stops: StopStrings, ends: Collection[int], ended_R: Tensor, most: int) -> None:
        self._stops, self._ends, self._looked = stops, ends, 0
        self._ids: list[list[int] | None] = [None if done else [] for done in ended_R.tolist()]
        self.lengths = torch.full((len(ended_R),), most + 1)

    def look(self, where_R: Tensor, tokens_RT: Tensor, drawn: int) -> Tensor:
        """Look at the tokens drawn since the last look; the rows, of those at hand, that a stop string has ended.

        where_R: the row of all rows that each row at hand is. tokens_RT: drawn so far. drawn: how many.
        """
        new = tokens_RT[:, self._looked : drawn].tolist()
        stopped = torch.zeros(len(where_R), dtype=torch.bool)
        for place, row in enumerate(where_R.tolist()):
            ids = self._ids[row]
            for token in new[place] if ids is not None else ():
                assert ids is not None
                ids.append(token)
                if token in self._ends:
                    self._ids[row] = None
                    break
                if self._stops.complete(ids):
                    self.lengths[row], stopped[place], self._ids[row] = len(ids), True, None
                    break
        self._looked = drawn
        return stopped
