"""`fedrlvr compare`: a sweep and a run beside each other, its files, and directories that are no runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refused = Callable[..., str]
Toml = Callable[..., Path]


def test_a_run_is_compared_with_another_and_with_itself(
    fedrlvr: Command, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    federated, local = runs("federated"), runs("local")
    said = fedrlvr("compare", federated, local, federated, "--over", "steps", "--csv", tmp_path / "c.csv")
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    assert "2 minus 1: one run each, interval over problems; at 4 steps." in text
    assert "federation.arm" in text
    assert "Note" not in text, "same problems, same release, all rounds done"
    rows = (tmp_path / "c.csv").read_text("utf-8").splitlines()
    assert rows[0] == "arm,run,seed,rounds,steps,tokens,labels,bytes,seconds,pass@1,low,high,n,reward"
    assert len(rows) == 1 + 2 * 3


@pytest.mark.slow
def test_a_sweep_s_page(fedrlvr: Command, toml: Toml, tmp_path: Path) -> None:
    sweep, page = tmp_path / "sweep", tmp_path / "page.html"
    vary = ("--vary", "aggregation.weights=examples,equal", "--directory", sweep)
    assert fedrlvr("sweep", toml(train={"rounds": 1}), "--seeds", "2", *vary, "--quiet").code == 0
    said = fedrlvr("compare", sweep, "--over", "bytes", "--html", page)
    assert said.code == 0, said.err
    assert "paired by seed (3, 4)" in " ".join(said.out.split())
    assert f"wrote {page}" in said.out.replace("\n", "")
    text = page.read_text("utf-8")
    assert "weights=equal" in text
    assert "--over bytes" in text
    assert "<script" not in text


def test_what_is_no_run_is_named(refused: Refused, runs: Callable[[str], Path], tmp_path: Path) -> None:
    refused([tmp_path / "nowhere", "no such directory"], "compare", runs("federated"), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused([tmp_path / "empty", "config.json"], "compare", tmp_path / "empty")
