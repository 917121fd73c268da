"""The floor's recorder against products counted by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from benchmarks.floor import Product, Recorder, floor, products

F32 = torch.float32


def recorded(compute: object) -> Counter[Product]:
    with Recorder() as recorder:
        compute()  # type: ignore[operator]
    return recorder.calls


def product(
    n: int, k: int, m: int, *, batch: int = 1, left: bool = False, right: bool = False, times: int = 1
) -> Counter[Product]:
    return Counter({Product(batch, n, k, m, left, right, F32): times})


@pytest.mark.parametrize("inference", [False, True])
def test_a_linear_layer_is_one_product_with_a_transposed_weight(inference: bool) -> None:
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(2, 3, 5)
    with torch.inference_mode(inference):
        assert recorded(lambda: layer(x)) == product(6, 5, 7, right=True)


@pytest.mark.parametrize("inference", [False, True])
def test_a_bias_adds_no_product(inference: bool) -> None:
    layer, x = nn.Linear(5, 7), torch.randn(6, 5)
    with torch.inference_mode(inference):
        assert recorded(lambda: layer(x)) == product(6, 5, 7, right=True)


def test_the_backward_pass_of_a_frozen_layer_is_one_product_more() -> None:
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(6, 5, requires_grad=True)
    layer.requires_grad_(False)
    assert recorded(lambda: layer(x).sum().backward()).total() == 2
    layer.requires_grad_(True)
    assert recorded(lambda: layer(x).sum().backward()).total() == 3


def test_adding_and_in_place_forms_are_seen() -> None:
    a, b, c = torch.randn(4, 5), torch.randn(5, 6), torch.zeros(4, 6)
    batches = torch.randn(3, 4, 5), torch.randn(3, 5, 6), torch.zeros(3, 4, 6)

    def compute() -> None:
        c.addmm_(a, b)
        torch.addmm(c, a, b)
        torch.mm(a, b, out=c)
        batches[2].baddbmm_(batches[0], batches[1])
        torch.baddbmm(batches[2], batches[0], batches[1])

    assert recorded(compute) == product(4, 5, 6, times=3) + product(4, 5, 6, batch=3, times=2)


class OwnProduct(torch.autograd.Function):
    """A product with a backward pass of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)  # type: ignore[attr-defined]
        return x.mm(weight)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0].mm(weight.t()), None


def test_products_of_our_own_functions_are_seen_in_both_directions() -> None:
    x, weight = torch.randn(4, 5, requires_grad=True), torch.randn(5, 6)
    calls = recorded(lambda: (OwnProduct.apply(x, weight) * torch.randn(4, 6)).sum().backward())
    assert calls == product(4, 5, 6) + product(4, 6, 5, right=True)


def test_matmul_and_einsum_are_seen_in_inference_mode() -> None:
    a, b = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    with torch.inference_mode():
        assert recorded(lambda: a @ b) == product(4, 5, 6, batch=3)
        assert recorded(lambda: torch.einsum("bij,bjk->bik", a, b)) == product(4, 5, 6, batch=3)


def attend(heads: int, *, grad: bool) -> Counter[Product]:
    query = torch.randn(2, 4, 7, 8, requires_grad=grad)
    key, value = (torch.randn(2, heads, 9, 8, requires_grad=grad) for _ in range(2))

    def compute() -> None:
        out = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=heads != 4)
        if grad:
            out.backward(torch.randn(out.shape))

    with torch.inference_mode(not grad):
        return recorded(compute)


def test_attention_is_two_products_and_five_backward() -> None:
    forward = product(7, 8, 9, batch=8, right=True) + product(7, 9, 8, batch=8)
    assert attend(4, grad=False) == forward
    # Q K^T again; dV = P^T dO and dK = dS^T Q of one shape; dP = dO V^T; dQ = dS K.
    backward = (
        product(7, 8, 9, batch=8, right=True, times=2)
        + product(9, 7, 8, batch=8, left=True, times=2)
        + product(7, 9, 8, batch=8)
    )
    assert attend(4, grad=True) == forward + backward


def test_heads_that_share_keys_are_rows_of_one_product() -> None:
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8)
    result = products("_scaled_dot_product_flash_attention_for_cpu", (query, key, key), {})
    assert Counter(result) == product(14, 8, 9, batch=4, right=True) + product(14, 9, 8, batch=4)


def test_other_operators_are_no_products_and_unknown_ones_are_errors() -> None:
    x = torch.randn(4, 4)
    assert recorded(lambda: (x + x).softmax(-1).cumsum(-1)) == Counter()
    with pytest.raises(ValueError, match="convolution"):
        recorded(lambda: nn.functional.conv1d(torch.randn(1, 2, 8), torch.randn(3, 2, 3)))


def test_the_floor_counts_and_times_every_call() -> None:
    calls = product(32, 64, 16, times=10) + product(8, 4, 2, batch=3, left=True, right=True, times=5)
    result = floor(calls, passes=2)
    assert result.gflop * 1e9 == pytest.approx(10 * 2 * 32 * 64 * 16 + 5 * 2 * 3 * 8 * 4 * 2)
    assert (result.shapes, result.calls, len(result.seconds)) == (2, 15, 2)
    assert all(seconds > 0 for seconds in result.seconds)
