"""The table of docs/own-model.md is the one that the sweep's results make, and no class ends in a fault."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.architectures import MARK, RESULTS, table

ROOT = Path(__file__).resolve().parents[2]
LINES = [json.loads(line) for line in (ROOT / RESULTS).read_text("utf-8").splitlines()]


def test_the_page_has_the_table_of_the_results() -> None:
    page = (ROOT / "docs" / "own-model.md").read_text("utf-8")
    assert page.split(MARK)[1].strip() == table(LINES).strip()


def test_every_class_is_there_once_and_none_ends_in_a_fault() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    assert sorted(line["model_type"] for line in LINES) == sorted(CLASSES)
    assert {line["verdict"] for line in LINES} == {"works", "refused", "not built"}


def test_counts_are_of_the_lines_there_are() -> None:
    about = {"command": "c", "date": "d", "machine": "m", "versions": "v"}
    lines = [
        {"model_type": "a", "verdict": "works", "decoding": "own", "packs": False, "sampled": 2e-6, **about},
        {"model_type": "b", "verdict": "refused", "reason": "model.name = 'MODEL': no | way", **about},
        {"model_type": "c", "verdict": "fault", "reason": "KeyError: 'x'", **about},
    ]
    text = table(lines)
    assert "3 causal LM classes; 1 work, 1 are refused, 0 could not be built small, 1 end in a fault" in text
    assert "| a | its own cache | no | 2e-06 |" in text
    assert r"| b | no \| way |" in text
    assert "FAULT KeyError" in text
