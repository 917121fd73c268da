"""A tiny random model whose tokenizer takes any text: bytes, and a few pairs of them; 8,192 positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    "A train travels 120 miles in 3 hours. How many miles does it travel in one hour?",
    "Let $x$ be a real number such that $\\frac{x}{2} + 3 = 7$. Find $x$.",
    "Which of the following drugs is the treatment of choice? A. Aspirin B. Heparin C. Insulin D. Warfarin",
]


def any_text_model(directory: Path, kind: str = "llama", **shape: Any) -> Path:
    """Save the model into `directory`, and return it. kind: its architecture. shape: further fields of its config."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")  # type: ignore[no-untyped-call]
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
        initializer_range=0.3,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        **{"num_key_value_heads": 2, **shape},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory
