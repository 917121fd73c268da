"""The script that is run where a GPU can be had, at toy sizes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_parity, gpu_parts, gpu_report
from benchmarks.cases import ROOT
from benchmarks.gpu import main
from benchmarks.gpu_parity import parity
from benchmarks.gpu_report import DONE, FAILED, RUNNING, SKIPPED, Report, Results
from benchmarks.gpu_speed import Runner, cases, decode_bytes, decode_way, speed, training_flop
from benchmarks.gpu_tables import tables
from fedrlvr.policy import decode

CPU = torch.device("cpu")


def results_of(directory: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((directory / "results.json").read_text("utf-8"))
    return read


def report_of(directory: Path, name: str, seconds: float = 1e6) -> Report:
    """A report with more time than a test takes, or none."""
    elapsed = time.monotonic() - gpu_report.START
    return Report(Results(directory, elapsed + seconds), name, Namespace(tiny=True, repeats=1), CPU)


def test_it_says_in_one_line_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 2
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "needs a CUDA GPU" in first
    assert "--tiny" in second
    assert not list(tmp_path.iterdir())


def test_a_case_measures_all_it_names(tmp_path: Path) -> None:
    case = cases(tiny=True)[0]
    speed(case, report_of(tmp_path, "E1"))
    drawn = results_of(tmp_path)["cases"]["E1"]
    assert drawn["response tokens"] == 2 * 2 * 4 * 12  # clients, problems, responses, tokens: none ends early
    assert set(drawn["sampling"]) == {"growing", "static"}
    assert all(drawn[part]["seconds"]["median"] > 0 for part in ("training", "cohort", "one after another"))
    text = (tmp_path / "results.md").read_text("utf-8")
    assert text.count("\n| E1 |") == 4  # two ways to sample, training, the cohort


def test_what_takes_too_long_is_skipped_with_a_reason(tmp_path: Path) -> None:
    report = report_of(tmp_path, "E1", seconds=0.0)
    assert not report.fits("train", 5.0)
    assert "it takes about 5 s" in results_of(tmp_path)["cases"]["E1"]["skipped"]["train"]


def test_when_the_time_is_over_what_ran_and_what_is_left_is_written_down(tmp_path: Path) -> None:
    results = Results(tmp_path, 0.0)
    results.state("E1", RUNNING)
    ended: list[bool] = []
    results.watch(lambda: ended.append(True)).join(timeout=60)
    assert ended
    status = results_of(tmp_path)["status"]
    assert list(status) == ["E1", *(name for name in gpu_report.SHARES if name != "E1")]
    assert {entry["state"] for entry in status.values()} == {SKIPPED}


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    first = Results(tmp_path, 1.0)
    for name, state in (("bounds", DONE), ("parity", FAILED), ("E1", RUNNING)):
        first.put("cases", name, "figure", value=1)
        first.state(name, state)
    assert list(Results(tmp_path, 1.0).tree["cases"]) == ["bounds"]
    assert list(Results(tmp_path, 1.0, after_failure=True).tree["cases"]) == ["bounds", "parity"]


def test_parity_notices_a_device_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parity(report_of(tmp_path / "same", "parity"))
    assert all(row["ok"] for row in results_of(tmp_path / "same")["cases"]["parity"]["rows"])
    learn, draw = gpu_parity._learn, decode._draw

    def learned(*args: Any) -> Any:  # the reference has been sampled: from here on samples are of another temperature
        monkeypatch.setattr(decode, "_draw", lambda logits, *rest: draw(1.02 * logits, *rest))
        return learn(*args)

    monkeypatch.setattr(gpu_parity, "_learn", learned)
    with pytest.raises(ArithmeticError):
        parity(report_of(tmp_path / "other", "parity"))


def test_bounds_by_hand() -> None:
    case = cases(tiny=True)[0]
    runner = Runner(case, CPU)
    runner.seat(list(runner.adapters))
    # A layer: q and o 32 x 32, k and v 32 x 16, three of 32 x 48, two norms of 32; then a last norm, and the tied head.
    body = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    head = 64 * 32
    # Rank 8: A and B of each of the seven layers have 8 (inputs + outputs) numbers.
    adapter = 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    # The cache: keys and values of 2 layers x 2 heads x 8 numbers a position; 4 responses a prompt, half of 12 tokens.
    positions = (5 + 4 * 6) + (7 + 4 * 6)
    assert decode_bytes(runner.cohort, case, [5, 7]) == 4 * (body + head + 2 * adapter + 2 * 2 * 2 * 8 * positions)
    # Two prompts of 12 tokens in all, 2 x 4 x 12 tokens of responses.
    assert training_flop(runner.cohort, case, [5, 7]) == (4 * body + 6 * adapter) * (12 + 96) + 4 * head * 96


def test_ways_to_decode() -> None:
    device = torch.device("cuda")
    assert decode.can_capture(device)
    with decode_way("static") as cache:
        assert cache == "static"
        assert not decode.can_capture(device)
    with decode_way("graph") as cache:
        assert cache == "static"
        assert decode.can_capture(device)
    with decode_way("growing") as cache:
        assert cache == "growing"


def test_a_model_in_parts_is_joined_as_it_was(tmp_path: Path) -> None:
    model, parts = tmp_path / "model", tmp_path / "parts"
    model.mkdir()
    (model / "weights").write_bytes(bytes(range(256)) * 3)
    (model / "empty").write_bytes(b"")
    gpu_parts.split(model, parts, part=100)
    assert gpu_parts.is_split(parts)
    assert not gpu_parts.is_split(model)
    assert max(path.stat().st_size for path in parts.glob("weights.*")) == 100
    joined = gpu_parts.join(parts, tmp_path / "joined")
    assert {path.name: path.read_bytes() for path in joined.iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }
    (parts / "weights.002").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights\.002"):
        gpu_parts.join(parts, tmp_path / "again")


def test_tables_of_nothing_and_of_a_part() -> None:
    assert tables({}).startswith("# ")
    refused = {"could": {"masked": {"flash": {"refuses": "why"}}}}
    assert "refuses" in tables({"about": {}, "status": {}, "cases": {"attention": refused}})


def _command(out: Path, seconds: int, *more: str) -> list[str]:
    arguments = ["--device", "cpu", "--tiny", "--out", str(out), "--seconds", str(seconds), *more]
    return [sys.executable, "-m", "benchmarks.gpu", *arguments]


@pytest.mark.slow
def test_it_ends_itself_when_its_time_is_over(tmp_path: Path) -> None:
    subprocess.run(_command(tmp_path, 1), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert {entry["state"] for entry in results_of(tmp_path)["status"].values()} == {SKIPPED}


@pytest.mark.slow
def test_killed_in_the_middle_it_leaves_what_it_had_and_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        _command(tmp_path, 600), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            if (tmp_path / "results.json").exists() and "E1" in results_of(tmp_path)["status"]:
                break
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    left = results_of(tmp_path)
    assert left["status"]["parity"]["state"] == DONE
    assert left["status"]["E1"]["state"] == RUNNING
    assert "| parity | done |" in (tmp_path / "results.md").read_text("utf-8")
    rows = left["cases"]["parity"]["rows"]

    subprocess.run(_command(tmp_path, 600), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    ended = results_of(tmp_path)
    assert ended["cases"]["parity"]["rows"] == rows
    states = {name: entry["state"] for name, entry in ended["status"].items()}
    assert states == dict.fromkeys(gpu_report.SHARES, DONE) | {"GSM8K": SKIPPED}
