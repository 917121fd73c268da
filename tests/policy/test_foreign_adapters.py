"""Adapters of every kind that PEFT 0.21 writes: read as PEFT reads them, or refused by the field that says the kind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_cohort
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from transformers import AutoModelForCausalLM

from fedrlvr.config import LoraConfig
from fedrlvr.errors import AdapterError
from fedrlvr.policy.peft_format import in_model_order, load_peft

IDS = torch.randint(4, 100, (2, 21), generator=torch.Generator().manual_seed(0))
TARGETS = ["q_proj", "v_proj", "down_proj"]

READ: dict[str, dict[str, Any]] = {
    "plain": {},
    "initially gaussian": {"init_lora_weights": "gaussian"},
    "initially orthogonal": {"init_lora_weights": "orthogonal"},
    "not initialised": {"init_lora_weights": False},
    "dropout": {"lora_dropout": 0.5},
    "rank-stabilised": {"use_rslora": True},
    "ranks by layer": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}},
    "alphas by layer": {"alpha_pattern": {"v_proj": 3, r"layers\.0\..*\.q_proj": 40}},
    "both by layer, rank-stabilised": {
        "use_rslora": True,
        "rank_pattern": {"v_proj": 6},
        "alpha_pattern": {"down_proj": 5},
    },
    "targets by a regular expression": {"target_modules": r".*\.(q_proj|v_proj|down_proj)"},
    "layers left out that no target is": {"exclude_modules": ["lm_head"]},
    "weights of layers": {"target_modules": ["q_proj", "v_proj"], "target_parameters": ["down_proj.weight"]},
}
"""Kinds that mean what plain LoRA means, as settings of PEFT."""

REFUSED: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [5, 6]},
    "layers_to_transform": {"layers_to_transform": [1]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "init_lora_weights ": {"init_lora_weights": "olora"},
    "kasa_config": {"kasa_config": KasaConfig()},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
}
"""Kinds that change what the factors mean, by the field that says so; PEFT makes and saves each of them."""

WRITTEN: dict[str, dict[str, Any]] = {
    "use_bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=[])},
    "arrow_config": {"arrow_config": ArrowConfig()},
    "velora_config": {"velora_config": VeloraConfig()},
    "monteclora_config": {"monteclora_config": MontecloraConfig()},
    "use_qalora": {"use_qalora": True},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "megatron_config": {"megatron_config": {"tensor_model_parallel_size": 2}},
    "init_lora_weights": {"init_lora_weights": "corda", "corda_config": CordaConfig()},
    "init_lora_weights ": {"init_lora_weights": "pissa_niter_4"},
    "init_lora_weights  ": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
    "target_parameters": {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
}
"""The same of kinds that need data, other hardware or another model to be made: their adapter_config.json as PEFT
writes it, beside plain factors."""


def config_of(settings: dict[str, Any]) -> PeftLoraConfig:
    return PeftLoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM", "target_modules": TARGETS} | settings)


def made(base: Path, where: Path, settings: dict[str, Any]) -> None:
    """An adapter with random factors, made and saved by PEFT alone."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(plain, config_of(settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    model.save_pretrained(str(where))


@pytest.mark.parametrize("kind", READ)
def test_an_adapter_of_plain_meaning_is_read_as_peft_reads_it(kind: str, llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path, READ[kind])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), tmp_path)
    adapter = load_peft(tmp_path)
    cohort = tiny_cohort(llama, LoraConfig(rank=adapter.rank, alpha=adapter.alpha, targets=TARGETS))
    cohort.seat({"a": in_model_order(adapter, cohort.fresh_adapter(0), place="the adapter")})
    with torch.no_grad():
        expected = model.eval()(IDS).logits
        torch.testing.assert_close(cohort.base.model(IDS).logits, expected, rtol=0, atol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)(IDS).logits
    assert float((plain - expected).abs().max()) > 0.1  # the adapter does something


def refused(directory: Path, field: str) -> None:
    with pytest.raises(AdapterError, match=rf"\b{field}\b") as caught:
        load_peft(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", REFUSED)
def test_an_adapter_of_another_meaning_is_refused_by_its_field(field: str, llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path, REFUSED[field])
    refused(tmp_path, field.strip())


@pytest.mark.parametrize("field", WRITTEN)
def test_a_config_of_another_meaning_is_refused_by_its_field(field: str, llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path, {})
    config = config_of(WRITTEN[field])
    config.inference_mode = True
    config.save_pretrained(str(tmp_path))
    refused(tmp_path, field.strip())


def test_eva_leaves_the_base_weights_as_they_are(llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path, {})
    plain = load_peft(tmp_path)
    config_of({"init_lora_weights": "eva", "eva_config": EvaConfig()}).save_pretrained(str(tmp_path))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(load_peft(tmp_path).tensors(), plain.tensors(), strict=True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("a_field_of_a_later_release", {"on": 1}),
        ("init_lora_weights", "loftq"),
        ("rank_pattern", {"q_proj": "4"}),
        ("rank_pattern", [4]),
        ("rank_pattern", {"q_proj": 3}),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("target_parameters", "q_proj.weight"),
        ("r", True),
    ],
)
def test_fields_that_cannot_be_used(field: str, value: Any, llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path, {})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(AdapterError, match=re.escape(str(tmp_path))) as caught:
        load_peft(tmp_path)
    assert field in str(caught.value) or "r = 3" in str(caught.value)


def test_a_pattern_that_is_no_regular_expression(llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path, {})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"(": 4}}))
    with pytest.raises(AdapterError, match=re.escape(str(tmp_path))):
        load_peft(tmp_path)
