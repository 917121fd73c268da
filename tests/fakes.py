"""A federation without a model: adapters of two layers, and a grid whose replies the test writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import Config, parse_config
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.simulation.grid import RUN_ID, LocalGrid
from fedrlvr.wire.messages import adapter_to_arrays

NAMES = {1: "ann", 2: "bob", 3: "cyd"}


def adapter_of(value: float) -> Adapter:
    """An adapter of rank 2 whose every number is `value`; its layers are not in alphabetical order."""
    layers = {
        "up": Factors(torch.full((2, 3), value), torch.full((4, 2), value)),
        "down": Factors(torch.full((2, 4), value), torch.full((3, 2), value)),
    }
    return Adapter(layers, 4.0)


def contexts(nodes: Iterable[int] = NAMES) -> dict[int, Context]:
    """An empty memory for each node."""
    return {node: Context(RUN_ID, node, {}, RecordDict(), {}) for node in nodes}


def strategy_of(clients: dict[int, str] | None = None, **federation: object) -> FederatedRLVR:
    """A strategy over ann, bob and cyd that starts from zeros; settings of aggregation are told from the others."""
    names = dict(NAMES if clients is None else clients)
    aggregation = {key: federation.pop(key) for key in ("weights", "largest_change") if key in federation}
    tree = {"federation": {"clients": list(names.values()), **federation}, "aggregation": aggregation}
    config: Config = parse_config(tree)
    return FederatedRLVR(config, names, adapter_of(0.0), Observer())


def start_round(strategy: FederatedRLVR, round_: int, grid: LocalGrid) -> list[Message]:
    """The train messages of a round."""
    return list(strategy.configure_train(round_, adapter_to_arrays(strategy.adapter), ConfigRecord(), grid))


Answer = Callable[[Message], RecordDict | Error]


def answering(answer: Answer) -> Callable[[Sequence[Message], Sequence[Context]], list[Message]]:
    """Client code that replies to each message with what `answer` makes of it."""
    return lambda messages, _: [Message(answer(message), reply_to=message) for message in messages]


def train_reply(value: float, examples: int = 1, **metrics: float) -> RecordDict:
    """What a client sends back after training."""
    numbers = MetricRecord({"num-examples": examples, **metrics})
    return RecordDict({"arrays": adapter_to_arrays(adapter_of(value)), "metrics": numbers})


def arrays_with(**tensors: torch.Tensor) -> ArrayRecord:
    """The arrays of an adapter of zeros with some of its tensors replaced; dots are written as `__`."""
    factors = dict(adapter_of(0.0).tensors())
    for name, tensor in tensors.items():
        factors[name.replace("__", ".")] = tensor
    return adapter_to_arrays(Adapter.from_tensors(factors, 4.0))


def scores_reply(sources: list[str], n: list[int], total: list[float], squares: list[float]) -> RecordDict:
    """What a client sends back after an evaluation."""
    metrics = MetricRecord({"num-examples": 1, "n": n, "total": total, "squares": squares})
    return RecordDict({"metrics": metrics, "config": ConfigRecord({"sources": sources})})
