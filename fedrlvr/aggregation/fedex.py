"""FedEx-LoRA (arXiv 2410.09432): average the factors as FedIT does; what that leaves out goes into the base.

    Abar = sum_k p_k A_k      Bbar = sum_k p_k B_k      p_k = w_k / sum_j w_j
    W0 <- W0 + s (sum_k p_k B_k A_k - Bbar Abar)

The difference is not taken as it stands: it is small against its terms and would lose digits. The p_k (B_k - Bbar) sum
to zero, so that for any C, here the last client's A_K,

    sum_k p_k B_k A_k - Bbar Abar = sum_k p_k (B_k - Bbar) (A_k - C) = sum_{k<K} p_k (B_k - Bbar) (A_k - A_K)

which has rank (K - 1) r and factors of the size of the clients' differences.

A server step g moves the factors by g (Abar - A) and g (Bbar - B) from the round's A and B. What the products lack then
is g times the difference above, less g (g - 1) s (Bbar - B) (Abar - A), plus the optimizer's memory.

Exactness: exact, adapter and change together add sum_k p_k s B_k A_k.
Cost: r (d + k) numbers up and K r (d + k) down per client and layer (the change never has more than rank
max min(d, k)); all adapters are held at once. Not a sum of adapters, so not for secure aggregation. Ranks cannot be
mixed. Known: means and residual. The factors of the residual are our own derivation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.averaging import mean
from fedrlvr.aggregation.lora_rule import Pairs, ProductAggregation, Result, ServerUpdate, check_before, checked, shape
from fedrlvr.aggregation.stacking import compact, of_delta, of_scale_1, stack


class FedExLoRA(ProductAggregation):
    """The mean of FedIT, with the residual as a change of the base weights (None if no two clients count)."""

    def aggregate(self, pairs: Pairs, *, rank: int | None = None, before: Adapter | None = None) -> Result:
        """Average the factors, and add the error of that average to the base weights.

        Raises:
            ValueError: as FedIT's.
        """
        kept = [pair for pair in checked(pairs, rule="FedEx-LoRA") if pair[1] > 0]
        averaged = mean(kept, rule="FedEx-LoRA")
        if len(kept) == 1:
            return Result(averaged)
        layers = {name: _residual(kept, name) for name in averaged.layers}
        return Result(averaged, compact(of_scale_1(layers)))

    def stepped(self, pairs: Pairs, update: ServerUpdate, *, rank: int, before: Adapter) -> Result:
        """FedIT's mean moved by `of_mean`; everything else of the update is a change of the base."""
        plain = self.aggregate(pairs)
        assert plain.adapter is not None
        check_before(before, shape(plain.adapter), rank)
        g, adapter, crossed = update.of_mean, {}, {}
        for name, (a, b) in before.layers.items():
            mean_a, mean_b = plain.adapter.layers[name]
            d_a, d_b = mean_a.double() - a.double(), mean_b.double() - b.double()
            adapter[name] = Factors((a.double() + g * d_a).to(a.dtype), (b.double() + g * d_b).to(b.dtype))
            crossed[name] = Factors(d_a, d_b)
        terms = [(Adapter(crossed, before.alpha), -g * (g - 1))]
        terms += [(plain.change, g)] if plain.change else []
        terms += [(of_delta(update.memory), update.of_memory)] if update.memory is not None else []
        terms = [(term, weight) for term, weight in terms if weight]
        return Result(Adapter(adapter, before.alpha), compact(stack(terms)) if terms else None)


def _residual(kept: list[tuple[Adapter, float]], name: str) -> tuple[Tensor, Tensor]:
    """One layer's residual in float64: A [(K - 1) r, k] and B [d, (K - 1) r], with p_k and the scale in B."""
    total = sum(weight for _, weight in kept)
    a_s = [adapter.layers[name].A.double() for adapter, _ in kept]
    b_s = [adapter.layers[name].B.double() for adapter, _ in kept]
    shares = [weight / total for _, weight in kept]
    middle = torch.stack([share * b for share, b in zip(shares, b_s, strict=True)]).sum(dim=0)
    scale = kept[0][0].scale
    lefts = [share * scale * (b - middle) for share, b in zip(shares, b_s, strict=True)]
    return torch.cat([a - a_s[-1] for a in a_s[:-1]]), torch.cat(lefts[:-1], dim=1)
