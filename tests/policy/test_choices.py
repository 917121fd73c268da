"""What a cohort says about its own computation: each part follows the setting or the model that decides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny_cohort

from fedrlvr.config import EngineConfig
from fedrlvr.policy.choices import choices


def test_each_part_names_the_setting_that_decides_it(llama: Path) -> None:
    parts = choices(tiny_cohort(llama))
    assert "engine.sampler = 'loop'" in parts["sampler"]
    assert "1,024 responses" in parts["batches"]
    assert "engine.decode_rows" in parts["batches"]
    assert "for this model on cpu" in parts["batches"]
    assert "model.dtype" in parts["number format"]


@pytest.mark.parametrize(("autocast", "products"), [("auto", "float32"), ("off", "float32"), ("bfloat16", "bfloat16")])
def test_number_format_follows_the_setting(autocast: str, products: str, llama: Path) -> None:
    cohort = tiny_cohort(llama)
    cohort.engine = EngineConfig.model_validate({"autocast": autocast})
    text = choices(cohort)["number format"]
    assert f"products in {products}" in text
    assert f"engine.autocast = {autocast!r}" in text
    assert not torch.is_autocast_enabled("cpu")


def test_sizes_of_batches_are_those_of_the_settings(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    cohort.engine = EngineConfig(decode_rows=7, micro_batch_tokens=48)
    assert choices(cohort)["batches"].startswith("up to 7 responses")
    assert "48 tokens at a time in training (engine.micro_batch_tokens)" in choices(cohort)["batches"]


def test_attention_names_what_the_model_cannot_share(llama: Path) -> None:
    cohort = tiny_cohort(llama)
    shared = choices(cohort)["attention"]
    assert "training and in sampling" in shared
    cohort.base = replace(cohort.base, shares=False)
    assert "training and in sampling" not in choices(cohort)["attention"]
    cohort.base = replace(cohort.base, packs=False)
    assert "LlamaForCausalLM cannot share" in choices(cohort)["attention"]
