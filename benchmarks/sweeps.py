"""E5: five seeds of the embedded example as one sweep, against five runs one after another; whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import ROOT

EXAMPLE = ROOT / "examples" / "embedded.toml"
SEEDS = 5


def spent(arguments: Sequence[str], directory: Path) -> dict[str, float]:
    """CPU and wall seconds of `fedrlvr ...` with all its children, one torch thread, run in a directory.

    Raises:
        RuntimeError: the command failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    started = time.perf_counter()
    with (directory / "output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedrlvr", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        printed = (directory / "output.txt").read_text("utf-8")[-2000:]
        raise RuntimeError(f"fedrlvr {' '.join(arguments)} failed:\n{printed}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.perf_counter() - started}


def measure(settings: Sequence[str], repeats: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """`repeats` times in turn: a sweep, five runs, and the five in one process one after another (`--apart`)."""
    options = [part for setting in settings for part in ("--set", setting)]
    pairs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            sweep = ["sweep", str(EXAMPLE), "--seeds", str(SEEDS), "--quiet", *options]
            say("E5: sweep")
            together = spent([*sweep, "--directory", "together"], directory)
            say("E5: five runs")
            runs = [
                spent(
                    ["run", str(EXAMPLE), *options, "--set", f"run.seed={seed}", "--set", f"run.directory=run-{seed}"],
                    directory,
                )
                for seed in range(SEEDS)
            ]
            say("E5: five runs in one process")
            apart = spent([*sweep, "--directory", "apart", "--apart"], directory)
        pairs.append({"sweep": together, "runs": runs, "apart": apart})
    return pairs
