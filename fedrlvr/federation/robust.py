"""Robust aggregation, which a few broken or hostile clients cannot drag along; by Flower's strategies where they fit.

    median          of each number, over the clients                                                (arXiv 1803.01498)
    trimmed_mean    of each number, the mean without the int(trim n) largest and as many smallest   (arXiv 1803.01498)
    krum            the one client with the least sum of squared distances to its n - hostile - 2
                    nearest others                                                                  (arXiv 1703.02757)
    clipped         start + change min(1, limit / |change|), before any mean                        (arXiv 1911.07963)

They stand in for the plain average of A and B (FedIT), and so are as inexact as it is.

Of Flower's others, Bulyan does not fit: it needs 4 hostile + 3 clients, so with one client lost from a small federation
it withstands none, and where there are too few it answers with no model at all and a line in the log. Nor does
Multi-Krum: it averages Krum's best few by their number of examples, which each says of itself. Flower clips only inside
its wrappers for differential privacy: round a whole strategy, for a number of clients fixed beforehand, which their
noise is counted by, and with no model in a round in which any client failed; so clipping is our own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum
from numpy.typing import NDArray

from fedrlvr.adapter import Adapter, Factors

RobustRule = Literal["median", "trimmed_mean", "krum"]

PIECE = 1 << 22
"""Numbers that are looked at together where each stands for itself: what Flower copies of each client at a time."""


def robust_mean(
    adapters: Mapping[str, Adapter],
    start: Adapter,
    *,
    rule: RobustRule,
    trim: float = 0.2,
    hostile: int = 1,
) -> tuple[Adapter, list[str]]:
    """The aggregate, and the clients it was made from: Krum's one, else all.

    start: what the round began with. trim: share of the clients dropped at either end. hostile: how many Krum expects.
    Every client counts the same: none of the three knows client weights, in the papers as in Flower. Flower is handed
    changes from `start` in float64 and in messages made here, so that Krum's distances, which it takes as
    |x|² + |y|² - 2 x y, lose nothing where large adapters differ by little, and Krum's aggregate is its client's
    adapter to the bit.

    Raises:
        ValueError: an unknown rule, too few clients for it, a trim or number that makes no sense, or adapters of
            another layout or alpha or with values that are not finite.
    """
    strategy = _strategy(rule, len(adapters), trim, hostile)
    base = _flat(start)
    changes = []
    for client, adapter in adapters.items():
        _check_alike(adapter, start)
        changes.append(_flat(adapter) - base)
        if not np.isfinite(changes[-1]).all():
            raise ValueError(f"{client}: its adapter holds values that are not finite; leave it out")
    # Only Krum has to see a client's numbers together.
    size = max(1, base.size) if rule == "krum" else PIECE
    found = [_aggregate(strategy, [c[at : at + size] for c in changes]) for at in range(0, base.size, size)]
    sums = base + np.concatenate([values for values, _ in found])
    likes = [tensor for _, tensor in start.tensors()]
    parts = torch.split(torch.from_numpy(sums), [like.numel() for like in likes])
    tensors = iter([part.view(like.shape).to(like.dtype) for part, like in zip(parts, likes, strict=True)])
    clients = list(adapters)
    mean = start.alike({name: Factors(next(tensors), next(tensors)) for name in start.layers})
    return mean, [clients[found[0][1]]] if rule == "krum" else clients


def clipped(adapter: Adapter, start: Adapter, limit: float) -> Adapter:
    """The adapter with its change from `start` shortened to `limit`, Euclidean over all factors, if it is longer.

    Raises:
        ValueError: a limit that is no number from 0 up, adapters of different layouts or alpha, or values that are not
            finite.
    """
    if not limit >= 0:
        raise ValueError(f"a change is clipped to a length from 0 up, got {limit}")
    _check_alike(adapter, start)
    length = adapter.distance(start)
    if not math.isfinite(length):
        raise ValueError("an adapter with values that are not finite cannot be clipped; leave it out")
    if length <= limit:
        return adapter
    share = limit / length
    ends, starts = dict(adapter.tensors()), dict(start.tensors())
    moved = {n: (s.double() + (ends[n].double() - s.double()) * share).to(s.dtype) for n, s in starts.items()}
    return start.alike({name: Factors(moved[f"{name}.A"], moved[f"{name}.B"]) for name in start.layers})


def _strategy(rule: str, clients: int, trim: float, hostile: int) -> FedAvg:
    """Flower's strategy for a rule, if so many clients are enough for it."""
    if rule == "median":
        if clients < 3:
            raise ValueError(f"the median of {clients} clients is their plain mean or nothing; it needs at least 3")
        return FedMedian()
    if rule == "trimmed_mean":
        if not 0 < trim < 0.5:
            raise ValueError(f"trim is the share of clients dropped at either end, above 0 and below 0.5; got {trim}")
        if int(trim * clients) < 1:
            advice = (
                f"set trim to at least {math.ceil(100 / clients) / 100:g}" if clients > 2 else "it needs at least 3"
            )
            raise ValueError(f"a trim of {trim:g} drops none of {clients} clients and is their plain mean; {advice}")
        return FedTrimmedAvg(beta=trim)
    if rule == "krum":
        if hostile < 0:
            raise ValueError(f"hostile is a number of clients, got {hostile}")
        if clients < 2 * hostile + 3:
            most = (clients - 3) // 2
            advice = f"with {clients}, set hostile to at most {most}" if most >= 0 else f"there are {clients}"
            raise ValueError(f"Krum needs at least {2 * hostile + 3} clients against {hostile} hostile ones; {advice}")
        return Krum(num_malicious_nodes=hostile)
    raise ValueError(f"unknown rule {rule!r}; known: median, trimmed_mean, krum")


def _aggregate(strategy: FedAvg, changes: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], int]:
    """A strategy's aggregate of the clients' changes, and the number of its one client if it takes only one."""
    replies = []
    for number, change in enumerate(changes):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"change": Array(change)}),
                # A mean of one client's numbers is these numbers: Krum says so which it took.
                "metrics": MetricRecord({"num-examples": 1, "client": number}),
            }
        )
        metadata = Metadata(0, "", number, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
        replies.append(Message(content, metadata=metadata))  # type: ignore[call-overload]  # Flower's own, undeclared
    with _quiet():
        arrays, metrics = strategy.aggregate_train(0, replies)
    if arrays is None or metrics is None:
        raise ValueError(f"Flower's {type(strategy).__name__} made nothing of {len(changes)} changes")
    return arrays["change"].numpy(), round(float(metrics["client"]))  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower reports every aggregation in its log, with numbers that are not those of our messages."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_alike(adapter: Adapter, start: Adapter) -> None:
    if adapter.alpha != start.alpha or adapter.layout != start.layout:
        raise ValueError("a robust mean takes adapters of one rank, alpha and set of layers only")


def _flat(adapter: Adapter) -> NDArray[np.float64]:
    """All numbers end to end."""
    return torch.cat([tensor.flatten() for _, tensor in adapter.tensors()]).double().numpy()
