"""Attention over packed groups and over a decode step, registered with transformers as the implementation `fedrlvr`.

Packed: a micro-batch is one row of tokens without padding, group after group, each a prompt and then its responses.
Everything but attention works on tokens, so it never sees padding, and a prompt is there once for all its responses.
Attention moves the tokens into padded blocks: prompts attend to themselves, responses to their prompt and themselves.

Decode step: a prompt's keys and values are kept once for its responses, which the cache holds alone; reading keys and
values is what a step's attention costs, and most of them are the prompt's. Without that, with one query token per row
torch's fused kernel for CPUs takes longer than the two products, so these are batched directly.

Everything else goes to transformers' own `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "fedrlvr"


@dataclass(frozen=True)
class Packing:
    """Layout of a packed micro-batch: B prompts of at most P tokens, R responses of at most T.

    prompt_BP, response_RT: the token in each slot of the padded blocks; an unused slot names token 0.
    slot_N: the slot of each token, counted over prompt_BP and then response_RT.
    group_R: which prompt each response follows.
    lengths_B: tokens of each prompt. counts: how many responses each has.
    windows: the sliding window of each attention layer that was computed with it, in order.
    """

    prompt_BP: Tensor
    response_RT: Tensor
    slot_N: Tensor
    group_R: Tensor
    lengths_B: Tensor
    counts: list[int]
    windows: list[int | None] = field(default_factory=list)

    @staticmethod
    def of(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Packing:
        """The packing of groups given as (tokens of the prompt, tokens of each response), in this order."""
        lengths = [prompt for prompt, _ in groups]
        widest = max(width for _, responses in groups for width in responses)
        count = sum(len(responses) for _, responses in groups)
        prompt_BP = torch.zeros(len(groups), max(lengths), dtype=torch.int64)
        response_RT = torch.zeros(count, widest, dtype=torch.int64)
        slots: list[Tensor] = []
        owners: list[int] = []
        token = 0
        for b, (prompt, responses) in enumerate(groups):
            prompt_BP[b, :prompt] = torch.arange(token, token + prompt)
            slots.append(torch.arange(prompt) + b * prompt_BP.shape[1])
            token += prompt
            for width in responses:
                response_RT[len(owners), :width] = torch.arange(token, token + width)
                slots.append(torch.arange(width) + prompt_BP.numel() + len(owners) * widest)
                owners.append(b)
                token += width
        return Packing(
            prompt_BP.to(device),
            response_RT.to(device),
            torch.cat(slots).to(device),
            torch.tensor(owners).to(device),
            torch.tensor(lengths).to(device),
            [len(responses) for _, responses in groups],
        )

    @cached_property
    def allowed_RTS(self) -> Tensor:
        """Attention mask of the response slots: each attends to some of its prompt's P and its own T slots."""
        prompts, width = self.prompt_BP.shape[1], self.response_RT.shape[1]
        device = self.slot_N.device
        real_RP = torch.arange(prompts, device=device) < self.lengths_B[self.group_R].unsqueeze(1)
        before_TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        return torch.cat(
            [real_RP.unsqueeze(1).expand(-1, width, -1), before_TT.expand(len(real_RP), -1, -1)],
            dim=2,
        )

    def mask(self, dtype: torch.dtype, window: int | None) -> Tensor:
        """Additive mask [R, 1, T, P + T] of the responses, made once for all layers."""
        if (dtype, window) in self._masks:
            return self._masks[dtype, window]
        allowed_RTS = self.allowed_RTS
        if window is not None:
            prompts, width = self.prompt_BP.shape[1], self.response_RT.shape[1]
            at_T, at_P = (torch.arange(n, device=self.slot_N.device) for n in (width, prompts))
            query_RT1 = (self.lengths_B[self.group_R].unsqueeze(1) + at_T).unsqueeze(2)
            key_RS = torch.cat([at_P.expand(len(query_RT1), -1), query_RT1.squeeze(2)], dim=1)
            allowed_RTS = allowed_RTS & (query_RT1 - key_RS.unsqueeze(1) < window)
        mask = torch.zeros_like(allowed_RTS, dtype=dtype).masked_fill_(~allowed_RTS, -torch.inf).unsqueeze(1)
        self._masks[dtype, window] = mask
        return mask

    @cached_property
    def _masks(self) -> dict[tuple[torch.dtype, int | None], Tensor]:
        return {}


class _ToSlots(torch.autograd.Function):
    """Tokens [N, ...] into padded slots. Unused slots, which hold token 0, take no gradient; so the gradient of a token
    is that of its one slot, a selection instead of a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token_S: Tensor, slot_N: Tensor) -> Tensor:
        ctx.save_for_backward(slot_N)
        return x.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot_N,) = ctx.saved_tensors
        return grads[0].index_select(0, slot_N), None, None


class _FromSlots(torch.autograd.Function):
    """The padded slots [S, ...] of the tokens; the gradient of an unused slot is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot_N: Tensor) -> Tensor:
        ctx.save_for_backward(slot_N)
        ctx.slots = x.shape[0]
        return x.index_select(0, slot_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slot_N,) = ctx.saved_tensors
        grad = grads[0].new_zeros(ctx.slots, *grads[0].shape[1:])
        return grad.index_copy_(0, slot_N, grads[0].contiguous()), None


class _ToResponses(torch.autograd.Function):
    """What belongs to each prompt [B, ...], once for each of its responses [R, ...]; responses of a prompt are side by
    side, so the gradient is a sum of slices, which is faster than a scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group_R: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return x.index_select(0, group_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return torch.stack([part.sum(dim=0) for part in grads[0].split(ctx.counts)]), None, None


def _packed(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None, window: int | None
) -> Tensor:
    """query [1, H, N, D], key and value [1, KV, N, D] -> [1, N, H, D]."""
    prompts, longest = packing.prompt_BP.shape
    responses, width = packing.response_RT.shape
    token_S = torch.cat([packing.prompt_BP.flatten(), packing.response_RT.flatten()])

    def blocks(x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, heads, P, D] and [R, heads, T, D]; unused slots hold token 0, which nobody attends to."""
        moved = _ToSlots.apply(x[0].transpose(0, 1), token_S, packing.slot_N)
        first, rest = moved.split([prompts * longest, responses * width])
        shape = moved.shape[1:]
        return (
            first.view(prompts, longest, *shape).transpose(1, 2),
            rest.view(responses, width, *shape).transpose(1, 2),
        )

    def behind(x_p: Tensor, x_r: Tensor) -> Tensor:
        """Keys or values of each response: its prompt's, then its own."""
        return torch.cat([_ToResponses.apply(x_p, packing.group_R, packing.counts), x_r], dim=2)

    (q_p, q_r), (k_p, k_r), (v_p, v_r) = blocks(query), blocks(key), blocks(value)
    grouped = query.shape[1] != key.shape[1]
    if window is not None and longest > window:
        at = torch.arange(longest, device=query.device)
        distance = at.unsqueeze(1) - at
        out_p = scaled_dot_product_attention(
            q_p, k_p, v_p, attn_mask=(distance >= 0) & (distance < window), scale=scaling, enable_gqa=grouped
        )
    else:
        out_p = scaled_dot_product_attention(q_p, k_p, v_p, is_causal=True, scale=scaling, enable_gqa=grouped)
    out = out_p.transpose(1, 2).flatten(0, 1)
    if width:
        small = window if window is not None and longest + width > window else None
        out_r = scaled_dot_product_attention(
            q_r,
            behind(k_p, k_r),
            behind(v_p, v_r),
            attn_mask=packing.mask(query.dtype, small),
            scale=scaling,
            enable_gqa=grouped,
        )
        out = torch.cat([out, out_r.transpose(1, 2).flatten(0, 1)])
    return _FromSlots.apply(out, packing.slot_N).unsqueeze(0)


def _one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """query [rows, H, 1, D], key and value [rows, KV, S, D], mask [rows, 1, 1, S] -> [rows, 1, H, D]."""
    rows, heads, _, size = query.shape
    kv, length = key.shape[1:3]
    q = query.reshape(rows * kv, heads // kv, size)
    scores = torch.bmm(q, key.flatten(0, 1).transpose(1, 2)).mul_(scaling).view(rows, heads, length)
    if mask is not None:
        scores.masked_fill_(~mask.view(rows, 1, length), -torch.inf)
    probs = scores.softmax(dim=-1).view(rows * kv, heads // kv, length)
    return torch.bmm(probs, value.flatten(0, 1)).view(rows, 1, heads, value.shape[-1])


class SharedPrompts:
    """Keys and values of B prompts, kept once for the rows (responses) that are being decoded behind them.

    layers: keys and values [B, KV, P, D] of each layer. mask_BP: False on padding. filled: how many of the positions
    that `attend` gets as the rows' own count, the first ones; set it before each step.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], mask_BP: Tensor) -> None:
        self.layers = layers
        self.filled = 0
        self.bias_B1P = (
            torch.zeros_like(mask_BP, dtype=layers[0][0].dtype).masked_fill_(~mask_BP, -torch.inf).unsqueeze(1)
        )

    def seat(self, prompt_R: Tensor) -> None:
        """Set the prompt that each row follows; rows of one prompt need not stand together."""
        prompts = len(self.bias_B1P)
        counts = torch.bincount(prompt_R, minlength=prompts)
        self.most = int(counts.max())
        order = prompt_R.argsort(stable=True)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[prompt_R[order]]
        slots = prompt_R[order] * self.most + rank
        # A slot without a row computes row 0 once more, and nobody reads it.
        self.row_S = torch.zeros(prompts * self.most, dtype=torch.int64, device=order.device).index_copy_(
            0, slots, order
        )
        self.slot_R = torch.empty_like(prompt_R).index_copy_(0, order, slots)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [R, H, 1, D] behind its prompt and its own key and value [R, KV, S, D] -> [R, 1, H, D]."""
        prompt_keys, prompt_values = self.layers[layer]
        prompts, kv, length, size = prompt_keys.shape
        rows, heads = query.shape[:2]
        each = heads // kv

        def by_prompt(x_RHY: Tensor) -> Tensor:
            """[R, H, Y] -> [B KV, most each, Y]"""
            slots = x_RHY.index_select(0, self.row_S).view(prompts, self.most, kv, each, -1)
            return slots.transpose(1, 2).reshape(prompts * kv, self.most * each, -1)

        def by_row(x: Tensor) -> Tensor:
            """[B KV, most each, Y] -> [R, H, Y]"""
            slots = x.view(prompts, kv, self.most, each, -1).transpose(1, 2).reshape(prompts * self.most, heads, -1)
            return slots.index_select(0, self.slot_R)

        query = query.squeeze(2) * scaling
        of_prompt = torch.bmm(by_prompt(query), prompt_keys.flatten(0, 1).transpose(1, 2))
        of_prompt.view(prompts, -1, length).add_(self.bias_B1P)
        row_query = query.reshape(rows * kv, each, size)
        of_row = torch.bmm(row_query, key.flatten(0, 1).transpose(1, 2)).view(rows, heads, -1)
        of_row[:, :, self.filled :] = -torch.inf
        # In float32, as torch's fused kernels sum; the products may be in half precision.
        probs = torch.cat([by_row(of_prompt), of_row], dim=2).softmax(dim=2, dtype=torch.float32).to(query.dtype)
        at_prompt = by_row(torch.bmm(by_prompt(probs[:, :, :length]), prompt_values.flatten(0, 1)))
        at_row = torch.bmm(probs[:, :, length:].reshape(rows * kv, each, -1), value.flatten(0, 1))
        return at_prompt.add_(at_row.view(rows, heads, value.shape[-1])).unsqueeze(1)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    shared_prompts: SharedPrompts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in the interface of transformers: [rows, H, tokens, D] in, [rows, tokens, H, D] out."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if shared_prompts is not None:
        layer: Any = module.layer_idx
        return shared_prompts.attend(layer, query, key, value, scaling), None
    if packing is not None:
        packing.windows.append(kwargs.get("sliding_window"))
        return _packed(query, key, value, packing, scaling, kwargs.get("sliding_window")), None
    single = query.shape[2] == 1 and query.dtype == torch.float32 and query.device.type == "cpu"
    if single and not torch.is_grad_enabled() and (attention_mask is None or attention_mask.dtype == torch.bool):
        return _one_query(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def no_mask(ids: Tensor) -> Tensor:
    """Four-dimensional mask that transformers passes on as it is; the packing says which tokens attend to which."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)


def use_own_attention(model: Any) -> bool:
    """Replace a model's `sdpa` attention by ours; returns whether that was done. Other implementations stay."""
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)
