"""RoLoRA (arXiv 2502.01755): in each round one factor is frozen and the same for all, the other is averaged; in turns.

    rounds 1, 3, 5 ...    A = A_1 = ... = A_K        B = sum_k p_k B_k
    rounds 2, 4, 6 ...    A = sum_k p_k A_k          B = B_1 = ... = B_K        p_k = w_k / sum_j w_j

Exactness: exact in each round, since one factor can be taken out of sum_k p_k B_k A_k.
Cost: r d or r k numbers up and down per client and layer, about half of FedIT's; one pass, one running sum. Linear in
the adapters, so it can be computed under secure aggregation. Ranks cannot be mixed.
Known: the alternation. Our reading: that B goes first, as B is zero at the start and A would have no gradient
(`fedrlvr.rules.trained` says whose turn it is).
"""

from __future__ import annotations

from fedrlvr.aggregation.mean import mean
from fedrlvr.aggregation.pairs import Pairs
from fedrlvr.aggregation.result import Result


def rolora(pairs: Pairs) -> Result:
    """The shared factor and the weighted mean of the other, summed in float64 and returned in the first one's type.

    Which one is shared is seen from the adapters.

    Raises:
        ValueError: as `fedit`, or adapters that have neither all the same A nor all the same B.
    """
    return Result(mean(pairs, rule="RoLoRA", frozen=(0, 1)))
