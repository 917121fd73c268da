"""Personal adapters: the methods by which a client ends with an adapter of its own. `PERSONAL` is their table by name.

Finishing (our reading of "federate, then fine-tune locally"): after the last round each client takes k more local steps
from the global adapter.

Mixing (our reading): theta = a theta_global + (1 - a) theta_own of the factors A and B, with a from SHARES chosen on
the client's own validation problems.

This module needs no torch, so that a configuration is checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrlvr.adapter import Adapter

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares a of the global adapter that mixing tries, the largest first, so that it wins a tie."""


@dataclass(frozen=True)
class PersonalMethod:
    """The properties of one way to a personal adapter, for configuration, server and clients.

    finishes: after the last round each client takes local steps from the global adapter, and keeps the result.
    mixes: the result is interpolated with the global adapter, by the client's validation problems.
    """

    name: str
    finishes: bool = False
    mixes: bool = False


PERSONAL: dict[str, PersonalMethod] = {
    method.name: method
    for method in (
        PersonalMethod("none"),
        PersonalMethod("finish", finishes=True),
        PersonalMethod("mix", finishes=True, mixes=True),
    )
}
FINISHING = [name for name, method in PERSONAL.items() if method.finishes]


def mixed(whole: Adapter, finished: Adapter, share: float) -> Adapter:
    """`share` times the global adapter plus (1 - `share`) times a client's own, factor by factor, in float64.

    whole, finished: of one layout. share: in [0, 1]; at its ends the result is the one adapter to the bit.
    """
    if share in (0.0, 1.0):
        return whole if share else finished
    return finished.filled(whole.flat().mul_(share).add_(finished.flat(), alpha=1 - share))


def best_share(right: Mapping[float, int]) -> float:
    """The share with the most right responses; in a tie the largest share of the global adapter.

    right: by share, the number of right responses to the same validation problems, as many responses for each share.
    """
    return max(right, key=lambda share: (right[share], share))
