"""Packing of groups into micro-batches: the tokens that go through the model together, and the predictions among them.

A *pack* is a prompt of one client with the responses that follow it. A micro-batch is a number of packs, either packed
(one row without padding, policy/attention.py) or padded (a row per response, its prompt repeated). The last token of a
response predicts nothing, so it is left out of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrlvr.policy.attention import Packing
from fedrlvr.policy.lora import Span
from fedrlvr.rl import Group, Origin, Response


@dataclass(frozen=True)
class Row:
    """One response to be trained on, whose log-probs are the behaviour policy's."""

    response: Response
    advantage: float

    @property
    def token_ids(self) -> Sequence[int]:
        """Token ids of the response in this row."""
        return self.response.token_ids


@dataclass(frozen=True)
class Pack:
    """A prompt of client number `client` and the responses that follow it."""

    client: int
    prompt_ids: Sequence[int]
    rows: Sequence[Row]

    @property
    def tokens(self) -> int:
        """Input tokens of the packed form."""
        return len(self.prompt_ids) + sum(len(row.token_ids) - 1 for row in self.rows)

    def split(self) -> list[Pack]:
        """A pack for each response, with a prompt of its own."""
        return [Pack(self.client, self.prompt_ids, [row]) for row in self.rows]


@dataclass(frozen=True)
class MicroBatch:
    """Tokens of one forward pass, M of which are predicted response tokens, of R responses of at most T tokens.

    ids, positions: [1, N] packed, or [R, L] padded on the right.
    predict_M: which of the flattened input tokens predicts; targets_M: what it should.
    mask_RT: 1 where response r has a token t; row by row these are the M tokens.
    client_R: whose a response is. spans: whose the flattened input tokens are.
    packing: None in the padded form.
    rows: the R responses, in order. Only where one of them is foreign, or has weights or shaping of its own: foreign_R
        says which, and weights_RT and shaping_R what the loss makes of them.
    """

    ids: Tensor
    positions: Tensor
    predict_M: Tensor
    targets_M: Tensor
    mask_RT: Tensor
    behaviour_RT: Tensor
    advantages_R: Tensor
    client_R: Tensor
    spans: list[Span]
    packing: Packing | None
    rows: Sequence[Row]
    foreign_R: Tensor | None = None
    weights_RT: Tensor | None = None
    shaping_R: Tensor | None = None


def packs_of(client: int, groups: Sequence[Group], *, keep_zero: bool) -> list[Pack]:
    """A client's groups as packs. Masked responses are left out, others without a gradient unless `keep_zero`."""
    packs = []
    for group in groups:
        rows = [
            Row(response, advantage)
            for response, advantage in zip(group.responses, group.advantages, strict=True)
            if (keep_zero or advantage != 0.0) and response.token_ids and response.treatment != "mask"
        ]
        if rows:
            packs.append(Pack(client, group.prompt_ids, rows))
    return packs


def micro_batches(
    packs: Sequence[Pack],
    budget: int,
    pad_id: int,
    device: torch.device,
    *,
    packed: bool,
    shared: bool,
    by_length: bool,
) -> Iterator[MicroBatch]:
    """Cut packs into micro-batches of at most `budget` tokens, padding included; at least one pack each.

    packed: the model can take the packed form. shared: a prompt is there once for its responses (packed form only).
    by_length: longest first, so that padding (in the packed form, that of attention only) stays small.
    """
    if not (packed and shared):
        packs = [single for pack in packs for single in pack.split()]
    if by_length:
        packs = sorted(packs, key=lambda pack: -pack.tokens)
    batch: list[Pack] = []
    total = longest = 0
    for pack in packs:
        total, longest = total + pack.tokens, max(longest, pack.tokens)
        if batch and (total if packed else (len(batch) + 1) * longest) > budget:
            yield _make(batch, pad_id, device, packed)
            batch, total, longest = [], pack.tokens, pack.tokens
        batch.append(pack)
    if batch:
        yield _make(batch, pad_id, device, packed)


def _make(packs: Sequence[Pack], pad_id: int, device: torch.device, packed: bool) -> MicroBatch:
    packs = sorted(packs, key=lambda pack: pack.client)  # a client's rows side by side
    ids, positions, spans, predict = (_packed if packed else _padded)(packs, pad_id)
    rows = [row for pack in packs for row in pack.rows]
    width = max(len(row.token_ids) for row in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    behaviour = torch.zeros(len(rows), width)
    responses = [row.response for row in rows]
    for r, response in enumerate(responses):
        mask[r, : len(response.token_ids)] = True
        behaviour[r, : len(response.logps)] = torch.tensor(response.logps)
    foreign = weights = shaping = None
    if any(r.origin is Origin.FOREIGN or r.weights is not None or r.shaping for r in responses):
        foreign = torch.tensor([response.origin is Origin.FOREIGN for response in responses]).to(device)
        shaping = torch.tensor([response.shaping for response in responses]).to(device)
        weights = torch.ones(len(rows), width)
        for r, response in enumerate(responses):
            if response.weights is not None:
                weights[r, : len(response.token_ids)] = torch.tensor(response.weights)
        weights = weights.to(device)
    return MicroBatch(
        ids=ids.to(device),
        positions=positions.to(device),
        predict_M=torch.tensor(predict).to(device),
        targets_M=torch.tensor([token for row in rows for token in row.token_ids]).to(device),
        mask_RT=mask.to(device),
        behaviour_RT=behaviour.to(device),
        advantages_R=torch.tensor([row.advantage for row in rows], dtype=torch.float32).to(device),
        client_R=torch.tensor([pack.client for pack in packs for _ in pack.rows]).to(device),
        spans=spans,
        packing=Packing.of([(len(p.prompt_ids), [len(r.token_ids) - 1 for r in p.rows]) for p in packs], device)
        if packed
        else None,
        rows=rows,
        foreign_R=foreign,
        weights_RT=weights,
        shaping_R=shaping,
    )


def _packed(packs: Sequence[Pack], pad_id: int) -> tuple[Tensor, Tensor, list[Span], list[int]]:
    """Each pack as its prompt and then its responses, one after another, all in one row."""
    ids: list[int] = []
    positions: list[int] = []
    predict: list[int] = []
    ends: dict[int, tuple[int, int]] = {}
    for pack in packs:
        start, prompt = len(ids), len(pack.prompt_ids)
        ids.extend(pack.prompt_ids)
        positions.extend(range(prompt))
        for row in pack.rows:
            predict.append(start + prompt - 1)
            predict.extend(range(len(ids), len(ids) + len(row.token_ids) - 1))
            ids.extend(row.token_ids[:-1])
            positions.extend(range(prompt, prompt + len(row.token_ids) - 1))
        ends[pack.client] = (ends.get(pack.client, (start, 0))[0], len(ids))
    spans = [(client, start, end) for client, (start, end) in ends.items()]
    return torch.tensor([ids]), torch.tensor([positions]), spans, predict


def _padded(packs: Sequence[Pack], pad_id: int) -> tuple[Tensor, Tensor, list[Span], list[int]]:
    """A row per response (each pack has one), padded on the right, where no real token attends to it."""
    width = max(pack.tokens for pack in packs)
    ids = torch.full((len(packs), width), pad_id, dtype=torch.int64)
    predict: list[int] = []
    ends: dict[int, tuple[int, int]] = {}
    for i, pack in enumerate(packs):
        (row,) = pack.rows
        ids[i, : pack.tokens] = torch.tensor([*pack.prompt_ids, *row.token_ids[:-1]])
        first = i * width + len(pack.prompt_ids) - 1
        predict.extend(range(first, first + len(row.token_ids)))
        ends[pack.client] = (ends.get(pack.client, (i * width, 0))[0], (i + 1) * width)
    spans = [(client, start, end) for client, (start, end) in ends.items()]
    return ids, torch.arange(width).expand(len(packs), -1), spans, predict
