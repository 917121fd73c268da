"""The accountant of the Gaussian mechanism: the closed form, its inverses and composition."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from fedrlvr.privacy.accountant import delta_of, epsilon_of, mu_after, mu_of, noise_for

PHI = NormalDist().cdf


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 0.5), (1.0, 0.5), (1.0, 2.0), (3.0, 1.0), (8.0, 1.7)])
def test_delta_is_the_closed_form(epsilon: float, mu: float) -> None:
    expected = PHI(-epsilon / mu + mu / 2) - math.exp(epsilon) * PHI(-epsilon / mu - mu / 2)
    assert delta_of(epsilon, mu) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("sigma", "rounds", "delta", "epsilon"),
    [  # of dp-accounting 0.6.0 (PLDAccountant, interval 1e-5); Opacus 1.6.0's PRVAccountant bounds them from above
        (1.0, 1, 1e-5, 4.377178095870),  # Opacus: 4.378412 with an allowed error of 0.001
        (4.0, 16, 1e-5, 4.377178095870),
        (2.0, 10, 1e-6, 8.306225050207),  # Opacus: 8.307554
        (30.0, 100, 1e-5, 1.271087767045),  # Opacus: 1.272169
    ],
)
def test_epsilon_of_composed_rounds(sigma: float, rounds: int, delta: float, epsilon: float) -> None:
    assert epsilon_of(math.sqrt(rounds) / sigma, delta) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 8.0, 500.0, 2e4])
def test_the_inverses_agree(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)
    assert delta_of(epsilon, mu) <= delta
    assert delta_of(epsilon, mu * (1 + 1e-9)) > delta
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-6)


def test_no_loss_is_no_epsilon_and_a_large_delta_excuses_a_small_loss() -> None:
    assert (delta_of(1.0, 0.0), epsilon_of(0.0, 1e-5), epsilon_of(1e-3, 0.1)) == (0.0, 0.0, 0.0)


def test_the_noise_of_a_run_is_for_replaced_changes_and_never_too_small() -> None:
    noise = noise_for(8.0, 1e-5, 10)
    assert noise == pytest.approx(2 * math.sqrt(10) / mu_of(8.0, 1e-5), rel=1e-8)
    assert mu_after(noise) == pytest.approx(2 / noise)
    together = math.sqrt(math.fsum(mu_after(noise) ** 2 for _ in range(10)))
    assert together <= mu_of(8.0, 1e-5)
    assert epsilon_of(mu_after(noise, 10), 1e-5) <= 8.0 + 1e-9
    assert math.sqrt(math.fsum(mu_after(noise) ** 2 for _ in range(11))) > mu_of(8.0, 1e-5)
