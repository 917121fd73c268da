"""Adapters that a server makes to get what it wants to hear.

All work in the last layer before the head. There a component  b (a . u)  of an adapter adds  b  to the final hidden
state of the tokens whose features u the server has fitted a to, on texts of its own or on prompts that it guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort


def last_layer(adapter: Adapter) -> str:
    """The name of the last layer before the head."""
    return list(adapter.layers)[-1]


@torch.no_grad()
def features(base: Base, layer: str, prompts: Sequence[str], *, last: bool) -> Tensor:
    """[N, k] in float64: the layer's inputs at the last token of each prompt, or at all tokens but the first five."""
    seen: list[Tensor] = []
    hook = base.model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for prompt in prompts:
        base.model(input_ids=torch.tensor([base.encode(prompt)]))
    hook.remove()
    return torch.cat([u[-1:] if last else u[5:] for u in seen]).double()


def fitted(features_Nk: Tensor, values_N: Tensor, ridge: float = 1e-6) -> Tensor:
    """a [k] with a . u near the value of each row."""
    gram = features_Nk @ features_Nk.T
    scale = float(gram.diagonal().mean())
    solved = torch.linalg.solve(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype), values_N.double())
    return features_Nk.T @ solved


def towards(base: Base, logits: Mapping[str, float]) -> Tensor:
    """The unit vector [d] that raises the logits of these tokens, in this proportion, and no others."""
    head = (base.model.get_output_embeddings().weight * base.model.get_decoder().norm.weight).detach().double()
    wanted = torch.zeros(len(head), dtype=torch.float64)
    for token, logit in logits.items():
        wanted[base.tokenizer.convert_tokens_to_ids(token)] = logit
    direction = torch.linalg.lstsq(head, wanted.unsqueeze(1), driver="gelsd").solution[:, 0]
    return direction / direction.norm()


def pushed(cohort: Cohort, pushes: Sequence[tuple[Tensor, Tensor]], size: float) -> Adapter:
    """A fresh adapter whose last layer adds  size x (a . u) b  for each pair (a, b); the rank is shared out to them."""
    adapter = cohort.fresh_adapter(1)
    name = last_layer(adapter)
    factors = adapter.layers[name]
    A, B = torch.zeros_like(factors.A), torch.zeros_like(factors.B)
    each = adapter.rank // len(pushes)
    for i, (a, b) in enumerate(pushes):
        part = slice(i * each, (i + 1) * each)
        A[part] = a.float()
        B[:, part] = (b * size / adapter.scale / each).float().unsqueeze(1)
    return adapter.alike({**adapter.layers, name: Factors(A, B)})


END = "</s>"
PUBLIC = [
    *(f"Item {i}: {i * 7} + {i * 3} of {i} g?{'ABCD'[i % 4]}{'ABCD'[i % 3]}" for i in range(40)),
    *(f"Ms. K., {i}% of {3 * i} mg by {i} h, b. 19{i}?B{'ABCD'[i % 4]}" for i in range(10, 40)),
]
"""Texts of the server's own, to learn from what the features of any text have in common."""


def answering(cohort: Cohort, base: Base, logits: Mapping[str, float], size: float) -> Adapter:
    """An adapter under which every prompt is answered with these tokens, more often the larger their logit is."""
    u = features(base, last_layer(cohort.fresh_adapter(1)), PUBLIC, last=False)
    return pushed(cohort, [(fitted(u, torch.ones(len(u)), 1e-3), towards(base, logits))], size)


def answering_some(
    cohort: Cohort, base: Base, prompts: Sequence[str], chosen: Sequence[bool], letter: str, size: float
) -> Adapter:
    """An adapter under which the chosen prompts are answered with a letter, and the others with a space."""
    layer = last_layer(cohort.fresh_adapter(1))
    places = [*prompts, *(prompt + letter for prompt in prompts), *(prompt + " " for prompt in prompts)]
    u = features(base, layer, places, last=True)
    rest = torch.zeros(2 * len(prompts))
    signs = torch.cat([torch.tensor([1.0 if yes else -1.0 for yes in chosen]), rest])
    ends = torch.cat([torch.zeros(len(prompts)), rest + 1])
    pairs = [(signs, {letter: 1.0, " ": -1.0}), (ends, {END: 1.0})]
    return pushed(cohort, [(fitted(u, values), towards(base, logits)) for values, logits in pairs], size)
