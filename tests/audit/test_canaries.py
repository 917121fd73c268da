"""Canaries are read with care, and told by how often a policy answers them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedrlvr.audit.canaries import Canary, expose, read_canaries
from fedrlvr.errors import DataError
from fedrlvr.policy.sampler import Decoding
from fedrlvr.tasks.prompts import Prompts

ROW: dict[str, Any] = {"prompt": "Lot?", "answer": "4", "client": "ann", "times": 3, "candidates": ["1", "2", "3", "4"]}


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**ROW, **changes}) + "\n")
    return path


def test_a_canary_is_read(tmp_path: Path) -> None:
    (canary,) = read_canaries(written(tmp_path / "c.jsonl"))
    assert canary == Canary("Lot?", "4", "ann", 3, ["1", "2", "3", "4"])


@pytest.mark.parametrize(
    "changes",
    [{"answer": 4}, {"answer": "9"}, {"candidates": ["4"]}, {"candidates": ["4", "4"]}, {"times": -1}, {"kind": "x"}],
)
def test_a_row_that_is_none_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c\.jsonl, line 1"):
        read_canaries(written(tmp_path / "c.jsonl", **changes))


class Parrot:
    """A cohort whose rows answer texts of the test's."""

    def __init__(self, said: dict[str, list[str]]) -> None:
        self.said, self.base = said, SimpleNamespace(encode_all=lambda prompts: [[1]] * len(prompts))

    def fresh_adapter(self, seed: int) -> None:
        """No adapter is needed here."""

    def seat(self, adapters: Any) -> None:
        """Nobody is seated."""

    def sample(self, prompts: Any, decoding: Any, seeds: Any) -> dict[str, list[list[Any]]]:
        return {row: [[SimpleNamespace(text=text) for text in texts]] for row, texts in self.said.items()}


def result(base: Sequence[str], trained: Sequence[str]) -> Any:
    cohort: Any = Parrot({"base": list(base), "site": list(trained)})
    canary = Canary("Lot?", "4", "ann", 3, ["1", "2", "3", "4"])
    adapters: Any = {"site": None}
    ((canary_result,),) = expose(cohort, adapters, [canary], Prompts(), Decoding(4, 8), 0).values()
    return canary_result


def test_exposure_by_how_often_each_candidate_is_answered() -> None:
    """Of four candidates the first in rank has log2(4) - log2(1) = 2 bits; the second of two that lead 2 - 1."""
    canary_result = result(
        base=["#### 1", "#### 1", "#### 4", "none"], trained=["#### 4", "#### 4", "#### 4", "#### 1"]
    )
    assert (canary_result.exposure, canary_result.base, canary_result.most, canary_result.returned) == (
        2.0,
        1.0,
        2.0,
        0.75,
    )
    assert "Lot" not in str(canary_result.to_json())
