"""What a run does with the user's own rows before and while it trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_runs import Configs

import fedrlvr
from fedrlvr.errors import DataError
from fedrlvr.policy.base import Base
from fedrlvr.tasks import instruction
from fedrlvr.tasks.prompts import Prompt


def write(directory: Path, rows: Sequence[dict[str, str]]) -> str:
    directory.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({**row, "prompt": f"{split}: {row['prompt']}"}) + "\n" for row in rows]
        (directory / f"{split}.jsonl").write_text("".join(lines))
    return str(directory)


def test_golds_that_nothing_can_meet_end_a_run_before_it_trains(configured: Configs, tmp_path: Path) -> None:
    rows = [{"prompt": f"drug {n}?", "answer": f"{'ABCD'[n]}. Heparin"} for n in range(4)]
    data = {"path": write(tmp_path / "data", rows), "rewards": "grader"}
    with pytest.raises(DataError, match=r"8 of 8 gold answers.*data\.unreachable_golds"):
        fedrlvr.run(configured(tmp_path / "run", data=data))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_each_prompt_is_sampled_with_the_instruction_of_its_own_kind(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    rows += [{"prompt": f"{n}?\nA. yes\nB. no", "answer": "A", "kind": "choice"} for n in range(3)]
    texts: set[str] = set()
    real = Base.encode_all

    def encode_all(self: Base, prompts: Sequence[Prompt]) -> list[list[int]]:
        texts.update(Prompt.of(prompt).text if isinstance(prompt, str) else prompt.text for prompt in prompts)
        return real(self, prompts)

    monkeypatch.setattr(Base, "encode_all", encode_all)
    data, prompt = {"path": write(tmp_path / "data", rows)}, {"instruction": None}
    train = {"rounds": 1, "local_steps": 1}
    fedrlvr.run(configured(tmp_path / "run", data=data, prompt=prompt, train=train, federation={"clients": 1}))
    asked = {text for text in texts if text.startswith(("train: ", "test: "))}
    assert len(asked) >= 6
    for text in asked:
        assert text.endswith("\n" + instruction("choice" if "A. yes" in text else "math"))
