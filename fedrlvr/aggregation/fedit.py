"""FedIT (arXiv 2305.05644): average the factors A and B separately.

    A = sum_k p_k A_k        B = sum_k p_k B_k        p_k = w_k / sum_j w_j

Exactness: inexact. The mean of products sum_k p_k B_k A_k is not the product of means unless all share a factor.
Cost: r (d + k) numbers up and down per client and layer; one pass over the adapters, which are summed as they come,
so memory does not grow with their number. Linear in the adapters, so it can be computed under secure aggregation.
Ranks cannot be mixed. Known throughout.
"""

from __future__ import annotations

from fedrlvr.aggregation.mean import mean
from fedrlvr.aggregation.pairs import Pairs
from fedrlvr.aggregation.result import Result


def fedit(pairs: Pairs) -> Result:
    """The weighted mean of (adapter, weight) pairs, summed in float64 and returned in the first one's type.

    Raises:
        ValueError: no adapters, a weight that is negative or not finite, weights that sum to zero, or adapters of
            different layers, shapes, ranks or alpha.
    """
    return Result(mean(pairs, rule="FedIT"))
