"""A whole small run with each saving of the engine turned off: the same samples, and the same adapter at the end.

Tolerances: numbers of samples are equal; adapters agree to 1e-4 (a hundredth of a step) but for at most one entry in a
hundred, since AdamW divides a gradient by its own size and rounding counts where that is nearly zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Configs, without_seconds

import fedrlvr
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import load_peft

OFF = (
    {"cohort": False},
    {"skip_zero_advantage": False},
    {"prefill_once": False},
    {"shared_cache": False},
    {"shared_prefix": False},
    {"compact": False},
    {"sampled_logps": False},
    {"response_logits": False},
    {"by_length": False},
    {"decode_cache": "static"},
    {"micro_batch_tokens": 100, "decode_rows": 8, "logits_at_once": 1000},
)
SAMPLED = ("reward", "pass@1", "zero_variance_groups", "response_length", "unfinished", "tokens_sampled")


@pytest.fixture(scope="module")
def everything_on(tmp_path_factory: pytest.TempPathFactory, configured: Configs) -> Path:
    directory = tmp_path_factory.mktemp("on") / "run"
    fedrlvr.run(configured(directory))
    return directory


@pytest.mark.parametrize("off", OFF, ids=lambda off: "-".join(off))
def test_a_saving_turned_off_changes_no_sample(
    off: dict[str, Any], everything_on: Path, configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path / "run", engine={"threads": 1, **off}))
    for line, expected in zip(without_seconds(tmp_path / "run"), without_seconds(everything_on), strict=True):
        assert line.get("evaluate") == expected.get("evaluate")
        for client, numbers in expected["clients"].items():
            for name in set(SAMPLED) & set(numbers):
                assert line["clients"][client][name] == numbers[name], (expected["round"], client, name)
    adapter, other = (load_peft(directory / "adapter") for directory in (tmp_path / "run", everything_on))
    gaps = torch.cat(
        [(a - b).abs().flatten() for (_, a), (_, b) in zip(adapter.tensors(), other.tensors(), strict=True)]
    )
    assert float((gaps > 1e-4).float().mean()) <= 0.01


def test_behaviour_log_probs_are_taken_again_where_the_engine_says_so(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of two steps; by default never."""
    calls = 0
    plain = Cohort.rescore

    def rescore(self: Cohort, *args: Any) -> None:
        nonlocal calls
        calls += 1
        plain(self, *args)

    monkeypatch.setattr(Cohort, "rescore", rescore)
    fedrlvr.run(configured(tmp_path / "on"))
    assert calls == 0
    fedrlvr.run(configured(tmp_path / "off", engine={"threads": 1, "sampled_logps": False}))
    assert calls == 4
