"""Adapters on disk: what we save plain `peft` loads, what `peft` saves we load, and both give the same logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import KINDS, moved_adapter, same_tensors, tiny_cohort
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import LoraConfig
from fedrlvr.errors import AdapterError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import in_model_order, load_peft, save_peft

TOLERANCE = 1e-5
IDS = torch.randint(4, 100, (2, 21), generator=torch.Generator().manual_seed(0))


def plain_base(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def our_logits(cohort: Cohort, adapter: Adapter) -> torch.Tensor:
    cohort.seat({"a": adapter})
    return logits_of(cohort.base.model)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def peft_adapter(base: Path, where: Path, **settings: Any) -> Any:
    """An adapter made by PEFT alone, with random factors, saved by PEFT."""
    model = get_peft_model(plain_base(base), PeftLoraConfig(r=3, lora_alpha=12, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    model.save_pretrained(str(where))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_what_we_save(kind: str, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    cohort = tiny_cohort(model_of(kind), LoraConfig(rank=3, alpha=7.5))
    adapter = moved_adapter(cohort, 1)
    save_peft(adapter, tmp_path / "adapter", base_name=str(model_of(kind)))
    loaded = PeftModel.from_pretrained(plain_base(model_of(kind)), tmp_path / "adapter")
    logits = our_logits(cohort, adapter)
    torch.testing.assert_close(logits_of(loaded), logits, rtol=0, atol=TOLERANCE)
    assert float((logits - logits_of(plain_base(model_of(kind)))).abs().max()) > 0.1  # the adapter does something


def test_layers_without_factors_stay_untouched_by_peft(llama: Path, tmp_path: Path) -> None:
    """Layers adapted in one block only: by their last names PEFT would have made adapters in every block."""
    cohort = tiny_cohort(llama)
    adapter = moved_adapter(cohort, 1)
    some = Adapter({n: f for n, f in adapter.layers.items() if ".layers.1." in n}, adapter.alpha)
    save_peft(some, tmp_path, base_name=str(llama))
    loaded = PeftModel.from_pretrained(plain_base(llama), tmp_path)
    names = {name for name, _ in loaded.named_parameters() if "lora_" in name}
    assert len(names) == 2 * len(some.layers)
    assert all(".layers.1." in name for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_an_all_linear_adapter_made_by_peft_loads(kind: str, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    expected = peft_adapter(model_of(kind), tmp_path, target_modules="all-linear")
    cohort = tiny_cohort(model_of(kind), LoraConfig(rank=3, alpha=12))
    adapter = in_model_order(load_peft(tmp_path), cohort.fresh_adapter(0), place=str(tmp_path))
    assert list(adapter.layers) == list(cohort.stack.layers)
    torch.testing.assert_close(our_logits(cohort, adapter), logits_of(expected), rtol=0, atol=TOLERANCE)


def test_an_adapter_with_named_targets_made_by_peft_loads(llama: Path, tmp_path: Path) -> None:
    names = ["v_proj", "q_proj", "down_proj"]
    expected = peft_adapter(llama, tmp_path, target_modules=names)
    cohort = tiny_cohort(llama, LoraConfig(rank=3, alpha=12, targets=names))
    adapter = in_model_order(load_peft(tmp_path), cohort.fresh_adapter(0), place=str(tmp_path))
    torch.testing.assert_close(our_logits(cohort, adapter), logits_of(expected), rtol=0, atol=TOLERANCE)


def test_saving_and_loading_keeps_every_bit(llama: Path, tmp_path: Path) -> None:
    cohort = tiny_cohort(llama)
    adapter = moved_adapter(cohort, 1)
    save_peft(adapter, tmp_path, base_name="some/model")
    back = in_model_order(load_peft(tmp_path), adapter, place="the copy")
    assert same_tensors(back, adapter)
    assert back.alpha == adapter.alpha
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/model"


# Directories that are no usable adapters.


@pytest.fixture
def saved(llama: Path, tmp_path: Path) -> Path:
    """A good adapter directory, to be spoilt."""
    cohort = tiny_cohort(llama)
    save_peft(moved_adapter(cohort, 1), tmp_path / "adapter", base_name=str(llama))
    return tmp_path / "adapter"


def refused(directory: Path) -> str:
    """The error's text, which names the directory."""
    with pytest.raises(AdapterError) as caught:
        load_peft(directory)
    text = str(caught.value)
    assert str(directory) in text
    assert "\n" not in text
    return text


def change_config(directory: Path, **settings: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{name} is missing" in refused(saved)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "adapter_config.json is missing" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"peft_type": "LORA"}', '{"peft_type": "IA3"}'])
def test_a_config_that_is_none(saved: Path, text: str) -> None:
    (saved / "adapter_config.json").write_text(text)
    refused(saved)


def test_a_config_of_brackets_is_refused(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("[" * 200_000, "utf-8")
    with pytest.raises(AdapterError, match="nested"):
        load_peft(saved)


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"q_proj": -1}},
        {"r": 0},
        {"r": "4"},
        {"lora_alpha": -1},
        {"lora_alpha": float("inf")},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400},
        {"r": float("inf")},
        {"peft_type": "PREFIX_TUNING"},
    ],
)
def test_what_is_not_plain_lora_is_refused_and_named(saved: Path, settings: dict[str, Any]) -> None:
    change_config(saved, **settings)
    text = refused(saved)
    assert next(iter(settings)) in text or "LoRA adapter" in text


@pytest.mark.parametrize("cut", [0, 5, 200])
def test_a_cut_weights_file(saved: Path, cut: int) -> None:
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert "cannot be read" in refused(saved)


def test_overwritten_weights(saved: Path) -> None:
    (saved / "adapter_model.safetensors").write_bytes(b"\xff" * 4096)
    assert "cannot be read" in refused(saved)


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor], str], None]) -> str:
    tensors = load_file(directory / "adapter_model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith("lora_A.weight"))
    change(tensors, key)
    save_file(tensors, directory / "adapter_model.safetensors")
    return key


def test_factors_of_another_rank_than_the_config_says(saved: Path) -> None:
    change_config(saved, r=5)
    assert "r = 5" in refused(saved)


def test_a_factor_without_its_half(saved: Path) -> None:
    key = change_tensors(saved, lambda tensors, key: tensors.__delitem__(key))
    assert key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") in refused(saved)


def test_a_tensor_that_is_no_factor(saved: Path) -> None:
    change_tensors(saved, lambda tensors, key: tensors.update(stranger=torch.zeros(2)))
    assert "stranger" in refused(saved)


def test_no_factors_at_all(saved: Path) -> None:
    change_tensors(saved, lambda tensors, key: tensors.clear())
    assert "no factors" in refused(saved)


def test_an_adapter_of_another_model(llama: Path, model_of: Callable[[str], Path], saved: Path) -> None:
    other = tiny_cohort(model_of("gpt_neox")).fresh_adapter(0)
    with pytest.raises(AdapterError, match="somewhere is an adapter of another model"):
        in_model_order(load_peft(saved), other, place="somewhere")


def test_an_adapter_of_a_wider_model(llama: Path, saved: Path) -> None:
    """Same architecture, same layer names, other sizes."""
    narrow = tiny_cohort(llama).fresh_adapter(0)
    wider = Adapter(
        {name: Factors(torch.cat([f.A, f.A], dim=1), torch.cat([f.B, f.B])) for name, f in narrow.layers.items()}, 8.0
    )
    with pytest.raises(AdapterError, match=r"somewhere: .*q_proj.A .*\(4, 32\).* \(4, 64\)"):
        in_model_order(load_peft(saved), wider, place="somewhere")


def test_an_adapter_of_another_rank_or_alpha(llama: Path, saved: Path) -> None:
    with pytest.raises(AdapterError, match=r"shape \(4, 32\), expected \(2, 32\)"):
        in_model_order(load_peft(saved), tiny_cohort(llama, LoraConfig(rank=2, alpha=8)).fresh_adapter(0), place="x")
    with pytest.raises(AdapterError, match=r"alpha is 8.* lora\.alpha is 16"):
        in_model_order(load_peft(saved), tiny_cohort(llama, LoraConfig(rank=4, alpha=16)).fresh_adapter(0), place="x")


def test_an_adapter_that_is_not_finite(llama: Path, saved: Path) -> None:
    change_tensors(saved, lambda tensors, key: tensors.update({key: tensors[key] * math.nan}))
    with pytest.raises(AdapterError, match="not finite"):
        in_model_order(load_peft(saved), tiny_cohort(llama).fresh_adapter(0), place="somewhere")
