"""Reading prompts out of the change of an adapter: DAGER (arXiv 2405.15586), which reads full gradients, for LoRA.

With scale s = alpha / r, inputs x_t of a layer and gradients delta_t of its outputs, over the tokens t of the trained
sequences,

    gradient of B [d, r] = s sum_t delta_t (A x_t)^T        its rows lie in the span of the A x_t
    gradient of A [r, k] = s sum_t (B^T delta_t) x_t^T      its rows lie in the span of the x_t

While these do not span everything, an input that did not occur lies outside. The first block has one input for each
word of the vocabulary, which gives the words of the prompts; the input of the second depends on a token and what
precedes it, which gives their order, token by token. Layers with one input (q, k and v of a block), and messages with
other factors, add up.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort

EPS = 1e-8
"""Of Adam."""
PARTS = {"A": ("q_proj", "k_proj", "v_proj"), "B": ("k_proj", "v_proj")}
"""Layers whose input is their block's own. q_proj has no gradient at the first token, so its B does not span that."""


def undo_adam(before: Tensor, after: Tensor, rate: float, *, decay: float = 0.0) -> Tensor:
    """The gradient behind Adam's first step, whatever the betas:  u = g / (|g| + eps)  where  after = before - rate u.

    Where |g| is far above eps, u is near 1 and tells it by its last digits only.
    """
    u = (before.double() * (1 - rate * decay) - after.double()) / rate
    return u * EPS / (1 - u.abs()).clamp(min=2.0**-25)


def lever(cohort: Cohort, seed: int, size: float = 0.05) -> Adapter:
    """A fresh adapter whose last layer alone moves the policy away from the base model.

    So a penalty for the distance has a gradient whatever the rewards are, and the inputs of the blocks before are those
    of the base model.
    """
    adapter = cohort.fresh_adapter(seed)
    name = list(adapter.layers)[-1]
    factors = adapter.layers[name]
    moved = torch.randn(factors.B.shape, generator=torch.Generator().manual_seed(seed)) * size
    return adapter.alike({**adapter.layers, name: Factors(factors.A, moved)})


def without_A(adapter: Adapter, seed: int, size: float) -> Adapter:
    """The adapter with A = 0 and a random B of this size in all layers but the last.

    The policy is what it would be with B = 0, and the change of A shows the inputs themselves, to the last digit, in a
    scale of the sender's choice.
    """
    generator = torch.Generator().manual_seed(seed)
    last = list(adapter.layers)[-1]
    layers = {
        name: Factors(torch.zeros_like(a), torch.randn(b.shape, generator=generator) * size)
        for name, (a, b) in adapter.layers.items()
    }
    return adapter.alike({**layers, last: adapter.layers[last]})


@dataclass(frozen=True)
class Exchanged:
    """An adapter that a message brought, and the one that came back. rate: the learning rate."""

    sent: Adapter
    back: Adapter
    rate: float
    decay: float = 0.0

    def gradient(self, layer: str, half: Literal["A", "B"]) -> Tensor:
        """The gradient of a layer's half, in float64."""
        before, after = (getattr(adapter.layers[layer], half) for adapter in (self.sent, self.back))
        return undo_adam(before, after, self.rate, decay=self.decay)


@dataclass(frozen=True)
class Span:
    """The space that the inputs of some layers span: x itself, or A x.

    basis [n, w], orthonormal, in float64. A [w, k]; None for x itself.
    """

    basis: Tensor
    A: Tensor | None

    @staticmethod
    def of(rows: Tensor, A: Tensor | None, noise: float) -> Span:
        """noise: singular values below this share of the largest are rounding."""
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        return Span(vectors[: int((values > noise * values[0]).sum()) if values[0] > 0 else 0], A)

    @property
    def tells(self) -> bool:
        """Says if the space leaves out some inputs, so that membership in it is evidence."""
        return 0 < len(self.basis) < self.basis.shape[1]

    def outside(self, x_Nk: Tensor) -> Tensor:
        """The share [N] of each input's length that lies outside."""
        z = x_Nk.double() if self.A is None else x_Nk.double() @ self.A.T
        z = z / z.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return (z - (z @ self.basis.T) @ self.basis).norm(dim=1)


def spans(messages: Sequence[Exchanged], block: int, half: Literal["A", "B"], noise: float) -> list[Span]:
    """The spaces of a block's inputs that the changes of a half give away; the half is A or B."""
    layers = [name for name in messages[0].sent.layers if f".{block}." in name and name.endswith(PARTS[half])]
    if half == "A":  # rows of one length: every layer and message adds directions of the inputs
        rows = [message.gradient(layer, "A") for message in messages for layer in layers]
        scaled = [part / part.norm() for part in rows if part.norm() > 0]
        return [Span.of(torch.cat(scaled), None, noise)] if scaled else []
    result = []
    for layer in layers:  # columns: the rank of the messages' adapters together
        gradient = torch.cat([message.gradient(layer, "B") for message in messages], dim=1)
        A = torch.cat([message.sent.layers[layer].A.double() for message in messages])
        result.append(Span.of(gradient, A, noise))
    return result


def _outside(parts: Sequence[Span], x_Nk: Tensor) -> Tensor:
    return torch.stack([span.outside(x_Nk) for span in parts]).amax(dim=0)


class Prefixes:
    """The inputs of the first two blocks of a Llama-like model, for words and for token sequences."""

    def __init__(self, base: Base) -> None:
        decoder = base.model.get_decoder()
        plain = copy.copy(decoder)
        plain._modules = dict(decoder._modules)
        plain.layers = nn.ModuleList([decoder.layers[0]])
        plain.norm = decoder.layers[1].input_layernorm
        self.base, self.decoder = base, plain
        self.embedded = decoder.layers[0].input_layernorm(decoder.embed_tokens.weight).detach()
        """[vocabulary, k]: the first block's input for each word."""

    @torch.no_grad()
    def next_inputs(self, prefixes: Sequence[Sequence[int]], words: Sequence[int]) -> Tensor:
        """[prefixes, words, k]: the second block's input at each word behind each prefix; prefixes of one length."""
        cache = DynamicCache()
        self.decoder(input_ids=torch.tensor(prefixes), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(words))
        ids = torch.tensor(words).repeat(len(prefixes)).unsqueeze(1)
        states = self.decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return states[:, -1].unflatten(0, (len(prefixes), len(words)))


def read(
    prefixes: Prefixes,
    messages: Sequence[Exchanged],
    half: Literal["A", "B"] = "B",
    *,
    noises: Sequence[float] = (2e-7, 1e-6),
    outside: float = 0.05,
    beam: int = 2,
    longest: int = 64,
) -> list[str]:
    """The texts that the inputs of the messages' layers spell, prompts with the beginnings of their responses.

    noises: as `Span.of`; what is read with any of them counts.
    outside: largest share of an input's length outside of a span that it is taken for a part of.
    beam: sequences of one length that are followed.
    """
    texts = {text for noise in noises for text in _read(prefixes, messages, half, noise, outside, beam, longest)}
    return sorted(texts, key=len, reverse=True)


def _read(
    prefixes: Prefixes,
    messages: Sequence[Exchanged],
    half: Literal["A", "B"],
    noise: float,
    outside: float,
    beam: int,
    longest: int,
) -> list[str]:
    first, second = (spans(messages, block, half, noise) for block in (0, 1))
    if not first or not second or not all(span.tells for span in (*first, *second)):
        return []
    tokenizer = prefixes.base.tokenizer
    fitting = (_outside(first, prefixes.embedded) < outside).nonzero().flatten().tolist()
    words = [word for word in fitting if word not in tokenizer.all_special_ids]  # a repeated <s> is like one
    start = prefixes.base.encode("")
    alive, ended = [(0.0, start)], []
    while words and alive and len(alive[0][1]) < longest:
        states = prefixes.next_inputs([ids for _, ids in alive], words)
        scores = _outside(second, states.flatten(0, 1)).view(states.shape[:2]).tolist()
        longer: list[tuple[float, list[int]]] = []
        for (total, ids), row in zip(alive, scores, strict=True):
            inside = [(total + score, [*ids, word]) for word, score in zip(words, row, strict=True) if score < outside]
            ended += [] if inside else [ids]
            longer += inside
        alive = sorted(longer)[:beam]
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in ended]
