"""FFA-LoRA (arXiv 2403.12313): A is frozen and the same for all; B is averaged.

    A = A_1 = ... = A_K        B = sum_k p_k B_k        p_k = w_k / sum_j w_j

Exactness: exact, since sum_k p_k B_k A = B A. The price is half of the trained numbers: the update's rows stay in the
span of the A that was drawn at the start.
Cost: r d numbers up and down per client and layer, as everybody knows A; one pass, one running sum. Linear in the
adapters, so it can be computed under secure aggregation, and noise added to B_k stays noise in the update. Ranks
cannot be mixed. Known throughout.
"""

from __future__ import annotations

from fedrlvr.aggregation.mean import mean
from fedrlvr.aggregation.pairs import Pairs
from fedrlvr.aggregation.result import Result


def ffa(pairs: Pairs) -> Result:
    """The shared A and the weighted mean of the B's, summed in float64 and returned in the first one's type.

    Raises:
        ValueError: as `fedit`, or A's that differ.
    """
    return Result(mean(pairs, rule="FFA-LoRA", frozen=(0,)))
