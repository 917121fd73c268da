"""Loading the base model: what it knows of itself, how it reads prompts, and what is no model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_cohort, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig, PromptConfig
from fedrlvr.errors import DataError, ModelError
from fedrlvr.policy.base import Base, load_base, threads_here
from fedrlvr.policy.cohort import Cohort
from fedrlvr.tasks import grade


def load(directory: Path, *, prompt: PromptConfig | None = None, **settings: Any) -> Base:
    return load_base(ModelConfig(name=str(directory), device="cpu", **settings), prompt)


def test_a_base_is_frozen_and_knows_its_ends(llama: Path) -> None:
    base = load(llama)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.eos_ids == {base.tokenizer.eos_token_id}
    assert base.pad_id == base.tokenizer.pad_token_id
    assert base.max_length == 512
    assert base.model.dtype == torch.float32
    assert not base.chat


def test_every_end_token_of_the_generation_config_counts(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path, "llama")
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [7, 9]}))
    assert load(directory).eos_ids == {2, 7, 9}


def test_encode_without_a_chat_template(llama: Path) -> None:
    base = load(llama)
    ids = base.encode("1 + 1\nAnswer with a number.")
    assert base.tokenizer.decode(ids) == "<s>1 + 1\nAnswer with a number."
    assert base.encode("1 + 1") == base.tokenizer("1 + 1")["input_ids"]
    assert base.decode(ids) == "1 + 1\nAnswer with a number."


def test_encode_with_a_chat_template(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path, "llama", chat_template=True)
    base = load(directory)
    assert base.chat
    # One <s>: the template writes it, and the tokenizer does not add a second one.
    assert base.tokenizer.decode(base.encode("1 + 1\nBe short.")) == "<s>[user] 1 + 1\nBe short.\n[assistant] "
    off = load(directory, prompt=PromptConfig(chat="off"))
    assert off.tokenizer.decode(off.encode("1 + 1")) == "<s>1 + 1"


def test_a_response_begins_with_the_thought_that_the_template_opened(tmp_path: Path) -> None:
    r"""A box in an unfinished thought earns nothing: DeepSeek-R1's and Qwen3's templates end in `<think>\n`."""
    base = load(tiny_model(tmp_path, "llama", chat_template=True))
    assert base.opened_thought == ""
    ids = base.tokenizer(r"so \boxed{2}", add_special_tokens=False)["input_ids"]
    assert base.decode(ids) == r"so \boxed{2}"
    base.tokenizer.chat_template += "{{ '<think>\\n' }}"
    base.__dict__.pop("opened_thought")
    assert base.decode(ids) == "<think>\nso \\boxed{2}"
    assert grade(base.decode(ids), "2", "math") == 0.0
    closed = base.tokenizer("so 2</think>\\boxed{2}", add_special_tokens=False)["input_ids"]
    assert grade(base.decode(closed), "2", "math") == 1.0
    base.tokenizer.chat_template += (
        "{{ '</think>\\n' }}"  # a thought that the template closes itself (Qwen3 without thinking)
    )
    base.__dict__.pop("opened_thought")
    assert base.decode(ids) == r"so \boxed{2}"


def test_an_empty_prompt_is_an_error(llama: Path) -> None:
    base = load(llama)
    base.tokenizer.add_bos_token = False
    base.tokenizer._tokenizer.post_processor = None
    with pytest.raises(DataError, match="no tokens"):
        base.encode("")


def refused(**settings: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(ModelConfig(**settings))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "is not a directory" in refused(name=str(tmp_path / "nowhere"))


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is not a directory" in refused(name=str(tmp_path / "file"))


def test_a_directory_without_a_config(tmp_path: Path) -> None:
    text = refused(name=str(tmp_path))
    assert "has no config.json" in text
    assert str(tmp_path) in text


@pytest.mark.parametrize("text", ["", "not JSON", "{}", "[]", '{"model_type": "no_such_architecture"}'])
def test_a_garbage_config(tmp_path: Path, text: str) -> None:
    tiny_model(tmp_path, "llama")
    (tmp_path / "config.json").write_text(text)
    assert "cannot be loaded as a Hugging Face causal LM" in refused(name=str(tmp_path), device="cpu")


def test_a_directory_without_weights_or_with_broken_ones(tmp_path: Path) -> None:
    tiny_model(tmp_path, "llama")
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "cannot be loaded" in refused(name=str(tmp_path), device="cpu")
    (tmp_path / "model.safetensors").unlink()
    assert "cannot be loaded" in refused(name=str(tmp_path), device="cpu")


def test_weights_of_another_shape_than_the_config_says(tmp_path: Path) -> None:
    tiny_model(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64, "head_dim": 16}))
    assert "cannot be loaded" in refused(name=str(tmp_path), device="cpu")


def test_weights_that_lack_a_layer(tmp_path: Path) -> None:
    tiny_model(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lack 9 tensors" in refused(name=str(tmp_path), device="cpu")


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    tiny_model(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in refused(name=str(tmp_path), device="cpu")
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = load(tmp_path).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("device", ["nonsense", "cuda:97", "meta:x"])
def test_a_device_that_cannot_be_had(llama: Path, device: str) -> None:
    assert f"model.device = {device!r} cannot be used" in refused(name=str(llama), device=device)


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path, "llama")
    for name, key in (("tokenizer_config.json", "eos_token"), ("generation_config.json", "eos_token_id")):
        settings = json.loads((directory / name).read_text())
        settings.pop(key)
        (directory / name).write_text(json.dumps(settings))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert "end token" in refused(name=str(directory), device="cpu")


# The check at start-up.


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_self_check_passes_on_real_architectures(kind: str, model_of: Any) -> None:
    cohort = tiny_cohort(model_of(kind))
    cohort.self_check()


def test_self_check_passes_with_gradient_checkpointing_and_in_bfloat16(llama: Path) -> None:
    cohort = tiny_cohort(llama, checkpointing=True)
    cohort.self_check()
    half = Cohort(load(llama, dtype="bfloat16"), LoraConfig(rank=4), EngineConfig())
    half.self_check()


def test_self_check_finds_adapters_that_are_bypassed(llama: Path) -> None:
    """The only adapted layer is one that the model never calls."""
    base = load(llama)
    base.model.spare = nn.Linear(4, 4)
    cohort = Cohort(base, LoraConfig(rank=2, targets=["spare"]), EngineConfig())
    with pytest.raises(ModelError, match="does not change what the model samples"):
        cohort.self_check()


def test_self_check_finds_a_decode_loop_that_disagrees_with_the_training_pass(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that sees its cached positions shifted by three."""
    cohort = tiny_cohort(llama)
    forward = cohort.base.model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] == 1:
            kwargs["position_ids"] = kwargs["position_ids"] + 3
        return forward(*args, **kwargs)

    monkeypatch.setattr(cohort.base.model, "forward", shifted)
    with pytest.raises(ModelError, match="differ from those of the training pass"):
        cohort.self_check()


def test_threads_by_the_environment_the_model_and_the_cores(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of 32 are a small model; 24 layers of 1,024 are not, nor is one that is only known by its hub id."""
    cores = len(os.sched_getaffinity(0))
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 24, "hidden_size": 1024}', "utf-8")
    names = {"embedded": 1, str(llama): 1, str(tmp_path): cores, "someone/model": cores}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert {name: threads_here(ModelConfig(name=name)) for name in names} == names
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {threads_here(ModelConfig(name=name)) for name in names} == {3}
