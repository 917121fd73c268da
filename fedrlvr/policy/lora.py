"""LoRA stacked on the client axis: K adapters on one frozen model.

Each adapted layer holds A [K, r, k] and B [K, d, r]. A batch is K equal blocks of rows, client after client, so one
batched matrix product per factor serves everyone; or spans say which rows are whose. Client i's rows touch slice i
only. K = 1 is no special case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import LoraConfig
from fedrlvr.errors import ModelError

Span = tuple[int, int, int]
"""(client, first row, row after the last): which rows of a batch, flattened to tokens, are a client's."""


class StackedLinear(nn.Module):
    """A frozen linear layer with K adapters: y = W x + scale B_i A_i x for the rows of client i."""

    def __init__(self, base: nn.Linear, stack: LoraStack) -> None:
        super().__init__()
        self.base = base
        self.__dict__["_stack"] = stack  # not a submodule: the stack owns the layers, not the other way round
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., k]; flattened to tokens, the stack's spans say whose they are, or they are K equal blocks."""
        stack: LoraStack = self.__dict__["_stack"]
        if self.A is None or self.B is None or not stack.enabled:
            y: Tensor = self.base(x)
            return y
        x_Nk = x.reshape(-1, x.shape[-1])
        y_Nd = self.base(x_Nk)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.A.dtype
        update_Nd = _LowRank.apply(x_Nk.to(dtype), self.A.to(dtype), self.B.to(dtype), y_Nd, stack.scale, stack.spans)
        return update_Nd.view(*x.shape[:-1], y_Nd.shape[-1])


class _LowRank(torch.autograd.Function):
    """y += scale B_i A_i x over each client's rows, in place: y is the frozen layer's output and nobody else's.

    Orders of factors are chosen for speed: on a CPU products with a side of r columns are up to five times slower when
    r comes last in memory (measured for r = 8), so A and B^T are used as [r, .] throughout.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, y: Tensor, scale: float, spans: list[Span] | None) -> Tensor:
        """x [N, k], A [K, r, k], B [K, d, r], y [N, d]."""
        out = y if y.dtype == x.dtype else y.to(x.dtype)
        clients = A.shape[0]
        if spans is None:
            low = torch.bmm(x.view(clients, -1, x.shape[1]), A.transpose(1, 2))
            out.view(clients, -1, out.shape[1]).baddbmm_(low, B.transpose(1, 2), alpha=scale)
            low = low.view(-1, A.shape[1])
        else:
            low = x.new_empty(x.shape[0], A.shape[1])
            for i, start, end in spans:
                torch.mm(x[start:end], A[i].t(), out=low[start:end])
                out[start:end].addmm_(low[start:end], B[i].t(), alpha=scale)
        ctx.save_for_backward(x, A, B, low)
        ctx.scale, ctx.spans, ctx.y_dtype = scale, spans, y.dtype
        if out is y:
            ctx.mark_dirty(y)
        return out.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None]:
        x, A, B, low = ctx.saved_tensors
        y_grad = grads[0]
        g = y_grad.to(x.dtype).contiguous()
        B_t = B.transpose(1, 2).contiguous()
        clients, scale = A.shape[0], ctx.scale
        wants_x = ctx.needs_input_grad[0]
        if ctx.spans is None:
            xs, gs, lows = (t.view(clients, -1, t.shape[1]) for t in (x, g, low))
            g_low = torch.bmm(gs, B_t.transpose(1, 2)).mul_(scale)
            x_grad = torch.bmm(g_low, A).view_as(x) if wants_x else None
            a_grad = torch.bmm(g_low.transpose(1, 2), xs)
            b_grad = torch.bmm(lows.transpose(1, 2), gs).mul_(scale).transpose(1, 2)
            return x_grad, a_grad, b_grad, y_grad, None, None
        x_grad = torch.empty_like(x) if wants_x else None
        a_grad, b_grad_t = torch.zeros_like(A), torch.zeros_like(B_t)
        for i, start, end in ctx.spans:
            g_low = torch.mm(g[start:end], B_t[i].t()).mul_(scale)
            if x_grad is not None:
                torch.mm(g_low, A[i], out=x_grad[start:end])
            torch.mm(g_low.t(), x[start:end], out=a_grad[i])
            torch.mm(low[start:end].t(), g[start:end], out=b_grad_t[i])
        return x_grad, a_grad, b_grad_t.mul_(scale).transpose(1, 2), y_grad, None, None


class LoraStack:
    """The adapted layers of one model and the adapters seated on them.

    Raises (on construction):
        ModelError: no layer carries one of the target names, or the model has adapters already.
    """

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        self.rank = config.rank
        self.alpha = config.alpha
        self.scale = config.alpha / config.rank
        self.enabled = True
        self.spans: list[Span] | None = None
        """Whose the tokens of the batch at hand are, at most one span a client; None: equal blocks of all K clients."""
        names = _target_names(model, config)
        self.layers: dict[str, StackedLinear] = {}
        for name in names:
            parent_name, _, last = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            layer = StackedLinear(getattr(parent, last), self)
            setattr(parent, last, layer)
            self.layers[name] = layer
        self.device = next(model.parameters()).device

    @property
    def clients(self) -> int:
        """K, the number of adapters seated; 0 before `seat`."""
        first = next(iter(self.layers.values())).A
        return 0 if first is None else int(first.shape[0])

    def fresh(self, seed: int) -> Adapter:
        """A new adapter: A uniform in +-1/sqrt(k) as PEFT draws it, B zero, so that the model is unchanged."""
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for name, layer in self.layers.items():
            bound = 1 / math.sqrt(layer.base.in_features)
            a = torch.empty(self.rank, layer.base.in_features).uniform_(-bound, bound, generator=generator)
            layers[name] = Factors(a, torch.zeros(layer.base.out_features, self.rank))
        return Adapter(layers, self.alpha)

    def seat(self, adapters: Sequence[Adapter]) -> None:
        """Stack these adapters, in this order, as the K clients; copies, in float32."""
        factors = iter(self.stacked(adapters))
        for layer in self.layers.values():
            layer.A, layer.B = nn.Parameter(next(factors)), nn.Parameter(next(factors))

    def stacked(self, adapters: Sequence[Adapter]) -> list[Tensor]:
        """Copies of these adapters' factors in float32, each [K, ., .], in the order of `parameters`."""
        return [
            torch.stack([half_of(adapter.layers[name]) for adapter in adapters]).to(self.device, torch.float32)
            for name in self.layers
            for half_of in (_A, _B)
        ]

    def unseat(self) -> list[Adapter]:
        """Every client's adapter, copied to the CPU: the stack changes no more of it.

        Raises:
            ModelError: no adapters are seated.
        """
        if not self.clients:
            raise ModelError("no adapters are seated")
        layers: list[dict[str, Factors]] = [{} for _ in range(self.clients)]
        for name, layer in self.layers.items():
            assert layer.A is not None
            assert layer.B is not None
            halves = (half.detach().to("cpu", copy=True).unbind() for half in (layer.A, layer.B))
            for own, a, b in zip(layers, *halves, strict=True):
                own[name] = Factors(a, b)
        first = Adapter(layers[0], self.alpha)
        return [first, *(first.alike(own) for own in layers[1:])]

    def parameters(self) -> list[nn.Parameter]:
        """All stacked factors, each [K, ., .], in the layers' order, A before B."""
        return [half for layer in self.layers.values() for half in (layer.A, layer.B) if half is not None]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model alone: the reference policy."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True


_A, _B = attrgetter("A"), attrgetter("B")


def _target_names(model: nn.Module, config: LoraConfig) -> list[str]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if any(isinstance(module, StackedLinear) for module in model.modules()):
        raise ModelError("this model has stacked adapters already; load it afresh")
    output_embeddings: Any = getattr(model, "get_output_embeddings", None)
    head = output_embeddings() if output_embeddings else None
    if config.targets == "all-linear":
        names = [name for name, module in linear.items() if module is not head]
    else:
        names = [name for name in linear if name.rpartition(".")[2] in config.targets]
        lasts = {name.rpartition(".")[2] for name in names}
        missing = sorted(set(config.targets) - lasts)
        if missing:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ModelError(
                f"lora.targets: the model has no linear layer named {', '.join(missing)}. Its linear layers are "
                f"{', '.join(known)}."
            )
    if not names:
        raise ModelError("lora.targets: the model has no linear layer (torch.nn.Linear) to adapt")
    return names
