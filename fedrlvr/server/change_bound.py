"""The bound on how far one round may move a client's adapter (`aggregation.change_bound`).

    size    root mean square of the change, over all numbers of the adapter
    limit   bound                                   while no earlier round has changed anything
            bound * max(median of a round, LEAST)   afterwards; the largest median of all earlier rounds

The bound is against changes that are absurd. `aggregation.largest_change` and `aggregation.robust` compare the clients
of one round with each other, and are far narrower.
"""

from __future__ import annotations

import math
import statistics

from fedrlvr.adapter import Adapter
from fedrlvr.errors import AdapterError

LEAST = 1e-3
"""Smallest median that counts, so that a first round that hardly learns does not stop the next one."""


class ChangeBound:
    """Checks the change of each adapter in a round, and remembers the medians of earlier rounds.

    usual: the largest median of the earlier rounds; 0 while nothing has changed.
    """

    def __init__(self, bound: float, usual: float = 0.0) -> None:
        self.bound = bound
        self.usual = usual
        self._sizes: list[float] = []

    @property
    def limit(self) -> float:
        """The largest root mean square of a change in this round."""
        return self.bound * max(self.usual, LEAST) if self.usual else self.bound

    def begin(self) -> None:
        """Prepare for the adapters of a new round."""
        self._sizes = []

    def check(self, adapter: Adapter, start: Adapter, *, place: str) -> None:
        """Check a client's adapter against the one that its round began with.

        Raises:
            AdapterError: it has changed by more than the limit.
        """
        distance = adapter.distance(start)
        size = distance / math.sqrt(sum(tensor.numel() for _, tensor in start.tensors()))
        if not size <= self.limit:
            raise AdapterError(
                f"{place}: its adapter changed by {distance:.3g}, which is {size:.3g} in the root mean square, and "
                f"aggregation.change_bound allows {self.limit:.3g} in this round. Lower train.learning_rate there, or "
                "raise the bound."
            )
        self._sizes.append(size)

    def end(self) -> None:
        """Finish the round: its median counts in later rounds. Of two clients it is the smaller change."""
        if self._sizes:
            self.usual = max(self.usual, statistics.median_low(self._sizes))
