"""The cells of `scripts/bench labels` and its tables."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.labels_cells import ARMS, BASE, BUDGET, CELLS, COMPARISONS, FEDERATIONS, NAMES, choosing, settings
from benchmarks.labels_tables import arm_table, comparison_table, final
from fedrlvr.config import Asking, CareSupervision, Config, load_config


def config(federation: str, arm: str) -> Config:
    return load_config(BASE, settings(federation, arm))


@pytest.mark.parametrize("federation", FEDERATIONS)
def test_arms_differ_in_nothing_but_supervision_and_have_one_budget(federation: str) -> None:
    labels = config(federation, "labels")
    place = FEDERATIONS[federation]
    assert labels.train.rounds * labels.train.local_steps == place.steps
    assert place.steps * labels.train.problems_per_step > labels.data.train_size, "problems recur"
    for arm in ARMS:
        other = config(federation, arm)
        assert other.model_copy(update={"supervision": labels.supervision}) == labels
        if arm != "labels":
            assert isinstance(other.supervision, Asking)
            assert other.supervision.budget == BUDGET


def test_arms_are_what_they_are_named_for() -> None:
    arms = {arm: config("life", arm).supervision for arm in ARMS}
    care, control, gap, even = (arms[arm] for arm in ("care", "care-random", "care-gap", "care-even"))
    assert care.model_copy(update={"audit": False}) == CareSupervision()
    for arm, setting in ((control, "selection"), (gap, "score"), (even, "spend")):
        assert arm.model_copy(update={setting: getattr(care, setting)}) == care
    assert set(NAMES) == set(ARMS) == {arm for _, arm in CELLS}
    assert {arm for pair in COMPARISONS for arm in pair} <= set(ARMS)
    assert COMPARISONS[0] == ("care", "random")


def test_learning_rates_are_chosen_on_validation_problems_alone() -> None:
    for federation, arm in CELLS:
        chosen = load_config(BASE, choosing(federation, arm))
        assert chosen.evaluate.split == "validation"
        assert chosen.data.validation_size == 1024
        assert config(federation, arm).evaluate.split == "test"


def run(*scores: float, **others: Any) -> dict[str, Any]:
    curve = {str(20 * at): score for at, score in enumerate(scores)}
    costs = {"tokens_sampled": 9000, "tokens_trained": 4000, "bytes_up": [0, 2000]}
    return {"pass@1": curve, "labels": 40, "trusted": 0.2, "trusted_right": 0.9, "auc": None, **costs, **others}


def test_tables_by_hand() -> None:
    cells = {
        ("life", "random"): {0: run(20, 40, 60), 1: run(20, 40, 64), 2: run(20, 40, 62)},
        ("life", "care"): {0: run(20, 50, 60, auc=0.75), 1: run(20, 54, 64), 2: run(20, 52, 62)},
    }
    assert final(cells["life", "random"][1]) == 64
    lines = "\n".join(arm_table(cells, "life"))
    # The areas of random are (30 + 50) / 2 = 40, 41 and 40.5; CARE is ahead by half a step of 10, 14 and 12.
    # t = 6 / (1 / sqrt(3)) with two degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
    assert "| random, rest masked | 3 | 40.5 ± 1.2 |" in lines
    assert "| +6.0 ± 2.5 | +0.0 ± 0.0 | 40 | 20 | 90 | 0.75 | 9 | 4 | 2 |" in lines
    (row,) = [line for line in "\n".join(comparison_table(cells, "life")).splitlines() if "CARE minus" in line]
    assert row.startswith("| CARE minus random, rest masked | +6.0 ± 2.5 | 0.0091 | 0.0091 |")
    assert arm_table(cells, "pool") == comparison_table({}, "life") == []
