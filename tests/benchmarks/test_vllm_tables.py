"""The tables of `scripts/bench vllm`, by made results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import vllm_tables

ORIGIN = {"command": "scripts/bench vllm", "date": "2026-11-29", "fedrlvr": "1", "torch": "2", "machine": "a machine"}


def test_tables_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = (vllm_tables.RESULTS / "smollm2.json").read_text("utf-8")
    (tmp_path / "smollm2.json").write_text(committed, "utf-8")
    monkeypatch.setattr(vllm_tables, "RESULTS", tmp_path)
    cells = {"loop": {"24/4": [10.0, 30.0, 20.0]}, "vllm": {"24/4": [4.0, 5.0, 9.0]}}
    rates = {**ORIGIN, "cells": cells, "clients": 2, "responses": 8, "rank": 8, "vllm": "vLLM 0.32.0"}
    sums = {**ORIGIN, "curve": {"0": 8.0, "12": 50.0}, "tokens_sampled": 12345, "cpu_seconds": 1800.0, "sampler": "it"}
    text = vllm_tables.write({"rates": rates, "sums": sums})
    assert "| 24 | 4 | 20.0 (10.0 to 30.0) | 5.0 (4.0 to 9.0) | 4.0 |" in text
    assert "| vLLM | 8.0 | 50.0 | 12,345 |" in text
    assert "0.50 CPU hours" in text
    assert (tmp_path / "vllm.md").read_text("utf-8").endswith(text)
    assert "sums" not in vllm_tables.write({"rates": rates})
