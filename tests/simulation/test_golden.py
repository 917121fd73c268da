"""The golden curve: ten rounds of the embedded default with two clients, which refactors must reproduce.

After a change that is meant to change results (or new weights), write it anew with

    FEDRLVR_UPDATE_GOLDEN=1 scripts/test tests/simulation/test_golden.py

and say why in the commit. Rewards are counts of right answers and must be equal; losses and norms agree to 1e-3
relative, which leaves room for another machine's rounding but not for another sample.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import fedrlvr
from fedrlvr.config import load_config

GOLDEN = Path(__file__).parents[1] / "assets" / "golden_embedded.jsonl"
EMBEDDED = Path(fedrlvr.__file__).parent / "zoo" / "embedded.toml"
OVERRIDES = [
    "federation.clients=2",
    "train.rounds=10",
    "train.local_steps=1",
    "train.problems_per_step=4",
    "data.train_size=256",
    "data.test_size=16",
    "engine.threads=1",
]


def test_the_embedded_default_reproduces_its_golden_curve(tmp_path: Path) -> None:
    config = load_config(EMBEDDED, [*OVERRIDES, f"run.directory={str(tmp_path / 'run')!r}"])
    lines = [
        {
            "round": record["round"],
            **{
                f"{client}.{key}": numbers[key]
                for client, numbers in record["clients"].items()
                for key in ("reward", "loss", "grad_norm", "tokens_sampled", "tokens_trained")
            },
        }
        for record in fedrlvr.run(config).records[1:]
    ]
    if os.environ.get("FEDRLVR_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), "utf-8")
    golden = [json.loads(line) for line in GOLDEN.read_text("utf-8").splitlines()]
    assert len(golden) == 10
    for line, expected in zip(lines, golden, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-6)
