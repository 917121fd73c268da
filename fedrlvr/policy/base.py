"""The frozen base model and its tokenizer: any Hugging Face causal LM, by directory or hub id."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fedrlvr.config import ModelConfig
from fedrlvr.errors import DataError, ModelError
from fedrlvr.files import read_json
from fedrlvr.machine import cores
from fedrlvr.policy.attention import use_own_attention
from fedrlvr.policy.capabilities import can_pack, has_plain_head

SMALL = 1 << 12
"""Layers x width up to which one thread is faster than several."""


@dataclass(frozen=True)
class Base:
    """A frozen model with its tokenizer, and the properties that sampler and learner need.

    eos_ids: every token that ends a response.
    max_length: prompt and response together, in tokens.
    packs: the training pass can share a prompt among its responses (policy/attention.py).
    plain_head: logits can be made from hidden states apart from the model (policy/capabilities.py).
    model_id: architecture, and a digest of all parameters' names and shapes.
    weights_id: a digest of a sample of every parameter, as bfloat16: tells models of one shape apart.
    """

    model: Any
    tokenizer: Any
    name: str
    device: torch.device
    pad_id: int
    eos_ids: frozenset[int]
    max_length: int
    chat_template: bool
    checkpointing: bool = False
    packs: bool = False
    plain_head: bool = False
    model_id: str = ""
    weights_id: str = ""

    @property
    def vocabulary(self) -> int:
        """Token ids the model can take: 0 to this, excluded."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @cached_property
    def fused_experts(self) -> bool:
        """Whether routed experts are stacked parameters, which no adapter reaches, rather than linear layers."""
        return any(expert_parameters(self.model))

    @cached_property
    def tokenizer_id(self) -> str:
        """Digest of the tokenizer: what each token id means."""
        entries = sorted((index, token) for token, index in self.tokenizer.get_vocab().items())
        return hashlib.blake2b(json.dumps(entries).encode(), digest_size=8).hexdigest()

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, in the chat template where there is one and it is wanted.

        Raises:
            DataError: the prompt has no tokens.
        """
        return self.encode_all([prompt])[0]

    def encode_all(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of several prompts, each as `encode` gives them.

        Raises:
            DataError: a prompt has no tokens.
        """
        if not prompts:
            return []
        texts = list(prompts)
        if self.chat_template:
            texts = [self._rendered(text) for text in texts]
        # A template writes its own special tokens; adding the tokenizer's again would double the first one.
        encoded = self.tokenizer(texts, add_special_tokens=not self.chat_template)["input_ids"]
        if not all(encoded):
            raise DataError("a prompt has no tokens under this model's tokenizer")
        return [list(ids) for ids in encoded]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out of a text, such as those of the chat template."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {token for token, entry in added if entry.special}

    @cached_property
    def opened_thought(self) -> str:
        r"""The end of a rendered prompt that opens a thought, such as `<think>\n`; "" where the template opens none."""
        if not self.chat_template:
            return ""
        rendered = self._rendered("?")
        start = rendered.rfind("<think>")
        return "" if start < 0 or "</think>" in rendered[start:] else rendered[start:]

    def decode(self, token_ids: list[int]) -> str:
        """Text of a response, without special tokens.

        Where the prompt's template has opened a thought, the text begins with it: a grader that reads the text alone
        then knows that nothing counts before the thought is closed.
        """
        return self.opened_thought + str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def _rendered(self, prompt: str) -> str:
        """A prompt in the chat template, up to where the model is to begin."""
        messages = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def load_base(config: ModelConfig) -> Base:
    """Load the base model and freeze its weights.

    Only safetensors weights are read and no code from the model's repository is run.

    Raises:
        ModelError: the name is no model, the device or dtype cannot be had, or the tokenizer has no end token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    place = _place(config)
    device = _device(config.device)
    local = Path(place).is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=_dtype(config.dtype, device),
            local_files_only=local,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for one cause: this is no loadable model
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.name = {config.name!r} cannot be loaded as a Hugging Face causal LM ({first}). Give a directory "
            "with config.json, safetensors weights and a tokenizer, a hub id, or 'embedded'."
        ) from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"model.name = {config.name!r}: its weights lack {len(missing)} tensors that its config.json asks for, "
            f"{missing[0]} among them. Give the directory of the whole model."
        )
    model.requires_grad_(False)
    model.eval().to(device)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        # The input of the first checkpointed block has no gradient of its own, since the embeddings are frozen.
        model.enable_input_require_grads()
        # Checkpointing works in training mode only, where dropout would move the ratio of a fresh sample away from 1.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(f"model.name = {config.name!r}: neither its tokenizer nor its config names an end token.")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids)
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    packs = use_own_attention(model) and can_pack(model, config.name)
    return Base(
        model=model,
        tokenizer=tokenizer,
        name=config.name,
        device=device,
        pad_id=pad_id,
        eos_ids=frozenset(eos_ids),
        max_length=int(limit),
        chat_template=config.chat_template and bool(getattr(tokenizer, "chat_template", None)),
        checkpointing=config.gradient_checkpointing,
        packs=packs,
        plain_head=has_plain_head(model, config.name),
        model_id=_model_id(model),
        weights_id=_weights_id(model),
    )


def expert_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Names and weights of routed experts that are stacked: matrices with one more axis, but no convolutions."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.modules.conv._ConvNd):
            for last, parameter in module.named_parameters(prefix=name, recurse=False):
                if parameter.dim() == 3 and min(parameter.shape) > 1:
                    yield last, parameter


def _model_id(model: Any) -> str:
    shapes = "".join(f"{name} {tuple(parameter.shape)}\n" for name, parameter in model.named_parameters())
    return f"{type(model).__name__}-{hashlib.blake2b(shapes.encode(), digest_size=8).hexdigest()}"


def _weights_id(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for _, parameter in model.named_parameters():
        sample = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)][:64]
        digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _place(model: ModelConfig) -> str:
    name = model.name
    if name == "embedded":
        from fedrlvr.zoo import weights_dir

        return str(weights_dir())
    if (path := model.local) is not None:
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model.name = {name!r} is not a model: {path} "
                f"{'has no config.json' if path.is_dir() else 'is not a directory'}. Give a directory that holds "
                "config.json, safetensors weights and a tokenizer."
            )
        return str(path)
    return name


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"model.device = {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    ids: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(value, int):
            ids.add(value)
        elif value is not None:
            ids.update(int(item) for item in value)
    return ids


def threads_here(model: ModelConfig) -> int:
    """Number of Torch threads where `engine.threads` is unset.

    OMP_NUM_THREADS if it is set; else one for a small model, whose products are too short to be shared out (on the
    embedded reasoner two threads take nearly twice as long as one), and one per core we may use for any other.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    try:
        shape = read_json(Path(_place(model)) / "config.json")
        if int(shape["num_hidden_layers"]) * int(shape["hidden_size"]) <= SMALL:
            return 1
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        pass  # a hub id, or a config of other names: a large model, as a rule; what is wrong is said when it is loaded
    return cores()
