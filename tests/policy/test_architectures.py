"""Architectures beyond the plain ones: exactly as plain transformers and PEFT have them, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import tiny_cohort

from benchmarks.architectures import LIMIT, NUMBERS, examine
from benchmarks.tiny_models import save_tiny
from fedrlvr.config import LoraConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy.sampler import Decoding

WORKS = {
    "qwen3_5_text": "own",
    "qwen3_next": "own",
    "lfm2": "own",
    "granitemoehybrid": "own",
    "mamba": "own",
    "deepseek_v3": "filled",
    "llama4_text": "filled",
    "phimoe": "filled",
    "falcon": "filled",
}
"""How each is sampled from: with our cache, or with the one that transformers makes for it."""


@pytest.mark.parametrize("kind", WORKS)
def test_an_architecture_that_works(kind: str, tmp_path: Path) -> None:
    """Log-probs of samples and of the training pass, merged weights, the exported adapter, and greedy responses to
    left-padded prompts."""
    result = examine(save_tiny(tmp_path / "model", kind), tmp_path)
    assert result["verdict"] == "works", result
    assert result["decoding"] == WORKS[kind]
    assert max(result[name] for name in NUMBERS) < LIMIT
    assert result["greedy"]


@pytest.mark.parametrize("kind", ["recurrent_gemma", "xlstm", "gpt2", "camembert"])
def test_an_architecture_that_is_refused(kind: str, tmp_path: Path) -> None:
    result = examine(save_tiny(tmp_path / "model", kind), tmp_path)
    assert result["verdict"] == "refused"
    assert "\n" not in result["reason"]


def test_a_router_is_no_linear_layer(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path, "phimoe")
    assert not [name for name in tiny_cohort(directory).stack.layers if "router" in name or name.endswith("gate")]
    with pytest.raises(ModelError, match=r"lora\.targets"):
        tiny_cohort(directory, LoraConfig(targets=["router"]))


def test_routed_experts_are_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_cohort(save_tiny(tmp_path / "moe", "mixtral"))
    assert "experts" in caplog.text
    caplog.clear()
    tiny_cohort(save_tiny(tmp_path / "dense", "llama"))
    assert "experts" not in caplog.text


def test_a_layer_of_which_only_the_weight_is_read(tmp_path: Path) -> None:
    """Mamba multiplies by dt_proj's weight without calling the layer."""
    directory = save_tiny(tmp_path, "mamba")
    assert {name.rpartition(".")[2] for name in tiny_cohort(directory).stack.layers} == {"in_proj", "x_proj"}
    with pytest.raises(ModelError, match="dt_proj"):
        tiny_cohort(directory, LoraConfig(targets=["dt_proj"]))


def test_recurrent_states_follow_their_rows_when_others_leave(tmp_path: Path) -> None:
    """With compaction and many prompts in slices: the same responses as without."""
    cohort = tiny_cohort(save_tiny(tmp_path, "qwen3_5_text"))
    cohort.seat({"a": cohort.fresh_adapter(0)})
    prompts = {"a": cohort.base.encode_all(["1 + 1 =", "What is 12 + 345?", "7", "Name a prime above 20."])}
    decoding, seeds = Decoding(responses=3, max_new_tokens=24), {"a": 5}
    drawn = {}
    for compact, rows in ((True, 1024), (False, 1024), (True, 6)):
        cohort.sampler.engine = cohort.engine.model_copy(update={"compact": compact, "decode_rows": rows})  # type: ignore[attr-defined]
        groups = cohort.sample(prompts, decoding, seeds)["a"]
        drawn[compact, rows] = [response.token_ids for group in groups for response in group]
    assert drawn[True, 1024] == drawn[False, 1024] == drawn[True, 6]
    assert len({len(ids) for ids in drawn[True, 1024]}) > 1  # some ended before others
