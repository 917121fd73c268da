"""The cells of `scripts/bench weights` and `methods`: settings, and the numbers that tables take of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import eight, methods_cells, methods_tables, weights_cells, weights_tables
from benchmarks.eight import BASE, FULL, SCALES, SITES, Scale, area, end, run_of, worst_family, worst_site
from fedrlvr.config import Config, load_config
from fedrlvr.tasks.deal import deal


def steps_of(config: Config) -> int:
    """Optimizer steps of a site in a round."""
    exchanges, steps = (getattr(config.coordination, name, 0) for name in ("exchanges", "public_steps"))
    return config.train.local_steps + exchanges * steps


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_every_cell_is_a_configuration_of_the_same_optimizer_steps(scale: Scale) -> None:
    for name in methods_cells.names():
        config = load_config(BASE, methods_cells.cell_settings(scale, name))
        assert (steps_of(config), config.train.rounds) == (scale.steps, scale.rounds), name
        switched = methods_cells.switched_in(name)
        assert (config.coordination.type == "pubswap") == (switched is not None and "pubswap" in switched)
        assert (config.aggregation.weights == "fgrpo") == (switched is not None and "fgrpo" in switched)
        wanted = "labels" if switched is None else "care" if "care" in switched else "random"
        assert config.supervision.type == wanted
    for federation in weights_cells.FEDERATIONS:
        first, *others = [
            load_config(BASE, weights_cells.cell_settings(scale, federation, arm, "auto")) for arm in weights_cells.ARMS
        ]
        assert steps_of(first) == scale.steps
        without = {"aggregation"}
        assert all(other.model_dump(exclude=without) == first.model_dump(exclude=without) for other in others)


@pytest.mark.slow
def test_a_fifth_of_the_labels_is_what_may_be_asked_for() -> None:
    config = load_config(BASE, methods_cells.cell_settings(FULL, "pubswap+fgrpo+care"))
    assert len(SITES) * getattr(config.supervision, "budget_total", 0) == FULL.problems / 5
    assert FULL.batch * getattr(config.supervision, "budget", 0) == 1, "no step asks for more than a fifth"
    for seed in range(FULL.seeds):
        held = deal(config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})).clients
        assert min(len(client.train) for client in held) >= FULL.labels


def test_two_sites_of_eight_are_stalled_and_the_rates_are_chosen_for_each_cell() -> None:
    for name in methods_cells.names():
        stated = load_config(BASE, methods_cells.cell_settings(FULL, name)).federation.deviations
        assert sorted(site for site, how in stated.items() if how.free_rider or how.unsolvable) == ["site-7", "site-8"]
        assert stated["site-4"].template is not None
    places = {eight.directory_of("methods", "full", "choices", name) for name in methods_cells.names()}
    assert len(places) == 9
    assert eight.directory_of("methods", "quick", "cells", "x") != eight.directory_of("methods", "full", "cells", "x")


def sums(n: int, total: float) -> dict[str, float]:
    return {"n": n, "total": total, "squares": total}


def write_run(directory: Path) -> Path:
    """Two evaluations of two sites with two families, and one round of training."""
    directory.mkdir()
    config = {
        "train": {"rounds": 3, "local_steps": 16, "updates_per_batch": 1, "learning_rate": 0.003},
        "coordination": {"exchanges": 4, "public_steps": 1},
        "federation": {"clients": ["a", "b"]},
        "data": {"train_size": 40},
    }
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    numbers = {"tokens_sampled": 100, "tokens_trained": 60, "bytes_up": 10, "bytes_down": 20}
    scores = [
        {"a": {"s": sums(10, 1), "t": sums(10, 3)}, "b": {"s": sums(10, 1)}},
        {"a": {"s": sums(10, 5), "t": sums(10, 9)}, "b": {"s": sums(10, 2)}},
    ]
    records: list[dict[str, Any]] = [
        {"round": 0, "clients": {}, "seconds": {}, "evaluate": scores[0]},
        {
            "round": 1,
            "clients": {"a": {**numbers, "weight": 0.75}, "b": {**numbers, "weight": 0.25}},
            "seconds": {},
            "evaluate": scores[1],
        },
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return directory


def test_numbers_of_a_run_by_hand(tmp_path: Path) -> None:
    run = run_of(write_run(tmp_path / "run"))
    # Families: s (5 + 2) / 20 = 35 %, t 90 %. Sites: a 14 / 20, b 2 / 10. Before: s 10 %, t 30 %.
    assert end(run) == pytest.approx((35 + 90) / 2)
    assert (worst_family(run), worst_site(run)) == pytest.approx((35, 20))
    assert area(run) == pytest.approx((20 + 62.5) / 2)
    assert run["weights"] == {"a": [0.75], "b": [0.25]}
    assert (run["labels"], run["optimizer_steps"], run["tokens_trained"]) == (40, 3 * 20, 120)
    assert (run["bytes_up"], run["bytes_down"]) == (10, 20)


def of_scores(**scores: list[float]) -> dict[str, dict[int, dict[str, Any]]]:
    """Runs that end at these scores, by cell and seed."""
    rest = {"sites": {"a": 1.0}, "families": {"s": 1.0}}
    return {
        name.replace("_", "-"): {seed: {"pass@1": {"0": 0.0, "6": score}, **rest} for seed, score in enumerate(of_cell)}
        for name, of_cell in scores.items()
    }


@pytest.mark.parametrize(
    ("together", "verdicts"),
    [
        ([70.0, 70.1, 69.9], ["met", "met"]),
        ([67.0, 67.1, 66.9], ["missed", "met"]),
        ([70.0, 60.0, 80.0], ["open", "open"]),
        ([61.0, 61.1, 60.9], ["missed", "missed"]),
    ],
)
def test_the_goals_are_judged_by_the_interval(together: list[float], verdicts: list[str]) -> None:
    cells = of_scores(all_labels=[70.0, 70.0, 70.0], fedavg=[60.0, 60.0, 60.0])
    cells |= {"pubswap+fgrpo+care": of_scores(x=together)["x"]}
    *_, text = methods_tables.goal_lines(cells)
    rows = [line.split("|")[4].strip() for line in text.strip().splitlines()[2:]]
    assert rows == verdicts


def test_p_values_of_weights_are_corrected_over_every_difference() -> None:
    runs = of_scores(reference=[50.0, 50.0, 50.0], better=[51.0, 52.0, 53.0], same=[49.0, 50.0, 51.0])
    cells = {
        ("plain", "examples", "auto"): runs["reference"],
        ("plain", "public", "auto"): runs["better"],
        ("noisy", "examples", "auto"): runs["reference"],
        ("noisy", "equal", "auto"): runs["same"],
    }
    tested = weights_tables.corrected(cells)
    # Differences 1, 2, 3: t = 2 sqrt(3), p = 0.0742 with two degrees of freedom, twice that after Holm. -1, 0, 1: 1.
    assert tested["plain", "public", "auto"] == pytest.approx((0.0742, 0.1484), abs=1e-4)
    assert tested["noisy", "equal", "auto"] == pytest.approx((1.0, 1.0))
    assert set(tested) == {("plain", "public", "auto"), ("noisy", "equal", "auto")}


def test_the_weight_of_the_deviating_sites_by_hand() -> None:
    weights = {site: [0.125, 0.1] for site in SITES} | {"site-5": [0.125, None]}
    assert weights_tables.weight_of_deviating("stalled-4", {"weights": weights}) == pytest.approx((0.5 + 0.3) / 2)
    assert weights_tables.deviating("plain") == []
    assert weights_tables.deviating("scales") == [f"site-{number}" for number in range(3, 9)]
