"""FLoRA (arXiv 2409.05976): stack the factors, add their product to the base, and begin a new adapter.

    A = [A_1; ...; A_K]        B = [p_1 s_1 B_1, ..., p_K s_K B_K]        W0 <- W0 + B A        p_k = w_k / sum_j w_j

Exactness: exact, B A is sum_k p_k s_k B_k A_k.
Cost: r_k (d + k) numbers up and sum_k r_k (d + k) down per layer, as every client needs everybody's factors (never
more than rank max min(d, k), to which they are compacted); all adapters are held at once. Not a sum of adapters, so
not for secure aggregation. Ranks and alphas can be mixed.
Known: the stacking, the merging and the fresh start. p_k and s_k go with B rather than with A: the product is the same.
"""

from __future__ import annotations

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.lora_rule import LoraAggregation, Pairs, Result, checked
from fedrlvr.aggregation.stacking import compact, stack


class FLoRA(LoraAggregation):
    """No adapter, and the mean update as a change of the base, in which adapters of weight 0 take no room."""

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """Stack all adapters into one change of the base weights, after which every client restarts.

        Raises:
            ValueError: as `LoraAggregation.aggregate`, for adapters of different layers, or shapes apart from rank.
        """
        kept = list(checked(pairs, rule="FLoRA", mixed_ranks=True, mixed_alphas=True))
        total = sum(weight for _, weight in kept)
        return Result(adapter=None, change=compact(stack((adapter, weight / total) for adapter, weight in kept)))
