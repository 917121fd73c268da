"""The cells of `scripts/bench gain` and its numbers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gain_cells import BASE, CELLS, FEDERATIONS, PUBLIC, STEPS, Arm, choosing, directory_of, settings
from benchmarks.gain_choices import best
from benchmarks.gain_results import committed_choice, committed_runs, committed_verdicts, first_missing
from benchmarks.gain_search import at_step
from benchmarks.gain_tables import area, kind, paired, reached
from fedrlvr.config import load_config
from fedrlvr.zoo.generators import ALL
from tests.factories import random_adapter


def test_every_cell_takes_the_same_number_of_optimizer_steps() -> None:
    for federation, tau, arm in CELLS:
        config = load_config(BASE, settings(federation, tau, arm, rate="3e-3", tuned="1.5"))
        exchanges, steps = (getattr(config.coordination, name, 0) for name in ("exchanges", "public_steps"))
        assert config.train.rounds * (config.train.local_steps + exchanges * steps) == STEPS, arm.name


def test_settings_are_chosen_on_validation_problems_alone() -> None:
    for federation in FEDERATIONS:
        for public in PUBLIC:
            assert load_config(BASE, choosing(federation, 60, "fedit", public)).evaluate.split == "validation"
    assert all(
        load_config(BASE, settings(federation, tau, arm, rate="3e-3", tuned="2")).evaluate.split == "test"
        for federation, tau, arm in CELLS
    )


def test_a_tuned_step_shares_the_runs_of_the_fixed_step_it_equals() -> None:
    place = directory_of("life", 20, Arm("fedit", "tuned"), "2")
    assert place == directory_of("life", 20, Arm("fedit", "2"), "")
    assert place != directory_of("life", 20, Arm("fedit", "tuned", "pooled"), "2")


def test_of_equal_scores_the_smallest_value_is_chosen() -> None:
    assert best({"1": 0.5, "1.5": 0.7, "2": 0.7}) == "1.5"


def run(*scores: float, **others: Any) -> dict[str, Any]:
    """A run evaluated after 0, 60 and 120 local steps."""
    return {"pass@1": dict(zip(("0", "60", "120"), scores, strict=True)), **others}


def test_area_and_differences_by_hand() -> None:
    assert area(run(20.0, 60.0, 80.0)) == pytest.approx((40 + 70) / 2)
    runs, others = {0: run(0, 0, 70.0), 1: run(0, 0, 74.0), 2: run(0, 0, 1.0)}, {0: run(0, 0, 69.0), 1: run(0, 0, 71.0)}
    gap = paired(runs, others, lambda r: r["pass@1"]["120"])
    assert gap is not None
    assert gap.by_seed == {0: 1.0, 1: 3.0}
    assert paired(runs, others, lambda r: r["pass@1"]["120"], seeds=[2]) is None


def test_synchronisations_and_bytes_up_to_an_accuracy() -> None:
    runs = {
        0: run(20.0, 66.0, 80.0, bytes_up=[0, 300_000, 600_000]),
        1: run(20.0, 72.0, 80.0, bytes_up=[0, 320_000, 640_000]),
    }
    assert reached(runs, 60, 69.0) == "1, 310"
    assert reached(runs, 60, 70.0) == "2, 620"
    assert reached(runs, 60, 81.0) == "not reached"


def test_families_by_the_kind_of_their_errors() -> None:
    families = {family.name: 100.0 if family.error == "systematic" else 10.0 for family in ALL}
    assert (kind("systematic")({"families": families}), kind("diffuse")({"families": families})) == (100.0, 10.0)


def test_a_candidate_of_the_line_search_by_hand() -> None:
    start, mean = random_adapter(seed=1), random_adapter(seed=2)
    moved = at_step(start, mean, 1.5)
    for (name, old), (_, new), (_, got) in zip(start.tensors(), mean.tensors(), moved.tensors(), strict=True):
        assert got.sub(1.5 * new - 0.5 * old).abs().max() < 1e-6, name


def test_the_bench_goes_on_from_the_committed_results() -> None:
    runs = committed_runs()
    assert set(runs["disjoint", 60, "fedit-auto"]) >= {0, 1, 2}
    assert {"pass@1", "families", "step", "bytes_up"} <= runs["disjoint", 60, "fedit-auto"][0].keys()
    assert set(committed_verdicts()["life", "finish"]) >= {0, 1, 2}
    scores = committed_choice("disjoint/tau-60/fedit-step")
    assert scores is not None
    assert best(scores) == "1.5"
    assert committed_choice("disjoint/tau-60/nothing") is None


@pytest.mark.parametrize(("done", "first"), [((), 0), ((0, 1, 2), 3), ((0, 2), 1), ((1,), 0)])
def test_seeds_go_on_from_the_first_that_is_missing(done: tuple[int, ...], first: int) -> None:
    assert first_missing(done) == first
