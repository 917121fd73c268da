"""LoRA stacked on the client axis: K adapters on one frozen model.

Each adapted layer holds A [K, r, k] and B [K, d, r]. A batch is K equal blocks of rows, client after client, so one
batched matrix product per factor serves everyone, and client i's rows touch slice i only. K = 1 is no special case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import LoraConfig
from fedrlvr.errors import ModelError


class StackedLinear(nn.Module):
    """A frozen linear layer with K adapters: y = W x + scale B_i A_i x for the rows of client i."""

    def __init__(self, base: nn.Linear, stack: LoraStack) -> None:
        super().__init__()
        self.base = base
        self.__dict__["_stack"] = stack  # not a submodule: the stack owns the layers, not the other way round
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, ..., k] with rows a multiple of K, in client blocks."""
        y = self.base(x)
        stack: LoraStack = self.__dict__["_stack"]
        if self.A is None or self.B is None or not stack.enabled:
            return y
        clients = self.A.shape[0]
        blocks = x.reshape(clients, -1, x.shape[-1]).to(self.A.dtype)
        low = torch.bmm(blocks, self.A.transpose(1, 2))
        update = torch.baddbmm(
            y.reshape(clients, -1, y.shape[-1]).to(low.dtype), low, self.B.transpose(1, 2), alpha=stack.scale
        )
        return update.to(y.dtype).reshape(y.shape)


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
        for name, layer in self.layers.items():
            a = torch.stack([adapter.layers[name].A for adapter in adapters])
            b = torch.stack([adapter.layers[name].B for adapter in adapters])
            layer.A = nn.Parameter(a.to(self.device, torch.float32))
            layer.B = nn.Parameter(b.to(self.device, torch.float32))

    def unseat(self, client: int) -> Adapter:
        """Client number `client`'s adapter, copied to the CPU."""
        layers = {}
        for name, layer in self.layers.items():
            if layer.A is None or layer.B is None:
                raise ModelError("no adapters are seated")
            layers[name] = Factors(
                layer.A[client].detach().cpu().clone(memory_format=torch.contiguous_format),
                layer.B[client].detach().cpu().clone(memory_format=torch.contiguous_format),
            )
        return Adapter(layers, self.alpha)

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
