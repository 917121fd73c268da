"""FedIT on the way every run takes, the client weights by hand, and the adapter's own checks."""

from __future__ import annotations

import math

import pytest
import torch
from loras import adapter, random_adapter
from torch import Tensor

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import aggregate, client_weights
from fedrlvr.errors import AdapterError

ONE = adapter([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
TWO = adapter([[5.0, 6.0], [7.0, 8.0]], [[0.0, 2.0], [2.0, 0.0]])


def averaged(adapters: dict[str, Adapter], weights: dict[str, float]) -> Adapter:
    """FedIT is the rule unless another one is named."""
    mean = aggregate(adapters, weights).adapter
    assert mean is not None
    return mean


def test_the_mean_of_products_is_another_one() -> None:
    """FedIT is inexact: what the docstring says, on these numbers."""
    mean = averaged({"a": ONE, "b": TWO}, {"a": 1.0, "b": 1.0}).layers["q"]
    products = (ONE.layers["q"].B @ ONE.layers["q"].A + TWO.layers["q"].B @ TWO.layers["q"].A) / 2
    assert (mean.B @ mean.A).tolist() == [[6.5, 8.0], [5.5, 7.0]]
    assert products.tolist() == [[7.5, 9.0], [6.5, 8.0]]


def test_only_the_ratio_of_weights_counts() -> None:
    small = averaged({"a": ONE, "b": TWO}, {"a": 0.25, "b": 0.75})
    large = averaged({"a": ONE, "b": TWO}, {"a": 100.0, "b": 300.0})
    torch.testing.assert_close(small.layers["q"].A, large.layers["q"].A)


def test_one_client_gets_its_own_adapter_back_to_the_bit() -> None:
    sent = random_adapter(1)
    back = averaged({"a": sent}, {"a": 1.0})
    for (_, tensor), (_, other) in zip(back.tensors(), sent.tensors(), strict=True):
        assert torch.equal(tensor, other)
        assert tensor.data_ptr() != other.data_ptr()


def test_clients_and_weights_must_match() -> None:
    for adapters, weights in (({}, {}), ({"a": ONE}, {"b": 1.0}), ({"a": ONE}, {"a": 1.0, "b": 1.0})):
        with pytest.raises(ValueError, match="one weight for each"):
            aggregate(adapters, weights)


def test_client_weights_by_hand() -> None:
    assert client_weights({"a": 30, "b": 10, "c": 0}) == {"a": 0.75, "b": 0.25, "c": 0.0}
    assert client_weights({"a": 30, "b": 10}, rule="equal") == {"a": 0.5, "b": 0.5}
    assert client_weights({"only": 7}) == {"only": 1.0}


def test_client_weights_that_cannot_be() -> None:
    for examples in ({}, {"a": -1}):
        with pytest.raises(ValueError, match="not negative"):
            client_weights(examples)
    with pytest.raises(ValueError, match="no client has an example"):
        client_weights({"a": 0, "b": 0})
    with pytest.raises(ValueError, match="unknown weights 'size'"):
        client_weights({"a": 1}, rule="size")  # type: ignore[arg-type]


# The adapter itself.


def test_an_adapter_knows_its_rank_and_bytes() -> None:
    lora = random_adapter(0)
    assert lora.rank == 2
    assert lora.nbytes == 4 * (2 * 12 + 9 * 2 + 2 * 7 + 16 * 2)
    assert [name for name, _ in lora.tensors()] == ["q.A", "q.B", "v.A", "v.B"]


def test_from_tensors_is_the_inverse_of_tensors() -> None:
    lora = random_adapter(0)
    back = Adapter.from_tensors(dict(lora.tensors()), lora.alpha)
    assert list(back.layers) == ["q", "v"]
    back.check_like(lora, place="the copy")
    assert all(x is y for (_, x), (_, y) in zip(back.tensors(), lora.tensors(), strict=True))


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"q.A": torch.zeros(2, 3)}, "'q.A' is not one of a pair"),
        ({"q.B": torch.zeros(3, 2)}, "'q.B' is not one of a pair"),
        ({"q.A": torch.zeros(2, 3), "q.B": torch.zeros(3, 2), "q.C": torch.zeros(1)}, "'q.C' is not one of a pair"),
        ({"stranger": torch.zeros(2, 3)}, "'stranger' is not one of a pair"),
        ({"q.A": torch.zeros(2, 3), "q.B": torch.zeros(3, 4)}, "one common rank"),
        ({"q.A": torch.zeros(2), "q.B": torch.zeros(3, 2)}, "one common rank"),
        ({"q.A": torch.zeros(2, 3, 1), "q.B": torch.zeros(3, 2)}, "one common rank"),
        (
            {"q.A": torch.zeros(2, 3), "q.B": torch.zeros(3, 2), "v.A": torch.zeros(1, 3), "v.B": torch.zeros(3, 1)},
            "one common rank",
        ),
        ({}, "one common rank"),
    ],
)
def test_tensors_that_are_no_adapter(tensors: dict[str, Tensor], text: str) -> None:
    with pytest.raises(AdapterError, match=text):
        Adapter.from_tensors(tensors, 4.0)


def test_check_like_names_what_differs() -> None:
    lora = random_adapter(0)
    like = random_adapter(1)
    lora.check_like(like, place="clinic-a")

    def changed(layer: str, **factors: Tensor) -> Adapter:
        return Adapter({**lora.layers, layer: lora.layers[layer]._replace(**factors)}, lora.alpha)

    with pytest.raises(AdapterError, match=r"clinic-a: .*first difference: v"):
        Adapter({"q": lora.layers["q"]}, 4.0).check_like(like, place="clinic-a")
    with pytest.raises(AdapterError, match=r"clinic-a: .*first difference: their order"):
        Adapter(dict(reversed(list(lora.layers.items()))), 4.0).check_like(like, place="clinic-a")
    with pytest.raises(AdapterError, match=r"clinic-a: v.B .*\(7, 2\).* \(16, 2\)"):
        changed("v", B=torch.zeros(7, 2)).check_like(like, place="clinic-a")
    with pytest.raises(AdapterError, match=r"clinic-a: .*alpha.* 5.* lora\.alpha.* 4"):
        random_adapter(0, alpha=5.0).check_like(like, place="clinic-a")
    for value in (math.nan, math.inf):
        with pytest.raises(AdapterError, match=r"clinic-a: q.A .*not finite"):
            changed("q", A=torch.full((2, 12), value)).check_like(like, place="clinic-a")
