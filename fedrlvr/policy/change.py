"""Frozen changes of the base weights: what an aggregation rule added to them, of each client's own federation.

y = W x + D_i x for the rows of client i, where D_i = scale B A is the change of one layer's weight [d, k]. Clients of
one federation have the same change, which is held once and multiplied once for all their rows that lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedrlvr.adapter import Factors

Span = tuple[int, int, int]
"""(client, first row, row after the last): which rows of a batch, flattened to tokens, are a client's."""


class Change:
    """The change of one layer's weight, as matrices to multiply with one after another.

    The two factors [r, k] and [d, r], or their product [d, k] where that is no more numbers. Copies.
    """

    def __init__(self, factors: Factors, scale: float, device: torch.device) -> None:
        a, b = (half.detach().to(device, torch.float32, copy=True) for half in factors)
        b *= scale
        dense = a.numel() + b.numel() >= b.shape[0] * a.shape[1]
        exact: tuple[Tensor, ...] = (b @ a,) if dense else (a, b)
        self._held = {torch.float32: exact}

    def at(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The matrices in this type; each type is made once."""
        if dtype not in self._held:
            self._held[dtype] = tuple(matrix.to(dtype) for matrix in self._held[torch.float32])
        return self._held[dtype]


def changed(x: Tensor, y: Tensor, changes: Sequence[Change | None], spans: Sequence[Span] | None) -> Tensor:
    """y [N, d] + D_i x [N, k] over each client's rows, in the type of x; in place where y has it already.

    changes: by client. spans: whose the rows are; None: equal blocks of all clients. Differentiable in x and y.
    """
    result: Tensor = _Changed.apply(x, y, changes, spans)
    return result


class _Changed(torch.autograd.Function):
    """Nothing is kept for the backward pass: the matrices are frozen and D_i x is linear."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, changes: Sequence[Change | None], spans: Sequence[Span] | None
    ) -> Tensor:
        out = y if y.dtype == x.dtype else y.to(x.dtype)
        ctx.parts, ctx.y_dtype, ctx.width = _parts(changes, spans, len(x)), y.dtype, x.shape[1]
        for change, start, end in ctx.parts:
            *inner, last = change.at(x.dtype)
            low = x[start:end]
            for matrix in inner:
                low = torch.mm(low, matrix.t())
            out[start:end].addmm_(low, last.t())
        if out is y:
            ctx.mark_dirty(y)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        g = grads[0]
        if not ctx.needs_input_grad[0]:
            return None, g.to(ctx.y_dtype), None, None
        x_grad = g.new_zeros(len(g), ctx.width)
        for change, start, end in ctx.parts:
            part = g[start:end]
            for matrix in reversed(change.at(g.dtype)):
                part = torch.mm(part, matrix)
            x_grad[start:end] = part
        return x_grad, g.to(ctx.y_dtype), None, None


def _parts(changes: Sequence[Change | None], spans: Sequence[Span] | None, rows: int) -> list[tuple[Change, int, int]]:
    """(change, first row, row after the last); neighbours of one change are one part."""
    if spans is None:
        block = rows // len(changes)
        spans = [(i, i * block, (i + 1) * block) for i in range(len(changes))]
    parts: list[tuple[Change, int, int]] = []
    for client, start, end in spans:
        change = changes[client]
        if change is None:
            continue
        if parts and parts[-1][0] is change and parts[-1][2] == start:
            start = parts.pop()[1]
        parts.append((change, start, end))
    return parts
