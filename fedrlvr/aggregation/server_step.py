"""The server's step: how far the global model moves along the clients' mean change.

    D_k = model of client k - its model at the start of the round      D = sum_k p_k D_k      global <- global + U

    sgd         U = g D
    momentum    V <- m V + D                        U = g V             FedAvgM (arXiv 1909.06335)
    nesterov    V <- m V + D                        U = g (D + m V)     DiLoCo (arXiv 2311.08105)
    adam        M <- b1 M + (1 - b1) D, S <- b2 S + (1 - b2) D^2        FedAdam (arXiv 2003.00295)
                U = g sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)) M / (sqrt(S) + e)
    yogi        M as adam, S <- S - (1 - b2) D^2 sign(S - D^2)          FedYogi (arXiv 2003.00295)
                U = g M / (sqrt(S) + e)

g = 1 with `sgd` is plain averaging. t counts steps from 1. M, S and V start at zero. Momentum, Adam and Yogi give the
numbers of Flower's FedAvgM, FedAdam and FedYogi (tests/aggregation/test_server_step.py).

Clients with different problems move in nearly orthogonal directions, and the mean of K such changes has 1 / sqrt(K) of
one client's length. g = `auto`, the agreement step, which is our own, makes up for it where directions persist:

    r = (sum_k p_k |D_k|) / |D|, from 1 to sqrt(1 / sum_k p_k^2), which is sqrt(K) for equal weights
    a = cos(D, D of the last round) with agreement `mean`, or sum_k p_k cos(D_k, D_k of the last round) with `clients`;
        1 in the first round, and always with agreement `none`
    g = 1 + (r - 1) max(0, a)

1. A D that is zero up to rounding has r = 1, and later rounds are compared with the last D that was not zero.
2. `clients` leaves out clients that did not move or have no earlier change.
3. Where a robust mean replaces the mean, |D| is that of its result, and the median of |D_k| replaces their mean.
4. Where one half of the adapter trains in a round, D is that half, and the last round is the last one that trained it.

What D_k is a change of, factors or products, is a property of the LoRA rule (delta_space.py). Adam and Yogi scale each
number by itself, so that they exist for factors alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedrlvr.aggregation.delta_space import SPACES
from fedrlvr.aggregation.lora_rule import Delta, ServerUpdate, StepSpace

if TYPE_CHECKING:
    from torch import Tensor

    from fedrlvr.adapter import Adapter

# torch is imported where something is computed, so that a configuration is checked without it.

Agreement = Literal["mean", "clients", "none"]
MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.99, 1e-3
"""Values of the optimizers' settings where the configuration does not set them; the last three are Flower's."""
ROUNDING = 1e-6
"""A mean change of less than this part of the clients' changes is the rounding of float32."""
MOST_COSINES = 32
"""Clients of a round up to which the cosine of each two is recorded."""


@dataclass(frozen=True)
class ServerOptimizer:
    """One optimizer of the server step, with its properties.

    update: (step, mean change D, g, t) -> U; it reads and renews the memory of the step.
    has_momentum: it reads the setting m.
    adaptive: it scales each number by itself, so that it needs factors and a learning rate of a number's size.
    """

    update: Callable[[ServerStep, Delta, float, int], ServerUpdate]
    has_momentum: bool = False
    adaptive: bool = False


class ServerStep:
    """The server's step of one run: its settings, and what it remembers between rounds.

    space: `server_step` of the LoRA rule. learning_rate: g. momentum: m. beta1, beta2, epsilon: b1, b2, e.
    agreement: what `auto` compares with the last round.
    """

    def __init__(
        self,
        space: StepSpace,
        *,
        learning_rate: float | str = 1.0,
        optimizer: str = "sgd",
        momentum: float = MOMENTUM,
        beta1: float = BETA1,
        beta2: float = BETA2,
        epsilon: float = EPSILON,
        agreement: Agreement = "mean",
    ) -> None:
        self.space = SPACES[space]()
        self.learning_rate = learning_rate
        self.optimizer = SERVER_OPTIMIZERS[optimizer]
        self.momentum, self.beta1, self.beta2, self.epsilon = momentum, beta1, beta2, epsilon
        self.agreement = agreement
        self.memory: dict[str, Delta] = {}
        """Earlier changes and optimizer moments in float32, by what they are (`previous`, `velocity`, ...)."""

    def take(
        self, changes: Mapping[str, Delta], mean: Delta, shares: Mapping[str, float], *, number: int, robust: bool
    ) -> tuple[ServerUpdate, dict[str, Any]]:
        """The update of the global model, and the numbers of the step for the round's record.

        changes: D_k by client. mean: D. shares: p_k of sum 1. number: t, from 1. robust: a robust mean gave D.
        """
        names = list(changes)
        previous = self.recall("previous", mean)
        products = self.space.gram([*changes.values(), mean, *([previous] if previous else [])])
        norms = products.diagonal().clamp(min=0).sqrt()
        cosines = (products / (norms[:, None] * norms)).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
        lengths = dict(zip(names, norms.tolist(), strict=False))
        length = float(norms[len(names)])
        numbers: dict[str, Any] = {"norms": lengths, "mean_norm": length, **_pairs(names, cosines.tolist())}
        if isinstance(rate := self.learning_rate, str):
            typical = float(norms[: len(names)].quantile(0.5)) if robust else sum(shares[c] * lengths[c] for c in names)
            most = math.sqrt(1 / sum(share * share for share in shares.values()))
            has_moved = length > ROUNDING * typical
            ratio = min(max(typical / length, 1.0), most) if has_moved else 1.0
            if self.agreement == "clients":
                agreement = self._agreement_of_clients(changes, shares)
            else:
                agreement = float(cosines[-2, -1]) if previous else 1.0
                if has_moved and self.agreement == "mean":
                    self.remember("previous", mean)
            rate = 1.0 + (ratio - 1.0) * max(0.0, agreement)
            numbers |= {"ratio": ratio, "agreement": agreement}
        return self.optimizer.update(self, mean, rate, number), {"learning_rate": rate, **numbers}

    def _agreement_of_clients(self, changes: Mapping[str, Delta], shares: Mapping[str, float]) -> float:
        """The mean cosine of a client's change with its last one; 1 if no client has both."""
        total = weight = 0.0
        for client, change in changes.items():
            key = f"previous/{client}"
            previous = self.recall(key, change)
            (square, inner), (_, old) = self.space.gram([change, previous or change]).tolist()
            if square <= 0:
                continue
            self.remember(key, change)
            if previous:
                total += shares[client] * min(max(inner / math.sqrt(square * old), -1.0), 1.0)
                weight += shares[client]
        return total / weight if weight else 1.0

    def recall(self, key: str, like: Delta) -> Delta | None:
        """Remembered tensors under the names of `like`, in their order; None where there are none yet."""
        kept = self.memory.get(key, {})
        return {name: kept[name] for name in like} if all(name in kept for name in like) else None

    def remember(self, key: str, change: Delta) -> None:
        """Keep a change; names that it lacks keep what is remembered of them."""
        self.memory[key] = {**self.memory.get(key, {}), **{name: tensor.float() for name, tensor in change.items()}}

    def state(self) -> dict[str, Tensor]:
        """Tensors that the optimizer remembers, for the checkpoint."""
        return {f"{key}/{name}": tensor for key, change in self.memory.items() for name, tensor in change.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` gave, after a checkpoint is read."""
        self.memory = {}
        for path, tensor in state.items():
            key, _, name = path.rpartition("/")
            self.memory.setdefault(key, {})[name] = tensor  # type: ignore[index]


def moved(before: Adapter, mean: Delta, update: ServerUpdate) -> Adapter:
    """The round's adapter after a step on factors, in its own types. A half that did not train stays as it is."""
    from fedrlvr.adapter import Adapter

    tensors = dict(before.tensors())
    for name, change in mean.items():
        step = update.of_mean * change
        if update.memory is not None:
            step = step + update.of_memory * update.memory[name].double()
        tensors[name] = (tensors[name].double() + step).to(tensors[name].dtype)
    return Adapter.from_tensors(tensors, before.alpha)


def _pairs(names: Sequence[str], cosines: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The mean cosine of two clients' changes, and for few clients all of them."""
    pairs = [cosines[i][j] for i in range(len(names)) for j in range(i)]
    numbers: dict[str, Any] = {"mean_cosine": sum(pairs) / len(pairs)} if pairs else {}
    if 1 < len(names) <= MOST_COSINES:
        numbers["cosines"] = {
            name: {other: cosines[i][j] for j, other in enumerate(names) if i != j} for i, name in enumerate(names)
        }
    return numbers


def _sgd(step: ServerStep, mean: Delta, rate: float, number: int) -> ServerUpdate:
    return ServerUpdate(rate)


def _momentum(step: ServerStep, mean: Delta, rate: float, number: int) -> ServerUpdate:
    return ServerUpdate(rate, rate * step.momentum, _velocity(step, mean))


def _nesterov(step: ServerStep, mean: Delta, rate: float, number: int) -> ServerUpdate:
    m = step.momentum
    return ServerUpdate(rate * (1 + m), rate * m * m, _velocity(step, mean))


def _velocity(step: ServerStep, mean: Delta) -> Delta | None:
    """V before the round; V after it is remembered."""
    old = step.recall("velocity", mean)
    step.remember("velocity", step.space.total([(mean, 1.0), *([(old, step.momentum)] if old else [])]))
    return old


def _adam(step: ServerStep, mean: Delta, rate: float, number: int) -> ServerUpdate:
    def second(old: Tensor, square: Tensor) -> Tensor:
        return step.beta2 * old + (1 - step.beta2) * square

    correction = math.sqrt(1 - step.beta2 ** (number + 1)) / (1 - step.beta1 ** (number + 1))
    return ServerUpdate(0.0, rate * correction, _direction(step, mean, second))


def _yogi(step: ServerStep, mean: Delta, rate: float, number: int) -> ServerUpdate:
    def second(old: Tensor, square: Tensor) -> Tensor:
        return old - (1 - step.beta2) * square * (old - square).sign()

    return ServerUpdate(0.0, rate, _direction(step, mean, second))


def _direction(step: ServerStep, mean: Delta, second: Callable[[Tensor, Tensor], Tensor]) -> Delta:
    """M / (sqrt(S) + e), with the moments renewed."""
    import torch

    zeros = {name: torch.zeros_like(tensor) for name, tensor in mean.items()}
    m, s = (step.recall(key, mean) or zeros for key in ("first", "second"))
    m = {name: step.beta1 * m[name].double() + (1 - step.beta1) * tensor for name, tensor in mean.items()}
    s = {name: second(s[name].double(), tensor.square()) for name, tensor in mean.items()}
    step.remember("first", m)
    step.remember("second", s)
    return {name: m[name] / (s[name].sqrt() + step.epsilon) for name in mean}


SERVER_OPTIMIZERS: dict[str, ServerOptimizer] = {
    "sgd": ServerOptimizer(_sgd),
    "momentum": ServerOptimizer(_momentum, has_momentum=True),
    "nesterov": ServerOptimizer(_nesterov, has_momentum=True),
    "adam": ServerOptimizer(_adam, adaptive=True),
    "yogi": ServerOptimizer(_yogi, adaptive=True),
}
