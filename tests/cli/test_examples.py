"""Every shipped TOML parses, is short, and runs; and the first commands of the README do on real problems."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anytext import any_text_model
from small_runs import lines

from fedrlvr.config import load_config

ROOT = Path(__file__).parents[2]
GENERATED = ("care", "desk", "embedded", "few_problems", "fgrpo", "mixed_ranks", "pubswap")
"""Examples on the embedded problems."""
DATA = {
    **dict.fromkeys(GENERATED, "embedded"),
    "smollm2_sums": "sums",
    "smollm2_gsm8k": "gsm8k",
    "smollm2_svamp": "svamp",
    "qwen3_1_7b": "math",
    "qwen3_4b": "medmcqa",
    "llama32_3b": "math",
}
"""Data set of each example that is not named after it."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_1_7b": ("qwen3", {"head_dim": 16, "num_key_value_heads": 2}),
    "qwen3_4b": ("qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
    "llama32_3b": ("llama", {"head_dim": 8, "num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE}),
}
"""Architecture of an example's model, and its kind of heads and positions, for a small one in its place."""
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
FIXTURES = ROOT / "tests" / "fixtures"
REAL = Path(os.environ.get("FEDRLVR_DATA", ROOT.parent / "shared" / "data"))

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def any_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model that takes any text."""
    return any_text_model(tmp_path_factory.mktemp("any-text"))


def settings(**values: object) -> list[str]:
    """`--set` for each; a double underscore stands for the dot."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def test_there_is_an_example_for_each_main_task() -> None:
    assert {path.stem for path in EXAMPLES} >= {
        "care",
        "desk",
        "embedded",
        "few_problems",
        "fgrpo",
        "gsm8k",
        "math",
        "medmcqa",
        "mixed_ranks",
        "pubswap",
        *DATA,
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_parses_and_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 40
    config = load_config(path)
    assert config.run.name == path.stem
    assert config.data.name == DATA.get(path.stem, path.stem)


def test_the_embedded_example_is_what_run_does_without_a_file() -> None:
    assert load_config(ROOT / "examples" / "embedded.toml") == load_config(ROOT / "fedrlvr" / "zoo" / "embedded.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_two_steps(path: Path, fedrlvr: Command, model: Path, any_text: Path, tmp_path: Path) -> None:
    embedded, data = path.stem in GENERATED, DATA.get(path.stem, path.stem)
    if path.stem in SHAPES:
        kind, shape = SHAPES[path.stem]
        any_text = any_text_model(tmp_path / "model", kind, tie_word_embeddings=True, **shape)
    public = load_config(path).data.public_size and not embedded
    said = fedrlvr(
        "run",
        path,
        "--allow-nothing",  # a random model earns no reward
        *settings(
            run__directory=tmp_path / "run",
            model__name=model if embedded else any_text,
            model__device="cpu",
            train__rounds=1,
            train__local_steps=2,
            train__problems_per_step=1,
            data__test_size=8,
            sampling__max_new_tokens=4,
            engine__threads=1,
        ),
        *settings(**{"run__ledgers": tmp_path / "ledgers"} if path.stem == "desk" else {}),
        *settings(**{"data__path": FIXTURES / data} if (FIXTURES / data).is_dir() else {}),
        *settings(**{"coordination__exchanges": 2} if path.stem == "pubswap" or public else {}),
        *settings(**{"data__public_size": 4, "coordination__public_problems": 2} if public else {}),
        # So few problems would leave a client of a skewed partition without any.
        *settings(**{"partition__alpha": 10.0} if path.stem == "medmcqa" else {}),
    )
    assert said.code == 0, said.err
    before, after = lines(tmp_path / "run")
    config = load_config(path)
    asked = max(1, int(config.federation.fraction * len(config.federation.names) + 0.5))
    trained = [numbers for numbers in after["clients"].values() if "reward" in numbers]
    assert len(trained) == asked
    for numbers in trained:
        # Two steps of one problem each, and group_size responses of 1 to 4 tokens.
        assert 2 * config.sampling.group_size <= numbers["tokens_sampled"] <= 2 * 4 * config.sampling.group_size
    for line in (before, after):
        assert sum(score["n"] for scores in line["evaluate"].values() for score in scores.values()) > 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.report
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k", "math", "medmcqa"])
def test_an_example_runs_a_round_on_the_real_data(name: str, fedrlvr: Command, any_text: Path, tmp_path: Path) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there; point FEDRLVR_DATA to the published files")
    said = fedrlvr(
        "run",
        ROOT / "examples" / f"{name}.toml",
        "--allow-nothing",
        *settings(
            data__path=REAL / name,
            model__name=any_text,
            model__device="cpu",
            train__rounds=1,
            train__local_steps=2,
            train__problems_per_step=2,
            sampling__max_new_tokens=8,
            sampling__group_size=4,
            data__test_size=21,
            engine__threads=1,
            run__directory=tmp_path / "run",
        ),
    )
    assert said.code == 0, said.err
    before, after = lines(tmp_path / "run")
    assert [before["round"], after["round"]] == [0, 1]
    held = json.loads((tmp_path / "run" / "holdings.json").read_text("utf-8"))
    at_least = {"gsm8k": 6000, "math": 5000, "medmcqa": 2500}[name]
    assert sum(count for _, _, count in held["train"]) > at_least
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_minimal_example_learns() -> None:
    """The one file that shows what the package does, on the embedded reasoner."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "minimal.py")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = [list(map(float, re.findall(r"\d\.\d\d", line))) for line in done.stdout.splitlines() if "step" in line]
    assert len(steps) == 12
    assert {len(rewards) for rewards in steps} == {2}
    first, last = sum(map(sum, steps[:3])) / 6, sum(map(sum, steps[-3:])) / 6
    assert last > first + 0.1
