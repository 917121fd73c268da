"""A static key-value cache for the decode loop: allocated once, filled in place, rows that ended taken out.

Unlike a static cache that always attends over its whole length, `update` hands back only the part filled so far.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from fedrlvr.errors import ModelError


class FilledLayer(CacheLayerMixin):
    """Keys and values [rows, heads, capacity, head size] of which the first `length` positions are filled."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, *, repeats: int, capacity: int) -> None:
        """Take a prompt's keys and values [prompts, heads, length, head size], each repeated for its responses."""
        super().__init__()
        prompts, heads, self.length, _ = keys.shape
        rows = prompts * repeats
        self.keys = keys.new_empty(rows, heads, capacity, keys.shape[-1])
        self.values = values.new_empty(rows, heads, capacity, values.shape[-1])
        self.keys[:, :, : self.length] = keys.repeat_interleave(repeats, dim=0)
        self.values[:, :, : self.length] = values.repeat_interleave(repeats, dim=0)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the tensors are made with the layer."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions and return all that are filled."""
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only, in this order."""
        filled = slice(None, self.length)
        capacity = self.keys.shape[2]
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), old.shape[1], capacity, old.shape[3])
            new[:, :, filled] = old[:, :, filled][rows]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset the attention mask is made for."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions filled so far."""
        return self.length

    def get_max_length(self) -> int:
        """Positions there is room for."""
        return int(self.keys.shape[2])


def whole_cache() -> DynamicCache:
    """A cache for the prefill that keeps every position, also in layers with a sliding window: their mask cuts it."""
    return DynamicCache()


def expand(prefill: DynamicCache, *, repeats: int, new_tokens: int) -> Cache:
    """A cache for `repeats` responses of each prefilled prompt, with room for `new_tokens` more positions.

    Raises:
        ModelError: a layer is no attention layer.
    """
    layers: list[Any] = []
    for layer in prefill.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            raise ModelError("this model keeps state other than keys and values; fedrlvr samples attention models only")
        layers.append(FilledLayer(keys, values, repeats=repeats, capacity=keys.shape[2] + new_tokens))
    return Cache(layers=layers)
