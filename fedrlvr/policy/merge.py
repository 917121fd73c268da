"""Merged weights: the base model with an adapter added in, for whoever cannot load adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError

from fedrlvr.adapter import Adapter
from fedrlvr.config import ModelConfig
from fedrlvr.errors import AdapterError, CheckpointError
from fedrlvr.policy.base import load_base


def save_merged(adapter: Adapter, model: ModelConfig, directory: Path) -> None:
    """Write W0 + (alpha / r) B A for every adapted layer, with the tokenizer, as an ordinary model directory.

    The sum is taken in float32 and stored in the base weights' type.

    Raises:
        ModelError: the base model cannot be loaded.
        AdapterError: the adapter has a layer the model does not have, or factors that do not fit it.
        CheckpointError: the directory cannot be written.
    """
    base = load_base(model.model_copy(update={"device": "cpu", "gradient_checkpointing": False}))
    scale = adapter.alpha / adapter.rank
    modules = dict(base.model.named_modules())
    for name, factors in adapter.layers.items():
        layer = modules.get(name)
        weight = getattr(layer, "weight", None)
        if weight is None or weight.shape != (factors.B.shape[0], factors.A.shape[1]):
            raise AdapterError(f"the adapter's layer {name} does not fit the model {model.name}")
        with torch.no_grad():
            weight.copy_((weight.float() + scale * factors.B.float() @ factors.A.float()).to(weight.dtype))
    try:
        base.model.save_pretrained(directory, safe_serialization=True)
        base.tokenizer.save_pretrained(directory)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(f"{directory} cannot be written ({reason}).") from error
