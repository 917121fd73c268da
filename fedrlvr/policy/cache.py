"""Key-value caches for the decode loop: allocated once, filled in place, rows that ended taken out.

`FilledLayer` hands back only the part filled so far, so that early steps are cheap. `StaticLayer` always hands back
everything and writes at an index that lies in a tensor, so that every step has the same shapes and addresses and can
be replayed as a CUDA graph; the model's causal mask hides what is not filled yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from fedrlvr.errors import ModelError

ROOM = 16
"""Number of positions by which `OwnLayer` grows."""


class FilledLayer(CacheLayerMixin):
    """Keys and values [rows, heads, capacity, head size] of which the first `length` positions are filled."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, *, repeats: int, new_tokens: int) -> None:
        """Take a prompt's keys and values [prompts, heads, length, head size], each repeated for its responses."""
        super().__init__()
        self.length = keys.shape[2]
        self.keys = _with_room(keys, repeats, new_tokens)
        self.values = _with_room(values, repeats, new_tokens)
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
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset the attention mask is made for."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Number of positions filled so far."""
        return self.length

    def get_max_length(self) -> int:
        """Number of positions that fit in all."""
        return int(self.keys.shape[2])


class OwnLayer(FilledLayer):
    """Responses alone, their prompts being kept elsewhere: handed back whole, filled or not, and grown in steps.

    Batched products over slices of a longer buffer are slower on a CPU than over what lies together.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, repeats: int, new_tokens: int) -> None:
        super().__init__(keys[:, :, :0], values[:, :, :0], repeats=repeats, new_tokens=min(ROOM, new_tokens))
        self.limit = new_tokens

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new position and return all."""
        more = min(self.length + ROOM, self.limit) - self.length
        if self.length == self.get_max_length():
            self.keys, self.values = _with_room(self.keys, 1, more), _with_room(self.values, 1, more)
        super().update(key_states, value_states)
        return self.keys, self.values


class StaticLayer(FilledLayer):
    """Keys and values at fixed shapes, one token a step: written at the index `at`, returned whole.

    at: [1], int64, on the device; one for all layers. Whoever runs the steps moves it on.
    """

    is_compileable = True  # transformers then makes the mask without looking at what is in it

    def __init__(self, keys: Tensor, values: Tensor, *, repeats: int, new_tokens: int, at: Tensor) -> None:
        super().__init__(keys, values, repeats=repeats, new_tokens=new_tokens)
        self.at = at

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new position and return all, filled or not."""
        # Under autocast a step's may be of another type than the prefill's.
        self.keys.index_copy_(2, self.at, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.at, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset the attention mask is made for."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> Tensor:  # type: ignore[override]  # as in transformers' own static layers
        """Positions filled so far, [1]: where the query stands for the causal mask."""
        return self.at


Decodes = Literal["filled", "own", "own-unpadded"]
"""Ways to sample from a model. `filled`: with our cache of keys and values, whose rows share prompts. `own`: with the
cache that transformers makes for the model, which may hold recurrent states. `own-unpadded`: with that cache and
without padding, prompts of one length at a time."""


def optional(model: Any, **inputs: Any) -> dict[str, Any]:
    """Those of these inputs that the model's forward pass takes."""
    names, any_name = _inputs_of(getattr(model.forward, "__func__", model.forward))
    return inputs if any_name else {name: value for name, value in inputs.items() if name in names}


def cache_argument(model: Any) -> str:
    """Name of the cache in a model's forward pass and in its output."""
    names, _ = _inputs_of(getattr(model.forward, "__func__", model.forward))
    return "cache_params" if "cache_params" in names else "past_key_values"


@lru_cache
def _inputs_of(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names of a function's parameters, and whether it takes any other; asked for in every decode step."""
    parameters = inspect.signature(forward).parameters
    return frozenset(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def prompt_cache(model: Any, way: Decodes) -> Cache:
    """A cache for the prefill. Ours keeps every position, also in layers with a sliding window: their mask cuts it."""
    return DynamicCache() if way == "filled" else DynamicCache(config=model.config)


class RowCache:
    """The cache of the rows being decoded, `repeats` for each prefilled prompt, with room for `new_tokens` positions.

    at: makes it static; see `StaticLayer`. prompts_apart: the prompts are kept elsewhere, once. Both are of the way
    `filled`.
    """

    def __init__(
        self,
        prefill: Any,
        way: Decodes,
        *,
        repeats: int,
        new_tokens: int,
        at: Tensor | None = None,
        prompts_apart: bool = False,
    ) -> None:
        self._filled = way == "filled"
        if not self._filled:
            self.cache: Any = prefill
            if repeats > 1:
                self.keep(torch.arange(_rows(prefill)).repeat_interleave(repeats))
            return
        layer_type: Any = OwnLayer if prompts_apart else FilledLayer if at is None else partial(StaticLayer, at=at)
        layers = [
            layer_type(layer.keys, layer.values, repeats=repeats, new_tokens=new_tokens) for layer in prefill.layers
        ]
        self.cache = Cache(layers=layers)

    def masked(self, mask: Tensor, positions: int) -> dict[str, Tensor]:
        """The attention mask of the next token, as an input of the forward pass.

        mask: 0 on padding, for all positions there may be. positions: filled, the next token's included. A cache of
        recurrent states alone has no use for it: padding never entered them.
        """
        if self._filled:
            return {"attention_mask": mask[:, : self.cache.get_mask_sizes(1, 0)[0]]}
        linear = getattr(self.cache, "is_linear", None)
        return {} if linear and all(linear) else {"attention_mask": mask[:, :positions]}

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only, in this order."""
        if not self._filled:
            self.cache.reorder_cache(rows)
            return
        for layer in self.cache.layers:
            layer.keep(rows)


def _rows(cache: Any) -> int:
    """Rows of a cache that was filled: of the first tensor that a layer of it holds."""
    for layer in cache.layers:
        for state in (getattr(layer, "keys", None), *getattr(layer, "conv_states", {}).values()):
            if isinstance(state, Tensor) and state.numel():
                return int(state.shape[0])
        for state in getattr(layer, "recurrent_states", {}).values():
            if isinstance(state, Tensor):
                return int(state.shape[0])
    raise ModelError("its cache holds neither keys nor states")


def _with_room(old: Tensor, repeats: int, new_tokens: int) -> Tensor:
    """Each row `repeats` times, then zeros: a masked position has weight 0 in the product, and 0 x NaN would be NaN."""
    rows, heads, length, size = old.shape
    new = old.new_empty(rows, repeats, heads, length + new_tokens, size)
    new[:, :, :, :length] = old.unsqueeze(1)
    new[:, :, :, length:] = 0
    return new.flatten(0, 1)
