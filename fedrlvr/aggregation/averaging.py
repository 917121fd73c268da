"""The rules that are a weighted mean of the factors: FedIT, FFA-LoRA and RoLoRA. p_k = w_k / sum_j w_j.

FedIT (arXiv 2305.05644) averages A and B separately.

    A = sum_k p_k A_k            B = sum_k p_k B_k

    Inexact: the mean of products sum_k p_k B_k A_k is not the product of means unless all clients share a factor.
    r (d + k) numbers up and down per client and layer.

FFA-LoRA (arXiv 2403.12313) freezes A, which is the same for all clients, and averages B.

    A = A_1 = ... = A_K          B = sum_k p_k B_k

    Exact, since sum_k p_k B_k A = B A. The price is half of the trained numbers: the update's rows stay in the span of
    the A that was drawn at the start. r d numbers up and down, as every client draws A itself. Noise that is added to
    B_k stays noise in the update.

RoLoRA (arXiv 2502.01755) freezes one factor in each round, in turns, and averages the other.

    rounds 1, 3, 5 ...    A = A_1 = ... = A_K        B = sum_k p_k B_k
    rounds 2, 4, 6 ...    A = sum_k p_k A_k          B = B_1 = ... = B_K

    Exact in each round, since one factor can be taken out of sum_k p_k B_k A_k. r d or r k numbers up and down, about
    half of FedIT's. Our reading: B goes first.

All three take one pass and hold one running sum, so memory does not grow with the number of clients. They are linear in
the adapters, so secure aggregation can compute them. Ranks cannot be mixed. Known, unless it says otherwise.
"""

from __future__ import annotations

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.lora_rule import LoraAggregation, Result
from fedrlvr.aggregation.mean import mean
from fedrlvr.aggregation.pairs import Pairs


class FedIT(LoraAggregation):
    """The weighted mean of each factor, summed in float64 and returned in the first adapter's type."""

    title = "FedIT"
    frozen: tuple[int, ...] = ()
    """Factors (0: A, 1: B) of which one has to be the same for all clients; which one is seen from the adapters."""

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """
        Raises:
            ValueError: as `LoraAggregation.aggregate`, for adapters of different layers, shapes, ranks or alpha, or
                without the factor that all clients have to share.
        """
        return Result(mean(pairs, rule=self.title, frozen=self.frozen))


class FFALoRA(FedIT):
    """The shared A, and the weighted mean of B."""

    title = "FFA-LoRA"
    frozen = (0,)


class RoLoRA(FedIT):
    """The shared factor, and the weighted mean of the other."""

    title = "RoLoRA"
    frozen = (0, 1)
