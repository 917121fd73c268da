"""Savings of the engine that a model and its device support, tested by computation or read from the model's config.

A model that cannot take a saving goes its own way, which costs time and changes no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from fedrlvr.errors import ModelError
from fedrlvr.out_of_memory import memory_error
from fedrlvr.output import logger
from fedrlvr.policy.attention import Packing, SharedPrompts, no_mask
from fedrlvr.policy.cache import Decodes, RowCache, cache_argument, optional, prompt_cache
from fedrlvr.policy.model_check import reason

_log = logger("policy")


@torch.no_grad()
def has_plain_head(model: Any, name: str) -> bool:
    """Whether the model's logits are its output head's product with the last hidden states, and nothing else.

    Some scale or cap them after the product; those keep their own way to logits.
    """
    ids = torch.tensor([[0, 1, 2]], device=next(model.parameters()).device)
    try:
        head, decoder = model.get_output_embeddings(), model.get_decoder()
        if type(head) is not nn.Linear or decoder is model:
            return False
        apart, whole = head(decoder(input_ids=ids).last_hidden_state), model(input_ids=ids).logits
    except Exception as error:  # a foreign architecture may fail here in any way, and then it just has no such head
        if memory_error(error):
            raise
        _log.info("%s: logits cannot be made apart from the model (%s)", name, reason(error))
        return False
    return _alike(apart, whole)


@torch.no_grad()
def can_pack(model: Any, name: str) -> bool:
    """Whether two responses packed behind their one prompt have the logits that each has behind a prompt of its own."""
    device = next(model.parameters()).device
    prompt, first, second = [0, 1, 2], [3, 4], [5]
    ids = torch.tensor([prompt + first + second], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 4, 3]], device=device)
    packing = Packing.of([(3, [2, 1])], device)
    try:
        packed = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=no_mask(ids),
            packing=packing,
            use_cache=False,
        ).logits[0]
        apart = [
            model(input_ids=torch.tensor([prompt + response], device=device)).logits[0] for response in (first, second)
        ]
    except Exception as error:  # as above: an architecture that does not hand the packing to its attention
        if memory_error(error):
            raise
        _log.warning(
            "%s: a prompt cannot be shared by its responses in training, which costs time (%s)", name, reason(error)
        )
        return False
    alike = _alike(packed[:5], apart[0]) and _alike(packed[5], apart[1][3])
    alike = alike and _masks_by_window_only(model.config.get_text_config(), packing.windows)
    if not alike:
        _log.warning("%s: a prompt cannot be shared by its responses in training, which costs time", name)
    return alike


@torch.no_grad()
def way_to_decode(model: Any, name: str) -> Decodes:
    """The fastest way by which two prompts of unequal length get the logits that each gets alone, without a cache.

    Raises:
        ModelError: no way does.
        Exception: the model cannot even take a prompt.
    """
    prompts, ends = [[0, 1, 2], [3, 4, 5, 6, 7, 8]], [[1, 2], [7, 3]]
    alone = [_logits(model, prompt + end)[len(prompt) - 1 :] for prompt, end in zip(prompts, ends, strict=True)]
    reasons = []
    ways: tuple[Decodes, ...] = ("filled", "own") if _keeps_keys_only(model) else ("own",)
    for way in ways:
        try:
            if all(_alike(a, b) for a, b in zip(_decoded(model, prompts, ends, way), alone, strict=True)):
                return way
            reasons.append(f"{way}: rows of a batch do not get the logits they get alone")
        except Exception as error:  # as above: the next way is tried, and if none is left all reasons are given
            if memory_error(error):
                raise
            reasons.append(f"{way}: {reason(error)}")
    try:
        apart = [_decoded(model, [p], [e], "own-unpadded")[0] for p, e in zip(prompts, ends, strict=True)]
        if all(_alike(a, b) for a, b in zip(apart, alone, strict=True)):
            return "own-unpadded"
        reasons.append("a cached token does not get the logits that it gets in the whole text")
    except Exception as error:  # as above
        if memory_error(error):
            raise
        reasons.append(reason(error))
    _log.info("%s: %s", name, "; ".join(reasons))
    raise ModelError(
        f"model.name = {name!r}: {type(model).__name__} cannot be sampled from with a cache as it is trained without "
        f"one ({reasons[-1]})."
    )


def _decoded(
    model: Any, prompts: list[list[int]], ends: list[list[int]], way: Decodes, *, share: bool = False
) -> list[Tensor]:
    """The logits [1 + len(end), V] of each prompt's last token and of its end, one token a step, three rows each."""
    device, width = model.device, max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * n + prompt for n, prompt in zip(pads, prompts, strict=True)], device=device)
    mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache: Any = prompt_cache(model, way)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        use_cache=True,
        **{cache_argument(model): cache},
        **optional(model, position_ids=positions, logits_to_keep=1),
    )
    logits = [[row] for row in output.logits[:, -1]]
    prefill = output.get(cache_argument(model)) or cache  # some classes fill it without giving it back
    shared = SharedPrompts([(layer.keys, layer.values) for layer in prefill.layers], mask.bool()) if share else None
    rows = RowCache(prefill, way, repeats=3, new_tokens=len(ends[0]), prompts_apart=share)
    keep = torch.arange(0, 3 * len(prompts), 3, device=device)  # two of each three rows leave before the first step
    rows.keep(keep)
    if shared is not None:
        shared.seat(torch.arange(len(prompts), device=device))
    positions = positions[:, -1:]
    for step in range(len(ends[0])):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = positions + 1
        how: dict[str, Any] = rows.masked(mask, mask.shape[1])
        if shared is not None:
            shared.filled += 1
            how = {"attention_mask": no_mask(ids), "shared_prompts": shared}
        output = model(
            input_ids=torch.tensor([[end[step]] for end in ends], device=device),
            use_cache=True,
            **{cache_argument(model): rows.cache},
            **optional(model, position_ids=positions, logits_to_keep=1),
            **how,
        )
        for row, value in zip(logits, output.logits[:, -1], strict=True):
            row.append(value)
    return [torch.stack(row) for row in logits]


def _keeps_keys_only(model: Any) -> bool:
    """Whether transformers' own cache for this model holds keys and values, at most cut by a window, in every layer."""
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception as error:  # a class may have no such cache
        _log.info("%s has no cache of its own (%s)", type(model).__name__, error)
        return True
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@torch.no_grad()
def steady_length(model: Any, name: str) -> int:
    """Positions up to which a row's logits do not depend on how long another row of its batch is.

    Rotary embeddings with other factors beyond the length they were first trained at (LongRoPE, dynamic NTK) choose
    them for the whole batch. A client's samples would then depend on its neighbours, and training, which has no
    neighbours, would see other log-probs. Such a model is limited to the original length.

    Raises:
        ModelError: no such length is known.
    """
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if not isinstance(limit, int) or limit < 1:  # some classes state 0 or -1 where there is no limit
        return 1 << 20
    if limit < 4:  # too short for the texts below, and for any use
        return limit
    ids = [3, 4, 5]
    alone = _logits(model, ids)
    original = _original_length(text)
    for length in sorted({limit, min(limit, original or limit)}, reverse=True):
        positions = torch.tensor([[0, 1, 2], [length - 3, length - 2, length - 1]], device=model.device)
        inputs = optional(model, position_ids=positions)
        if not inputs:
            return limit
        try:
            beside = model(input_ids=torch.tensor([ids, ids], device=model.device), use_cache=False, **inputs).logits[0]
        except (IndexError, RuntimeError) as error:
            raise ModelError(
                f"model.name = {name!r}: it has no position {length - 1}, though its config.json says "
                f"max_position_embeddings = {limit} ({reason(error)})."
            ) from error
        if _alike(beside, alone):
            if length < limit:
                _log.warning(
                    "%s: prompt and response together are limited to %d of %d tokens: beyond that its rotary "
                    "embeddings change with the longest text of a batch",
                    name,
                    length,
                    limit,
                )
            return length
    raise ModelError(
        f"model.name = {name!r}: its positions depend on the longest text of a batch, and config.json does not say up "
        "to which length they do not (original_max_position_embeddings). Lower max_position_embeddings to that length."
    )


def _original_length(text: Any) -> int | None:
    """The shortest original length that the rotary embeddings' parameters state."""
    rope = getattr(text, "rope_parameters", None) or {}
    entries = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = [entry.get("original_max_position_embeddings") for entry in entries]
    lengths.append(getattr(text, "original_max_position_embeddings", None))
    return min((length for length in lengths if isinstance(length, int) and length >= 4), default=None)


def _logits(model: Any, ids: list[int]) -> Tensor:
    """[tokens, V] of one text alone, as plain transformers gives them."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits


def _masks_by_window_only(text: Any, windows: Sequence[int | None]) -> bool:
    """Whether attention is causal, and in some layers cut by a sliding window of which its function is told.

    A prompt of a few tokens shows no difference where a layer attends within chunks, or where only its mask knows the
    window. text: the text part of the config. windows: what the layers told.
    """
    kinds = getattr(text, "layer_types", None)
    if kinds is None and getattr(text, "attention_chunk_size", None):
        return False
    if kinds is not None and not set(kinds) <= {"full_attention", "sliding_attention"}:
        return False
    if not getattr(text, "sliding_window", None):
        return True
    sliding = list(kinds).count("sliding_attention") if kinds is not None else len(windows)
    return sum(window is not None for window in windows) >= sliding


@torch.no_grad()
def can_share(model: Any) -> bool:
    """Whether rows can be decoded behind prompts that are kept once: what the cache keeps is what attention works on.

    Some architectures keep keys and values compressed, and expand them in each step. model: one that can pack.
    """
    prompts, ends = [[0, 1, 2], [3, 4, 5, 6, 7, 8]], [[1, 2], [7, 3]]
    alone = [_logits(model, prompt + end)[len(prompt) - 1 :] for prompt, end in zip(prompts, ends, strict=True)]
    try:
        shared = _decoded(model, prompts, ends, "filled", share=True)
    except Exception as error:  # as in `has_plain_head`
        if memory_error(error):
            raise
        _log.info("prompts cannot be shared in sampling (%s)", reason(error))
        return False
    return all(_alike(a, b) for a, b in zip(shared, alone, strict=True))


def can_share_prompts(model: Any, longest: int) -> bool:
    """Whether rows of at most `longest` tokens can be decoded behind shared prompts: no window cuts them short.

    model: one that can pack.
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is None or longest <= window


def wants_static(decode_cache: str, model: Any) -> bool:
    """Whether `engine.decode_cache` asks for steps at fixed shapes on this model; `auto` does on a GPU."""
    if decode_cache != "auto":
        return decode_cache == "static"
    return bool(model.device.type == "cuda") and not _rope_looks_at_positions(model.config)


def can_capture(device: torch.device) -> bool:
    """Whether steps on this device can be recorded."""
    return device.type == "cuda"


def _alike(logits: Tensor, reference: Tensor) -> bool:
    scale = float(reference.float().abs().max().clamp(min=1e-6))
    limit = 1e-4 if reference.dtype == torch.float32 else 3e-2
    return bool((logits.float() - reference.float()).abs().max() < limit * scale)


def _rope_looks_at_positions(config: Any) -> bool:
    """Rotary embeddings that change with the longest position read it on the host, which no graph can hold."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer_type = rope.values() if all(isinstance(value, dict) for value in rope.values()) else [rope]
    return any(entry.get("rope_type") == "dynamic" for entry in by_layer_type)
