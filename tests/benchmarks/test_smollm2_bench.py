"""`scripts/bench smollm2`: its configurations, its tables, and the comparison of an exported adapter's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Configs

import fedrlvr
from benchmarks import smollm2_export
from benchmarks.smollm2 import ARMS, BASE, COMMON, DRIFT, UNFINISHED, apart
from benchmarks.smollm2_tables import drift_table, end, export_table, unfinished_table
from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import load_config
from fedrlvr.policy.export import ExportCheck, export_adapter


def test_every_part_has_configurations_that_can_be_run() -> None:
    for settings in (*ARMS.values(), *DRIFT.values(), *UNFINISHED.values()):
        load_config(BASE, [*COMMON, *settings])
    for settings in DRIFT.values():
        train = load_config(BASE, [*COMMON, *settings]).train
        assert train.rounds * train.local_steps == 20
    assert {load_config(BASE, settings).train.unfinished for settings in UNFINISHED.values()} == {
        "grade",
        "zero",
        "mask",
    }


def test_the_distance_of_two_clients_by_hand() -> None:
    """3 and 4 at a right angle are 5 apart; 3 and 3 in one direction 0, in opposite ones 6: on average 11 / 3."""
    assert apart({"a": 3.0, "b": 4.0}, {"a": {"b": 0.0}, "b": {"a": 0.0}}) == pytest.approx(5.0)
    cosines = {"a": {"b": 1.0, "c": -1.0}, "b": {"a": 1.0, "c": 0.0}, "c": {"a": -1.0, "b": 0.0}}
    assert apart({"a": 3.0, "b": 3.0, "c": 3.0}, cosines) == pytest.approx((0 + 6 + 18**0.5) / 3)


def run(**changes: Any) -> dict[str, Any]:
    usual = {"curve": {"0": 8.0, "12": 30.0, "24": 40.0}, "cosine": [0.5], "server_step": [1.2], "distance": [0.7]}
    return {**usual, "apart": [0.9], "cut": [0.1, 0.02], **changes}


def test_tables_of_the_parts() -> None:
    assert end(run()) == 40.0
    (_, _, row) = drift_table({"drift-5": {"0": run()}}).splitlines()
    assert row == "| 5 | 0.700 | 0.900 | 0.500 | 1.200 | 0.900 | 0.500 | 40.0 |"
    better = run(curve={"24": 43.5})
    rows = unfinished_table({"unfinished-grade": {"0": run(), "1": run()}, "unfinished-zero": {"1": better}})
    assert rows.splitlines()[2:] == [
        "| grade | 40.0, 40.0 |  | 10.0 | 2.0 |",
        "| zero | 43.5 | +3.5 | 10.0 | 2.0 |",
    ]
    check = {"same": {"peft": 9, "merged": 8}, "right": {"fedrlvr": 3, "peft": 4, "merged": 5}}
    lines = export_table({**check, "difference": {"peft": 0.0, "merged": 1e-4}}).splitlines()
    assert lines[3:] == [
        "| adapter in PEFT | 9 | 4 | 0.0e+00 |",
        "| merged weights in transformers | 8 | 5 | 1.0e-04 |",
    ]


@pytest.mark.slow
def test_an_exported_adapter_gives_the_answers_of_the_run(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random Llama after two rounds; an adapter without its B gives other answers, which the check must tell."""
    directory = tmp_path / "run"
    fedrlvr.run(configured(directory, prompt={"stop": ["a"], "instruction": ""}, train={"learning_rate": 0.05}))
    check = smollm2_export.same_answers(directory, problems=10)
    assert (check["problems"], check["rounds"]) == (10, 2)
    assert check["same"] == {"peft": 10, "merged": 10}
    assert len(set(check["right"].values())) == 1

    def without_b(adapter: Adapter, *arguments: Any) -> ExportCheck:
        layers = {name: Factors(a, torch.zeros_like(b)) for name, (a, b) in adapter.layers.items()}
        return export_adapter(adapter.alike(layers), *arguments)

    monkeypatch.setattr(smollm2_export, "export_adapter", without_b)
    check = smollm2_export.same_answers(directory, problems=10)
    assert check["same"]["peft"] < 10
    assert check["same"]["merged"] == 10
