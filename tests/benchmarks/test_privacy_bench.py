"""The benchmark of differential privacy: noise of a mean over many sites, and the federation sizes computed from it."""

from __future__ import annotations

import torch

from benchmarks.privacy import DELTA, mean_with_noise
from benchmarks.privacy_tables import enough_sites, scaled_sites
from fedrlvr.adapter import Adapter, Factors
from fedrlvr.privacy.accountant import noise_for


def test_the_noise_of_a_mean_is_that_of_its_number_of_sites() -> None:
    start = Adapter({"x": Factors(torch.zeros(1, 200), torch.zeros(200, 1))}, 1.0)
    for sites in (4, 100):
        noised = mean_with_noise([start] * 4, start, clip=0.5, epsilon=8.0, sites=sites, halves="AB")
        expected = 0.5 * noise_for(8.0, DELTA, 1) / sites**0.5
        assert 0.8 < float(noised.flat().std()) / expected < 1.2  # 400 numbers: six standard errors
    assert mean_with_noise([start] * 4, start, clip=0.5, epsilon=None, sites=4, halves="AB").distance(start) == 0


def test_enough_sites_are_the_fewest_that_keep_half_of_the_gain() -> None:
    levels = [(None, 4, 0.6), (8.0, 4, 0.0), (8.0, 1000, 0.39), (8.0, 10_000, 0.41), (8.0, 100_000, 0.6)]
    scores = [{"clip": 1.0, "epsilon": e, "sites": n, "pass@1": score} for e, n, score in levels]
    assert enough_sites({"0": {"base": 0.2, "scores": scores}}, 1.0) == 10_000
    assert enough_sites({"0": {"base": 0.2, "scores": scores[:3]}}, 1.0) is None


def test_sites_grow_with_the_square_of_the_noise() -> None:
    assert scaled_sites(1000, 8.0, DELTA) == 1000
    assert scaled_sites(1000, 8.0, DELTA, rounds=10) == 10_000
    assert scaled_sites(1000, 4.0, DELTA) == 3244  # (2.1625 / 1.2005)^2
