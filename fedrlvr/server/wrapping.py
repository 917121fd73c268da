"""A strategy around ours that changes nothing, to derive from: overwrite the hook whose messages are to be changed."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrlvr.server.strategy import FederatedRLVR


class WrappingStrategy(Strategy):
    """Hands every hook on. `Federation(..., wrap=...)` and `sweep(..., wrap=...)` take what makes one."""

    def __init__(self, inner: FederatedRLVR) -> None:
        self.inner = inner

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As Flower's."""
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower's."""
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As Flower's."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As Flower's."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """As Flower's."""
        self.inner.summary()
