"""Adapters on disk in PEFT's format, so that plain `peft` and `vllm` load what a federation trained.

A directory with adapter_config.json and adapter_model.safetensors; keys are
`base_model.model.<layer>.lora_A.weight` [r, k] and `.lora_B.weight` [d, r].
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import pad

from fedrlvr.adapter import Adapter
from fedrlvr.errors import AdapterError
from fedrlvr.files import atomic_bytes, atomic_text, read_json

PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"


_EXPERT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Last names of layers that PEFT 0.21 takes for routed experts in a model of fused experts (its
utils/transformers_weight_conversion.py), and so drops from `target_modules` where they are dense layers."""


def save_peft(adapter: Adapter, directory: Path, *, base_name: str, fused_experts: bool = False) -> None:
    """Write the adapter. `base_name` is what PEFT will look the base model up by.

    fused_experts: whether the base model keeps routed experts as stacked parameters (`Base.fused_experts`). Its dense
        layers are then named by their weights where PEFT would mistake them for experts; the factors mean the same.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = {}
    for name, factors in adapter.layers.items():
        for half, tensor in zip("AB", factors, strict=True):
            tensors[f"{PREFIX}{name}.lora_{half}.weight"] = tensor.contiguous()
    weights = [name for name in adapter.layers if fused_experts and name.rpartition(".")[2] in _EXPERT_NAMES]
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
        "target_modules": [name for name in adapter.layers if name not in weights],
        "target_parameters": [f"{name}.weight" for name in weights] or None,
    }
    atomic_bytes(directory / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    atomic_text(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_peft(directory: Path) -> Adapter:
    """Read a PEFT LoRA adapter, ours or made elsewhere.

    Layers of different ranks and scales come out at the largest rank and one scale, which changes no product.

    Raises:
        AdapterError: missing or unreadable files, or a kind of adapter that is not plain LoRA.
    """
    for name in (CONFIG_FILE, "adapter_model.safetensors"):
        if not (directory / name).is_file():
            raise AdapterError(f"{directory} is not a PEFT adapter: {name} is missing.")
    try:
        config = read_json(directory / CONFIG_FILE)
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{directory}: the adapter cannot be read ({error}).") from None
    _check_config(config, directory)
    factors = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise AdapterError(f"{directory}: {key} is no LoRA factor of a linear layer.")
        factors[f"{match[1]}.{match[2]}"] = tensor.float()
    if not factors:
        raise AdapterError(f"{directory}: the adapter has no factors.")
    weights = [f".{name.removesuffix('.A')}.weight" for name in factors]  # by PEFT's rule an ending of a name will do
    for name in config.get("target_parameters") or []:
        if not any(weight.endswith(f".{name}") for weight in weights):
            raise AdapterError(f"{directory}: target_parameters names {name!r}, which is no adapted layer's weight.")
    try:
        return _of_one_rank(factors, config)
    except (AdapterError, re.error) as error:
        raise AdapterError(f"{directory}: {error}") from None


_LARGEST = 1e6
"""Of a rank or an alpha that is used."""

_NO_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Fields of adapter_config.json that do not change what the factors mean: the names of the factors say which layers are
adapted, and how they were first drawn is over. What does change it is read from `init_lora_weights`."""
_READ = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_parameters"})
"""Fields that are taken into account."""
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base weights as they are. The others (pissa, olora, corda, lora_ga,
loftq) subtract the first factors from them, so that the factors fit no other base."""


def _check_config(config: Any, directory: Path) -> None:
    """Refuse a field that changes the meaning of the factors, or that is unknown, unless it is empty or off."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{directory}: adapter_config.json does not describe a LoRA adapter.")
    for key in ("r", "lora_alpha"):
        if type(config.get(key)) not in (int, float) or not 0 < config[key] < _LARGEST:
            raise AdapterError(f"{directory}: adapter_config.json has no usable {key!r}.")
    for key in ("rank_pattern", "alpha_pattern"):
        for name, value in _mapping(config, key, directory).items():
            if type(value) not in (int, float) or not 0 < value < _LARGEST:
                raise AdapterError(f"{directory}: adapter_config.json has no usable {key!r} of {name!r}.")
    if not isinstance(config.get("target_parameters") or [], list):
        raise AdapterError(f"{directory}: adapter_config.json has no usable 'target_parameters'.")
    neutral = {"bias": ("none", None, False), "init_lora_weights": _INITIAL}
    for key, value in config.items():
        if key in _NO_EFFECT or key in _READ:
            continue
        accepted = any(value is known or value == known for known in neutral[key]) if key in neutral else not value
        if not accepted:
            raise AdapterError(
                f"{directory}: {key} = {str(value)[:80]!r} in adapter_config.json changes what the factors mean, or is "
                "unknown here. Only plain LoRA can be read: merge the adapter into the model with the software that "
                "made it, or convert it."
            )


def _mapping(config: dict[str, Any], key: str, directory: Path) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{directory}: adapter_config.json has no usable {key!r}.")
    return value


def _of_one_rank(factors: dict[str, Tensor], config: dict[str, Any]) -> Adapter:
    """An adapter of one rank and alpha, from layers that may each have their own and from rank-stabilised ones.

    PEFT scales a layer's product by alpha / r, or with `use_rslora` by alpha / sqrt(r).

    Raises:
        AdapterError: factors of other ranks than the config's.
        re.error: a pattern that is no regular expression.
    """
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    scales: dict[str, float] = {}
    for name, tensor in factors.items():
        layer, _, half = name.rpartition(".")
        if half != "A" or tensor.dim() != 2:
            continue
        rank = ranks.get(_pattern_of(ranks, layer), config["r"])
        if tensor.shape[0] != rank:
            raise AdapterError(f"the factors of {layer} have rank {tensor.shape[0]}, not r = {rank}.")
        alpha = alphas.get(_pattern_of(alphas, layer), config["lora_alpha"])
        scales[layer] = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    if not (ranks or alphas or config.get("use_rslora")):
        return Adapter.from_tensors(factors, float(config["lora_alpha"]))
    most = max((tensor.shape[0] for name, tensor in factors.items() if name.endswith(".A")), default=0)
    largest = max(scales.values(), default=1.0)
    for layer, scale in scales.items():
        a, b = factors[f"{layer}.A"], factors.get(f"{layer}.B")
        if b is None or b.dim() != 2 or b.shape[1] != a.shape[0]:
            continue  # refused below
        factors[f"{layer}.A"] = pad(a, (0, 0, 0, most - a.shape[0]))
        factors[f"{layer}.B"] = pad(b * (scale / largest), (0, most - b.shape[1]))
    return Adapter.from_tensors(factors, largest * most)


def _pattern_of(patterns: dict[str, Any], layer: str) -> str:
    """The first pattern that PEFT would take for this layer: the end of its name, as a regular expression."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", layer)), layer)


def in_model_order(adapter: Adapter, like: Adapter, *, place: str) -> Adapter:
    """The adapter with its layers in the order of `like` and checked against it.

    Raises:
        AdapterError: it is an adapter of another model, rank or set of layers.
    """
    if set(adapter.layers) != set(like.layers):
        strange = sorted(set(adapter.layers) ^ set(like.layers))[0]
        raise AdapterError(
            f"{place} is an adapter of another model, or of other layers than lora.targets (first difference: "
            f"{strange})."
        )
    ordered = Adapter({name: adapter.layers[name] for name in like.layers}, adapter.alpha)
    ordered.check_like(like, place=place)
    return ordered


def base_reference(name: str) -> str:
    """Base model that an exported adapter names: the path of the embedded weights, or the model's own name."""
    if name == "embedded":
        from fedrlvr.zoo import weights_dir

        return str(weights_dir())
    return name
