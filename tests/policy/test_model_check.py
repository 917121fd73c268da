"""What a model's directory, weights, tokenizer and template must be: each fault is one sentence before data is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import end_at, moved_adapter, tiny_cohort, tiny_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from benchmarks.tiny_models import save_tiny
from fedrlvr.config import LoraConfig, ModelConfig, PromptConfig
from fedrlvr.errors import DataError, FedrlvrError
from fedrlvr.policy import model_check
from fedrlvr.policy.base import Base, load_base
from fedrlvr.policy.sampler import Decoding


def load(directory: Path, *, prompt: PromptConfig | None = None, **settings: Any) -> Base:
    return load_base(ModelConfig(name=str(directory), device="cpu", **settings), prompt)


def refused(directory: Path) -> str:
    with pytest.raises(FedrlvrError) as caught:
        load(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert str(directory) in text
    return text


def with_template(directory: Path, template: str) -> Path:
    tiny_model(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Chat templates.

TEMPLATES = {
    "parts": "{{ bos_token }}{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}",
    "typed parts": (
        "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}?"
    ),
    "system only": "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}Answer:",
    "first line": "{{ messages[0].content.split('\\n')[0] }}",
    "raises": "{{ raise_exception('only the roles system and tool are known') }}",
    "another name": "{% for m in messages %}{{ m.content + missing.value }}{% endfor %}",
    "broken": "{% for m in messages %}{{ m.content }}",
    "ends in the end": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_does_not_bring_the_question_to_the_model(kind: str, tmp_path: Path) -> None:
    assert "prompt.chat" in refused(with_template(tmp_path, TEMPLATES[kind]))
    assert not load(tmp_path, prompt=PromptConfig(chat="off")).chat


def test_a_template_that_raises_on_some_prompts_is_not_quoted(tmp_path: Path) -> None:
    template = "{{ raise_exception(messages[0].content) if 'secret' in messages[0].content else messages[0].content }}"
    base = load(with_template(tmp_path, template))
    with pytest.raises(DataError, match="cannot render") as caught:
        base.encode("a secret question")
    assert "secret" not in str(caught.value)


# Tokenizers.


def appending(directory: Path, single: str) -> Path:
    tiny_model(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("single", ["<s> $A </s>", "$A </s>", "<s> $A </s> <s>", "<s> $A"])
def test_what_a_tokenizer_appends_is_taken_off(single: str, tmp_path: Path) -> None:
    base = load(appending(tmp_path, single))
    begin = "<s>" if single.startswith("<s>") else ""
    assert base.tokenizer.decode(base.encode("1 + 1 =")) == f"{begin}1 + 1 ="


def test_a_token_without_an_embedding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said at the start, and refused in a prompt; a pad token of this kind is never read."""
    directory = tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"pad_token": "<pad-of-a-trainer>", "additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(directory)
    base = load(directory)
    assert "have no embedding" in caplog.text
    assert base.pad_id < base.vocabulary
    with pytest.raises(DataError, match="'<tool>'"):
        base.encode("Call <tool> now")


def test_an_end_token_without_an_embedding(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"eos_token": "<the-end>"})
    tokenizer.save_pretrained(directory)
    for name in ("config.json", "generation_config.json"):
        edit(directory / name, eos_token_id=tokenizer.eos_token_id)
    assert "end token has no embedding" in refused(directory)


# Weights and files.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_weight_that_is_not_finite(value: float, tmp_path: Path) -> None:
    """In the embedding of a token that no check reads."""
    path = tiny_model(tmp_path) / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][97, 3] = value
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.embed_tokens.weight" in refused(tmp_path)


def test_a_directory_with_a_model_and_an_adapter(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refused(tmp_path)


def test_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    tiny_model(tmp_path)
    monkeypatch.setattr(Path, "iterdir", denied)
    assert "Permission denied" in refused(tmp_path)
    monkeypatch.setattr(Path, "exists", denied)
    assert ModelConfig(name="models/mine").local == Path("models/mine")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\x00", b"[1]", b'"text"'])
def test_a_file_that_is_damaged(name: str, content: bytes, tmp_path: Path) -> None:
    (tiny_model(tmp_path) / name).write_bytes(content)
    refused(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_missing(name: str, tmp_path: Path) -> None:
    (tiny_model(tmp_path) / name).unlink()
    refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "32"),
        ("num_hidden_layers", None),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
        ("vocab_size", 1.5),
        ("max_position_embeddings", "512"),
        ("model_type", 7),
        ("hidden_act", "no_such_function"),
        ("rope_parameters", {"rope_type": "no_such_type"}),
        ("architectures", "LlamaForCausalLM"),
        ("eos_token_id", "two"),
        ("torch_dtype", "float99"),
        ("rms_norm_eps", "small"),
    ],
)
def test_a_config_with_a_wrong_type_works_or_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    edit(tiny_model(tmp_path) / "config.json", **{key: value})
    said = f"{tmp_path} works"
    try:
        load(tmp_path)
    except FedrlvrError as error:
        said = str(error)
    assert "\n" not in said
    assert str(tmp_path) in said


def test_a_generation_config_with_a_wrong_end(tmp_path: Path) -> None:
    edit(tiny_model(tmp_path) / "generation_config.json", eos_token_id=["</s>"])
    refused(tmp_path)


def test_reasons_are_one_printable_line() -> None:
    assert model_check.reason(ValueError("a\n  b\x1b[31m.")) == "ValueError: a b\\x1b[31m"
    assert model_check.reason(KeyError()) == "KeyError"
    assert len(model_check.reason(ValueError("x" * 9999))) < 500


# Positions that depend on the longest text of a batch.


def longrope(directory: Path, **rope: Any) -> Path:
    head = 8
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * (head // 2),
        "long_factor": [3.0] * (head // 2),
        "factor": 16.0,
    }
    return save_tiny(
        directory,
        "phi3",
        rope_parameters=parameters | rope,
        original_max_position_embeddings=32,
        sliding_window=None,
    )


def test_longrope_is_limited_to_its_original_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = load(longrope(tmp_path))
    assert base.max_length == 32
    assert "limited to 32 of 512" in caplog.text


def test_a_client_samples_alone_as_beside_a_longer_prompt(tmp_path: Path) -> None:
    cohort = tiny_cohort(longrope(tmp_path), LoraConfig(rank=2))
    end_at(cohort, frozenset({2}))
    adapters = {"a": moved_adapter(cohort, 1), "b": moved_adapter(cohort, 2)}
    prompts = {"a": [cohort.base.encode("1 + 1 =")], "b": [cohort.base.encode("What is 12 + 345?")]}
    decoding, seeds = Decoding(responses=2, max_new_tokens=12), {"a": 1, "b": 2}
    cohort.seat({"a": adapters["a"]})
    alone = cohort.sample({"a": prompts["a"]}, decoding, seeds)["a"][0]
    cohort.seat(adapters)
    beside = cohort.sample(prompts, decoding, seeds)["a"][0]
    for response, other in zip(alone, beside, strict=True):
        assert response.token_ids == other.token_ids
        torch.testing.assert_close(torch.tensor(response.logps), torch.tensor(other.logps), rtol=0, atol=1e-4)
    with pytest.raises(DataError, match="32 positions"):
        cohort.sample({"a": [list(range(3, 28))]}, decoding, seeds)


def test_dynamic_ntk_never_leaves_its_original_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    base = load(save_tiny(tmp_path, "llama", rope_parameters=rope))
    assert base.max_length == 512


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_rotary_embeddings_that_stay_keep_their_whole_length(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    assert load(save_tiny(tmp_path, "llama", rope_parameters=rope | extra)).max_length == 512


def test_positions_that_depend_on_the_batch_in_an_unknown_way(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No original length is stated, so none can be kept to."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    forward: Callable[..., Any] = LlamaRotaryEmbedding.forward

    def stretched(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return forward(self, x, position_ids / (1 + position_ids.max() / 100))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", stretched)
    refused(llama)
