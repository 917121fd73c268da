"""A prepared session on a GPU: does it compute what a CPU computes, by which kernels, and how fast.

    scripts/bench gpu --out DIR                                 here, where the project is installed
    python -m benchmarks.gpu --out DIR --seconds 420 --wheels WHEELS --model PARTS --gsm8k test.jsonl
    python -m benchmarks.gpu --out DIR --seconds 60 --device cpu --tiny      the same code at toy sizes, to try it
    python -m benchmarks.gpu --split models/smollm2 --out PARTS              a model in parts below 64 MiB

The second form is for a machine with Python 3.12, torch, transformers, accelerate (and so psutil), safetensors and
tokenizers, without a network and without this project's environment: run it in a copy of the source tree. Besides those
only four packages are imported: pydantic, pydantic-core, annotated-types and typing-inspection. Their wheels, which
take 3 MB, travel in a directory that --wheels names; it is unpacked into a temporary one. This makes it:

    pip download --dest WHEELS --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 \
        pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5

Cases, in order: `bounds` (bytes/s of copies, FLOP/s of products), `parity` (samples, losses and gradients against the
CPU), `attention` (kernels that ran, and that could), `E1`, `E2` and `1.5B` (gpu_speed.py), and `GSM8K` with a real
model where --model and --gsm8k are given.

results.json and results.md in --out are replaced as a whole after every measurement, so that they can be read after a
kill at any moment. A measurement is skipped, with the reason, if it would outlast its case's share of --seconds, and
the process ends itself when they are over. Started again on the same directory it goes on: cases that are done stay.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_report import (
    CUDA,
    DONE,
    FAILED,
    MARGIN,
    RUNNING,
    SKIPPED,
    VERSIONS,
    Report,
    Results,
)

if TYPE_CHECKING:
    import torch


def unpack(wheels: Path) -> str:
    """Unpack the wheels of a directory and let modules be imported from there; returns the place."""
    place = tempfile.mkdtemp(prefix="wheels-")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    sys.path.append(place)  # what is installed comes first
    importlib.invalidate_caches()
    return place


def about(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Device, date and versions."""
    import torch

    from fedrlvr.machine import description

    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": description(),
        "python": platform.python_version(),
        "seconds": args.seconds,
        "tiny": args.tiny,
    }
    if device.type == CUDA:
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = f"{properties.name}, {properties.total_memory / (1 << 30):.0f} GiB"
        facts["compute capability"] = f"{properties.major}.{properties.minor}"
        facts["CUDA"] = torch.version.cuda
    for name in VERSIONS:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    return facts


def case_functions(args: argparse.Namespace) -> dict[str, Callable[[Report], None]]:
    """What measures each case, in order."""
    from benchmarks.gpu_attention import attention
    from benchmarks.gpu_gsm8k import gsm8k
    from benchmarks.gpu_parity import parity
    from benchmarks.gpu_speed import bounds, cases, speed

    functions: dict[str, Callable[[Report], None]] = {"bounds": bounds, "parity": parity, "attention": attention}
    for case in cases(args.tiny):
        functions[case.name] = lambda report, case=case: speed(case, report)  # type: ignore[misc]
    functions["GSM8K"] = lambda report: gsm8k(report, args.model, args.gsm8k)
    return functions


def run(results: Results, args: argparse.Namespace, device: torch.device) -> None:
    """All cases that are not done, in order. One that fails is written down, and the next is tried."""
    import torch

    for name, function in case_functions(args).items():
        if name in results.tree["status"]:
            continue
        if name == "GSM8K" and (args.model is None or args.gsm8k is None):
            results.state(name, SKIPPED, "--model and --gsm8k were not given")
            continue
        results.state(name, RUNNING)
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            function(Report(results, name, args, device))
            results.state(name, DONE)
        except Exception as error:  # whatever it is, the other cases are worth having
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0][:300]
            results.state(name, FAILED, f"{type(error).__name__}: {first}")
        gc.collect()
        if device.type != CUDA:
            continue
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError:  # a kernel failed, and this process can use the GPU no more: a new one goes on
            seconds = results.end + MARGIN - time.monotonic()
            command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--after-failure"]
            os.execv(sys.executable, [*command, "--seconds", f"{seconds:.1f}"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="directory of the results, or of the parts")
    made.add_argument("--seconds", type=float, default=420, help="time from start to end (default 420)")
    made.add_argument("--device", default=CUDA, help="cuda (default), cuda:1, or cpu with --tiny")
    made.add_argument("--tiny", action="store_true", help="toy sizes, to try this script")
    made.add_argument("--repeats", type=int, default=3, help="times each thing is measured, if time allows (default 3)")
    made.add_argument("--model", type=Path, help="directory of a model in Hugging Face format, or of its parts")
    made.add_argument("--gsm8k", type=Path, help="GSM8K's test.jsonl")
    made.add_argument("--wheels", type=Path, help="directory of the wheels to unpack")
    made.add_argument("--after-failure", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--split", type=Path, metavar="MODEL", help="write a model's directory in parts, and end")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or split a model."""
    args = parser().parse_args(arguments)
    if args.wheels is not None:
        unpack(args.wheels)
    if args.split is not None:
        from benchmarks.gpu_parts import split

        split(args.split, args.out)
        return 0
    import torch

    device = torch.device(args.device)
    if device.type == CUDA and not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU and torch built for it; there is none here.", file=sys.stderr)
        return 2
    if device.type != CUDA and not args.tiny:
        print(f"benchmarks.gpu measures GPUs; on {args.device} it runs with --tiny only.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out, args.seconds, after_failure=args.after_failure)
    results.put("about", value=about(args, device))
    timer = results.watch()
    run(results, args, device)
    timer.cancel()
    print((args.out / "results.md").read_text("utf-8"))
    return int(any(status["state"] == FAILED for status in results.tree["status"].values()))


if __name__ == "__main__":
    sys.exit(main())
