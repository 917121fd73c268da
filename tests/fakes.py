"""A federation without a model: a grid whose replies the test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from factories import NAMES, make_adapter
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import RUN_ID, LocalGrid
from fedrlvr.wire.messages import adapter_to_arrays


def contexts(nodes: Iterable[int] = NAMES) -> dict[int, Context]:
    """An empty memory for each node."""
    return {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in nodes}


def start_round(strategy: FederatedRLVR, round_: int, grid: LocalGrid) -> list[Message]:
    """The train messages of a round."""
    return list(strategy.configure_train(round_, adapter_to_arrays(strategy.adapter), ConfigRecord(), grid))


Answer = Callable[[Message], RecordDict | Error]


def answering(answer: Answer) -> Callable[[Sequence[Message], Sequence[Context]], list[Message]]:
    """Client code that replies to each message with what `answer` makes of it."""
    return lambda messages, _: [Message(answer(message), reply_to=message) for message in messages]


def train_reply(value: float, examples: int = 1, **metrics: float) -> RecordDict:
    """The reply of a client after training."""
    numbers = MetricRecord({"num-examples": examples, **metrics})
    return RecordDict({"arrays": adapter_to_arrays(make_adapter(value)), "metrics": numbers})


def arrays_with(**tensors: torch.Tensor) -> ArrayRecord:
    """The arrays of an adapter of zeros with some of its tensors replaced; dots are written as `__`."""
    factors = dict(make_adapter(0.0).tensors())
    for name, tensor in tensors.items():
        factors[name.replace("__", ".")] = tensor
    return adapter_to_arrays(Adapter.from_tensors(factors, 4.0))


def scores_reply(sources: list[str], n: list[int], total: list[float], squares: list[float]) -> RecordDict:
    """The reply of a client after an evaluation."""
    metrics = MetricRecord({"num-examples": max(0, sum(n)), "n": n, "total": total, "squares": squares})
    return RecordDict({"metrics": metrics, "config": ConfigRecord({"sources": sources})})
