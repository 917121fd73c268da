"""Savings of the engine that a model and its device support, tested by computation or read from the model's config.

A model that cannot take a saving goes its own way, which costs time and changes no result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedrlvr.output import logger
from fedrlvr.policy.attention import Packing, no_mask

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
        _log.info("%s: logits cannot be made apart from the model (%s)", name, error)
        return False
    return _alike(apart, whole)


@torch.no_grad()
def can_pack(model: Any, name: str) -> bool:
    """Whether two responses packed behind their one prompt have the logits that each has behind a prompt of its own."""
    device = next(model.parameters()).device
    prompt, first, second = [0, 1, 2], [3, 4], [5]
    ids = torch.tensor([prompt + first + second], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 4, 3]], device=device)
    try:
        packed = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=no_mask(ids),
            packing=Packing.of([(3, [2, 1])], device),
            use_cache=False,
        ).logits[0]
        apart = [
            model(input_ids=torch.tensor([prompt + response], device=device)).logits[0] for response in (first, second)
        ]
    except Exception as error:  # as above: an architecture that does not hand the packing to its attention
        _log.warning("%s: a prompt cannot be shared by its responses in training, which costs time (%s)", name, error)
        return False
    alike = _alike(packed[:5], apart[0]) and _alike(packed[5], apart[1][3])
    if not alike:
        _log.warning("%s: a prompt cannot be shared by its responses in training, which costs time", name)
    return alike


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
