"""Robust aggregation: a few broken or hostile clients cannot drag the result along.

    median          of each number, over the clients                                                (arXiv 1803.01498)
    trimmed_mean    of each number, the mean without the int(trim n) largest and as many smallest   (arXiv 1803.01498)
    krum            the one client with the least sum of squared distances to its n - hostile - 2
                    nearest others                                                                  (arXiv 1703.02757)
    clipped         start + change min(1, limit / |change|), before any mean                        (arXiv 1911.07963)

The first three replace the plain average of A and B (FedIT), and so are as inexact as it is. They give what Flower's
FedMedian, FedTrimmedAvg and Krum give, to the bit (tests/aggregation/test_robust.py).

Of Flower's other strategies, Bulyan does not fit: it needs 4 hostile + 3 clients, so with one client lost from a small
federation it withstands none, and where there are too few it answers with no model at all and a line in the log. Nor
does Multi-Krum: it averages Krum's best few by their number of examples, which each client states itself. Flower clips
only inside its wrappers for differential privacy: round a whole strategy, for a number of clients fixed beforehand,
which their noise is counted by, and with no model in a round in which any client failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedrlvr.adapter import Adapter

# numpy and torch are imported where something is computed, so that a configuration is checked without them.

ROBUST_MEANS: dict[str, Callable[[float, int], int]] = {
    "median": lambda trim, hostile: 3,
    "trimmed_mean": lambda trim, hostile: (least := math.ceil(1 / trim)) + (int(trim * least) < 1),
    "krum": lambda trim, hostile: 2 * hostile + 3,
}
"""Robust means, each with the least number of clients that it needs for a share to trim and a number of hostile
clients. Fewer clients make it the plain mean, or let one hostile client through."""
CLIP, TRIM, HOSTILE = 1.0, 0.2, 1
"""Values of `robust_clip`, `robust_trim` and `robust_hostile` where the configuration does not set them."""
PIECE = 1 << 22
"""Numbers of each client that are copied at a time, where each number stands for itself."""


def robust_mean(
    adapters: Mapping[str, Adapter],
    start: Adapter,
    *,
    rule: str,
    trim: float = TRIM,
    hostile: int = HOSTILE,
) -> tuple[Adapter, list[str]]:
    """Aggregate adapters by a robust mean; returns the result and the clients it was made from (Krum: one, else all).

    rule: median, trimmed_mean or krum. start: what the round began with. trim: share of the clients dropped at either
    end. hostile: how many Krum expects.
    Every client counts the same: the papers of the three know no client weights. Changes from `start` in float64 are
    compared, so that Krum's distances, |x|² + |y|² - 2 x y, lose nothing where large adapters differ by little. Krum's
    aggregate is its client's adapter to the bit.

    Raises:
        ValueError: an unknown rule, too few clients for it, a trim or number that makes no sense, or adapters of
            another layout or alpha or with values that are not finite.
    """
    import numpy as np
    import torch

    check_enough(rule, len(adapters), trim, hostile)
    base = start.flat().numpy()
    changes = []
    for client, adapter in adapters.items():
        _check_alike(adapter, start)
        changes.append(adapter.flat().numpy() - base)
        if not np.isfinite(changes[-1]).all():
            raise ValueError(f"{client}: its adapter holds values that are not finite; leave it out")
    clients = list(adapters)
    if rule == "krum":
        chosen = _krum(np.stack(changes), hostile)
        clients, change = [clients[chosen]], changes[chosen]
    else:
        pieces = (np.stack([c[at : at + PIECE] for c in changes]) for at in range(0, base.size, PIECE))
        means = [np.median(piece, axis=0) if rule == "median" else _trimmed_mean(piece, trim) for piece in pieces]
        change = np.concatenate(means)
    return start.filled(torch.from_numpy(base + change)), clients


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
    base = start.flat()
    return start.filled(base + (adapter.flat() - base) * (limit / length))


def check_enough(rule: str, clients: int, trim: float, hostile: int) -> None:
    """Check that a robust mean has enough clients.

    Raises:
        ValueError: an unknown rule, too few clients for it, or a trim or number that makes no sense.
    """
    if rule not in ROBUST_MEANS:
        raise ValueError(f"unknown rule {rule!r}; known: {', '.join(ROBUST_MEANS)}")
    if not 0 < trim < 0.5 or hostile < 0:
        raise ValueError(
            f"robust_trim is above 0 and below 0.5, and robust_hostile a number of clients; got {trim} and {hostile}"
        )
    setting = {"trimmed_mean": f" with robust_trim = {trim:g}", "krum": f" with robust_hostile = {hostile}"}.get(
        rule, ""
    )
    if clients < (least := ROBUST_MEANS[rule](trim, hostile)):
        raise ValueError(
            f"aggregation.robust = {rule!r}{setting} needs at least {least} clients in a round, not {clients}"
        )


def _trimmed_mean(values_KN: NDArray[np.float64], trim: float) -> NDArray[np.float64]:
    """[N]: of each number, the mean over the clients without the int(trim K) largest and as many smallest."""
    import numpy as np

    clients = len(values_KN)
    cut = int(trim * clients)
    kept = np.partition(values_KN, (cut, clients - cut - 1), axis=0)[cut : clients - cut]
    return np.asarray(kept.mean(axis=0))


def _krum(values_KN: NDArray[np.float64], hostile: int) -> int:
    """The number of the client with the least sum of squared distances to its K - hostile - 2 nearest others."""
    import numpy as np

    norms = np.square(values_KN).sum(axis=1)
    distances_KK = norms[:, None] + norms[None, :] - 2 * values_KN @ values_KN.T
    nearest = max(1, len(values_KN) - hostile - 2)
    scores = [np.sum(row[np.argsort(row)[1 : nearest + 1]]) for row in distances_KK]  # 0 is the client itself
    return int(np.argsort(scores)[0])


def _check_alike(adapter: Adapter, start: Adapter) -> None:
    if adapter.alpha != start.alpha or adapter.layout != start.layout:
        raise ValueError("a robust mean takes adapters of one rank, alpha and set of layers only")
