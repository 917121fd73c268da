"""Adapters of random numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedrlvr.adapter import Adapter, Factors


def random_adapter(shapes: Mapping[str, tuple[int, int]], seed: int, rank: int = 2, alpha: float = 4.0) -> Adapter:
    """Random numbers in both factors of each layer, of (d, k)."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: Factors(torch.randn(rank, k, generator=generator), torch.randn(d, rank, generator=generator))
        for name, (d, k) in shapes.items()
    }
    return Adapter(layers, alpha)
