"""Adapters on disk in PEFT's format, so that plain `peft` and `vllm` load what a federation trained.

A directory with adapter_config.json and adapter_model.safetensors; keys are
`base_model.model.<layer>.lora_A.weight` [r, k] and `.lora_B.weight` [d, r].
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedrlvr.adapter import Adapter
from fedrlvr.errors import AdapterError
from fedrlvr.files import atomic_bytes, atomic_text, read_json

PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"


def save_peft(adapter: Adapter, directory: Path, *, base_name: str) -> None:
    """Write the adapter. `base_name` is what PEFT will look the base model up by.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = {}
    for name, factors in adapter.layers.items():
        for half, tensor in zip("AB", factors, strict=True):
            tensors[f"{PREFIX}{name}.lora_{half}.weight"] = tensor.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        # Full paths: last names would also match layers of the same name that have no factors here.
        "target_modules": list(adapter.layers),
    }
    atomic_bytes(directory / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    atomic_text(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_peft(directory: Path) -> Adapter:
    """Read a PEFT LoRA adapter, ours or made elsewhere.

    Raises:
        AdapterError: missing or unreadable files, or a kind of adapter that is not plain LoRA of one rank and alpha.
    """
    for name in (CONFIG_FILE, "adapter_model.safetensors"):
        if not (directory / name).is_file():
            raise AdapterError(f"{directory} is not a PEFT adapter: {name} is missing.")
    try:
        config = read_json(directory / CONFIG_FILE)
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{directory}: the adapter cannot be read ({error}).") from None
    _check_plain(config, directory)
    factors = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise AdapterError(f"{directory}: {key} is no LoRA factor of a linear layer.")
        factors[f"{match[1]}.{match[2]}"] = tensor.float()
    if not factors:
        raise AdapterError(f"{directory}: the adapter has no factors.")
    try:
        adapter = Adapter.from_tensors(factors, float(config["lora_alpha"]))
    except AdapterError as error:
        raise AdapterError(f"{directory}: {error}") from None
    if adapter.rank != config["r"]:
        raise AdapterError(f"{directory}: its factors have rank {adapter.rank}, not r = {config['r']}.")
    return adapter


_LARGEST = 1e6
"""Of a rank or an alpha that is used."""


def _check_plain(config: Any, directory: Path) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{directory}: adapter_config.json does not describe a LoRA adapter.")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or not 0 < config[key] < _LARGEST:
            raise AdapterError(f"{directory}: adapter_config.json has no usable {key!r}.")
    for key in ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(key):
            raise AdapterError(f"{directory}: {key} = {config[key]!r} is not supported; only plain LoRA is.")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{directory}: bias = {config['bias']!r} is not supported; only plain LoRA is.")


def in_model_order(adapter: Adapter, like: Adapter, *, whose: str) -> Adapter:
    """The adapter with its layers in the order of `like` and checked against it.

    Raises:
        AdapterError: it is an adapter of another model, rank or set of layers.
    """
    if set(adapter.layers) != set(like.layers):
        strange = sorted(set(adapter.layers) ^ set(like.layers))[0]
        raise AdapterError(
            f"{whose} is an adapter of another model or of other target layers (first difference: {strange})."
        )
    ordered = Adapter({name: adapter.layers[name] for name in like.layers}, adapter.alpha)
    ordered.check_like(like, whose=whose)
    return ordered


def base_reference(name: str) -> str:
    """What an exported adapter names as its base model: the path of the embedded weights, or the model's own name."""
    if name == "embedded":
        from fedrlvr.zoo import weights_dir

        return str(weights_dir())
    return name
