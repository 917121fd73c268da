"""The sampler of this process: a decode loop over the base model for a whole cohort, one row per response.

Rows lie client after client, prompts padded on the left. Each prompt is prefilled once, and its keys and values are
kept once for its G responses where the model allows it, else copied. Rows that ended leave the batch when enough of
them have; until then they go on drawing tokens that nobody reads.

On a GPU a step is captured as a CUDA graph and replayed. A graph lives no longer than its batch, so it never outlives
the adapters it was captured with. Such batches are equal blocks of all clients: one with fewer rows than the longest
has blank ones that are never read, and one LoRA product serves everyone.

Every token is drawn by inverting the distribution at one uniform number, and a client's numbers [responses, tokens]
are drawn beforehand from its own seed. So what a client samples depends on its seed, adapter and prompts, and on
nobody else's (up to float rounding in the logits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrlvr.config import EngineConfig
from fedrlvr.errors import ModelError
from fedrlvr.policy.attention import SharedPrompts, no_mask
from fedrlvr.policy.base import Base
from fedrlvr.policy.cache import RowCache, cache_argument, optional, prompt_cache
from fedrlvr.policy.capabilities import can_capture, can_share_prompts, wants_static
from fedrlvr.policy.forward import autocast
from fedrlvr.policy.hidden_states import HiddenStates, RowStates
from fedrlvr.policy.lora import LoraStack, Span
from fedrlvr.policy.sampler import ClientSamples, Decoding, SampledResponse, SampleRequest
from fedrlvr.policy.stops import StopStrings, StopWatch

BLOCK = 128
"""Entries of a vocabulary that a draw adds up at once."""
BELOW_ONE = 1 - 2**-53
"""Largest quantile at which a token is drawn."""
COMPACT_AT, COMPACT_EQUAL_AT = 0.8, 0.5
"""Rows leave when this share or less would stay. Equal blocks wait for the client with the most living rows: there
shares from 0.5 to 0.95 cost the same within 3 % on the embedded reasoner, and fewer compactions are fewer captures.
"""
CAPTURE_WORTH = 32
"""Steps that must be left for a smaller batch to be captured anew: doing so takes two steps at the pace of Python."""
LOOK_EVERY = {"cuda": 8}
"""Steps between looks at which rows ended: 1, but more where a look waits for all that was launched."""


class DecodeSampler:
    """The `Sampler` of the adapters that are seated on `stack`.

    engine: `decode_rows` responses go side by side, a client's prompts in slices that keep to it; `prefill_once`,
        `shared_cache`, `compact`, `decode_cache` and `autocast` are read here too.
    """

    rounds_otherwise = False
    description = "the decode loop of this process (engine.sampler = 'loop')"

    def __init__(self, base: Base, stack: LoraStack, engine: EngineConfig) -> None:
        self.base, self.stack, self.engine = base, stack, engine

    def sample(self, request: SampleRequest) -> dict[str, ClientSamples]:
        """Draw the responses by the decode loop, for all clients at once.

        Raises:
            DataError: a prompt and its longest response do not fit the model.
            ModelError: hidden states are wanted, and the model has no output head of which the input could be read.
        """
        prompts, decoding = list(request.prompts.values()), request.decoding
        assert len(prompts) == self.stack.clients, "one list of prompts for each seated client"
        request.check_lengths(self.base.max_length)
        states: Sequence[HiddenStates | None] = [None] * len(prompts)
        if request.hidden_states:
            states = [HiddenStates.room(self.base, len(client), decoding.responses) for client in prompts]
        with autocast(self.base, self.engine):
            seeds = [request.seeds[client] for client in request.prompts]
            drawn = self._sample(prompts, decoding, seeds, states, request.stops)
        return {
            client: ClientSamples(responses, client_states)
            for client, responses, client_states in zip(request.prompts, drawn, states, strict=True)
        }

    @torch.inference_mode()
    def _sample(
        self,
        prompts: Sequence[Sequence[Sequence[int]]],
        decoding: Decoding,
        seeds: Sequence[int],
        states: Sequence[HiddenStates | None],
        stops: StopStrings | None,
    ) -> list[list[list[SampledResponse]]]:
        """Responses by client, prompt and draw; `states` are written to, if there are any."""
        uniforms = [
            torch.rand(
                len(client) * decoding.responses,
                decoding.max_new_tokens,
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float64,
            )
            for client, seed in zip(prompts, seeds, strict=True)
        ]
        wanted = [client_states for client_states in states if client_states is not None]
        width = max(1, self.engine.decode_rows // (len(prompts) * decoding.responses))
        out: list[list[list[SampledResponse]]] = [[[] for _ in client] for client in prompts]
        for places in _windows(prompts, width, padded=self.base.decoding != "own-unpadded"):
            now = [[client[i] for i in at] for client, at in zip(prompts, places, strict=True)]
            u = [
                of_client.view(len(client), decoding.responses, decoding.max_new_tokens)[at].flatten(0, 1)
                for of_client, client, at in zip(uniforms, prompts, places, strict=True)
            ]
            try:
                with RowStates(self.base) if wanted else nullcontext() as row_states:
                    part, starts = self._decode(now, decoding, u, row_states, stops)
            finally:
                self.stack.spans = None
            if row_states is not None:
                row_states.hand_out(wanted, places, starts)
            for responses, at, more in zip(out, places, part, strict=True):
                for i, drawn in zip(at, more, strict=True):
                    responses[i] = drawn
        return out

    def _decode(
        self,
        prompts: Sequence[Sequence[Sequence[int]]],
        decoding: Decoding,
        uniforms: list[Tensor],
        states: RowStates | None,
        stops: StopStrings | None,
    ) -> tuple[list[list[list[SampledResponse]]], list[int]]:
        """The responses, and the row at which each client's begin."""
        base, engine = self.base, self.engine
        clients, responses, new_tokens = len(prompts), decoding.responses, decoding.max_new_tokens
        equal = _static(base, engine)
        most, blank = max(map(len, prompts)), next(row for client in prompts for row in client)
        flat: list[Sequence[int]] = []
        owners: list[int] = []
        starts: list[int] = []
        for i, client in enumerate(prompts):
            starts.append(len(flat) * responses)
            flat += [*client, *[blank] * (most - len(client) if equal else 0)]
            owners += [i] * (len(flat) - len(owners))
        rows = len(flat) * responses
        u = torch.zeros(rows, new_tokens, dtype=torch.float64)
        ended = torch.ones(rows, dtype=torch.bool)
        for start, client_u in zip(starts, uniforms, strict=True):
            u[start : start + len(client_u)] = client_u
            ended[start : start + len(client_u)] = False

        batch = _Batch(base, self.stack, flat, torch.tensor(owners), decoding, engine, u, ended, states)
        tokens = torch.zeros(rows, new_tokens, dtype=torch.int64)
        logps = torch.zeros(rows, new_tokens)
        watch = StopWatch(stops, base.eos_ids, ended, new_tokens) if stops is not None else None
        if watch is not None and states is not None:
            batch.look_every = 1  # the states of a row that ended must not change any more
        for step in range(1, new_tokens + 1):
            if step == new_tokens or step % batch.look_every == 0:
                if watch is not None:
                    batch.ended |= watch.look(batch.where, batch.tokens, step).to(batch.ended.device)
                alive = ~batch.ended.cpu()
                if step == new_tokens or not bool(alive.any()):
                    break
                if engine.compact and new_tokens - step >= batch.least_steps_left:
                    keep = _compact_blocks(alive.view(clients, -1)) if equal else _compact(alive)
                    if keep is not None:
                        batch.write(tokens, logps)
                        batch.keep(keep)
            batch.advance()
        batch.write(tokens, logps)

        # Tokens after a row's end were drawn for nothing, because the row had not left the batch yet.
        ends = torch.isin(tokens, _end_ids(base, decoding))
        until = torch.where(ends.any(dim=1), ends.int().argmax(dim=1) + 1, new_tokens + 1)
        until = until if watch is None else torch.minimum(until, watch.lengths)
        finished, lengths = (until <= new_tokens).tolist(), until.clamp(max=new_tokens).tolist()
        ids, lps = tokens.tolist(), logps.tolist()

        def response(row: int) -> SampledResponse:
            return SampledResponse(ids[row][: lengths[row]], lps[row][: lengths[row]], finished[row])

        out: list[list[list[SampledResponse]]] = []
        for start, client in zip(starts, prompts, strict=True):
            firsts = [start + p * responses for p in range(len(client))]
            out.append([[response(row) for row in range(first, first + responses)] for first in firsts])
        return out, starts


def _end_ids(base: Base, decoding: Decoding) -> Tensor:
    return torch.tensor([] if decoding.past_end else sorted(base.eos_ids), dtype=torch.int64)


def _static(base: Base, engine: EngineConfig) -> bool:
    """Whether steps have fixed shapes; a cache of transformers' own grows."""
    return base.decoding == "filled" and wants_static(engine.decode_cache, base.model)


def _windows(prompts: Sequence[Sequence[Sequence[int]]], width: int, *, padded: bool) -> Iterator[list[list[int]]]:
    """Places of the prompts that are decoded together, by client, at most `width` each.

    padded: in their order. Otherwise those of one length.
    """
    if padded:
        for start in range(0, max(map(len, prompts), default=0), width):
            yield [list(range(start, min(start + width, len(client)))) for client in prompts]
        return
    for length in sorted({len(ids) for client in prompts for ids in client}):
        alike = [[i for i, ids in enumerate(client) if len(ids) == length] for client in prompts]
        for start in range(0, max(map(len, alike)), width):
            yield [places[start : start + width] for places in alike]


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


class _Batch:
    """The rows being decoded, R of them. All that a step changes lies in tensors that stay where they are.

    where_R: the response each row belongs to. owner_R: its client. u_RT: the uniforms to draw at. tokens_RT, logps_RT:
    what was drawn. last_R: the token drawn last. ended_R: whether an end token was. mask_RS: False where the prompt is
    padding. positions_R: of the next token. drawn, at: [1], tokens drawn and cache positions filled. prompt_R, where
    prompts are shared: which prompt each row follows. states: what the rows' newest tokens were drawn from, if wanted.
    """

    def __init__(
        self,
        base: Base,
        stack: LoraStack,
        prompts: list[Sequence[int]],
        owners: Tensor,
        decoding: Decoding,
        engine: EngineConfig,
        u: Tensor,
        ended: Tensor,
        states: RowStates | None = None,
    ) -> None:
        """Prefill the prompts, `decoding.responses` rows each, and draw every row's first token."""
        self.base, self.stack, self.decoding, self.states = base, stack, decoding, states
        repeats = decoding.responses
        self.owner = owners.repeat_interleave(repeats)
        if not engine.prefill_once:
            prompts, owners = [row for row in prompts for _ in range(repeats)], self.owner
            repeats = 1
        ids, mask = left_pad(prompts, base.pad_id, base.device)
        stack.spans = spans_of(owners, stack.clients, ids.shape[1])
        empty: Any = prompt_cache(base.model, base.decoding)
        output = base.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            **{cache_argument(base.model): empty},
            **optional(base.model, position_ids=position_ids(mask), logits_to_keep=1),
        )
        prefill = output.get(cache_argument(base.model)) or empty
        if states is not None:
            states.begin(repeats, decoding.responses)
        stack.spans = spans_of(self.owner, stack.clients, 1)
        static = _static(base, engine)
        longest = ids.shape[1] + decoding.max_new_tokens
        share = engine.shared_cache and engine.prefill_once and not static
        share = share and base.shares and can_share_prompts(base.model, longest)
        self.captures = static and can_capture(base.device)
        self.look_every = LOOK_EVERY.get(base.device.type, 1)
        self.least_steps_left = CAPTURE_WORTH if self.captures else 1
        self.replay: Callable[[], None] | None = None

        self.where = torch.arange(len(u))
        self.u = u.to(base.device)
        self.ended = ended.to(base.device)
        self.tokens = torch.zeros(len(u), decoding.max_new_tokens, dtype=torch.int64, device=base.device)
        self.logps = torch.zeros(len(u), decoding.max_new_tokens, device=base.device)
        self.last = self.tokens[:, 0].clone()
        self.drawn = torch.zeros(1, dtype=torch.int64, device=base.device)
        self.at = torch.full_like(self.drawn, ids.shape[1])
        self.eos = _end_ids(base, decoding).to(base.device)
        prompts_mask = mask.bool()
        mask = prompts_mask.repeat_interleave(repeats, dim=0)
        self.positions = mask.sum(dim=1)
        self.mask = torch.cat([mask, mask.new_ones(len(mask), decoding.max_new_tokens)], dim=1)
        self.shared: SharedPrompts | None = None
        if share:
            kept = [(layer.keys, layer.values) for layer in prefill.layers]
            self.shared = SharedPrompts(kept, prompts_mask)
            self.prompt = torch.arange(len(prompts), device=base.device).repeat_interleave(repeats)
            self.shared.seat(self.prompt)
        self.filled = ids.shape[1]
        self.cache = RowCache(
            prefill,
            base.decoding,
            repeats=repeats,
            new_tokens=decoding.max_new_tokens,
            at=self.at if static else None,
            prompts_apart=share,
        )
        self._take(output.logits[:, -1].repeat_interleave(repeats, dim=0))

    def advance(self) -> None:
        """One more token of every row."""
        if self.replay is not None:
            self.replay()
            return
        self._step()
        if self.captures:  # the step just taken was the graph's trial run and a token as well
            self.replay = capture(self._step, self.base.name)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only, in this order."""
        self.replay = None  # it holds the memory that is let go here
        self.where, self.owner = self.where[rows], self.owner[rows]
        self.stack.spans = spans_of(self.owner, self.stack.clients, 1)
        rows = rows.to(self.base.device)
        for name in ("u", "ended", "tokens", "logps", "last", "mask", "positions"):
            setattr(self, name, getattr(self, name)[rows])
        self.cache.keep(rows)
        if self.shared is not None:
            self.prompt = self.prompt[rows]
            self.shared.seat(self.prompt)
        if self.states is not None:
            self.states.keep(rows)

    def write(self, tokens: Tensor, logps: Tensor) -> None:
        """Write what was drawn to its responses' rows of [all responses, T]."""
        tokens[self.where] = self.tokens.cpu()
        logps[self.where] = self.logps.cpu()
        if self.states is not None:
            self.states.write(self.where)

    def _step(self) -> None:
        if self.shared is not None:
            self.shared.filled += 1
            how: dict[str, Any] = {"attention_mask": no_mask(self.last), "shared_prompts": self.shared}
        else:
            self.filled += 1
            how = self.cache.masked(self.mask, self.filled)
        base = self.base
        output = base.model(
            input_ids=self.last.unsqueeze(1),
            use_cache=True,
            **{cache_argument(base.model): self.cache.cache},
            **optional(base.model, position_ids=self.positions.unsqueeze(1), logits_to_keep=1),
            **how,
        )
        self.at += 1
        self.positions += 1
        if self.states is not None:
            self.states.advance(self.ended)
        self._take(output.logits[:, -1])

    def _take(self, logits: Tensor) -> None:
        chosen, logps = _draw(logits, self.u.index_select(1, self.drawn).squeeze(1), self.decoding)
        self.last.copy_(chosen)
        self.tokens.index_copy_(1, self.drawn, chosen.unsqueeze(1))
        self.logps.index_copy_(1, self.drawn, logps.unsqueeze(1))
        self.ended |= (chosen.unsqueeze(1) == self.eos).any(dim=1)
        self.drawn += 1


def capture(step: Callable[[], None], name: str) -> Callable[[], None]:
    """Record one `step`, without running it; the result runs it again on the same memory.

    `step` must have run once before, so that libraries have allocated what they keep.

    Raises:
        ModelError: the step does something that a graph cannot hold. name: of the model, for the message.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: another thread of this process, a grader's say, may use the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        raise ModelError(
            f"{name}: its decode step cannot be recorded as a CUDA graph ({str(error).splitlines()[0][:200]}). Set "
            "engine.decode_cache = 'growing'."
        ) from error
    return graph.replay


def _draw(logits: Tensor, u: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """The token at quantile u of each row, and its log-prob under the whole tempered distribution."""
    logits = logits.float()
    if decoding.temperature not in (0.0, 1.0):
        logits = logits / decoding.temperature
    probs = logits.softmax(dim=-1)
    if decoding.temperature == 0:
        chosen = logits.argmax(dim=-1)
    elif decoding.top_k or decoding.top_p < 1:
        chosen = _invert(_truncate(logits.log_softmax(dim=-1), decoding).exp(), u)
    else:
        chosen = _invert(probs, u)
    return chosen, probs.gather(1, chosen.unsqueeze(1)).squeeze(1).log()


def _invert(weights_RV: Tensor, u_R: Tensor) -> Tensor:
    """The entry of each row at which its running sum passes the share u of the whole; never one of weight zero.

    Running sums are in double precision. Over a whole vocabulary they cost more than its softmax, so sums of blocks say
    which block to look into.
    """
    width = weights_RV.shape[1]
    if width <= BLOCK:
        cumulative = weights_RV.double().cumsum(dim=1)
        # The last entry stands for 1: scaling u by it keeps rounding from pointing past the end or at a cut token.
        return _passes(cumulative, u_R * cumulative[:, -1])
    blocks_RNB = pad(weights_RV, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    sums_RN = blocks_RNB.sum(dim=2).double()
    cumulative = sums_RN.cumsum(dim=1)
    target = u_R * cumulative[:, -1]
    block_R = _passes(cumulative, target)
    at = block_R.unsqueeze(1)
    block_sum = sums_RN.gather(1, at).squeeze(1)
    inside = (target - cumulative.gather(1, at).squeeze(1) + block_sum) / block_sum
    entries_RB = blocks_RNB.gather(1, at.unsqueeze(2).expand(-1, -1, BLOCK)).squeeze(1)
    return block_R * BLOCK + _invert(entries_RB, inside.clamp(0, BELOW_ONE))


def _passes(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first entry of each row above its target."""
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1).clamp(max=cumulative.shape[1] - 1)


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


def _compact(alive_R: Tensor) -> Tensor | None:
    """Living rows, or None while too many would stay."""
    rows = alive_R.nonzero().flatten()
    return None if len(rows) > COMPACT_AT * len(alive_R) else rows


def _compact_blocks(alive_KN: Tensor) -> Tensor | None:
    """Rows to keep (equal blocks, each client's living rows first), or None while too many would stay."""
    clients, rows = alive_KN.shape
    most = int(alive_KN.sum(dim=1).max())
    if most > COMPACT_EQUAL_AT * rows:
        return None
    living_first = alive_KN.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return (living_first + torch.arange(clients).unsqueeze(1) * rows).flatten()


def spans_of(owner_R: Tensor, clients: int, width: int) -> list[Span] | None:
    """Owners of the tokens of R rows of `width` tokens; None where they are equal blocks of all clients."""
    owners, counts = owner_R.unique_consecutive(return_counts=True)
    if len(owners) == clients and bool((counts == counts[0]).all()):
        return None
    ends = (counts.cumsum(0) * width).tolist()
    return list(zip(owners.tolist(), [0, *ends[:-1]], ends, strict=True))
