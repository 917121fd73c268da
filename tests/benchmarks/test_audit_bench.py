"""The cells of `scripts/bench audit`, and its tables from made-up findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.audit import ATTACKED, CELLS, HOLDER, TIMES, canaries, settings
from benchmarks.audit_tables import RESULTS, SHOWN, page, rows_of
from fedrlvr.config import parse_config
from fedrlvr.tasks.deal import deal


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_a_configuration_in_which_the_canaries_are_planted_as_often_as_they_say(
    cell: str, tmp_path: Path
) -> None:
    config = parse_config(settings(cell, 1, tmp_path))
    held = {client.name: client for client in deal(config).clients}
    assert {len(held[name].train) for name in ATTACKED} == {64 if cell == "64 problems" else 8}
    assert len(held[HOLDER].train) == 2 * sum(TIMES)
    for canary in canaries(1):
        lot = canary.prompt.partition(",")[0]
        planted = [p for p in held[HOLDER].answers.everything() if p.prompt.startswith(f"{lot},")]
        assert len(planted) == canary.times
        assert {problem.answer for problem in planted} == {canary.answer}
    assert (config.run.secrets is not None) == (cell == "floors")


def found(members: list[float], others: list[float]) -> list[dict[str, Any]]:
    scores = [{"view": view, "attack": attack, "members": members, "others": others} for view, attack in SHOWN]
    canary = {"times": 10, "exposure": 2.0, "base": 0.5, "returned": 0.25}
    returned = {view: {"responses": 8, "private": 1} for view in ("server", "site")}
    planted = {"server": [canary], "site": [canary, {**canary, "exposure": 1.0}]}
    return [{"round": 16, "scores": scores, "canaries": planted, "returned": returned}]


def test_figures_of_a_cell_by_hand() -> None:
    """AUC 1 and 0.5; rises of 1.5 bits at the server, and (1.5 + 0.5) / 2 at another site."""
    (row,) = rows_of("undefended", {0: found([3.0, 4.0], [1.0, 2.0]), 1: found([1.0, 2.0], [1.0, 2.0])})
    assert row["membership"][0]["auc"] == {0: 1.0, 1: 0.5}
    assert row["membership"][0]["pooled"]["members"] == 4
    assert [canary["rise"][0] for canary in row["canaries"]] == [1.5, 1.0]
    assert row["returned"] == {"server": [2, 16], "site": [2, 16]}
    text = page({"command": "x", "date": "d", "fedrlvr": "v", "machine": "m", "cpu_seconds": 60, "cells": [row]})
    assert "0.75 ± 3.18" in text, "t of one degree of freedom is 12.706, and the standard error 0.25"
    assert "2 of 16" in text


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    content = json.loads((RESULTS / "audit.json").read_text("utf-8"))
    assert (RESULTS / "audit.md").read_text("utf-8") == page(content)
