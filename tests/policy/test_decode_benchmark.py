"""The script that makes the GPU's table, at toy sizes on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import TINY_CASES, Runner, decode_bytes, decode_way, main, training_flop
from fedrlvr.policy import decode


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


def test_the_same_code_at_toy_sizes(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--tiny", "--repeats", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    (case,) = results["cases"]
    assert case["response tokens"] == 2 * 2 * 4 * 6  # clients, problems, responses, tokens: none ends early
    assert set(case["decode seconds a step"]) == {"growing", "static"}
    assert case["seconds"]["one after another"]["median"] > 0
    assert case["peak bytes"] == {"growing": None, "static": None, "learn": None}
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert text.count("\n| tiny |") == 4


def test_bounds_by_hand() -> None:
    (case,) = TINY_CASES
    runner = Runner(case, torch.device("cpu"))
    runner.seat(list(runner.adapters))
    # A layer: q and o 32 x 32, k and v 32 x 16, three of 32 x 48, two norms of 32; then a last norm, and the tied head.
    body = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    head = 64 * 32
    # Rank 8: A and B of each of the seven layers have 8 (inputs + outputs) numbers.
    adapter = 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    # The cache: keys and values of 2 layers x 2 heads x 8 numbers a position; 4 responses a prompt, 3 of 6 tokens.
    positions = (5 + 4 * 3) + (7 + 4 * 3)
    assert decode_bytes(runner.cohort, case, [5, 7]) == 4 * (body + head + 2 * adapter + 2 * 2 * 2 * 8 * positions)
    # Two prompts of 12 tokens in all, 2 x 4 x 6 tokens of responses.
    assert training_flop(runner.cohort, case, [5, 7]) == (4 * body + 6 * adapter) * (12 + 48) + 4 * head * 48


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
