"""Personal adapters: the methods by which a client ends with an adapter of its own. `PERSONAL` is their table by name.

Finishing (our reading of "federate, then fine-tune locally"): after the last round each client takes k more local steps
from the global adapter.

FedSA-LoRA (arXiv 2410.01463): both factors train; A is sent and averaged, and each client keeps its own B.

    client k:  W0 + s B_k A      A = sum_k p_k A_k                                                   known

FedALT (arXiv 2503.11880): each client trains its own adapter beside the frozen mean of the other clients' adapters,
which are averaged without weights, A and B each.

    client k:  W0 + s B_k A_k + s B_-k A_-k      A_-k, B_-k: the mean over the other clients         known but for:

    Our reading: both parts count in full. The authors weigh them by a softmax of the layer's input that is learnt (the
    mixer); at its start both count by half, which is the formula above at half of alpha. Clients that were not drawn,
    or left out, count with the adapter they sent last.

Mixing (our reading): theta = a theta_global + (1 - a) theta_own of the factors A and B, with a from SHARES chosen on
the client's own validation problems.

This module needs no torch, so that a configuration is checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedrlvr.adapter import Adapter, Halves

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares a of the global adapter that mixing tries, the largest first, so that it wins a tie."""


@dataclass(frozen=True)
class PersonalMethod:
    """The properties of one way to a personal adapter, for configuration, server and clients.

    finishes: after the last round each client takes local steps from the global adapter, and keeps the result.
    mixes: the result is interpolated with the global adapter, by the client's validation problems.
    keeps: the halves of its adapter that a client trains for itself and begins its next round with; None: all clients
        begin with one adapter.
    sends: the halves that a client sends, where it keeps some.
    beside_others: a client trains beside the frozen mean of the other clients' adapters.
    down, up: in words what each round's messages bring to a client and from it.
    """

    name: str
    finishes: bool = False
    mixes: bool = False
    keeps: Halves | None = None
    sends: Halves = "AB"
    beside_others: bool = False
    down: str = "the global adapter"
    up: str = "its adapter"

    @property
    def makes_adapters(self) -> bool:
        """Whether clients end with adapters of their own."""
        return self.finishes or self.keeps is not None


PERSONAL: dict[str, PersonalMethod] = {
    method.name: method
    for method in (
        PersonalMethod("none"),
        PersonalMethod("finish", finishes=True),
        PersonalMethod("mix", finishes=True, mixes=True),
        PersonalMethod(
            "fedsa",
            keeps="B",
            sends="A",
            down="the averaged A factors",
            up="the A factors of its adapter, whose B factors stay there",
        ),
        PersonalMethod(
            "fedalt",
            keeps="AB",
            beside_others=True,
            down="the mean of the other organisations' own adapters (with two organisations, the other's adapter)",
            up="its own adapter, for the means that the others are sent",
        ),
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


def mean_of_others(adapters: Mapping[str, Adapter], client: str) -> Adapter | None:
    """The mean of the factors A and B of all adapters but one client's, as an update of scale 1 (alpha = rank).

    adapters: by client, of one layout and alpha. None: there are no others.
    """
    others = [adapter for name, adapter in adapters.items() if name != client]
    if not others:
        return None
    total = others[0].flat()
    for adapter in others[1:]:
        total += adapter.flat()
    mean = others[0].filled(total / len(others))
    return mean.with_alpha(float(mean.rank))
