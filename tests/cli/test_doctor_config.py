"""`fedrlvr doctor exp.toml`: what a run would stumble over, said before it is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import tiny_model
from safetensors.torch import load_file, save_file
from small_runs import Configs, write_toml

Command = Callable[..., Any]


def page(text: str) -> str:
    """The page without the breaks that its width makes."""
    return " ".join(text.split())


CHOICES = ("engine.sampler = 'loop'", "packed", "engine.autocast = 'auto'", "engine.decode_rows")
"""Words of the lines that say what is computed with and why."""


def test_a_sound_configuration(fedrlvr: Command, toml: Callable[..., Path], tmp_path: Path) -> None:
    said = fedrlvr("doctor", toml())
    assert said.code == 0, said.out + said.err
    text = page(said.out)
    for words in (
        "LlamaForCausalLM",
        "8 training and 4 held-out problems",
        "at the peak",
        "Nothing stands in the way",
        *CHOICES,
    ):
        assert words in text
    assert [client for client in ("ann", "bob", "cyd") if f" {client} 8 training" not in text] == []
    assert not (tmp_path / "run").exists()


def test_a_model_and_data_with_faults_are_both_named(fedrlvr: Command, configured: Configs, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "model") / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][3, 3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    settings = configured(tmp_path / "run", data={"path": str(tmp_path)})
    settings["model"]["name"] = str(tmp_path / "model")
    said = fedrlvr("doctor", write_toml(tmp_path / "exp.toml", settings))
    assert said.code == 1
    text = page(said.out)
    assert "lm_head.weight" in text
    assert "problem data" in text
    assert "Traceback" not in said.out + said.err


def test_golds_that_do_not_grade_are_counted(fedrlvr: Command, configured: Configs, tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {i}?", "answer": str(i), "source": "ann", "kind": "math"} for i in range(6)]
        if split == "train":
            rows[2]["answer"] = "Add the second number to the first one, then look at the sum."
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path), "unreachable_golds": 1.0, "rewards": [], "test_size": None, "train_size": None}
    settings = configured(tmp_path / "run", data=data, federation={"clients": ["ann"]})
    settings["data"].pop("rewards")
    settings = {k: {n: v for n, v in section.items() if v is not None} for k, section in settings.items()}
    said = fedrlvr("doctor", write_toml(tmp_path / "exp.toml", settings))
    assert said.code == 0, said.out
    assert "do not grade: 1 (" in page(said.out)


def test_a_run_that_does_not_fit_the_memory(fedrlvr: Command, toml: Callable[..., Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("fedrlvr.simulation.doctor.free_memory", lambda: -(1 << 40))
    said = fedrlvr("doctor", toml())
    assert said.code == 1
    assert "engine.decode_rows" in page(said.out)


def test_settings_need_a_configuration(refused: Callable[..., str]) -> None:
    refused(["--set"], "doctor", "--set", "train.rounds=2")


def test_a_run_names_a_fault_of_the_model_before_it_reads_data(
    refused: Callable[..., str], configured: Configs, tmp_path: Path
) -> None:
    tiny_model(tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    settings = configured(tmp_path / "run", data={"path": str(tmp_path / "nowhere")})
    settings["model"]["name"] = str(tmp_path / "model")
    refused(["adapter_config.json"], "run", write_toml(tmp_path / "exp.toml", settings))
