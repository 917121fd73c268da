"""Export of a run's adapter for other software, with a check against the policy that was trained.

Another loader may read a directory differently: PEFT renames target layers of some architectures, and a tied output
head shares its weight with the input embeddings. So what was written is loaded again by the software it is for, and
both give log-probs for one prompt.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedrlvr.adapter import Adapter
from fedrlvr.config import LoraConfig, ModelConfig
from fedrlvr.errors import AdapterError, ModelError
from fedrlvr.files import atomic_directory, atomic_text
from fedrlvr.policy.base import Base, load_base
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.peft_format import base_reference, in_model_order, load_peft, save_peft

PROMPT = "What is 12 + 345? Say why."
TOLERANCE = {torch.float32: 1e-3}
"""Largest accepted difference of a log-prob by the type of the base weights; others are half precision."""
_HALF = 0.25


@dataclass(frozen=True)
class ExportCheck:
    """Differences between the files that were written and the trained policy.

    difference: the largest one of any token's log-prob at any position of the prompt. tokens: of the prompt.
    reader: the software that loaded what was written. untied: whether the output head was given a weight of its own.
    """

    difference: float
    tokens: int
    reader: str
    untied: bool = False

    def __str__(self) -> str:
        text = f"log-probs of {self.reader} differ from the trained policy's by at most {self.difference:.1e}"
        text += f" on a prompt of {self.tokens} tokens"
        return text + "; the output head no longer shares the input embeddings' weight" * self.untied


Documents = Callable[[Base], Mapping[str, str]]
"""Texts that go into an exported directory, by file name, for the base model as it was loaded."""


def export_adapter(
    adapter: Adapter, model: ModelConfig, lora: LoraConfig, directory: Path, documents: Documents = lambda base: {}
) -> ExportCheck:
    """Write a PEFT directory. It is read again with `peft` where that is installed, else as fedrlvr reads one.

    lora: the section of the run that trained the adapter; rank and alpha are the adapter's own. documents: texts that
    the directory holds as well.

    Raises:
        ModelError: the base model cannot be loaded.
        AdapterError: the adapter does not fit it, or what was written is not the trained policy; no directory is made.
        CheckpointError: the directory cannot be written.
    """
    base, stack, trained = _policy(adapter, model, lora)
    with atomic_directory(directory) as temporary:
        save_peft(adapter, temporary, base_name=base_reference(model.name), fused_experts=base.fused_experts)
        _write(documents(base), temporary)
        if importlib.util.find_spec("peft") is not None:
            reader = "PEFT"
            stack.remove()
            written = _logps(_peft_model(base.model, temporary), base)
        else:
            reader = "the adapter, as fedrlvr reads it (PEFT is not installed),"
            stack.seat([in_model_order(load_peft(temporary), adapter, place=str(directory))])
            written = _logps(base.model, base)
        return _compared(trained, written, base, reader, "Write whole weights with --merged.")


def export_merged(
    adapter: Adapter, model: ModelConfig, lora: LoraConfig, directory: Path, documents: Documents = lambda base: {}
) -> ExportCheck:
    """Write W0 + (alpha / r) B A for every adapted layer, with the tokenizer, as an ordinary model directory.

    The sum is taken in float32 and stored in the base weights' type. An adapted output head that shares its weight with
    the input embeddings gets one of its own, and config.json then says `tie_word_embeddings` false.

    Raises:
        As `export_adapter`.
    """
    base, stack, trained = _policy(adapter, model, lora)
    stack.remove()
    untied = _untie(base.model, set(adapter.layers))
    modules = dict(base.model.named_modules())
    with torch.no_grad():
        for name, (a, b) in adapter.layers.items():
            weight: Any = modules[name].weight
            weight.copy_((weight.float() + adapter.scale * b.float() @ a.float()).to(weight.dtype))
    with atomic_directory(directory) as temporary:
        base.model.save_pretrained(temporary, safe_serialization=True)
        base.tokenizer.save_pretrained(temporary)
        _write(documents(base), temporary)
        written = _logps(_plain_model(temporary, base), base)
        return _compared(trained, written, base, "the merged weights", "Export the adapter instead.", untied=untied)


def _write(documents: Mapping[str, str], directory: Path) -> None:
    for name, text in documents.items():
        atomic_text(directory / name, text)


def _policy(adapter: Adapter, model: ModelConfig, lora: LoraConfig) -> tuple[Base, LoraStack, Tensor]:
    """The base model, the adapter on it, and the log-probs they give."""
    base = load_base(model.model_copy(update={"device": "cpu", "gradient_checkpointing": False}))
    stack = LoraStack(base.model, lora.model_copy(update={"rank": adapter.rank, "alpha": adapter.alpha}))
    stack.seat([in_model_order(adapter, stack.fresh(0), place="the run's adapter")])
    return base, stack, _logps(base.model, base)


@torch.no_grad()
def _logps(model: Any, base: Base) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([base.encode(PROMPT)]), use_cache=False).logits[0]
    return logits.float().log_softmax(dim=-1)


def _peft_model(model: Any, directory: Path) -> Any:
    peft = importlib.import_module("peft")  # no dependency of fedrlvr: used where somebody has installed it
    try:
        with warnings.catch_warnings():  # of PEFT's use of transformers, about which nobody who exports can do anything
            warnings.simplefilter("ignore", FutureWarning)
            return peft.PeftModel.from_pretrained(model, directory).eval()
    except Exception as error:  # PEFT raises many kinds where it cannot apply an adapter
        raise AdapterError(
            f"PEFT cannot load the adapter on this model ({_first_line(error)}). Write whole weights with --merged."
        ) from error


def _plain_model(directory: Path, base: Base) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=base.model.dtype, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(
            f"transformers cannot load the merged weights ({_first_line(error)}). Export the adapter instead."
        ) from error
    return model.eval()


def _compared(
    trained: Tensor, written: Tensor, base: Base, reader: str, advice: str, untied: bool = False
) -> ExportCheck:
    difference = float((trained - written).abs().max())
    limit = TOLERANCE.get(base.model.dtype, _HALF)
    if not difference <= limit:
        raise AdapterError(
            f"What was written is not the trained policy: log-probs of {reader} differ by {difference:.3g} on a prompt "
            f"of {len(trained)} tokens (limit {limit:g}). {advice}"
        )
    return ExportCheck(difference, len(trained), reader, untied)


def _untie(model: Any, adapted: set[str]) -> bool:
    """Give adapted layers that share their weight with another module a weight of their own; whether there were any."""
    owners: dict[int, list[str]] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(name)
    shared = [name for names in owners.values() if len(names) > 1 for name in names if name in adapted]
    for name in shared:
        layer: Any = modules[name]
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    if shared:
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return bool(shared)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
