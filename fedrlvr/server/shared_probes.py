"""CARE's probes at the server, where they are shared: averaged each round, and sent with the next one's first messages.

Like the adapters, they come one at a time, so that the mean of many needs no more memory than that of two; unless a
client may still be left out for what others sent (`largest_change`). Clients count by their training problems, whatever
`aggregation.weights` says. The server does not know which numbers are weights and which are statistics: what no probe
can have is refused by the client that gets it.
"""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor

from fedrlvr.config import Config
from fedrlvr.errors import CheckpointError, MessageError
from fedrlvr.wire.messages import PROBES, probes_record, read_probes, record_in


class SharedProbes:
    """The average of all clients' probes, between rounds.

    count: numbers in a client's probes; None: they are not shared, and none of this does anything. hold: keep those of
    a round until its end, in case a client is left out.
    """

    def __init__(self, count: int | None, *, hold: bool = False) -> None:
        self.count = count
        self.average: Tensor | None = None
        """Float32 [count]; None before the first round."""
        self._hold = hold
        self._record: ArrayRecord | None = None
        self.begin()

    @classmethod
    def of(cls, config: Config, count: int | None) -> SharedProbes:
        """The shared probes of a run, by its configuration.

        Raises:
            ValueError: the config shares probes, and their number is not given.
        """
        if not config.supervision.shares_probes:
            return cls(None)
        if count is None:
            raise ValueError("supervision.share_probes: give the number of a client's probes")
        return cls(count, hold=config.aggregation.largest_change is not None)

    def begin(self) -> None:
        """Prepare for the probes of a new round."""
        self._sum: Tensor | None = None
        self._examples = 0
        self._held: dict[str, tuple[Tensor, int]] = {}

    def read(self, reply: Message, place: str) -> Tensor | None:
        """The probes in a client's reply; None where they are not shared.

        Raises:
            MessageError, AdapterError: there are none, or they cannot be used.
        """
        if self.count is None:
            return None
        record = record_in(reply.content, PROBES, ArrayRecord)
        if record is None:
            raise MessageError(f"{place}: a train reply without probes")
        return read_probes(record, self.count, place=place)

    def add(self, client: str, probes: Tensor | None, examples: int) -> None:
        """Add a client's probes to the average of this round."""
        if probes is not None and self._hold:
            self._held[client] = probes, examples
        elif probes is not None:
            self._take(probes, examples)

    def _take(self, probes: Tensor, examples: int) -> None:
        if self._sum is None:
            self._sum = torch.zeros(probes.shape, dtype=torch.float64)
        self._sum.add_(probes, alpha=examples)
        self._examples += examples

    def leave_out(self, client: str) -> None:
        """Take back a client's probes, which were held."""
        self._held.pop(client, None)

    def end(self) -> None:
        """Average the round's probes; without a training problem at any client, the last average stays."""
        for probes, examples in self._held.values():
            self._take(probes, examples)
        if self._sum is not None and self._examples:
            self.average, self._record = (self._sum / self._examples).float(), None
        self.begin()

    def bring(self, body: RecordDict) -> None:
        """Put the average into a message, if there is one."""
        if self.average is not None:
            self._record = self._record or probes_record(self.average)
            body[PROBES] = self._record

    def restore(self, average: Tensor | None) -> None:
        """Go on from a checkpoint's average.

        Raises:
            CheckpointError: it is not of this run's probes.
        """
        if self.count is None:
            return
        if average is not None and (average.shape != (self.count,) or average.dtype != torch.float32):
            actual = f"{average.dtype} {tuple(average.shape)}"
            raise CheckpointError(f"the checkpoint's probes are {actual}, those of this run float32 ({self.count},)")
        self.average, self._record = average, None
