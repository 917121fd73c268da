"""`fedrlvr sweep`: the table at the end, going on, and mistakes answered before anything is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refused = Callable[..., str]
Toml = Callable[..., Path]

ONE_ROUND = {"train": {"rounds": 1}}
VARY = ("--vary", "aggregation.weights=examples,equal")


def test_a_sweep_ends_with_a_table_and_goes_on_in_its_directory(fedrlvr: Command, toml: Toml, tmp_path: Path) -> None:
    directory = tmp_path / "a sweep"
    arguments = ("sweep", toml(**ONE_ROUND), "--seeds", "2", *VARY, "--directory", directory, "--quiet")
    said = fedrlvr(*arguments)
    assert said.code == 0, said.err
    for word in ("weights=examples", "weights=equal", "Seeds 3 to 4", "sweep.json", "weights=equal/seed-4  round 1/1"):
        assert word in said.out
    table = json.loads((directory / "sweep.json").read_text("utf-8"))
    assert table["command"] == (
        f"fedrlvr sweep {tmp_path / 'exp.toml'} --seeds 2 --vary aggregation.weights=examples,equal "
        f"--directory '{directory}'"
    )
    assert [arm["seeds"] for arm in table["arms"]] == [[3, 4], [3, 4]]
    assert re.match(r"`fedrlvr sweep .*cores, .*fedrlvr \d", (directory / "sweep.md").read_text("utf-8"))
    again = fedrlvr(*arguments)
    assert again.code == 0
    assert "4 of them finished before" in again.out
    assert "round 1/1" not in again.out
    refused_now = fedrlvr(*arguments, "--set", "train.learning_rate=0.5")
    assert refused_now.code == 1
    assert "train.learning_rate is 0.01 there and 0.5 here" in refused_now.err


def test_a_federation_that_fails_is_named_at_the_end(fedrlvr: Command, toml: Toml, tmp_path: Path) -> None:
    place = tmp_path / "sweep" / "as-given" / "seed-4"
    place.mkdir(parents=True)
    (place / "checkpoints").write_text("in the way", "utf-8")
    arguments = ("sweep", toml(**ONE_ROUND), "--seeds", "2", "--directory", tmp_path / "sweep", "--quiet")
    said = fedrlvr(*arguments)
    assert said.code == 1
    assert said.err.startswith("error: 1 of the sweep's federations failed")
    assert "as-given/seed-4" in said.err
    assert len(said.err.splitlines()) == 1
    assert "One seed: no interval." in " ".join(said.out.split())
    assert "Traceback" in fedrlvr(*arguments, "--debug").err
    (place / "checkpoints").unlink()
    assert fedrlvr(*arguments).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vary", "train.ronuds=1,2"], ["unknown key 'train.ronuds'", "did you mean 'train.rounds'"]),
        (["--vary", "train.rounds=1,many"], ["train.rounds", "'many'"]),
        (["--vary", "train.rounds=1,1"], ["are the same"]),
        (["--vary", "run.seed=1,2"], ["run.seed", "--seeds"]),
        (["--vary", "run.directory=a,b"], ["run.directory", "--directory"]),
        (["--seeds", "0"], ["--seeds 0", "at least one"]),
        (["--seeds", "5000"], ["5000 federations", "4096"]),
        (["--set", "model.name=/nowhere"], ["model.name"]),
        (["--set", "data.path=/nowhere", "--seeds", "2"], ["/nowhere"]),
    ],
)
def test_a_mistake(arguments: list[str], words: list[str], refused: Refused, toml: Toml, tmp_path: Path) -> None:
    refused(words, "sweep", toml(), "--directory", tmp_path / "sweep", *arguments)
    assert not (tmp_path / "sweep").exists()


def test_a_directory_that_holds_a_run_or_cannot_be_made(
    refused: Refused, runs: Callable[[str], Path], toml: Toml, tmp_path: Path
) -> None:
    refused(["holds a single run", "--directory"], "sweep", toml(), "--directory", runs("federated"))
    (tmp_path / "file").write_text("in the way", "utf-8")
    refused(
        ["cannot be written"], "sweep", toml(**ONE_ROUND), "--seeds", "1", "--directory", tmp_path / "file" / "sweep"
    )
