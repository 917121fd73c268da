"""Training alone at several learning rates: each client keeps the adapter that its validation problems choose."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from small_runs import CLIENTS, Configs, adapter_bytes
from test_resume import Stop, StopAfter
from typer.testing import CliRunner

import fedrlvr
from fedrlvr.cli.main import app
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation import verdict as engine
from fedrlvr.simulation.alone import alone_runs, best_factors
from fedrlvr.simulation.evaluate import Evaluator


def test_the_best_factor_has_the_highest_mean_and_of_equals_is_the_smallest() -> None:
    rates = {
        1.0: {"ann": [1.0, 0.0, 0.5], "bob": [0.5, 0.5], "cyd": [1.0]},
        0.25: {"ann": [0.5, 0.5, 0.5], "bob": [0.0, 0.5], "cyd": [0.0]},
        0.5: {"ann": [0.0, 1.0, 0.4], "bob": [0.5, 0.75], "cyd": [0.5]},
    }
    assert best_factors(rates) == {"ann": 0.25, "bob": 0.5, "cyd": 1.0}


def written(directory: Path) -> Any:
    return json.loads((directory / "verdict.json").read_text("utf-8"))


def given(configured: Configs, directory: Path, **run: Any) -> dict[str, Any]:
    """Settings with four validation problems, taken from the training problems of every client."""
    run = {"seed": 3, "directory": str(directory), **run}
    return configured(directory, data={"validation_size": 6}, evaluate={"temperature": 1.0, "samples": 4}, run=run)


def test_each_client_keeps_the_adapter_that_its_validation_problems_choose(configured: Configs, tmp_path: Path) -> None:
    directory, factors = tmp_path / "run", [1.0, 0.25]
    config = parse_config(given(configured, directory, verdict=True, alone_rates=factors))
    observers = iter([Observer(), Observer(), StopAfter(1)])
    with pytest.raises(Stop):
        engine.run(config, lambda: next(observers))
    assert (directory / "alone").is_dir()
    assert not (directory / "verdict.json").exists()
    assert engine.missing_steps(open_run(directory)) == 1 * 2 * 3
    judged = engine.resume(directory)
    assert judged.verdict is not None

    local = tmp_path / "local"
    tree = given(configured, local)
    fedrlvr.run(
        {
            **tree,
            "federation": {**tree["federation"], "arm": "local"},
            "train": {**tree["train"], "learning_rate": 2.5e-3},
        }
    )
    assert adapter_bytes(directory / "alone-0.25") == adapter_bytes(local)

    run = open_run(directory)
    runs = {alone.factor: alone for alone in alone_runs(run)}
    evaluator = Evaluator(run.config)
    means = {
        factor: {
            client: fmean(rates)
            for client, rates in evaluator.of_each(alone.adapters(), split="validation").rates.items()
        }
        for factor, alone in runs.items()
    }
    chosen = written(directory)["alone_rates"]
    assert set(chosen) == set(CLIENTS)
    for client, factor in chosen.items():
        assert means[factor][client] == max(of[client] for of in means.values())
        test = evaluator.of_each(runs[factor].adapters()).rates[client]
        assert written(directory)["clients"][client]["pass@1"]["alone"] == pytest.approx(fmean(test))
    (note,) = judged.verdict.notes
    assert all(client in note for client in CLIENTS)
    assert CliRunner().invoke(app, ["verdict", str(directory), "--quiet"]).exit_code in (0, 1)
    assert written(directory)["alone_rates"] == chosen

    said = CliRunner().invoke(app, ["verdict", str(directory), "--alone-rate", "0.25", "--quiet"])
    assert "local steps" not in said.output, "that run is there"
    assert "alone_rates" not in written(directory)
    assert written(directory)["alone"] == "alone-0.25"


@pytest.mark.parametrize(
    ("rates", "size", "setting"),
    [
        ([1, 0.5], 0, "data.validation_size"),
        ([1, 1], 6, "run.alone_rates"),
        ([0], 6, "run.alone_rates"),
        ([], 6, "run.alone_rates"),
    ],
)
def test_rates_that_cannot_be_tried_are_refused(
    rates: list[float], size: int, setting: str, configured: Configs, tmp_path: Path
) -> None:
    tree = configured(tmp_path / "run", data={"validation_size": size}, run={"alone_rates": rates})
    with pytest.raises(ConfigError, match=setting):
        parse_config(tree)


def test_a_given_run_has_its_rate_already(configured: Configs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    fedrlvr.run(given(configured, directory))
    said = CliRunner().invoke(app, ["verdict", str(directory), "--alone", str(directory), "--alone-rate", "1"])
    assert said.exit_code == 2
    assert "--alone-rate" in said.output
