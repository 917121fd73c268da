"""A line search by the sites: the rival of the server steps that `scripts/bench gain` compares.

After each synchronisation the sites score a few candidate steps, each on its own validation problems, and the step of
the best mean score is taken. It costs a message down and an evaluation for each candidate.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedrlvr.adapter import Adapter
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.wire.messages import EvaluateRequest, adapter_to_arrays, read_scores

CANDIDATES = (1.0, 1.5, 2.0)


def at_step(start: Adapter, mean: Adapter, step: float) -> Adapter:
    """start + step (mean - start), factor by factor."""
    old = dict(start.tensors())
    moved = {name: old[name] + step * (tensor - old[name]) for name, tensor in mean.tensors()}
    return Adapter.from_tensors(moved, start.alpha)


class LineSearch(WrappingStrategy):
    """Replaces the mean of the clients by the candidate that the sites score best."""

    def __init__(self, inner: FederatedRLVR) -> None:
        super().__init__(inner)
        self.grid: Grid | None = None
        self.start = inner.adapter

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.grid, self.start = grid, self.inner.adapter
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        result, metrics = self.inner.aggregate_train(server_round, replies)
        candidates = {step: at_step(self.start, self.inner.adapter, step) for step in CANDIDATES}
        scores = {step: self._score(server_round, adapter) for step, adapter in candidates.items()}
        best = max(CANDIDATES, key=lambda step: (scores[step], -step))
        self.inner.record.server_step = {"learning_rate": best, "candidates": {str(s): v for s, v in scores.items()}}
        return (result if best == 1.0 else adapter_to_arrays(candidates[best], self.inner.model.halves)), metrics

    def _score(self, round_: int, adapter: Adapter) -> float:
        """Mean pass@1 over all sites' validation problems."""
        inner, grid = self.inner, self.grid
        assert grid is not None
        request = EvaluateRequest(
            round=round_,
            seed=inner.config.run.seed,
            own_adapter=False,
            sampling=inner.config.sampling,
            evaluate=inner.config.evaluate.model_copy(update={"split": "validation"}),
        )
        arrays = adapter_to_arrays(adapter, inner.model.halves)
        messages = [
            Message(inner.participation.content(request, node, arrays), node, "evaluate", group_id=f"{round_}")
            for node in grid.get_node_ids()
        ]
        sums = [score for reply in grid.send_and_receive(messages) for score in read_scores(reply, place="search")]
        return sum(score.total for score in sums) / sum(score.n for score in sums)
