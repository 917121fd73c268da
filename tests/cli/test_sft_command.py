"""`fedrlvr sft` as a person uses it: train on GSM8K's solutions, go on for longer, and start the run from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anytext import any_text_model
from small_runs import lines, write_toml

Command = Callable[..., Any]
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    tree: dict[str, dict[str, Any]] = {
        "run": {"directory": str(tmp_path / "run")},
        "model": {"name": str(any_text_model(tmp_path / "model")), "device": "cpu"},
        "data": {"name": "gsm8k", "path": str(FIXTURES / "gsm8k")},
        "partition": {"type": "iid"},
        "federation": {"clients": 2},
        "sampling": {"group_size": 2, "max_new_tokens": 128},
        "train": {"rounds": 1, "local_steps": 1, "problems_per_step": 2},
        "sft": {"rounds": 2, "local_steps": 2, "learning_rate": 1e-3},
        "engine": {"threads": 1},
    }
    return write_toml(tmp_path / "exp.toml", tree)


def test_train_go_on_and_start_a_run_from_it(experiment: Path, fedrlvr: Command) -> None:
    directory = experiment.with_name("run-sft")
    said = fedrlvr("sft", experiment, "--quiet")
    assert said.code == 0, said.err
    assert f"--set model.adapter={directory}" in said.out
    assert "held-out loss" in said.out
    assert [line["round"] for line in lines(directory)] == [0, 1, 2]
    said = fedrlvr("sft", "--resume", directory, "--set", "train.rounds=3", "--quiet")
    assert said.code == 0, said.err
    assert [line["round"] for line in lines(directory)] == [0, 1, 2, 3]
    said = fedrlvr("run", experiment, "--set", f"model.adapter={directory}", "--quiet", "--allow-nothing")
    assert said.code == 0, said.err
    assert (experiment.with_name("run") / "start" / "adapter_model.safetensors").is_file()


def test_what_is_no_supervised_training_is_not_resumed(
    experiment: Path, fedrlvr: Command, refused: Callable[..., str]
) -> None:
    said = fedrlvr("run", experiment, "--quiet", "--allow-nothing")
    assert said.code == 0, said.err
    refused(["fedrlvr run --resume"], "sft", "--resume", experiment.with_name("run"))
    refused(["--resume"], "sft", experiment, "--resume", experiment.with_name("run"))


def test_data_without_responses_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    refused(["sft.responses"], "sft", "--set", f"run.directory={tmp_path / 'run'}")
