"""On the wire: an adapter whole or one half of it, probes, and which supervision; what is none of these is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from factories import make_adapter, make_request
from fakes import answering, contexts
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedrlvr.adapter import Adapter, Factors, Halves
from fedrlvr.config import parse_config
from fedrlvr.errors import AdapterError, MessageError
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import (
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    content,
    probes_record,
    read_probes,
    read_request,
)


def counting(start: float = 0.0) -> Adapter:
    """The layers of `adapter_of` with the numbers start, start + 1, ..., A and B of `up` first."""
    numbers = iter(range(28))

    def next_of(shape: torch.Size) -> torch.Tensor:
        return torch.tensor([start + next(numbers) for _ in range(shape.numel())]).view(shape)

    layers = {name: Factors(next_of(f.A.shape), next_of(f.B.shape)) for name, f in make_adapter(0).layers.items()}
    return Adapter(layers, 4.0)


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def test_both_halves_lie_end_to_end_in_the_layers_order() -> None:
    """Up is A [2, 3], B [4, 2] and down A [2, 4], B [3, 2]: A holds 0-5 and 14-21, B holds 6-13 and 22-27."""
    adapter = counting()
    arrays = adapter_to_arrays(adapter)
    assert list(arrays) == [f"A.{adapter.layout}", f"B.{adapter.layout}"]
    a, b = arrays.values()
    assert a.data == npy(np.array([*range(6), *range(14, 22)], np.float32))
    assert b.data == npy(np.array([*range(6, 14), *range(22, 28)], np.float32))


@pytest.mark.parametrize("halves", ["AB", "A", "B"])
def test_the_half_that_travels_is_the_senders_and_the_other_the_receivers(halves: Halves) -> None:
    adapter, like = counting(), counting(100.0)
    arrays = adapter_to_arrays(adapter, halves)
    assert [name[0] for name in arrays] == list(halves)
    read = arrays_to_adapter(arrays, like, place="ann", halves=halves)
    assert read.alpha == like.alpha
    assert read.layout == like.layout
    for name in like.layers:
        for half in "AB":
            source = adapter if half in halves else like
            assert torch.equal(getattr(read.layers[name], half), getattr(source.layers[name], half))


def test_one_half_is_its_share_of_the_bytes() -> None:
    """14 numbers of 4 bytes in each half, numpy's header of 128 bytes, and a name of 2 + 16 letters."""
    adapter = counting()
    assert adapter_to_arrays(adapter, "A").count_bytes() == 128 + 14 * 4 + 18
    assert adapter_to_arrays(adapter, "B").count_bytes() == 128 + 14 * 4 + 18
    assert adapter_to_arrays(adapter).count_bytes() == 2 * (128 + 14 * 4 + 18)


@pytest.mark.parametrize(("sent", "expected"), [("AB", "A"), ("AB", "B"), ("A", "AB"), ("A", "B"), ("B", "A")])
def test_other_halves_than_the_rounds_are_refused(sent: Halves, expected: Halves) -> None:
    with pytest.raises(AdapterError, match="ann: its factors are not those"):
        arrays_to_adapter(adapter_to_arrays(counting(), sent), counting(), place="ann", halves=expected)


def refused(array: Array, *words: str) -> None:
    like = counting()
    arrays = adapter_to_arrays(like, "B")
    arrays[f"B.{like.layout}"] = array
    with pytest.raises(AdapterError) as caught:
        arrays_to_adapter(arrays, like, place="ann", halves="B")
    assert all(word in str(caught.value) for word in ("ann: ", *words)), caught.value
    assert len(str(caught.value)) < 400


def test_what_is_no_half_adapter_is_refused() -> None:
    good = npy(np.zeros(14, np.float32))

    def as_array(data: bytes, shape: tuple[int, ...] = (14,)) -> Array:
        return Array("float32", shape, "numpy.ndarray", data)

    zipped, pickled, header = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(zipped, x=np.zeros(14, np.float32))
    np.save(pickled, np.array([None] * 14), allow_pickle=True)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    refused(as_array(good, (13,)), "shape (13,)")
    refused(as_array(good, (14,) * 50_000), "shape (14, 14")
    refused(as_array(good + bytes(14 * 8 + 1024)), "bytes, expected (14,) in at most")
    refused(as_array(zipped.getvalue()), "B factors cannot be decoded (NpzFile)")
    refused(as_array(pickled.getvalue()), "cannot be decoded (ValueError)")
    refused(as_array(header.getvalue() + bytes(56)), "cannot be decoded")
    refused(as_array(good[:-1]), "cannot be decoded")
    refused(Array("float32", (14,), "torch.tensor", good), "cannot be decoded (TypeError)")
    refused(as_array(npy(np.zeros(13, np.float32))), "expected float32 of shape (14,)")
    refused(as_array(npy(np.zeros(14, np.int32))), "int32")
    refused(as_array(npy(np.zeros(14, ">f4"))), ">f4")
    refused(as_array(npy(np.full(14, np.nan, np.float32))), "up.B holds values that are not finite")
    last = np.zeros(14, np.float32)
    last[-1] = np.inf
    refused(as_array(npy(last)), "down.B holds values that are not finite")


def test_numbers_of_other_floats_are_read() -> None:
    like = counting()
    for kind in (np.float16, np.float64):
        arrays = ArrayRecord({f"B.{like.layout}": Array(np.arange(14).astype(kind))})
        read = arrays_to_adapter(arrays, like, place="ann", halves="B")
        assert read.layers["up"].B.dtype == torch.float32
        assert read.layers["down"].B.tolist() == [[8, 9], [10, 11], [12, 13]]


@pytest.mark.parametrize("count", [3, None])
def test_probes_arrive_bit_by_bit(count: int | None) -> None:
    probes = torch.tensor([0.1, -0.0, 1e-45])
    record = probes_record(probes)
    read = read_probes(record, count, place="ann")
    assert torch.equal(read.view(torch.int32), probes.view(torch.int32))
    assert record.count_bytes() == 128 + 3 * 4 + len("probes")


def test_probes_of_unknown_number_are_no_way_around_the_checks() -> None:
    def refusal(array: Array) -> str:
        with pytest.raises(AdapterError) as caught:
            read_probes(ArrayRecord({"probes": array}), None, place="ann")
        return str(caught.value)

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
    assert "ann: its probes have shape (10000000000000,)" in refusal(
        Array("float32", (10**13,), "numpy.ndarray", header.getvalue())
    )
    assert "have shape (3, 1)" in refusal(Array(np.zeros((3, 1), np.float32)))
    assert "have shape ()" in refusal(Array(np.zeros((), np.float32)))
    assert "expected float32" in refusal(Array(np.zeros(3)))
    assert "not finite" in refusal(Array(np.array([0, np.nan], np.float32)))
    assert read_probes(probes_record(torch.zeros(0)), None, place="ann").shape == (0,)


def request_of(group_size: int, **supervision: object) -> Message:
    """A message with a train request."""
    request = make_request(parse_config({"supervision": supervision}))
    sampling = request.sampling.model_copy(update={"group_size": group_size})
    sent = request.model_copy(update={"sampling": sampling})  # as a server may send it that does not check
    LocalGrid(answering(lambda _: RecordDict()), contexts())  # without a grid, Flower makes no messages
    return Message(content(sent), 1, "train")


@pytest.mark.parametrize(
    "supervision",
    [
        {"type": "labels"},
        {"type": "majority", "audit": True},
        {"type": "care", "budget": 0.05, "budget_per_day": 3, "labels_from": "desk", "share_probes": True},
        {"type": "oracle", "rest": "pseudo"},
    ],
)
def test_every_supervision_arrives_as_it_was_sent(supervision: dict[str, object]) -> None:
    read = read_request(request_of(64, **supervision), TrainRequest)
    assert read.supervision == parse_config({"supervision": supervision}).supervision


def test_groups_too_large_for_probes_are_refused_by_the_client_too() -> None:
    with pytest.raises(MessageError, match=r"'care' takes sampling\.group_size up to 64"):
        read_request(request_of(65, type="care"), TrainRequest)
    assert read_request(request_of(65, type="random"), TrainRequest).sampling.group_size == 65
