"""Byte for byte: short runs of every method and rule give the adapters and metrics they gave before.

On the processor and with the versions that tests/assets/digests.json names, SHA-256 of the exported adapter and of
metrics.jsonl without seconds must be the same; elsewhere their numbers must agree to 1e-6 (what magnifies rounding, to
1e-3), which a warning says. Write the file anew, or the part that -k selects, with

    FEDRLVR_UPDATE_DIGESTS=1 scripts/test tests/simulation/test_digests.py

in a commit of its own whose message names the cause. Everything here goes by settings, commands and run directories.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from digests import Fingerprint, differences, exact_differences, fingerprint, machine
from small_runs import CLIENTS, write_toml

import fedrlvr

DIGESTS = Path(__file__).parents[1] / "assets" / "digests.json"
UPDATE = bool(os.environ.get("FEDRLVR_UPDATE_DIGESTS"))

Changes = Mapping[str, Mapping[str, Any]]

THREE: Changes = {"train": {"rounds": 3}}
"""Rounds: enough for a rule that alternates, and for weights that look back."""
RANKS = {"ann": 2, "bob": 4, "cyd": 1}
PUBSWAP: Changes = {
    "data": {"public_size": 4},
    "train": {"rounds": 2, "local_steps": 2, "proximal_mu": 0.1},
    "coordination": {"type": "pubswap", "exchanges": 2, "public_problems": 2, "public_steps": 2},
}
FIVE: Changes = {"federation": {"clients": [*CLIENTS, "dan", "eve"]}}

AS_PUBLISHED = {"type": "care", "budget": 0.25, "score": "gap", "min_auc": 0, "probe_learning_rate": 1e-4}
"""CARE with the authors' score and probes, which choose from the first step on."""

RUNS: dict[str, Changes] = {
    "labels": {},
    "objective": {
        "train": {
            "rounds": 2,
            "loss": "grpo",
            "kl_beta": 0.05,
            "updates_per_batch": 2,
            "learning_rate": 3e-3,
            "clip_low": 0.01,
            "clip_high": 0.01,
            "schedule": "cosine",
            "optimizer_state": "keep",
        },
        "federation": {"fraction": 0.67},
    },
    "pubswap": PUBSWAP,
    "pubswap-shaped": {**PUBSWAP, "coordination": {**PUBSWAP["coordination"], "swap": "full", "ratio": "shaped"}},
    "care": {**THREE, "supervision": {**AS_PUBLISHED, "vote_free_share": 0.3, "audit": True}},
    "care-default": {**THREE, "supervision": {"type": "care", "budget": 0.25}},
    "care-shared": {**THREE, "supervision": {**AS_PUBLISHED, "vote_free_share": 0, "share_probes": True}},
    "majority": {"supervision": {"type": "majority", "audit": True}},
    "entropy": {"supervision": {"type": "entropy", "budget": 0.25, "rest": "pseudo"}},
    "fgrpo": {**THREE, "aggregation": {"weights": "fgrpo"}},
    **{
        rule: {**THREE, "aggregation": {"type": rule}}
        for rule in ("fedit", "ffa", "rolora", "flora", "fedex", "hetlora", "flexlora")
    },
    **{
        f"{rule}-mixed": {**THREE, "lora": {"rank": RANKS}, "aggregation": {"type": rule}}
        for rule in ("flora", "hetlora", "flexlora")
    },
    "int8": {**THREE, "aggregation": {"precision": "int8"}},
    "rolora-float16": {
        "train": {"rounds": 3, "optimizer_state": "keep"},
        "federation": {"fraction": 0.67},
        "aggregation": {"type": "rolora", "precision": "float16"},
    },
    **{
        robust: {**FIVE, "train": {"rounds": 1}, "aggregation": {"robust": robust}}
        for robust in ("clip", "median", "trimmed_mean", "krum")
    },
    "local": {"federation": {"arm": "local"}},
    "central": {"federation": {"arm": "central"}},
}
"""Changes to the settings, by section, of each run."""

RESUMED = ("pubswap", "care-shared", "fgrpo", "flora-mixed", "rolora-float16", "local")


def settings(directory: Path, changes: Changes) -> dict[str, Any]:
    """Two rounds of one step of three problems, at three clients of the embedded reasoner, with changes by section."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"seed": 0, "directory": str(directory)},
        "data": {"train_size": 48, "test_size": 8, "options": {"levels": ["easy"]}},
        "federation": {"clients": list(CLIENTS)},
        "lora": {"rank": 4, "alpha": 8.0},
        "sampling": {"group_size": 4, "max_new_tokens": 32},
        "train": {"rounds": 2, "local_steps": 1, "problems_per_step": 4, "learning_rate": 5e-4},
        "engine": {"threads": 1},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


def command(*arguments: object) -> None:
    """`python -m fedrlvr ARGUMENTS` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedrlvr", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("fedrlvr", run_name="__main__")
    assert end.value.code in (0, None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a run of `RUNS`, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            fedrlvr.run(settings(made[name], RUNS[name]))
        return made[name]

    return of


@pytest.fixture(scope="module")
def check() -> Iterator[Callable[[str, Path], None]]:
    """Compares a finished run with what is on file under a name, or puts it there."""
    here = machine()
    stored: dict[str, Any] = json.loads(DIGESTS.read_text("utf-8")) if DIGESTS.exists() else {}
    same = stored.get("machine") == here
    runs: dict[str, Fingerprint] = stored.get("runs", {}) if same or not UPDATE else {}

    def compare(name: str, directory: Path) -> None:
        now = fingerprint(directory)
        if UPDATE:
            runs[name] = now
            return
        then = runs[name]
        unequal = exact_differences(now, then) if same else differences(now, then, coarse=name.startswith("flexlora"))
        assert not unequal, f"{name}, {'exact' if same else 'to 1e-6'}:\n" + "\n".join(unequal)

    if not same and not UPDATE:
        warnings.warn(
            f"Digests were made with {stored['machine']}, this is {here}: numbers are compared to 1e-6, some to 1e-3.",
            stacklevel=1,
        )
    yield compare
    if UPDATE:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(runs[name])}" for name in sorted(runs))
        DIGESTS.write_text(f'{{"machine": {json.dumps(here)}, "runs": {{\n{lines}\n}}}}\n', "utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_same_bytes(
    name: str, finished: Callable[[str], Path], check: Callable[[str, Path], None]
) -> None:
    check(name, finished(name))


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_stopped_after_round_1_gives_the_bytes_of_the_unbroken_one(
    name: str, finished: Callable[[str], Path], check: Callable[[str, Path], None], tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished(name), directory)
    shutil.rmtree(directory / "adapter")
    (directory / "report.html").unlink()
    later = [path for path in directory.rglob("round-*") if path.name > "round-0001"]
    assert later
    for path in later:
        shutil.rmtree(path)
    metrics = directory / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text("utf-8").splitlines(keepends=True)[:2]), "utf-8")
    command("run", "--resume", directory, "--quiet")
    if not UPDATE:
        check(name, directory)
    assert not exact_differences(fingerprint(directory), fingerprint(finished(name)))


def test_a_sweep_of_two_seeds_gives_the_bytes_of_both(
    finished: Callable[[str], Path], check: Callable[[str, Path], None], tmp_path: Path
) -> None:
    toml = write_toml(tmp_path / "exp.toml", settings(tmp_path / "unused", RUNS["labels"]))
    command("sweep", toml, "--seeds", 2, "--directory", tmp_path / "sweep", "--quiet")
    for seed in (0, 1):
        (directory,) = tmp_path.glob(f"sweep/*/seed-{seed}")
        check(f"sweep-{seed}", directory)
