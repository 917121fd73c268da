"""AdamW over stacked adapters: each client has its own moments, step count, clipping and learning rate.

Equal to torch.optim.AdamW on each client's slice (tested); a client that sits out keeps what it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedrlvr.config import TrainConfig


class StackedAdamW:
    """AdamW (arXiv 1711.05101) over parameters whose leading axis is the client axis.

    State per client i: row i of `steps` [K, parameters], and slice i of `m` and `v` for each parameter. A parameter
    that requires no gradient is left as it is, state and all; so halves that are frozen in turns have their own counts.

    ranks: of each client, where the parameters are LoRA factors A [K, r, k] and B [K, d, r] in turn. A client's state
    is then of the components it has, whatever the rank of the stack it sits in.

    scale_free: there is no epsilon, and gradients too small for a second moment in float32 count as zero. Otherwise a
    step is a multiple of a gradient that is far below epsilon, and whoever chooses the size of the other factor can
    make it so small. No epsilon relative to a tensor would do: one large component would hide others.
    """

    EPS = 1e-8
    SMALLEST = 1e-16
    """Smallest absolute value of a gradient that counts where the optimizer is free of scale."""
    NOTHING = 1e-30
    """Replacement of epsilon there: below every root of a second moment, and no step for a number without gradient."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig, ranks: Sequence[int] = ()) -> None:
        self.parameters = list(parameters)
        self.config = config
        self.ranks = list(ranks)
        clients = self.parameters[0].shape[0]
        self.scale_free = False
        self.steps = torch.zeros(clients, len(self.parameters), dtype=torch.int64)
        self.m = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.v = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Drop the gradients of all clients' parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self) -> Tensor:
        """Scale each client's gradient to at most `max_grad_norm`; the norms [K] before that."""
        clients = self.parameters[0].shape[0]
        square_K = torch.zeros(clients, device=self.parameters[0].device)
        for parameter in self.parameters:
            if parameter.grad is not None:
                square_K += parameter.grad.reshape(clients, -1).square().sum(dim=1)
        norm_K = square_K.sqrt()
        scale_K = (self.config.max_grad_norm / (norm_K + 1e-6)).clamp(max=1.0)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale_K.view(-1, 1, 1))
        return norm_K.cpu()

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """One update of every client i, at learning rate `rates[i]`."""
        config = self.config
        rates_K11 = torch.tensor(rates, device=self.parameters[0].device, dtype=torch.float32).view(-1, 1, 1)
        self.steps += torch.tensor([parameter.requires_grad for parameter in self.parameters])
        corrections: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # most parameters have the same counts
        for parameter, m, v, steps_K in zip(self.parameters, self.m, self.v, self.steps.t(), strict=True):
            if not parameter.requires_grad:
                continue
            counts = tuple(steps_K.tolist())
            if counts not in corrections:
                steps_K11 = steps_K.to(parameter.device, torch.float32).view(-1, 1, 1)
                corrections[counts] = 1 - config.beta1**steps_K11, 1 - config.beta2**steps_K11
            correct1_K11, correct2_K11 = corrections[counts]
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            if self.scale_free:
                grad = grad.masked_fill(grad.abs() < self.SMALLEST, 0.0)
            if config.weight_decay:
                parameter.mul_(1 - rates_K11 * config.weight_decay)
            m.lerp_(grad, 1 - config.beta1)
            v.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)
            denominator = (v / correct2_K11).sqrt_().add_(self.NOTHING if self.scale_free else self.EPS)
            parameter.sub_(rates_K11 * (m / correct1_K11) / denominator)

    def state(self, client: int) -> dict[str, Tensor]:
        """One client's step counts and moments, each of these end to end as one vector; copies on the CPU."""
        moments = {name: torch.cat([moment.flatten() for moment in kind]).cpu() for name, kind in self._moments(client)}
        return {"steps": self.steps[client].clone(), **moments}

    def restore(self, client: int, state: dict[str, Tensor]) -> None:
        """Restore a client's moments and steps, which `state` gave."""
        self.steps[client] = state["steps"]
        for name, kind in self._moments(client):
            parts = state[name].split([moment.numel() for moment in kind])
            for moment, part in zip(kind, parts, strict=True):
                moment.copy_(part.view(moment.shape))

    def _moments(self, client: int) -> list[tuple[str, list[Tensor]]]:
        """Views of a client's moments, of the components it has."""
        return [
            (name, [self._own(client, i, moment[client]) for i, moment in enumerate(kind)])
            for name, kind in (("m", self.m), ("v", self.v))
        ]

    def _own(self, client: int, index: int, moment: Tensor) -> Tensor:
        if not self.ranks:
            return moment
        rank = self.ranks[client]
        return moment[:, :rank] if index % 2 else moment[:rank]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a client's local step number `step`, counted from 0 over all of its rounds."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    length = max(config.rounds * config.local_steps - config.warmup_steps, 1)
    share = min((step - config.warmup_steps) / length, 1.0)
    if config.schedule == "linear":
        return config.learning_rate * (1 - share)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate
