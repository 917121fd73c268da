"""Tiny models of random weights of any causal LM class that transformers knows: two layers of width 32.

A configuration class states hundreds of sizes under many names. The ones below are made small under every name that a
class has; what remains follows from the class's own defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "n_inner": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "feed_forward_size": 48,
    "ffn_hidden_size": 48,
    "block_ff_dim": 48,
    "dense_intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "multi_query_group_num": 2,
    "head_dim": 8,
    "d_kv": 8,
    "kv_channels": 8,
    "attention_head_dim": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_seq_len": 512,
    "max_sequence_length": 512,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "is_decoder": True,
    # Multi-head latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 8,
    # Experts.
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "moe_ffn_hidden_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 1,
    "num_dense_layers": 1,
    # State spaces and linear attention.
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "n_mamba_heads": 2,
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "mamba_headdim": 8,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "mamba_ngroups": 1,
    "time_step_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    "conv_dim": 32,
}
"""What a size is, under each of its names."""

PARTICULAR: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "layers_block_type": ["mamba", "attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "dots3_note": {"adapter_in_dim": 32},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "hybrid_override_pattern": "M*"},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"pronunciation_vocab_size": 100, "shape_vocab_size": 100},
    "zaya": {"num_experts_per_tok": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gemma4": {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8},
}
"""What a model type needs besides."""

PARTS = ("text_config", "decoder", "decoder_config", "vision_config", "audio_config")
"""Configurations inside of a configuration."""


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A small configuration of this model type, with these changes of its text part.

    Raises:
        Exception: whatever the class raises, if it does not go together with small sizes.
    """
    from transformers import AutoConfig

    config_class = type(AutoConfig.for_model(model_type))
    return config_class(**_small(config_class(), model_type, changes))


def _small(default: Any, model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    names = {**vars(default), **getattr(type(default), "attribute_map", {})}
    wanted = {**SIZES, **PARTICULAR.get(model_type, {}), **changes}
    if "kv_lora_rank" in names:  # every head has keys of its own
        wanted["num_key_value_heads"] = wanted["num_attention_heads"]
    chosen = {name: value for name, value in wanted.items() if name in names or name in changes}
    layers = next((chosen[n] for n in ("num_hidden_layers", "num_layers", "n_layer") if n in chosen), 2)
    for name, value in vars(default).items():
        if name in PARTS and hasattr(value, "to_dict"):
            chosen[name] = {**_small(value, value.model_type, changes), "model_type": value.model_type}
        elif name in ("layer_types", "layers_block_type", "mlp_layer_types") and value and name not in wanted:
            chosen[name] = _of_each_kind(value, layers)
    return chosen


def _of_each_kind(types: list[str], layers: int) -> list[str]:
    """As many entries as layers, of all kinds that occur."""
    kinds = list(dict.fromkeys(types))
    return [kinds[i % len(kinds)] for i in range(layers)]


def save_tiny(directory: Path, model_type: str, seed: int = 0, **changes: Any) -> Path:
    """Save such a model and a character tokenizer into `directory`, and return it.

    Raises:
        Exception: as `tiny_config`.
    """
    from transformers import AutoModelForCausalLM

    from scripts.reasoner.tokenizer import build

    tokenizer = build()
    config = tiny_config(model_type, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        widen(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@torch.no_grad()
def widen(model: Any) -> None:
    """Random numbers large enough that tokens differ in their logits, also where a class begins with zeros."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and float(parameter.std()) < 0.05 and "norm" not in name:
            parameter.normal_(std=0.2)
