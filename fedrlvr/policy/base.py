"""The frozen base model and its tokenizer: any Hugging Face causal LM, by directory or hub id."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from fedrlvr.config import ModelConfig, PromptConfig
from fedrlvr.errors import DataError, ModelError
from fedrlvr.files import read_json
from fedrlvr.machine import cores
from fedrlvr.out_of_memory import LOADING, memory_limit
from fedrlvr.output import logger
from fedrlvr.policy.attention import use_own_attention
from fedrlvr.policy.capabilities import Decodes, can_pack, can_share, has_plain_head, steady_length, way_to_decode
from fedrlvr.policy.model_check import (
    appended,
    check_embeddings,
    check_prompt,
    check_weights,
    directory_of,
    end_tokens,
    in_one_line,
    tokens_without_embedding,
)
from fedrlvr.policy.stops import StopStrings
from fedrlvr.tasks.prompts import Prompt

_log = logger("policy")

SMALL = 1 << 12
"""Layers x width up to which one thread is faster than several."""


@dataclass(frozen=True)
class Base:
    """A frozen model with its tokenizer, and the properties that sampler and learner need.

    eos_ids: every token that ends a response.
    chat: prompts are put into the tokenizer's chat template. template_args: of that template. prefill: text that every
    response goes on from. stop: strings that end a response.
    max_length: prompt and response together, in tokens; no more than leaves other rows of a batch as they are.
    packs: the training pass can share a prompt among its responses (policy/attention.py).
    shares: the sampler can keep a prompt's keys and values once for its responses.
    plain_head: logits can be made from hidden states apart from the model (policy/capabilities.py).
    decoding: how it is sampled from (policy/capabilities.py).
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
    chat: bool = False
    template_args: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""
    stop: tuple[str, ...] = ()
    checkpointing: bool = False
    packs: bool = False
    shares: bool = False
    plain_head: bool = False
    decoding: Decodes = "filled"
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

    def asking(self, prompt: PromptConfig) -> Self:
        """The same model and tokenizer, asked as a run's settings say.

        Raises:
            ModelError: the tokenizer has no chat template, and one is wanted; or a stop string holds a special token.
        """
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if prompt.chat == "on" and not has_template:
            raise ModelError(
                f"model.name = {self.name!r}: its tokenizer has no chat template, and prompt.chat = 'on' wants one. "
                "Say 'auto' or 'off', or give a model that was trained on chats."
            )
        chat = has_template and prompt.chat != "off"
        special = self.tokenizer.convert_ids_to_tokens(sorted(self.special_ids)) if prompt.stop else []
        for text in prompt.stop:
            if token := next((token for token in special if token and token in text), None):
                raise ModelError(
                    f"prompt.stop: {text!r} would never be found, because {token!r} is a special token of {self.name} "
                    "and no part of a text. An end token ends a response by itself; leave it out."
                )
        arguments, stop = dict(prompt.template_args), tuple(prompt.stop)
        return replace(self, chat=chat, template_args=arguments, prefill=prompt.prefill, stop=stop)

    def encode(self, prompt: Prompt | str) -> list[int]:
        """Token ids of a prompt, in the chat template where there is one and it is wanted, and of the prefill.

        Raises:
            DataError: as `encode_all`.
        """
        return self.encode_all([Prompt.of(prompt) if isinstance(prompt, str) else prompt])[0]

    def encode_all(self, prompts: Sequence[Prompt] | Sequence[str]) -> list[list[int]]:
        """Token ids of several prompts, each as `encode` gives them.

        Raises:
            DataError: a prompt cannot be rendered, has no tokens, or has one that the model has no embedding for.
        """
        if not prompts:
            return []
        try:
            texts = [self.rendered(prompt) for prompt in prompts]
        except Exception as error:  # whatever a template raises; its text may hold the prompt
            raise DataError(
                f"the chat template of {self.name} cannot render a prompt ({type(error).__name__}). Correct the "
                "template, leave out prompt.system or prompt.template_args if it does not know them, or set "
                "prompt.chat = 'off'."
            ) from None
        # A template writes its own special tokens; adding the tokenizer's again would double the first one.
        encoded = self.tokenizer(texts, add_special_tokens=not self.chat)["input_ids"]
        return [self._usable(list(ids)) for ids in encoded]

    def encode_response(self, text: str) -> list[int]:
        """Token ids of a text as the response that the policy would sample, with its end.

        What every prompt ends in, an opened thought and the prefill, is no part of a response: a text that begins with
        it becomes the rest alone. The end is a stop string of prompt.stop where the text has one at its end, or,
        without a chat template, gets the first one; else the end token.

        Raises:
            DataError: the model has no embedding for one of the tokens.
        """
        text = text.removeprefix(self.opened_thought).removeprefix(self.prefill)
        stopped = text.endswith(self.stop) if self.stop else False
        if self.stop and not stopped and not self.chat:
            text, stopped = text + self.stop[0], True
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids and max(ids) >= self.vocabulary:
            raise DataError(f"a response holds a token for which the model {self.name} has no embedding")
        end = self.tokenizer.eos_token_id
        return ids if stopped else [*ids, end if end in self.eos_ids else min(self.eos_ids)]

    def _usable(self, ids: list[int]) -> list[int]:
        """A prompt's tokens, without what the tokenizer appends to every text."""
        tail = [] if self.chat else self._appended
        if tail and ids[-len(tail) :] == tail:
            ids = ids[: -len(tail)]
        if not ids:
            raise DataError("a prompt has no tokens under this model's tokenizer")
        if max(ids) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"a prompt holds the token {token!r}, for which the model {self.name} has no embedding (id {max(ids)} "
                f"of {self.vocabulary}). Resize the model's embeddings to its tokenizer."
            )
        return ids

    @cached_property
    def _appended(self) -> list[int]:
        return appended(self.tokenizer)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, without a template and without the tokens that the model does not know."""
        unknown = self.tokenizer.unk_token_id
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [token for token in ids if token != unknown and token < self.vocabulary]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that `decode` leaves out of a text, such as those of the chat template."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {token for token, entry in added if entry.special}

    @cached_property
    def opened_thought(self) -> str:
        r"""The end of a rendered prompt that opens a thought, such as `<think>\n`; "" where the template opens none."""
        if not self.chat:
            return ""
        rendered = self._templated(Prompt.of("?"))
        start = rendered.rfind("<think>")
        return "" if start < 0 or "</think>" in rendered[start:] else rendered[start:]

    def decode(self, token_ids: list[int]) -> str:
        """Text of a response, without special tokens.

        Where the prompt's template has opened a thought, the text begins with it: a grader that reads the text alone
        then knows that nothing counts before the thought is closed. Then comes the prefill, and the response up to
        the end of a stop string.
        """
        text = self.plain(token_ids)
        return self.opened_thought + self.prefill + (text if self.stops is None else self.stops.cut(text))

    @cached_property
    def stops(self) -> StopStrings | None:
        """The stop strings, as they are found in tokens; None if there are none."""
        return StopStrings(self.stop, self.plain) if self.stop else None

    def plain(self, token_ids: list[int], *, special: bool = False) -> str:
        """Text of token ids as they are: nothing is put before it, and no stop string cuts it.

        special: show special tokens too.
        """
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=not special))

    def rendered(self, prompt: Prompt | str) -> str:
        """The text that the model reads: a prompt, in the chat template where it is used, and the prefill."""
        prompt = Prompt.of(prompt) if isinstance(prompt, str) else prompt
        return (self._templated(prompt) if self.chat else prompt.text) + self.prefill

    @property
    def in_template(self) -> Callable[[Prompt], str] | None:
        """Maker of the text that the model reads where prompts are put into the chat template; else None."""
        return self.rendered if self.chat else None

    def _templated(self, prompt: Prompt) -> str:
        messages = [turn._asdict() for turn in prompt.turns]
        template = self.tokenizer.apply_chat_template
        return str(template(messages, tokenize=False, add_generation_prompt=True, **self.template_args))


def load_base(config: ModelConfig, prompt: PromptConfig | None = None) -> Base:
    """Load the base model, check it and freeze its weights.

    prompt: how it is asked; None: by the defaults.

    Only safetensors weights are read and no code from the model's repository is run.

    Raises:
        ModelError: the name is no model, the device or dtype cannot be had, or something about the files, weights,
            tokenizer, chat template or architecture is not as it must be (policy/model_check.py, capabilities.py).
        MemoryLimitError: memory ran out.
    """
    gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    dtype = str(_dtype(config.dtype, torch.device("cuda" if gpu else "cpu"))).removeprefix("torch.")
    with memory_limit(LOADING, {"model.dtype": dtype, "model.name": config.name}):
        return _checked_base(config, prompt or PromptConfig())


def _checked_base(config: ModelConfig, prompt: PromptConfig) -> Base:
    """The base model, loaded, checked and frozen."""
    name, place, device = config.name, directory_of(config), _device(config.device)
    model, tokenizer = _loaded(config, place, device)
    model.requires_grad_(False)
    with in_one_line(name, f"it cannot be set up on {device}"):
        model.eval().to(device)
        if config.gradient_checkpointing:
            _checkpoint(model)
    check_weights(model, name)
    with in_one_line(name, "its tokenizer cannot be used"):
        vocabulary = check_embeddings(model, name)
        eos_ids = end_tokens(model, tokenizer, name, vocabulary)
        if unknown := tokens_without_embedding(tokenizer, vocabulary):
            _log.warning(
                "%s: %d tokens of its tokenizer have no embedding, %s among them; a prompt that holds one is refused",
                name,
                len(unknown),
                unknown[0],
            )
    pad_id = tokenizer.pad_token_id
    own_attention = use_own_attention(model)
    with in_one_line(name, f"{type(model).__name__} is not an architecture that fedrlvr can train"):
        decoding = way_to_decode(model, name)
        max_length = steady_length(model, name)
        packs = own_attention and can_pack(model, name)
        shares = packs and decoding == "filled" and can_share(model)
    base = Base(
        model=model,
        tokenizer=tokenizer,
        name=name,
        device=device,
        pad_id=pad_id if isinstance(pad_id, int) and 0 <= pad_id < vocabulary else min(eos_ids),
        eos_ids=eos_ids,
        max_length=max_length,
        checkpointing=config.gradient_checkpointing,
        packs=packs,
        shares=shares,
        plain_head=has_plain_head(model, name),
        decoding=decoding,
        model_id=_model_id(model),
        weights_id=_weights_id(model),
    ).asking(prompt)
    check_prompt(base)
    return base


def _loaded(config: ModelConfig, place: str, device: torch.device) -> tuple[Any, Any]:
    """The model and its tokenizer as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    local = Path(place).is_dir()
    what = (
        "it cannot be loaded as a Hugging Face causal LM. Give a directory with config.json, safetensors weights and a "
        "tokenizer, a hub id, or 'embedded'"
    )
    with in_one_line(config.name, what):
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=_dtype(config.dtype, device),
            local_files_only=local,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ModelError(
            f"model.name = {config.name!r}: its weights lack {len(missing)} tensors that its config.json asks for, "
            f"{missing[0]} among them. Give the directory of the whole model."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model.name = {config.name!r} holds an adapter. Give the base model, or merged weights.")
    return model, tokenizer


def _checkpoint(model: Any) -> None:
    """Recompute activations in the backward pass."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # The input of the first checkpointed block has no gradient of its own, since the embeddings are frozen.
    model.enable_input_require_grads()
    # Checkpointing works in training mode only, where dropout would move the ratio of a fresh sample away from 1.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"model.device = {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def threads_here(model: ModelConfig) -> int:
    """Number of Torch threads where `engine.threads` is unset.

    OMP_NUM_THREADS if it is set; else one for a small model, whose products are too short to be shared out (on the
    embedded reasoner two threads take nearly twice as long as one), and one per core we may use for any other.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    try:
        shape = read_json(Path(directory_of(model)) / "config.json")
        if int(shape["num_hidden_layers"]) * int(shape["hidden_size"]) <= SMALL:
            return 1
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        pass  # a hub id, or a config of other names: a large model, as a rule; what is wrong is said when it is loaded
    return cores()
