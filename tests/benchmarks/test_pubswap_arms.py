"""The arms of `scripts/bench pubswap` differ in what they should and in nothing else."""

from __future__ import annotations

import pytest
from factories import adapter_from

from benchmarks.pubswap_cells import ARMS, BASE, HALF, STEPS, STRETCH, TAUS, settings
from benchmarks.pubswap_tables import DRIFTING, NAMES, _distance, _paired, _syncs
from fedrlvr.adapter import Adapter
from fedrlvr.config import Config, PubSwapCoordination, load_config
from fedrlvr.tasks.deal import deal


def config(tau: int, arm: str) -> Config:
    return load_config(BASE, settings(tau, arm))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_takes_as_many_local_steps_and_samples_as_many_groups(tau: int, arm: str) -> None:
    cell = config(tau, arm)
    assert cell.train.rounds * cell.train.local_steps == STEPS
    groups = STEPS * cell.train.problems_per_step
    if isinstance(cell.coordination, PubSwapCoordination):
        exchanges = cell.train.rounds * cell.coordination.exchanges
        assert exchanges == STEPS // STRETCH
        groups += exchanges * cell.coordination.public_problems
    assert groups == 600
    due = [r for r in range(cell.train.rounds + 1) if r in (0, cell.train.rounds) or not r % cell.evaluate.every]
    assert [r * tau for r in due] == [0, HALF, STEPS]


def test_all_arms_hold_the_same_private_problems() -> None:
    plain, swap = (deal(config(60, arm)) for arm in ("fedavg", "balanced"))
    assert [(s.name, s.train, s.test) for s in plain.clients] == [(s.name, s.train, s.test) for s in swap.clients]
    assert plain.public == swap.public
    assert len(swap.public) == 256
    assert {problem.source for problem in swap.public} == {p.source for s in swap.clients for p in s.train}


def test_names_are_of_the_arms() -> None:
    assert list(NAMES) == list(ARMS)
    assert set(DRIFTING) <= set(ARMS)


def test_differences_are_taken_seed_by_seed() -> None:
    def run(half: float, end: float) -> dict[str, object]:
        return {"pass@1": {str(HALF): {"mean": half}, str(STEPS): {"mean": end}}}

    arm, baseline = {0: run(0.5, 0.8), 1: run(0.6, 0.7)}, {0: run(0.4, 0.7), 1: run(0.4, 0.5)}
    # 10 and 20 points: mean 15, standard deviation 7.07, Student's t of one degree of freedom 12.706.
    result = _paired(arm, baseline, STEPS)
    assert result.mean == pytest.approx(15.0)
    assert result.half == pytest.approx(12.706 * 7.0711 / 2**0.5, rel=1e-3)
    assert _paired(arm, baseline, HALF, STEPS).mean == pytest.approx(-5.0)


def test_only_twice_as_many_synchronisations_are_compared() -> None:
    run = {0: {"pass@1": {str(step): {"mean": 0.5} for step in (HALF, STEPS)}}}
    lines = _syncs({(tau, arm): run for tau in TAUS for arm in ARMS})[4:]
    result = [tuple(int(n) for cell in line.split("|")[1:3] for n in cell.split(",")) for line in lines]
    assert (60, 120, 2, 20, 6) in result
    assert (60, 60, 1, 60, 2) in result
    assert all(2 * rare <= frequent for _, _, rare, _, frequent in result)
    assert all(step // tau == rare and STEPS // other == frequent for tau, step, rare, other, frequent in result)


def test_the_distance_of_products_by_hand() -> None:

    def of(value: float) -> Adapter:
        return adapter_from([[value]], [[1.0], [1.0]], 1.0)

    # Products (1, 1) and (3, 3): the mean is (2, 2), and each is half of its norm away from it.
    assert _distance([of(1.0), of(3.0)]) == pytest.approx(0.5)
    assert _distance([of(2.0), of(2.0)]) == 0.0
