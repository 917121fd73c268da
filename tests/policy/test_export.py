"""What `export` writes is the trained policy, in plain transformers and in plain PEFT, or it is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import moved_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.tiny_models import save_tiny
from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig
from fedrlvr.errors import AdapterError
from fedrlvr.policy import export
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.export import export_adapter, export_merged

IDS = torch.randint(4, 100, (2, 21), generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-4


class Trained:
    """A policy: a tiny model, a random adapter on it, and the logits they give."""

    def __init__(self, directory: Path, **lora: Any) -> None:
        self.directory = directory
        self.model = ModelConfig(name=str(directory), device="cpu")
        self.lora = LoraConfig(rank=3, alpha=7.5, **lora)
        self.cohort = Cohort(load_base(self.model), self.lora, EngineConfig())
        self.adapter: Adapter = moved_adapter(self.cohort, 1)
        self.cohort.seat({"a": self.adapter})
        self.logits = logits_of(self.cohort.base.model)

    def plain(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)

    def gap(self, model: Any) -> float:
        return float((logits_of(model) - self.logits).abs().max())


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt_neox"])
def test_a_tied_head_among_the_targets(kind: str, tmp_path: Path) -> None:
    """The head's change stays out of the input embeddings, in merged weights and in PEFT."""
    targets = ["lm_head", "dense" if kind == "gpt_neox" else "down_proj"]
    trained = Trained(save_tiny(tmp_path / "base", kind, tie_word_embeddings=True), targets=targets)
    comparison = export_merged(trained.adapter, trained.model, trained.lora, tmp_path / "merged")
    assert comparison.untied
    assert comparison.difference < TOLERANCE
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert trained.gap(merged) < TOLERANCE
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(merged.get_input_embeddings().weight, trained.plain().get_input_embeddings().weight)
    assert not export_adapter(trained.adapter, trained.model, trained.lora, tmp_path / "adapter").untied
    assert trained.gap(PeftModel.from_pretrained(trained.plain(), tmp_path / "adapter")) < TOLERANCE
    assert trained.gap(trained.plain()) > 0.1  # the adapter does something


def test_a_tied_head_that_is_no_target_stays_tied(tmp_path: Path) -> None:
    trained = Trained(save_tiny(tmp_path / "base", "llama", tie_word_embeddings=True))
    assert not export_merged(trained.adapter, trained.model, trained.lora, tmp_path / "merged").untied
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert trained.gap(merged) < TOLERANCE


@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3", "qwen2_moe", "ernie4_5_moe", "mixtral"])
def test_dense_layers_of_a_model_with_experts_reach_plain_peft(kind: str, tmp_path: Path) -> None:
    """PEFT takes dense layers of these names for routed experts, and would drop them."""
    trained = Trained(save_tiny(tmp_path / "base", kind))
    comparison = export_adapter(trained.adapter, trained.model, trained.lora, tmp_path / "adapter")
    assert comparison.reader == "PEFT"
    assert comparison.difference < TOLERANCE
    loaded = PeftModel.from_pretrained(trained.plain(), tmp_path / "adapter")
    assert trained.gap(loaded) < TOLERANCE
    names = {name for name, _ in loaded.named_parameters() if "lora_" in name}
    assert len(names) == 2 * len(trained.adapter.layers)
    export_merged(trained.adapter, trained.model, trained.lora, tmp_path / "merged")
    assert trained.gap(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)) < TOLERANCE


def test_feed_forward_layers_alone(tmp_path: Path) -> None:
    trained = Trained(save_tiny(tmp_path / "base", "glm4_moe"), targets=["down_proj"])
    export_adapter(trained.adapter, trained.model, trained.lora, tmp_path / "adapter")
    assert trained.gap(PeftModel.from_pretrained(trained.plain(), tmp_path / "adapter")) < TOLERANCE


def test_what_is_not_the_policy_is_not_left_behind(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that loses a layer."""
    trained = Trained(llama)
    save = export.save_peft

    def losing(adapter: Adapter, *args: Any, **settings: Any) -> None:
        layers = dict(adapter.layers)
        layers.pop("model.layers.1.mlp.down_proj")
        save(Adapter(layers, adapter.alpha), *args, **settings)

    monkeypatch.setattr(export, "save_peft", losing)
    with pytest.raises(AdapterError, match="--merged"):
        export_adapter(trained.adapter, trained.model, trained.lora, tmp_path / "adapter")
    assert not list(tmp_path.glob("*adapter*")), "neither the directory nor its temporary one"


def test_without_peft_fedrlvr_reads_the_adapter_itself(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(llama)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    comparison = export_adapter(trained.adapter, trained.model, trained.lora, tmp_path / "adapter")
    assert "PEFT is not installed" in str(comparison)
    assert comparison.difference < TOLERANCE
