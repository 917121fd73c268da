"""The Gaussian mechanism on changes of adapters: the clip, the noise and where it comes from."""

from __future__ import annotations

import math
import os

import pytest
import torch

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.privacy import mechanism
from fedrlvr.privacy.mechanism import clipped_change, noised, system_normal


def adapter(a: float, b: float) -> Adapter:
    """Two layers of rank 1, whose four factors hold one number each in every place."""
    layer = Factors(torch.full((1, 2), a), torch.full((2, 1), b))
    return Adapter({"x": layer, "y": layer}, 1.0)


def zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float64)


def ones(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.float64)


def test_a_change_within_the_clip_stays_and_a_larger_one_is_shortened() -> None:
    start, end = adapter(1.0, 0.0), adapter(1.0, 1.0)  # four numbers change by 1: norm 2
    same = noised(end, start, clip=2.0, noise=1.0, halves="AB", normal=zeros)
    assert same.distance(end) == 0
    half = noised(end, start, clip=1.0, noise=1.0, halves="AB", normal=zeros)
    assert half.distance(adapter(1.0, 0.5)) == 0


def test_the_norm_is_that_of_all_factors_together() -> None:
    start, end = adapter(0.0, 0.0), adapter(30.0, -4.0)
    assert noised(end, start, clip=1.0, noise=1.0, halves="AB", normal=zeros).distance(start) == pytest.approx(1.0)


def test_what_one_site_can_do_to_a_reply_is_bounded_by_twice_the_clip() -> None:
    """Without the clip, the two replies are 8e6 apart, whatever the noise."""
    start = adapter(1.0, 0.0)
    far, opposite = (
        noised(adapter(1.0, value), start, clip=0.5, noise=1.0, halves="AB", normal=ones) for value in (2e6, -2e6)
    )
    assert far.distance(opposite) == pytest.approx(1.0)


def test_noise_has_the_size_of_clip_times_multiplier_in_the_halves_that_are_sent() -> None:
    start = adapter(1.0, 0.0)
    both = noised(start, start, clip=0.5, noise=3.0, halves="AB", normal=ones)
    assert both.distance(adapter(2.5, 1.5)) == 0
    only = noised(adapter(9.0, 0.0), start, clip=0.5, noise=3.0, halves="B", normal=ones)
    assert only.distance(adapter(1.0, 1.5)) == 0, "the other half is the one that was received"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_change_that_is_not_finite_is_none(value: float) -> None:
    assert clipped_change(torch.tensor([1.0, value], dtype=torch.float64), 1.0).tolist() == [0.0, 0.0]


def test_no_change_stays_none() -> None:
    assert clipped_change(zeros(3), 1.0).tolist() == [0.0, 0.0, 0.0]


def test_numbers_from_the_system_are_standard_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "_AT_ONCE", 30_000)  # several parts, the last of another size
    numbers = system_normal(100_001)
    assert (numbers.shape, numbers.dtype) == ((100_001,), torch.float64)
    assert abs(float(numbers.mean())) < 0.02  # six standard errors
    assert abs(float(numbers.var()) - 1) < 0.03
    assert abs(float((numbers**4).mean()) - 3) < 0.25
    assert 0.04 < float((numbers.abs() > 1.96).double().mean()) < 0.06
    assert abs(float((numbers[:-1] * numbers[1:]).mean())) < 0.02
    assert system_normal(0).shape == (0,)


def test_the_system_s_generator_is_the_only_source(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(count: int) -> bytes:
        asked.append(count)
        return bytes(count)  # zeros: the largest radius at angle 0

    monkeypatch.setattr(os, "urandom", urandom)
    state = torch.random.get_rng_state()
    assert system_normal(3)[0] == pytest.approx(math.sqrt(2 * 53 * math.log(2))), (
        "half of two cosines of 1, two sines of 0"
    )
    assert asked == [16 * 6], "three numbers of four summed ones, two from each pair of 64 bits"
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.undo()
    assert not torch.equal(system_normal(8), system_normal(8))
