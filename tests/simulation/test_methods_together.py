"""The three methods in one run: exchanges, client weights by gains, and labels for a fifth of the problems."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from small_runs import Configs, adapter_bytes, lines

import fedrlvr
from fedrlvr.simulation.run import resume

PUBSWAP: dict[str, Any] = {
    "data": {"public_size": 6},
    "coordination": {"type": "pubswap", "exchanges": 2, "public_problems": 2},
}
FGRPO: dict[str, Any] = {"aggregation": {"weights": "fgrpo"}}
CARE: dict[str, Any] = {"supervision": {"type": "care", "budget": 0.5, "vote_free_share": 0.25}}
METHODS = {"pubswap": PUBSWAP, "fgrpo": FGRPO, "care": CARE}
PUBLIC_GAINS: dict[str, Any] = {"weights": "fgrpo", "fgrpo_gain_from": "public", "fgrpo_shrink": True}


@pytest.mark.parametrize(
    "names",
    [*(pytest.param(pair, marks=pytest.mark.slow) for pair in combinations(METHODS, 2)), tuple(METHODS)],
    ids=lambda names: " and ".join(names),
)
def test_methods_go_together_and_each_does_its_work(
    names: tuple[str, ...], configured: Configs, tmp_path: Path
) -> None:
    changes = {section: values for name in names for section, values in METHODS[name].items()}
    fedrlvr.run(configured(tmp_path, **changes))
    last = lines(tmp_path)[-1]
    for numbers in last["clients"].values():
        assert ("gain" in numbers) == ("fgrpo" in names)
        # Half of 8 problems, one in each of 4 steps; of the 6 that public problems leave, one in each of the first 3.
        assert numbers.get("labels_asked", 0) == ("care" in names) * (1 if "pubswap" in names else 2)
        assert (numbers.get("public_tokens_trained", 0) > 0) == ("pubswap" in names)
    assert (len({numbers["weight"] for numbers in last["clients"].values()}) > 1) == ("fgrpo" in names)
    assert ("exchanges" in last) == ("pubswap" in names)


@pytest.mark.slow
def test_all_three_resume_to_the_same_bytes(configured: Configs, tmp_path: Path) -> None:
    changes = {**PUBSWAP, **CARE, "aggregation": PUBLIC_GAINS}
    whole, short = tmp_path / "whole", tmp_path / "short"
    fedrlvr.run(configured(whole, **changes, train={"rounds": 2}))
    fedrlvr.run(configured(short, **changes, train={"rounds": 1}))
    resume(short, ["train.rounds=2"])
    assert adapter_bytes(short) == adapter_bytes(whole)
    assert [c["gain"] for c in lines(short)[-1]["clients"].values()] == [
        c["gain"] for c in lines(whole)[-1]["clients"].values()
    ]
