"""Rounded changes: what travels, what is lost and made up for later, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from factories import adapter_from, random_adapter
from flwr.app import Array, ArrayRecord

from fedrlvr.adapter import Adapter, Factors, Halves
from fedrlvr.errors import AdapterError
from fedrlvr.wire.compression import Lowered, Rounded, lowered, pack, received, unpack
from fedrlvr.wire.messages import adapter_to_arrays, arrays_to_adapter

PRECISIONS: tuple[Rounded, ...] = ("float16", "int8")


def uneven_adapter(seed: int, size: float = 1.0) -> Adapter:
    """Two layers of rank 2 with different shapes, whose rows differ in size by a thousand."""
    adapter = random_adapter(seed, shapes={"up": (4, 5), "down": (3, 4)})
    rows = torch.tensor([1.0, 1000.0]) * size
    return adapter.alike({name: Factors(a * rows[:, None], b * rows) for name, (a, b) in adapter.layers.items()})


def one_layer(a: list[list[float]], b: list[list[float]]) -> Adapter:
    return adapter_from(a, b, 2.0, "x")


def plus(adapter: Adapter, other: Adapter) -> Adapter:
    both = zip(adapter.layers.items(), other.layers.values(), strict=True)
    return adapter.alike({name: Factors(f.A + g.A, f.B + g.B) for (name, f), g in both})


def of(lost: ArrayRecord, like: Adapter) -> Adapter:
    return arrays_to_adapter(lost, like, place="lost")


def zeros() -> Adapter:
    return one_layer([[0.0, 0.0, 0.0]], [[0.0], [0.0]])


def close(adapter: Adapter, other: Adapter, tolerance: float) -> None:
    for (name, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=name)


def test_int8_by_hand() -> None:
    """A's row has s = 254 / 127 = 2, so 254, 3, -4.9 are q = 127, round(1.5) = 2, -2; B's column has s = 1."""
    sent, lost = pack(one_layer([[254.0, 3.0, -4.9]], [[-127.0], [0.4]]), zeros(), None, "int8")
    layout = zeros().layout
    assert {name: array.numpy().tolist() for name, array in sent.items()} == {
        f"A.int8.{layout}": [127, 2, -2],
        f"A.scales.{layout}": [2.0],
        f"B.int8.{layout}": [-127, 0],
        f"B.scales.{layout}": [1.0],
    }
    assert [array.dtype for array in sent.values()] == ["int8", "float32"] * 2
    close(of(lost, zeros()), one_layer([[0.0, -1.0, -0.9]], [[0.0], [0.4]]), 1e-6)
    start = one_layer([[1.0, 1.0, 1.0]], [[0.0], [2.0]])
    read = unpack(sent, start, precision="int8", place="ann")
    close(read, one_layer([[255.0, 5.0, -3.0]], [[-127.0], [2.0]]), 0.0)


def test_each_rank_component_has_its_own_scale() -> None:
    """A row of A and a column of B: small components are not rounded away beside large ones."""
    start = uneven_adapter(1)
    end = plus(start, uneven_adapter(2))
    sent, _ = pack(end, start, None, "int8")
    scales = [array.numpy() for name, array in sent.items() if ".scales." in name]
    change = dict(plus(end, start.alike({n: Factors(-f.A, -f.B) for n, f in start.layers.items()})).tensors())
    for half, of_half in zip("AB", scales, strict=True):
        for n, layer in enumerate(("up", "down")):
            largest = change[f"{layer}.{half}"].abs().amax(dim=1 if half == "A" else 0)
            np.testing.assert_allclose(of_half[2 * n : 2 * n + 2], largest / 127, rtol=1e-6)
    read = dict(unpack(sent, start, precision="int8", place="ann").tensors())
    for name, tensor in end.tensors():
        along = 1 if name.endswith("A") else 0
        most = (change[name].abs().amax(dim=along, keepdim=True) / 254).expand_as(tensor)
        assert bool(((read[name] - tensor).abs() <= most * 1.001).all()), name


def test_float16_by_hand() -> None:
    """Float16 has steps of 2 from 2048 to 4096, and of 2^-10 from 1 to 2."""
    sent, lost = pack(one_layer([[2049.0, 2051.0, 1.0]], [[1 + 2**-12], [65504.0]]), zeros(), None, "float16")
    layout = zeros().layout
    assert {name: array.numpy().tolist() for name, array in sent.items()} == {
        f"A.float16.{layout}": [2048.0, 2052.0, 1.0],
        f"B.float16.{layout}": [1.0, 65504.0],
    }
    close(of(lost, zeros()), one_layer([[1.0, -1.0, 0.0]], [[2**-12], [0.0]]), 0.0)
    start = one_layer([[0.5, 0.5, 0.5]], [[0.0], [1.0]])
    close(
        unpack(sent, start, precision="float16", place="ann"),
        one_layer([[2048.5, 2052.5, 1.5]], [[1.0], [65505.0]]),
        0.0,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("halves", ["AB", "A", "B"])
def test_nothing_is_lost_but_what_is_kept(precision: Rounded, halves: Halves) -> None:
    """Start + decoded + newly lost is adapter + lost before, to float32's rounding, in the halves that travel."""
    start, end = uneven_adapter(1), uneven_adapter(2)
    before = uneven_adapter(3, 0.01)
    sent, lost = pack(end, start, adapter_to_arrays(before), precision, halves)
    read = unpack(sent, start, precision=precision, halves=halves, place="ann")
    left = of(lost, start)
    for name in start.layers:
        for half in "AB":
            now, was = getattr(left.layers[name], half), getattr(before.layers[name], half)
            got, ended = getattr(read.layers[name], half), getattr(end.layers[name], half)
            if half in halves:
                torch.testing.assert_close(got + now, ended + was, rtol=0, atol=1e-6 * 4000)
                assert not torch.equal(now, was)
            else:
                assert torch.equal(got, getattr(start.layers[name], half))
                assert torch.equal(now, was)


@pytest.mark.parametrize(("precision", "large", "bound"), [("int8", 1.0, 1 / 200), ("float16", 16384.0, 9.0)])
def test_small_changes_that_rounding_would_swallow_add_up(precision: Rounded, large: float, bound: float) -> None:
    """A change of 0.003 a round beside one of 1 in its row is under half of int8's step, and so for float16 is 16384.2
    under half of its step of 16 at 16384: without feedback it never arrives, with it the sum does, however many rounds.
    """
    small = 0.003 if precision == "int8" else 16384.2
    rounds = 150 if precision == "int8" else 100
    change = one_layer([[large, small, 0.0]], [[0.0], [0.0]])
    ends = {}
    for feedback in (True, False):
        kept, worst, decoded_sum = None, 0.0, 0.0
        for n in range(1, rounds + 1):
            sent, lost = pack(change, zeros(), kept, precision)
            kept = lost if feedback else None
            decoded_sum += float(unpack(sent, zeros(), precision=precision, place="ann").layers["x"].A[0, 1])
            worst = max(worst, abs(decoded_sum - n * small))
        ends[feedback] = worst
    drift = rounds * (small - (0.0 if precision == "int8" else 16384.0))
    assert ends[True] < bound
    assert ends[False] == pytest.approx(drift, rel=1e-3)
    assert drift > 2 * bound


def test_a_federation_of_one_follows_its_client_round_after_round() -> None:
    """Each round begins with what the server decoded; random steps; the distance never exceeds the last rounding."""
    truth = start = uneven_adapter(1)
    lost = None
    for n in range(50):
        step = uneven_adapter(100 + n, 0.1)
        truth = plus(truth, step)
        sent, lost = pack(plus(start, step), start, lost, "int8")
        start = unpack(sent, start, precision="int8", place="ann")
        scale = max(float(array.numpy().max()) for name, array in sent.items() if ".scales." in name)
        close(start, truth, scale / 2 + 0.05)
        close(plus(start, of(lost, start)), truth, 0.05)


def test_a_row_of_zeros_and_one_of_next_to_nothing() -> None:
    """1e-45, the least float32, divided by 127 is no number above 0: it is kept, not sent as something that is none."""
    end = Adapter({"x": Factors(torch.tensor([[0.0, 0.0], [1e-45, 0.0]]), torch.zeros(3, 2))}, 2.0)
    start = Adapter({"x": Factors(torch.zeros(2, 2), torch.zeros(3, 2))}, 2.0)
    sent, lost = pack(end, start, None, "int8")
    assert [array.numpy().any() for array in sent.values()] == [False] * 4
    close(unpack(sent, start, precision="int8", place="ann"), start, 0.0)
    close(of(lost, start), end, 0.0)


def test_numbers_that_their_scale_cannot_divide_well_are_cut_to_what_int8_holds() -> None:
    """A scale of 190 / 127 least float32s can only be one of them: 190 of it would be -66 in 8 bits."""
    least = 2.0**-149
    end = one_layer([[190 * least, 0.0, 0.0]], [[0.0], [0.0]])
    sent, lost = pack(end, zeros(), None, "int8")
    assert next(iter(sent.values())).numpy().tolist() == [127, 0, 0]
    close(of(lost, zeros()), one_layer([[63 * least, 0.0, 0.0]], [[0.0], [0.0]]), 0.0)


def test_bytes_by_hand() -> None:
    """A layer of rank 4, A [4, 1000] and B [500, 4]: 6000 numbers of 4, 2 or 1 byte; int8 has 8 scales of 4 bytes.

    To each array numpy adds 128 bytes, and its name is 2 letters for the half, 16 of layout and what comes between.
    """
    start = Adapter({"x": Factors(torch.zeros(4, 1000), torch.zeros(500, 4))}, 8.0)
    half, whole = pack(start, start, None, "float16")[0], pack(start, start, None, "int8")[0]
    assert adapter_to_arrays(start).count_bytes() == 6000 * 4 + 2 * (128 + 18)
    assert half.count_bytes() == 6000 * 2 + 2 * (128 + 18 + len("float16."))
    assert whole.count_bytes() == 6000 + 8 * 4 + 4 * (128 + 18) + 2 * (len("int8.") + len("scales."))
    assert pack(start, start, None, "int8", "B")[0].count_bytes() == 2000 + 16 + 2 * (128 + 18) + len("int8.scales.")


def test_what_is_given_is_not_changed() -> None:
    start, end, before = uneven_adapter(1), uneven_adapter(2), adapter_to_arrays(uneven_adapter(3, 0.01))
    copies = [[tensor.clone() for _, tensor in adapter.tensors()] for adapter in (start, end)]
    data = [array.data for array in before.values()]
    sent, _ = pack(end, start, before, "int8")
    unpack(sent, start, precision="int8", place="ann")
    for adapter, copy in zip((start, end), copies, strict=True):
        assert all(torch.equal(a, b) for (_, a), b in zip(adapter.tensors(), copy, strict=True))
    assert [array.data for array in before.values()] == data


def test_a_change_too_large_for_the_precision_is_named() -> None:
    with pytest.raises(AdapterError, match=r"x\.B .*65505.*float16.*65504.*'float32'"):
        pack(one_layer([[0.0, 0.0, 0.0]], [[-65505.0], [0.0]]), zeros(), None, "float16")
    with pytest.raises(AdapterError, match=r"x\.A changed by inf, and int8"):
        pack(one_layer([[3e38, 0.0, 0.0]], [[0.0], [0.0]]), one_layer([[-3e38, 0, 0]], [[0.0], [0.0]]), None, "int8")
    pack(one_layer([[0.0, 0.0, 0.0]], [[-65505.0], [0.0]]), zeros(), None, "float16", "A")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_adapter_or_a_memory_of_another_kind_is_not_packed(precision: Rounded) -> None:
    with pytest.raises(AdapterError, match=r"x\.A holds values that are not finite"):
        pack(one_layer([[float("nan"), 0.0, 0.0]], [[0.0], [0.0]]), zeros(), None, precision)
    with pytest.raises(AdapterError, match="its layers"):
        pack(uneven_adapter(1), zeros(), None, precision)
    with pytest.raises(AdapterError, match="what rounding lost"):
        pack(zeros(), zeros(), adapter_to_arrays(uneven_adapter(1)), precision)


def spoilt(precision: Rounded, half: str, kind: str, array: Array, *words: str) -> None:
    """A record with one array of ann's replaced is refused with these words."""
    start = uneven_adapter(1)
    sent, _ = pack(uneven_adapter(2), start, None, precision)
    name = f"{half}.{kind}.{start.layout}"
    assert name in sent
    sent[name] = array
    with pytest.raises(AdapterError) as caught:
        unpack(sent, start, precision=precision, place="round 3, ann")
    assert all(word in str(caught.value) for word in ("round 3, ann: ", *words)), caught.value
    assert len(str(caught.value)) < 400


def raw(values: np.ndarray, kind: str, shape: tuple[int, ...] | None = None, more: bytes = b"") -> Array:
    return Array(kind, shape or values.shape, "numpy.ndarray", Array(values).data + more)


def test_hostile_records_are_refused() -> None:
    """Of A there are 2 x 5 + 2 x 4 = 18 numbers with 4 scales, of B 4 x 2 + 3 x 2 = 14."""
    pickled, zipped = io.BytesIO(), io.BytesIO()
    np.save(pickled, np.array([None] * 18), allow_pickle=True)
    np.savez(zipped, x=np.zeros(18, np.int8))
    byte, scale, half = np.zeros(18, np.int8), np.ones(4, np.float32), np.zeros(14, np.float16)
    spoilt("int8", "A", "int8", raw(byte[:17], "int8"), "A factors", "shape (17,)")
    spoilt("int8", "A", "int8", raw(byte[:17], "int8", (18,)), "A factors are int8 (17,)", "expected int8")
    spoilt("int8", "A", "int8", raw(byte, "int8", more=bytes(2000)), "A factors", "in 2146 bytes")
    spoilt("int8", "A", "int8", raw(byte.astype(np.float32), "int8"), "A factors are float32")
    spoilt("int8", "A", "int8", raw(byte.astype(np.uint8), "int8"), "A factors are uint8")
    spoilt("int8", "A", "int8", Array("int8", (18,), "numpy.ndarray", pickled.getvalue()), "A factors cannot be")
    spoilt("int8", "A", "int8", Array("int8", (18,), "numpy.ndarray", zipped.getvalue()), "A factors cannot be")
    spoilt("int8", "B", "scales", raw(scale[:3], "float32"), "B scales", "expected (4,)")
    spoilt("int8", "B", "scales", raw(scale.astype(np.float64), "float32"), "B scales are float64")
    for bad in (np.nan, np.inf, -1.0):
        spoilt("int8", "B", "scales", raw(np.array([1, 1, 1, bad], np.float32), "float32"), "B scales are not all")
    ones, huge = raw(np.full(14, 127, np.int8), "int8"), raw(np.full(4, 3e38, np.float32), "float32")
    start = uneven_adapter(1)
    sent, _ = pack(start, start, None, "int8")
    sent[f"B.int8.{start.layout}"], sent[f"B.scales.{start.layout}"] = ones, huge
    with pytest.raises(AdapterError, match=r"ann: up\.B holds values that are not finite"):
        unpack(sent, start, precision="int8", place="ann")
    spoilt("float16", "B", "float16", raw(half.astype(np.float32), "float16"), "B factors are float32")
    spoilt("float16", "B", "float16", raw(half[:13], "float16"), "expected (14,)")
    for value in (np.nan, np.inf):
        last = np.append(half[:13], np.float16(value))
        spoilt("float16", "B", "float16", raw(last, "float16"), "down.B holds values that are not finite")


def test_a_record_of_another_kind_is_refused() -> None:
    start = uneven_adapter(1)
    other = Adapter({name: start.layers[name] for name in ("down", "up")}, 4.0)
    eight, sixteen = (pack(start, start, None, precision)[0] for precision in ("int8", "float16"))
    cases: list[tuple[ArrayRecord, Rounded, Halves]] = [
        (pack(other, other, None, "int8")[0], "int8", "AB"),
        (eight, "float16", "AB"),
        (sixteen, "int8", "AB"),
        (adapter_to_arrays(start), "float16", "AB"),
        (eight, "int8", "A"),
        (pack(start, start, None, "int8", "A")[0], "int8", "B"),
        (pack(start, start, None, "float16", "B")[0], "float16", "AB"),
        (ArrayRecord(dict(reversed(list(eight.items())))), "int8", "AB"),
        (ArrayRecord({**eight, "more": Array(np.zeros(3))}), "int8", "AB"),
        (ArrayRecord(dict(list(eight.items())[:3])), "int8", "AB"),
        (ArrayRecord(), "int8", "AB"),
    ]
    for arrays, precision, halves in cases:
        with pytest.raises(AdapterError, match=f"ann: .*{precision}"):
            unpack(arrays, start, precision=precision, halves=halves, place="ann")


def test_a_lowered_adapter_by_hand() -> None:
    """int8: A's row has s = 254 / 127 = 2, so 254, 3, -4.9 are 254, 4, -4. bfloat16 has 8 bits: 257 is 256 or 258."""
    adapter = one_layer([[254.0, 3.0, -4.9]], [[-127.0], [0.4]])
    sent = lowered(adapter, "int8")
    assert list(sent) == [f"{half}.{kind}.{adapter.layout}" for half in "AB" for kind in ("int8", "scales")]
    close(received(sent, zeros(), place="x"), one_layer([[254.0, 4.0, -4.0]], [[-127.0], [0.0]]), 0.0)
    sent = lowered(one_layer([[257.0, 0.5, -3.0]], [[1e-30], [0.0]]), "bfloat16")
    assert [array.dtype for array in sent.values()] == ["int16", "int16"]
    read = received(sent, zeros(), place="x").layers["x"]
    assert read.A.tolist()[0][1:] == [0.5, -3.0]
    assert read.A.tolist()[0][0] in (256.0, 258.0)
    assert read.B[0].item() == pytest.approx(1e-30, rel=2**-8)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_lowered_half_leaves_the_other_half_alone(precision: Lowered) -> None:
    adapter, like = uneven_adapter(1), uneven_adapter(2)
    read = received(lowered(adapter, precision, "B"), like, place="x", halves="B")
    for name, factors in like.layers.items():
        assert torch.equal(read.layers[name].A, factors.A)
        torch.testing.assert_close(read.layers[name].B, adapter.layers[name].B, rtol=0, atol=16.0)
        assert not torch.equal(read.layers[name].B, factors.B)


def test_what_is_no_lowered_adapter_is_refused() -> None:
    adapter = zeros()
    sent = dict(lowered(adapter, "int8"))
    negative = {**sent, f"A.scales.{adapter.layout}": Array(np.array([-1.0], dtype=np.float32))}
    infinite = dict(lowered(one_layer([[torch.inf, 0.0, 0.0]], [[0.0], [0.0]]), "bfloat16"))
    short = {**sent, f"B.int8.{adapter.layout}": Array(np.zeros(1, dtype=np.int8))}
    half = {name: array for name, array in sent.items() if name.startswith("A")}
    for arrays in (negative, infinite, short, half):
        with pytest.raises(AdapterError, match="server"):
            received(ArrayRecord(arrays), adapter, place="server")
