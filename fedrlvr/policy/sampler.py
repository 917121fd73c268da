"""Sampling for a whole cohort: our own decode loop over the model, one row per response.

Rows are K equal blocks, client after client, left-padded; a client with fewer prompts than the longest has blank rows
that are never read. Each prompt is prefilled once and its cache copied for its G responses. Rows that ended leave the
batch as soon as half of it has ended.

Every token is drawn by inverting the distribution at one uniform number, and a client's numbers [responses, tokens]
are drawn beforehand from its own seed. So what a client samples depends on its seed, adapter and prompts, and on
nobody else's (up to float rounding in the logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrlvr.config import SamplingConfig
from fedrlvr.errors import DataError
from fedrlvr.policy.base import Base
from fedrlvr.policy.cache import FilledLayer, expand, whole_cache
from fedrlvr.policy.lora import LoraStack
from fedrlvr.rl import Response


@dataclass(frozen=True)
class Decoding:
    """How to draw. temperature 0 is greedy."""

    responses: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @staticmethod
    def of(config: SamplingConfig) -> Decoding:
        """The decoding of training samples."""
        return Decoding(config.group_size, config.max_new_tokens, config.temperature, config.top_p, config.top_k)


@torch.inference_mode()
def sample(
    base: Base,
    stack: LoraStack,
    prompts: Sequence[Sequence[Sequence[int]]],
    decoding: Decoding,
    seeds: Sequence[int],
    *,
    decode_rows: int = 1024,
) -> list[list[list[Response]]]:
    """Responses by client, prompt and draw: `out[i][p][g]`.

    prompts: for each of the K seated clients its prompts' token ids; the numbers of prompts may differ.
    seeds: one per client.
    decode_rows: responses decoded side by side; a client's prompts are taken in slices that keep to it.

    Raises:
        DataError: a prompt and its longest response do not fit the model.
    """
    longest = max((len(ids) for client in prompts for ids in client), default=0)
    if longest + decoding.max_new_tokens > base.max_length:
        raise DataError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens = {decoding.max_new_tokens} exceed the model's "
            f"{base.max_length} positions. Lower max_new_tokens or leave long problems out."
        )
    uniforms = [
        torch.rand(
            len(client) * decoding.responses,
            decoding.max_new_tokens,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
        for client, seed in zip(prompts, seeds, strict=True)
    ]
    width = max(1, decode_rows // (len(prompts) * decoding.responses))
    out: list[list[list[Response]]] = [[] for _ in prompts]
    for start in range(0, max(map(len, prompts), default=0), width):
        window = slice(start, start + width)
        draws = slice(start * decoding.responses, (start + width) * decoding.responses)
        part = _decode(base, stack, [c[window] for c in prompts], decoding, [u[draws] for u in uniforms])
        for mine, new in zip(out, part, strict=True):
            mine.extend(new)
    return out


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [rows, longest], padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def position_ids(mask: Tensor) -> Tensor:
    """Positions of left-padded rows: the first real token is at 0."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _decode(
    base: Base,
    stack: LoraStack,
    prompts: list[Sequence[Sequence[int]]],
    decoding: Decoding,
    uniforms: list[Tensor],
) -> list[list[list[Response]]]:
    clients, responses = len(prompts), decoding.responses
    per_client = max(map(len, prompts))
    blank = next(row for client in prompts for row in client)
    padded = [row for client in prompts for row in [*client, *[blank] * (per_client - len(client))]]
    ids, mask = left_pad(padded, base.pad_id, base.device)
    output = base.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        past_key_values=whole_cache(),
        use_cache=True,
        logits_to_keep=1,
    )
    logits = output.logits[:, -1].repeat_interleave(responses, dim=0)
    cache = expand(output.past_key_values, repeats=responses, new_tokens=decoding.max_new_tokens)
    mask = mask.repeat_interleave(responses, dim=0)
    mask = torch.cat([mask, mask.new_ones(len(mask), decoding.max_new_tokens)], dim=1)
    next_position = position_ids(mask)[:, ids.shape[1]]

    rows = per_client * responses  # of one client
    total = clients * rows
    u = torch.zeros(total, decoding.max_new_tokens, dtype=torch.float64)
    alive = torch.zeros(total, dtype=torch.bool)
    for i, client_u in enumerate(uniforms):
        u[i * rows : i * rows + len(client_u)] = client_u
        alive[i * rows : i * rows + len(client_u)] = True
    u = u.to(base.device)
    tokens = torch.zeros(total, decoding.max_new_tokens, dtype=torch.int64)
    logps = torch.zeros(total, decoding.max_new_tokens)
    lengths = torch.zeros(total, dtype=torch.int64)
    finished = torch.zeros(total, dtype=torch.bool)
    eos = torch.tensor(sorted(base.eos_ids))
    where = torch.arange(total)  # the response each row of the batch belongs to

    for step in range(decoding.max_new_tokens):
        chosen, chosen_logps = _draw(logits, u[where.to(base.device), step], decoding)
        chosen_cpu, live = chosen.cpu(), alive[where]
        tokens[where[live], step] = chosen_cpu[live]
        logps[where[live], step] = chosen_logps.cpu()[live]
        lengths[where[live]] = step + 1
        ended = where[live & torch.isin(chosen_cpu, eos)]
        finished[ended] = True
        alive[ended] = False
        if not bool(alive.any()) or step + 1 == decoding.max_new_tokens:
            break
        keep = _compact(alive[where].view(clients, -1))
        if keep is not None:
            where = where[keep]
            keep = keep.to(base.device)
            chosen, mask, next_position = chosen[keep], mask[keep], next_position[keep]
            for layer in cache.layers:
                assert isinstance(layer, FilledLayer)
                layer.keep(keep)
        output = base.model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask[:, : ids.shape[1] + step + 1],
            position_ids=next_position.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        next_position = next_position + 1

    out: list[list[list[Response]]] = []
    for i, client in enumerate(prompts):
        groups = []
        for p in range(len(client)):
            first = i * rows + p * responses
            groups.append(
                [_response(base, r, tokens, logps, lengths, finished) for r in range(first, first + responses)]
            )
        out.append(groups)
    return out


def _draw(logits: Tensor, u: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """The token at quantile u of each row, and its log-prob under the whole tempered distribution."""
    logits = logits.float()
    if decoding.temperature == 0:
        chosen = logits.argmax(dim=-1)
        return chosen, torch.log_softmax(logits, dim=-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
    logps = torch.log_softmax(logits / decoding.temperature, dim=-1)
    probs = _truncate(logps, decoding).exp().double()
    cumulative = probs.cumsum(dim=-1)
    # The last entry stands for 1: scaling u by it keeps rounding from pointing past the end or at a cut token.
    target = (u * cumulative[:, -1]).unsqueeze(1)
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return chosen.squeeze(1), logps.gather(1, chosen).squeeze(1)


def _truncate(logps: Tensor, decoding: Decoding) -> Tensor:
    """Log-probs with everything outside top-k and top-p at minus infinity; the likeliest token always stays."""
    if 0 < decoding.top_k < logps.shape[-1]:
        least = logps.topk(decoding.top_k, dim=-1).values[:, -1:]
        logps = logps.masked_fill(logps < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, order = torch.log_softmax(logps, dim=-1).sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= decoding.top_p)
        logps = logps.masked_fill(cut, -torch.inf)
    return logps


def _compact(alive_KN: Tensor) -> Tensor | None:
    """Rows to keep (equal blocks, each client's living rows first), or None while that would not halve the batch."""
    clients, rows = alive_KN.shape
    most = int(alive_KN.sum(dim=1).max())
    if most * 2 > rows:
        return None
    living_first = alive_KN.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return (living_first + torch.arange(clients).unsqueeze(1) * rows).flatten()


def _response(base: Base, row: int, tokens: Tensor, logps: Tensor, lengths: Tensor, finished: Tensor) -> Response:
    length = int(lengths[row])
    ids = tokens[row, :length].tolist()
    return Response(
        token_ids=ids, logps=logps[row, :length].tolist(), text=base.decode(ids), finished=bool(finished[row])
    )
