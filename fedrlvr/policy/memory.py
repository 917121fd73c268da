"""Estimate of the memory that a run needs, from the model itself and the settings; `fedrlvr doctor CONFIG` shows it.

    peak = program + weights + adapters + max(sampling, training)

    adapters   4 bytes x parameters x (K clients x (factor, gradient, 2 moments, a copy received and one sent) + 3)
    sampling   rows x (state + cache bytes a token x tokens) + 12 bytes x rows x vocabulary
               + 4 numbers x (width + widest layer) x prompt tokens computed at once
    training   saved bytes a token x tokens of a micro-batch + 12 bytes x logits held at once

Cache bytes a token, the state of a row (recurrent models) and the bytes that a forward pass saves for its backward pass
are counted on two short texts, so they hold for any architecture. Not in it: temporaries of single products, and what
the allocator keeps of freed memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedrlvr.config import Config
from fedrlvr.policy.cache import cache_argument, prompt_cache
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.forward import heads_apart
from fedrlvr.policy.learner import suitable_tokens

SHORT, LONG = 8, 16
"""Tokens of the two texts."""
_LOGITS = 12
"""Bytes of a logit, its probability and one more copy."""
_TEMPORARIES = 4
"""Of a layer's input and output while a prompt is computed."""
_COPIES = 6
"""Of a client's adapter: factors, gradients, two moments, what it received and what it sends."""
_SERVER = 3
"""Copies of an adapter at the server: global, aggregated, encoded."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the model's device, and what they were counted from.

    rows: responses that are decoded side by side. tokens: of a micro-batch in training.
    """

    weights: int
    adapters: int
    sampling: int
    training: int
    rows: int
    tokens: int

    @property
    def peak(self) -> int:
        """All that is held at once, without the program and its libraries."""
        return self.weights + self.adapters + max(self.sampling, self.training)


def frozen_parameters(cohort: Cohort) -> list[Tensor]:
    """The parameters of the base model without those of the clients' adapters, which hang on its layers."""
    adapters = {id(factor) for layer in cohort.stack.layers.values() for factor in layer.parameters(recurse=False)}
    return [parameter for parameter in cohort.base.model.parameters() if id(parameter) not in adapters]


def estimate(cohort: Cohort, config: Config, *, longest_prompt: int, test_problems: int) -> MemoryEstimate:
    """Estimate the memory that a run of this configuration needs on the cohort's device.

    longest_prompt: tokens. test_problems: most held-out problems of a client.
    """
    base, engine, sampling, train = cohort.base, config.engine, config.sampling, config.train
    central = config.federation.arm == "central"
    clients = 1 if central else config.federation.clients_per_round
    problems = train.problems_per_step * (len(config.federation.training) if central else 1)
    weights = sum(t.numel() * t.element_size() for t in (*frozen_parameters(cohort), *base.model.buffers()))
    parameters = sum(config.lora.largest * sum(layer.weight.shape) for layer in cohort.stack.layers.values())
    everyone = 1 if central else len(config.federation.names)

    widest = max(int(layer.weight.shape[0]) for layer in cohort.stack.layers.values())
    width = int(base.model.config.get_text_config().hidden_size)
    a_prompt_token = _TEMPORARIES * (width + widest) * base.model.dtype.itemsize
    state, a_token = _cache_bytes(base.model, base.decoding)
    length = longest_prompt + sampling.max_new_tokens
    most_rows = most_bytes = 0
    for seated, draws, each in (
        (clients, sampling.group_size, problems),
        (everyone, config.evaluate.samples, test_problems),
    ):
        prompts = seated * min(each, max(1, engine.decode_rows // (seated * draws)))
        rows = prompts * draws
        shared = base.shares and engine.shared_cache and engine.prefill_once
        cached = prompts * longest_prompt + rows * sampling.max_new_tokens if shared else rows * length
        most_rows = max(most_rows, rows)
        computed = prompts * longest_prompt * (1 if engine.prefill_once else draws)
        size = rows * state + cached * a_token + _LOGITS * rows * base.vocabulary + computed * a_prompt_token
        most_bytes = max(most_bytes, size)

    micro_batch = engine.micro_batch_tokens or suitable_tokens(base)
    everything = clients * problems * (longest_prompt + sampling.group_size * sampling.max_new_tokens)
    tokens = min(max(micro_batch, longest_prompt + sampling.group_size * sampling.max_new_tokens), everything)
    in_chunks = heads_apart(base) and engine.response_logits
    logits = min(engine.logits_at_once, tokens * base.vocabulary) if in_chunks else tokens * base.vocabulary
    return MemoryEstimate(
        weights=weights,
        adapters=4 * parameters * (clients * _COPIES + _SERVER),
        sampling=most_bytes,
        training=_saved_bytes(cohort) * tokens + _LOGITS * logits,
        rows=most_rows,
        tokens=tokens,
    )


@torch.inference_mode()
def _cache_bytes(model: Any, way: Any) -> tuple[int, int]:
    """Bytes of a row's cache that do not grow with its tokens, and of each token."""
    sizes = []
    for length in (SHORT, LONG):
        cache: Any = prompt_cache(model, way)
        ids = torch.arange(3, 3 + length, device=model.device).unsqueeze(0)
        output = model(input_ids=ids, use_cache=True, **{cache_argument(model): cache})
        cache = output.get(cache_argument(model)) or cache
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache)))
    a_token = max(0, (sizes[1] - sizes[0]) // (LONG - SHORT))
    return max(0, sizes[0] - a_token * SHORT), a_token


def _tensors(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        for value in vars(layer).values():
            yield from (v for v in (value.values() if isinstance(value, dict) else [value]) if isinstance(v, Tensor))


def _saved_bytes(cohort: Cohort) -> int:
    """Bytes that a token of the training pass keeps until the backward pass; adapters must be seated."""
    model, sizes = cohort.base.model, []
    frozen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    for length in (SHORT, LONG):
        saved: dict[int, int] = {}

        def keep(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        # A row for each client, since that is how adapters are stacked.
        ids = torch.arange(3, 3 + length, device=model.device).expand(cohort.stack.clients, -1)
        model.train(cohort.base.checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decoder = model.get_decoder() if cohort.base.plain_head else model
            output = decoder(input_ids=ids, use_cache=False)
        model.eval()
        sizes.append(sum(saved.values()))
        del output
    return max(0, (sizes[1] - sizes[0]) // ((LONG - SHORT) * cohort.stack.clients))
