"""LoRA stacked on the client axis: K adapters on one frozen model.

Each adapted layer holds A [K, r, k] and B [K, d, r]. A batch is K equal blocks of rows, client after client, so one
batched matrix product per factor serves everyone; or spans say which rows are whose. Client i's rows touch slice i
only. K = 1 is no special case. An adapter of a lower rank than the largest has zero components up to it, which stay
zero in training: the gradient of each half of such a component is a product with the other half.

An aggregation rule may have added a frozen change D_i to the base weights of client i's federation. Clients of one
federation have the same change, which is held once and multiplied once for all their rows that lie side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedrlvr.adapter import Adapter, Factors, Halves, fresh
from fedrlvr.config import LoraConfig
from fedrlvr.errors import AdapterError, ModelError
from fedrlvr.policy.cache import cache_argument, prompt_cache

Span = tuple[int, int, int]
"""(client, first row, row after the last): which rows of a batch, flattened to tokens, are a client's."""


class StackedLinear(nn.Module):
    """A frozen linear layer with K adapters: y = W x + D_i x + scale_i B_i A_i x for the rows of client i.

    D_i, if any, is the frozen change of the base weight that client i's federation made.
    """

    def __init__(self, base: nn.Linear, stack: LoraStack) -> None:
        super().__init__()
        self.base = base
        self.__dict__["_stack"] = stack  # not a submodule: the stack owns the layers, not the other way round
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None
        self.changes: list[Change | None] | None = None  # None where no client has one

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for code that asks for its type or device (what multiplies by it is not adapted)."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """Frozen bias of the layer, if it has one."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., k]: flattened to tokens, whose spans name their clients, or in K equal blocks."""
        stack: LoraStack = self.__dict__["_stack"]
        if self.A is None or self.B is None or not stack.enabled:
            y: Tensor = self.base(x)
            return y
        x_Nk = x.reshape(-1, x.shape[-1])
        y_Nd = self.base(x_Nk)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.A.dtype
        x_Nk, y_dtype = x_Nk.to(dtype), y_Nd.dtype
        if self.changes is not None:
            y_Nd = changed(x_Nk, y_Nd, self.changes, stack.spans)
        update_Nd = _LowRank.apply(x_Nk, self.A.to(dtype), self.B.to(dtype), y_Nd, stack.scales, stack.spans)
        return update_Nd.to(y_dtype).view(*x.shape[:-1], y_Nd.shape[-1])


class _Scales:
    """scale_i of each client, and in the form that a batched product takes: one number, or [K, 1, 1] if they differ."""

    def __init__(self, scales: Sequence[float], device: torch.device) -> None:
        self.each = list(scales)
        alike = all(scale == scales[0] for scale in scales)
        self.all: float | Tensor = self.each[0] if alike else torch.tensor(self.each, device=device).view(-1, 1, 1)


class _LowRank(torch.autograd.Function):
    """y += scale_i B_i A_i x over each client's rows, in place: y is the frozen layer's output and nobody else's.

    Orders of factors are chosen for speed: on a CPU products with a side of r columns are up to five times slower when
    r comes last in memory (measured for r = 8), so A and B^T are used as [r, .] throughout. A frozen factor costs no
    product.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, y: Tensor, scales: _Scales, spans: list[Span] | None
    ) -> Tensor:
        """x [N, k], A [K, r, k], B [K, d, r], y [N, d]."""
        out = y if y.dtype == x.dtype else y.to(x.dtype)
        clients = A.shape[0]
        if spans is None:
            low = torch.bmm(x.view(clients, -1, x.shape[1]), A.transpose(1, 2))
            blocks = out.view(clients, -1, out.shape[1])
            if isinstance(scales.all, Tensor):
                blocks.baddbmm_((low * scales.all).to(low.dtype), B.transpose(1, 2))
            else:
                blocks.baddbmm_(low, B.transpose(1, 2), alpha=scales.all)
            low = low.view(-1, A.shape[1])
        else:
            low = x.new_empty(x.shape[0], A.shape[1])
            for i, start, end in spans:
                torch.mm(x[start:end], A[i].t(), out=low[start:end])
                out[start:end].addmm_(low[start:end], B[i].t(), alpha=scales.each[i])
        wants_a, wants_b = ctx.needs_input_grad[1:3]
        ctx.save_for_backward(x if wants_a else None, A, B, low if wants_b else None)
        ctx.scales, ctx.spans, ctx.y_dtype, ctx.x_dtype = scales, spans, y.dtype, x.dtype
        if out is y:
            ctx.mark_dirty(y)
        return out.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, None, None]:
        x, A, B, low = ctx.saved_tensors
        y_grad = grads[0]
        g = y_grad.to(ctx.x_dtype).contiguous()
        B_t = B.transpose(1, 2).contiguous()
        clients, scales = A.shape[0], ctx.scales
        wants_x, wants_a, wants_b = ctx.needs_input_grad[:3]
        x_grad = a_grad = b_grad = None
        if ctx.spans is None:
            gs = g.view(clients, -1, g.shape[1])
            if wants_x or wants_a:
                g_low = torch.bmm(gs, B_t.transpose(1, 2)).mul_(scales.all)
                x_grad = torch.bmm(g_low, A).view(-1, A.shape[2]) if wants_x else None
                a_grad = torch.bmm(g_low.transpose(1, 2), x.view(clients, -1, x.shape[1])) if wants_a else None
            if wants_b:
                lows = low.view(clients, -1, low.shape[1])
                b_grad = torch.bmm(lows.transpose(1, 2), gs).mul_(scales.all).transpose(1, 2)
            return x_grad, a_grad, b_grad, y_grad, None, None
        if wants_x:
            whole = sum(end - start for _, start, end in ctx.spans) == len(g)
            x_grad = (torch.empty if whole else torch.zeros)(len(g), A.shape[2], dtype=g.dtype, device=g.device)
        a_grad = torch.zeros_like(A) if wants_a else None
        b_grad_t = torch.zeros_like(B_t) if wants_b else None
        for i, start, end in ctx.spans:
            if wants_x or wants_a:
                g_low = torch.mm(g[start:end], B_t[i].t()).mul_(scales.each[i])
            if x_grad is not None:
                torch.mm(g_low, A[i], out=x_grad[start:end])
            if a_grad is not None:
                torch.mm(g_low.t(), x[start:end], out=a_grad[i])
            if b_grad_t is not None:
                torch.mm(low[start:end].t(), g[start:end], out=b_grad_t[i])
        if b_grad_t is not None:
            b_grad = b_grad_t.mul_(scales.all).transpose(1, 2)
        return x_grad, a_grad, b_grad, y_grad, None, None


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
        """The matrices in this type; each type is computed once."""
        if dtype not in self._held:
            with torch.inference_mode(False):  # a tensor made while sampling could not be trained through
                self._held[dtype] = tuple(matrix.to(dtype) for matrix in self._held[torch.float32])
        return self._held[dtype]


def changed(x: Tensor, y: Tensor, changes: Sequence[Change | None], spans: Sequence[Span] | None) -> Tensor:
    """y [N, d] + D_i x [N, k] over each client's rows, in the type of x; in place where y has it already.

    changes: by client. spans: whose the rows are; None: equal blocks of all clients. Differentiable in x and y: the
    matrices are frozen, so that autograd keeps nothing else.
    """
    y = y.to(x.dtype)
    for change, start, end in _parts(changes, spans, len(x)):
        *inner, last = change.at(x.dtype)
        low = x[start:end]
        for matrix in inner:
            low = torch.mm(low, matrix.t())
        y[start:end].addmm_(low, last.t())
    return y


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


class LoraStack:
    """The adapted layers of one model and the adapters seated on them.

    Raises (on construction):
        ModelError: no layer carries one of the target names, or the model has adapters already.
    """

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        self.rank = config.largest
        self.alpha = config.alpha
        self.enabled = True
        self.spans: list[Span] | None = None
        """Whose the tokens of the batch at hand are, at most one span a client; None: equal blocks of all K clients."""
        self._model = model
        names = _target_names(model, config)
        self.layers: dict[str, StackedLinear] = {}
        for name in names:
            parent_name, _, last = name.rpartition(".")
            parent = model.get_submodule(parent_name)
            layer = StackedLinear(getattr(parent, last), self)
            setattr(parent, last, layer)
            self.layers[name] = layer
        self.device = next(model.parameters()).device
        self.ranks: list[int] = []
        """The rank of each adapter seated, which may be less than that of the stack."""
        self._alphas: list[float] = []
        self.scales = _Scales([self.alpha / self.rank], self.device)

    def remove(self) -> None:
        """Give the model its own layers back."""
        for name, layer in self.layers.items():
            parent, _, last = name.rpartition(".")
            setattr(self._model.get_submodule(parent), last, layer.base)

    @property
    def clients(self) -> int:
        """K, the number of adapters seated; 0 before `seat`."""
        first = next(iter(self.layers.values())).A
        return 0 if first is None else int(first.shape[0])

    def fresh(self, seed: int) -> Adapter:
        """A new adapter of the largest rank, which leaves the model as it is."""
        shapes = {name: (layer.base.out_features, layer.base.in_features) for name, layer in self.layers.items()}
        return fresh(shapes, rank=self.rank, alpha=self.alpha, seed=seed)

    def seat(self, adapters: Sequence[Adapter], changes: Sequence[Adapter | None] = ()) -> None:
        """Stack these adapters, in this order, as the K clients; copies, in float32; all factors are trained.

        Those of a lower rank get zero components up to the largest; every client keeps its own scale alpha / rank.
        changes: what is added to each client's base weights, the same object for clients of one federation.

        Raises:
            AdapterError: a change of a layer that is not adapted, or that does not fit it.
        """
        by_layer = self._changes(changes)
        factors = iter(self.stacked(adapters))
        for name, layer in self.layers.items():
            layer.A, layer.B = nn.Parameter(next(factors)), nn.Parameter(next(factors))
            layer.changes = by_layer.get(name)
        self.ranks = [adapter.rank for adapter in adapters]
        self._alphas = [adapter.alpha for adapter in adapters]
        self.scales = _Scales([adapter.scale for adapter in adapters], self.device)

    def train(self, halves: Halves) -> None:
        """Freeze the factors that are not named."""
        for layer in self.layers.values():
            for half, parameter in (("A", layer.A), ("B", layer.B)):
                if parameter is not None:
                    parameter.requires_grad_(half in halves)

    def stacked(self, adapters: Sequence[Adapter]) -> list[Tensor]:
        """Copies of these adapters' factors in float32, each [K, ., .], in the order of `parameters`.

        The rank is the largest of theirs; others have zero components up to it.
        """
        most = max(adapter.rank for adapter in adapters)
        tensors = []
        for name in self.layers:
            rows = [(adapter.layers[name], most - adapter.rank) for adapter in adapters]
            a_K = [pad(a, (0, 0, 0, more)) if more else a for (a, _), more in rows]
            b_K = [pad(b, (0, more)) if more else b for (_, b), more in rows]
            tensors += [torch.stack(half).to(self.device, torch.float32) for half in (a_K, b_K)]
        return tensors

    def unseat(self) -> list[Adapter]:
        """Every client's adapter at its own rank, copied to the CPU: the stack changes no more of it.

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
            for factors, rank, a, b in zip(layers, self.ranks, *halves, strict=True):
                factors[name] = Factors(a[:rank], b[:, :rank].contiguous())
        firsts: dict[tuple[int, float], Adapter] = {}  # what has the layout of another is spared its digest
        adapters = []
        for factors, rank, alpha in zip(layers, self.ranks, self._alphas, strict=True):
            first = firsts.get((rank, alpha))
            adapters.append(Adapter(factors, alpha) if first is None else first.alike(factors))
            firsts.setdefault((rank, alpha), adapters[-1])
        return adapters

    def parameters(self) -> list[nn.Parameter]:
        """All stacked factors, each [K, ., .], in the layers' order, A before B."""
        return [half for layer in self.layers.values() for half in (layer.A, layer.B) if half is not None]

    def _changes(self, changes: Sequence[Adapter | None]) -> dict[str, list[Change | None]]:
        """By layer the change of each client's weight, one object for clients of one change."""
        by_layer: dict[str, list[Change | None]] = {}
        # By identity: adapters cannot be told equal cheaply.
        for change in {id(change): change for change in changes if change is not None}.values():
            for name, factors in change.layers.items():
                layer = self.layers.get(name)
                if layer is None or (factors.B.shape[0], factors.A.shape[1]) != tuple(layer.base.weight.shape):
                    raise AdapterError(f"the change of the base weights at {name} does not fit an adapted layer.")
                matrices = Change(factors, change.scale, self.device)
                held = by_layer.setdefault(name, [None] * len(changes))
                for client, of_client in enumerate(changes):
                    if of_client is change:
                        held[client] = matrices
        return by_layer

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model alone, without adapters and changes: the reference policy."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True


def _target_names(model: nn.Module, config: LoraConfig) -> list[str]:
    """The layers to adapt: ordinary linear layers that the model calls.

    A subclass with a forward pass of its own (a router) gives something else than W x, and a layer of which only the
    weight is read would leave its adapter without effect, though merging would change it.
    """
    if any(isinstance(module, StackedLinear) for module in model.modules()):
        raise ModelError("this model has stacked adapters already; load it afresh")
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and _is_linear(module)
    }
    bypassed = _bypassed(model, linear)
    output_embeddings: Any = getattr(model, "get_output_embeddings", None)
    head = output_embeddings() if output_embeddings else None
    if config.targets == "all-linear":
        without_peft = _NOT_IN_PEFT.get(getattr(getattr(model, "config", None), "model_type", ""), frozenset())
        names = [
            name
            for name, module in linear.items()
            if module is not head and name not in bypassed and name.rpartition(".")[2] not in without_peft
        ]
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
        if unreached := [name for name in names if name in bypassed]:
            raise ModelError(
                f"lora.targets: {type(model).__name__} reads the weight of {unreached[0]} without calling the layer, "
                "so an adapter on it would have no effect. Leave it out."
            )
    if not names:
        raise ModelError("lora.targets: the model has no linear layer (torch.nn.Linear) to adapt")
    return names


@torch.no_grad()
def _is_linear(module: nn.Linear) -> bool:
    """Whether a layer gives W x + b: by its class, or for a class with a forward pass of its own by trying."""
    if type(module).forward is nn.Linear.forward:
        return True
    x = torch.linspace(-1, 1, module.in_features).to(module.weight).unsqueeze(0)
    try:
        y: Any = module(x)
    except Exception:  # it wants other inputs
        return False
    expected = nn.functional.linear(x, module.weight, module.bias)
    return isinstance(y, Tensor) and y.shape == expected.shape and torch.allclose(y, expected, rtol=1e-3, atol=1e-5)


_NOT_IN_PEFT = {
    kind: frozenset({"out_proj", "conv1d"}) for kind in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
}
"""Layers that PEFT 0.21 refuses to adapt, since fused kernels read their weights, by model type."""


class _Watched(nn.Linear):
    """A linear layer that writes down whether it is called and whether others read its weight."""

    called = False
    read = False

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        self.__dict__["read"] = True
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def forward(self, input: Tensor) -> Tensor:
        self.__dict__["called"] = True
        weight = self._parameters["weight"]
        assert weight is not None
        return nn.functional.linear(input, weight, self._parameters["bias"])


@torch.no_grad()
def _bypassed(model: nn.Module, linear: Mapping[str, nn.Linear]) -> set[str]:
    """Names of the linear layers whose weight some pass reads without calling the layer.

    Latent attention, for one, calls a projection for a whole text and multiplies by its weight in a decode step.
    """
    device = next(model.parameters()).device
    kinds = {name: type(module) for name, module in linear.items()}
    bypassed: set[str] = set()

    def passed(tokens: Sequence[int], **inputs: Any) -> None:
        for module in linear.values():
            module.__dict__.update(read=False, called=False)
        model(input_ids=torch.tensor([tokens], device=device), **inputs)
        bypassed.update(name for name, m in linear.items() if m.__dict__["read"] and not m.__dict__["called"])

    try:
        for module in linear.values():
            module.__class__ = _Watched
        passed([3, 4, 5], use_cache=False)
        with contextlib.suppress(Exception):  # a model without this cache has a way of its own, or is refused
            how = {cache_argument(model): prompt_cache(model, "own"), "use_cache": True}
            passed([3, 4, 5], **how)
            passed([6], **how)
    finally:
        for name, module in linear.items():
            module.__class__ = kinds[name]
            for mark in ("read", "called"):
                module.__dict__.pop(mark, None)
    return bypassed
