"""The floor of a round: exactly its matrix products, timed alone.

`Recorder` sees every product that torch computes while it is active, in autograd's backward and in inference mode too:
mm, bmm and their adding and in-place forms, and attention kernels as the products inside them. `floor` then times
products of the same shapes, types and layouts on random tensors, without allocating results. A shape's tensors are used
again and again, so they may lie in cache where the round's did not: the floor is rather too low than too high.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PASSES = 3
REPEATS = 8
"""Times a product is computed in a pass, at most; its time counts for all of its calls."""


class Product(NamedTuple):
    """[batch, n, k] x [batch, k, m]; batch 1 is a plain matrix product.

    left, right: whether the operand lies transposed in memory.
    """

    batch: int
    n: int
    k: int
    m: int
    left: bool
    right: bool
    dtype: torch.dtype

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.n * self.k * self.m


class Recorder(TorchDispatchMode):
    """Counts matrix products while active. `calls`: product -> how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operators (linear, matmul, einsum, attention) arrive whole: look inside.
        if func._can_decompose():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        for product in products(func.overloadpacket.__name__, args, kwargs):
            self.calls[product] += 1
        return func(*args, **kwargs)


def products(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Product]:
    """The matrix products in one operator call; none for operators that are no products.

    Raises:
        ValueError: a product of a kind that is not counted here.
    """
    name = name.rstrip("_")
    if name in ("mm", "bmm"):
        return [_product(args[0], args[1])]
    if name in ("addmm", "addbmm", "baddbmm"):
        return [_product(args[1], args[2])]
    if name in ("mv", "addmv"):
        matrix, vector = args[-2:]
        return [_product(matrix, vector.unsqueeze(1))]
    if name.startswith(("_scaled_dot_product", "_flash_attention")):
        backward = name.endswith("backward")
        query, key, value = args[1:4] if backward else args[:3]
        return _attention(query, key, value, backward=backward)
    if "convolution" in name or name in ("_grouped_mm", "_scaled_mm", "_int_mm"):
        # Left out silently, it would make the floor too low and nobody would see it.
        raise ValueError(f"the floor cannot take apart the operator {name}: add its products here")
    return []


def _product(a: Tensor, b: Tensor) -> Product:
    batch = a.shape[0] if a.dim() == 3 else 1
    return Product(batch, a.shape[-2], a.shape[-1], b.shape[-1], _transposed(a), _transposed(b), a.dtype)


def _transposed(tensor: Tensor) -> bool:
    return tensor.stride(-1) != 1 and tensor.stride(-2) == 1


def _attention(query: Tensor, key: Tensor, value: Tensor, *, backward: bool) -> list[Product]:
    """Q K^T and P V; in the backward pass Q K^T again, then the gradients of V, P, Q and K.

    query [B, H, L, D], key [B, Hk, S, D], value [B, Hk, S, E]. Heads that share a key are rows of one product. All S
    keys count for every query: where a kernel skips those behind a causal mask, less would do.
    """
    batch = query.shape[0] * key.shape[1]
    rows = query.shape[2] * (query.shape[1] // key.shape[1])
    keys, size, width = key.shape[2], query.shape[3], value.shape[3]
    dtype = query.dtype
    scores = Product(batch, rows, size, keys, False, True, dtype)
    output = Product(batch, rows, keys, width, False, False, dtype)
    if not backward:
        return [scores, output]
    grad_value = Product(batch, keys, rows, width, True, False, dtype)
    grad_probs = Product(batch, rows, width, keys, False, True, dtype)
    grad_query = Product(batch, rows, keys, size, False, False, dtype)
    grad_key = Product(batch, keys, rows, size, True, False, dtype)
    return [scores, grad_value, grad_probs, grad_query, grad_key]


@dataclass(frozen=True)
class Floor:
    """Seconds: CPU seconds of all products, one entry a pass. gflop: of all products. shapes, calls: how many."""

    seconds: list[float]
    gflop: float
    shapes: int
    calls: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@torch.inference_mode()
def floor(calls: Counter[Product], passes: int = PASSES) -> Floor:
    """Time the products."""
    totals = [0.0] * passes
    generator = torch.Generator().manual_seed(0)
    for product, count in calls.items():
        a = _random(product.batch, product.n, product.k, product.left, product.dtype, generator)
        b = _random(product.batch, product.k, product.m, product.right, product.dtype, generator)
        c = torch.empty(product.batch, product.n, product.m, dtype=product.dtype)
        if product.batch == 1:
            a, b, c = a[0], b[0], c[0]
        compute = torch.mm if product.batch == 1 else torch.bmm
        compute(a, b, out=c)
        repeats = min(count, REPEATS)
        for i in range(passes):
            started = time.process_time()
            for _ in range(repeats):
                compute(a, b, out=c)
            totals[i] += (time.process_time() - started) / repeats * count
    gflop = sum(product.flop * count for product, count in calls.items()) / 1e9
    return Floor(totals, gflop, len(calls), sum(calls.values()))


def _random(
    batch: int, rows: int, columns: int, transposed: bool, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    shape = (batch, columns, rows) if transposed else (batch, rows, columns)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    return tensor.transpose(1, 2) if transposed else tensor
