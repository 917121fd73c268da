"""Seam 2: what clients tell each other besides weights. Pure; one file for each concept.

A round of tau local steps is cut into stretches by the exchanges a coordination asks for (`stretches`); each exchange
is about a batch of the public set (`public_batch`). Correct responses make the pool (`Pool`), a rule says which slots
of a client's group take which of them (`swap`), another what their policy ratio is taken against (`reference`). With
no exchanges, clients exchange adapters only and the round is one stretch.
"""

from fedrlvr.coordination.pool import Pool, PoolEntry, Sent
from fedrlvr.coordination.ratio import RATIO_RULES, reference
from fedrlvr.coordination.schedule import public_batch, stretches
from fedrlvr.coordination.screening import SCREENED, flaw, usual_length, usual_lengths
from fedrlvr.coordination.swapping import SWAP_RULES, swap, wanted

__all__ = [
    "RATIO_RULES",
    "SCREENED",
    "SWAP_RULES",
    "Pool",
    "PoolEntry",
    "Sent",
    "flaw",
    "public_batch",
    "reference",
    "stretches",
    "swap",
    "usual_length",
    "usual_lengths",
    "wanted",
]
