"""Given responses, computed again by the model of this process: what a sampler that is another program does not give.

Rows are padded on the left, as in the prefill of the decode loop, so that the last position of each is the one that its
response's last token was drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from fedrlvr.config import EngineConfig, TrainConfig
from fedrlvr.policy.base import Base
from fedrlvr.policy.cache import optional
from fedrlvr.policy.decode import left_pad, position_ids, spans_of
from fedrlvr.policy.forward import autocast
from fedrlvr.policy.hidden_states import HiddenStates, RowStates
from fedrlvr.policy.learner import Learner, suitable_tokens
from fedrlvr.policy.lora import LoraStack
from fedrlvr.policy.sampler import SampledResponse
from fedrlvr.rl import Response

Prompts = Mapping[str, Sequence[Sequence[int]]]
Drawn = Mapping[str, Sequence[Sequence[SampledResponse]]]


def replayed_logps(
    base: Base, stack: LoraStack, engine: EngineConfig, prompts: Prompts, drawn: Drawn, temperature: float
) -> None:
    """Set the log-probs of responses of the seated clients to those of a training pass at a temperature."""
    learner = Learner(base, stack, TrainConfig(), engine, temperature=temperature, max_tokens=1)
    scored = [[[Response(r.token_ids, r.logps, "", r.finished) for r in g] for g in drawn[c]] for c in prompts]
    learner.rescore(list(prompts.values()), scored)
    for client, of_client in zip(prompts, scored, strict=True):
        for group, of_group in zip(drawn[client], of_client, strict=True):
            for response, of_response in zip(group, of_group, strict=True):
                response.logps = list(of_response.logps)


def replayed_states(
    base: Base, stack: LoraStack, engine: EngineConfig, prompts: Prompts, drawn: Drawn
) -> dict[str, HiddenStates]:
    """Hidden states of the seated clients' prompts and responses, by client, as the decode loop takes them.

    Raises:
        ModelError: the model has no output head of which the input could be read.
    """
    rooms: dict[str, HiddenStates] = {}
    rows: list[tuple[int, list[int], torch.Tensor]] = []  # client, tokens, the place of the last position's state
    for i, (client, of_client) in enumerate(prompts.items()):
        count = max((len(group) for group in drawn[client]), default=0)
        room = rooms[client] = HiddenStates.room(base, len(of_client), count)
        for p, ids in enumerate(of_client):
            rows.append((i, list(ids), room.prompt_PH[p]))
            rows += [
                (i, [*ids, *response.token_ids[:-1]], room.response_PGH[p, g])
                for g, response in enumerate(drawn[client][p])
            ]
    budget = engine.micro_batch_tokens or suitable_tokens(base)
    with torch.no_grad(), autocast(base, engine):
        for part in _batches(rows, budget, padded=base.decoding != "own-unpadded"):
            owners = torch.tensor([client for client, _, _ in part])
            inputs, mask = left_pad([tokens for _, tokens, _ in part], base.pad_id, base.device)
            stack.spans = spans_of(owners, stack.clients, inputs.shape[1])
            try:
                with RowStates(base) as states:
                    extra: dict[str, Any] = optional(base.model, position_ids=position_ids(mask), logits_to_keep=1)
                    base.model(input_ids=inputs, attention_mask=mask, use_cache=False, **extra)
                    states.begin(1, 1)
            finally:
                stack.spans = None
            for (_, _, place), state in zip(part, states.last_RH, strict=True):
                place.copy_(state.float())
    return rooms


def _batches(
    rows: Sequence[tuple[int, list[int], torch.Tensor]], budget: int, *, padded: bool
) -> Iterator[list[tuple[int, list[int], torch.Tensor]]]:
    """Rows of about one length, or where none may be padded, of one; at most `budget` tokens with padding, or one row.
    Within a part they are in the order of their clients.
    """
    part: list[tuple[int, list[int], torch.Tensor]] = []
    for row in sorted(rows, key=lambda row: len(row[1])):
        length = len(row[1])
        if part and ((len(part) + 1) * length > budget or (not padded and length != len(part[0][1]))):
            yield sorted(part, key=lambda row: row[0])
            part = []
        part.append(row)
    if part:
        yield sorted(part, key=lambda row: row[0])
