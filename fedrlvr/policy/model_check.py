"""Checks of a model's directory, weights, tokenizer and chat template, before any data is read.

`load_base` runs these checks, so that every command that loads a model does; each fault is one sentence. Whether the
model then samples what it trains is `Cohort.self_check`. Cost: `check_weights` reads every weight once, the rest a few
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedrlvr.config import ModelConfig
from fedrlvr.errors import FedrlvrError, ModelError, printable

QUESTION = "What is 12 + 345?\nSay why."
"""Rendered and encoded to see what a tokenizer and its chat template make of a question."""
_SHOWN = 400


@contextmanager
def in_one_line(name: str, doing: str) -> Iterator[None]:
    """Turn whatever a foreign architecture, file or template raises into one sentence.

    Raises:
        ModelError: in place of any exception that is none of ours. name: the model's. doing: what failed.
    """
    try:
        yield
    except (FedrlvrError, MemoryError):
        raise
    except Exception as error:  # foreign code raises any kind
        raise ModelError(f"model.name = {name!r}: {doing} ({reason(error)}).") from error


def reason(error: BaseException) -> str:
    """The type and text of an exception, in one printable line."""
    text = printable(" ".join(str(error).split())).rstrip(".")
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def directory_of(model: ModelConfig) -> str:
    """Place where transformers finds the model: its directory, or its hub id.

    Raises:
        ModelError: a directory that is none, cannot be read, has no config.json, or holds an adapter.
    """
    name = model.name
    if name == "embedded":
        from fedrlvr.zoo import weights_dir

        return str(weights_dir())
    if (path := model.local) is None:
        return name
    advice = "Give a directory that holds config.json, safetensors weights and a tokenizer."
    try:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    except OSError as error:
        raise ModelError(f"model.name = {name!r}: {path} cannot be read ({error.strerror}).") from None
    if names is None:
        raise ModelError(f"model.name = {name!r} is not a model: {path} is not a directory. {advice}")
    if "adapter_config.json" in names:
        raise ModelError(
            f"model.name = {name!r}: {path} holds an adapter (adapter_config.json). A base model has a directory of "
            "its own: move the adapter elsewhere, or merge it into the weights."
        )
    if "config.json" not in names:
        raise ModelError(f"model.name = {name!r} is not a model: {path} has no config.json. {advice}")
    return str(path)


def check_weights(model: Any, name: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        ModelError: a weight is NaN or infinite; the tensor is named.
    """
    for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        # A sum is not finite if a summand is not, and needs no copy; finite summands may overflow it, so look again.
        if bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all()):
            continue
        if tensor_name.endswith("mask") or "causal" in tensor_name:  # minus infinity is what a mask is made of
            continue
        raise ModelError(
            f"model.name = {name!r}: its weight {tensor_name} holds values that are not finite. The file is damaged, "
            "or was saved by a training that diverged; download it again."
        )


def check_embeddings(model: Any, name: str) -> int:
    """Token ids that the model can take.

    Raises:
        ModelError: it can sample a token that it cannot take.
    """
    embeddings: Any = model.get_input_embeddings()
    count = getattr(embeddings, "num_embeddings", None)
    if not isinstance(count, int):
        raise ModelError(f"model.name = {name!r}: {type(model).__name__} has no table of token embeddings.")
    head: Any = model.get_output_embeddings()
    outputs = getattr(head, "out_features", count)
    if outputs > count:
        raise ModelError(
            f"model.name = {name!r}: its output head has {outputs} tokens, and its input embeddings {count}. A sampled "
            "token could not be fed back."
        )
    return count


def end_tokens(model: Any, tokenizer: Any, name: str, vocabulary: int) -> frozenset[int]:
    """Ids of the tokens that end a response, as the generation config and the tokenizer name them.

    Raises:
        ModelError: neither names one, or the model has no embedding for any.
    """
    ids: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if value is not None:
            ids.update(int(item) for item in (value if isinstance(value, list | tuple | set) else [value]))
    if not ids:
        raise ModelError(f"model.name = {name!r}: neither its tokenizer nor its config names an end token.")
    usable = frozenset(i for i in ids if 0 <= i < vocabulary)
    if not usable:
        raise ModelError(
            f"model.name = {name!r}: its end token has no embedding (id {min(ids)} of {vocabulary}), so no response "
            "could ever end. Resize the model's embeddings to its tokenizer, or name the end token it was trained with."
        )
    return usable


def tokens_without_embedding(tokenizer: Any, vocabulary: int) -> list[str]:
    """The tokenizer's tokens that the model cannot take, by id."""
    entries = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return [token for index, token in entries if index >= vocabulary]


def appended(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts behind every text, such as an end token; a prompt must not end in them."""
    bare = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    whole = list(tokenizer(QUESTION)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == list(bare):
            return whole[start + len(bare) :]
    return []


def check_prompt(base: Any) -> None:
    """Check that a question comes through the tokenizer and, if it is used, the chat template. base: a `Base`.

    Raises:
        ModelError: the template raises or loses the question, or the prompt is empty or ends in an end token.
        DataError: a token of the template has no embedding.
    """
    name, advice = base.name, "Correct the template, or set prompt.chat = 'off'."
    if base.chat:
        with in_one_line(name, f"its chat template cannot render a question. {advice}"):
            rendered = base.rendered(QUESTION)
        if not all(line in rendered for line in QUESTION.splitlines()):
            raise ModelError(
                f"model.name = {name!r}: its chat template loses the question. The message {QUESTION!r} is rendered as "
                f"{printable(rendered)[:200]!r}. A template must take a message's content as a string. {advice}"
            )
    with in_one_line(name, "its tokenizer cannot encode a question"):
        ids = base.encode(QUESTION)
        last = base.tokenizer.convert_ids_to_tokens(ids[-1])
    if ids[-1] in base.eos_ids:
        raise ModelError(
            f"model.name = {name!r}: a rendered prompt ends in the end token {last!r}, after which the model has "
            f"nothing to say. {advice}"
        )
