"""Tiny random-weight models of real architectures, for every test that needs a model and none that needs a good one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedrlvr.adapter import Adapter
from fedrlvr.config import EngineConfig, LoraConfig, ModelConfig
from fedrlvr.policy.base import load_base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.decode import DecodeSampler
from fedrlvr.policy.learner import StepStats
from fedrlvr.rl import Group, Response
from fedrlvr.tasks import Problem
from scripts.reasoner.tokenizer import build

KINDS = ("llama", "qwen3", "gpt_neox", "gemma2")
GEMMA2_WINDOW = 8
"""Tokens a sliding layer of the Gemma2 model sees: fewer than the prompts of the tests have."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tiny_model(directory: Path, kind: str = "llama", seed: int = 0, *, chat_template: bool = False) -> Path:
    """Save a model of two layers and its character tokenizer into `directory`, and return it.

    kind: one of `KINDS`. The directory serves as `model.name`; 512 positions, 100 tokens, about 20,000 parameters.
    """
    tokenizer = build()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        # Far wider than usual: the logits of a narrow random model are else all alike, and nothing could be told apart.
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind != "gpt_neox":  # it knows no grouped keys
        shape |= {"num_key_value_heads": 2, "head_dim": 8}
    if kind == "gemma2":
        shape["sliding_window"] = GEMMA2_WINDOW
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_cohort(
    directory: Path, lora: LoraConfig | None = None, engine: EngineConfig | None = None, *, checkpointing: bool = False
) -> Cohort:
    """A cohort without clients on the model in `directory`."""
    base = load_base(ModelConfig(name=str(directory), device="cpu", gradient_checkpointing=checkpointing))
    return Cohort(base, lora or LoraConfig(rank=4, alpha=8.0), engine or EngineConfig())


def end_at(cohort: Cohort, eos_ids: frozenset[int]) -> None:
    """Make these the tokens that end a response."""
    cohort.base = replace(cohort.base, eos_ids=eos_ids)
    cohort.sampler = DecodeSampler(cohort.base, cohort.stack, cohort.engine)


def moved_adapter(cohort: Cohort, seed: int, std: float = 0.1) -> Adapter:
    """A fresh adapter with random B, so that it changes the model."""
    adapter = cohort.fresh_adapter(seed)
    generator = torch.Generator().manual_seed(seed)
    for factors in adapter.layers.values():
        factors.B.normal_(std=std, generator=generator)
    return adapter


def group_of(prompt_ids: Sequence[int], responses: Sequence[Response], advantages: Sequence[float]) -> Group:
    """Responses of the sampler with advantages of the test's choice."""
    problem = Problem("prompt", "answer", "id", "source", "exact")
    return Group(problem, list(prompt_ids), list(responses), advantages=list(advantages))


def same_tensors(adapter: Adapter, other: Adapter) -> bool:
    """Says if two adapters are equal bit by bit."""
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True))


def largest_gap(adapter: Adapter, other: Adapter) -> float:
    """Largest absolute difference of any factor."""
    return max(float((a - b).abs().max()) for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True))


def numbers_of(stats: StepStats) -> dict[str, float]:
    """A step's numbers without those of foreign responses, for comparison."""
    return {"loss": stats.loss, "grad_norm": stats.grad_norm, **vars(stats.ratios)}
