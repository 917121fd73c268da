"""What a run has come to, as digests to compare exactly and as numbers to compare within a tolerance.

Digests hold for one processor, one set of versions and one thread. Anywhere else the same sums are rounded otherwise;
there the numbers of the same runs are compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from small_runs import adapter_bytes

Fingerprint = dict[str, Any]
"""`adapter` and `metrics`: SHA-256. `numbers`: of every exported adapter [norm, projections]. `rounds`: the numbers of
metrics.jsonl by their place, a list over rounds."""

TOLERANCE = 1e-6
COARSE = 1e-3
_MAGNIFIED = re.compile(r"ratio_max$|(reliability|correction|response)_loss$|calibration|\.kept$")
"""Numbers that magnify rounding, and are compared within `COARSE`: a largest ratio, what young probes say (Adam divides
small gradients by their own size), how much of a change is clipped."""
PROJECTIONS = 4
_VERSIONS = ("torch", "numpy", "safetensors", "transformers", "flwr")
_UNEVEN = (1 + math.sqrt(5)) / 2


def machine() -> dict[str, Any]:
    """The machine that digests depend on besides the code: processor, vector instructions, threads and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    parts = [line.partition(":")[2].strip() for key in _PROCESSOR for line in lines if line.startswith(f"{key}\t")]
    return {
        "processor": " ".join(dict.fromkeys(parts)) or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }


_PROCESSOR = ("model name", "cpu family", "model")


def fingerprint(directory: Path) -> Fingerprint:
    """The fingerprint of a finished run. The exported adapter holds what a rule has added to the base weights too."""
    adapters = adapter_bytes(directory)
    assert adapters, f"{directory} holds no exported adapter"
    digest = hashlib.sha256()
    for name, content in adapters.items():
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    lines = [_timeless(json.loads(line)) for line in (directory / "metrics.jsonl").read_text("utf-8").splitlines()]
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    rounds: dict[str, list[Any]] = {}
    for number, line in enumerate(lines):
        for place, value in _leaves(line):
            rounds.setdefault(place, [None] * len(lines))[number] = value
    return {
        "adapter": digest.hexdigest(),
        "metrics": hashlib.sha256(text.encode()).hexdigest(),
        "numbers": {name: _numbers(directory / "adapter" / name) for name in adapters},
        "rounds": dict(sorted(rounds.items())),
    }


def differences(now: Fingerprint, then: Fingerprint, *, coarse: bool = False) -> list[str]:
    """Every number of two fingerprints that is not the same within the tolerance, relative or absolute.

    coarse: the run decomposes matrices, whose singular vectors turn with the rounding where values lie close.
    """
    lists = [
        {f"{kind} {name}": values for kind in ("numbers", "rounds") for name, values in print_[kind].items()}
        for print_ in (now, then)
    ]
    return [
        f"{name}: {lists[0].get(name)}, expected {lists[1].get(name)}"
        for name in sorted(set(lists[0]) | set(lists[1]))
        if name not in lists[0]
        or name not in lists[1]
        or not _close(lists[0][name], lists[1][name], COARSE if coarse or _MAGNIFIED.search(name) else TOLERANCE)
    ]


def exact_differences(now: Fingerprint, then: Fingerprint) -> list[str]:
    """Differences without a tolerance, unlike `differences`: files that differ only in bytes are named too."""
    unequal = [kind for kind in ("adapter", "metrics") if now[kind] != then[kind]]
    if not unequal:
        return []
    numbers = [
        f"{name}: {now[kind].get(name)}, expected {then[kind].get(name)}"
        for kind in ("numbers", "rounds")
        for name in sorted(set(now[kind]) | set(then[kind]))
        if now[kind].get(name) != then[kind].get(name)
    ]
    return [f"SHA-256 of the {kind}: {now[kind]}, expected {then[kind]}" for kind in unequal] + numbers


def _numbers(path: Path) -> list[float]:
    """Norm of all an adapter's tensors, in the order of their names, and projections on fixed directions."""
    tensors = load_file(path)
    flat = torch.cat([tensors[name].to(torch.float64).flatten() for name in sorted(tensors)])
    places = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    # Formulas rather than a generator, whose numbers another version of torch may draw otherwise.
    directions = [torch.sin(places * (_UNEVEN * (k + 1))) for k in range(PROJECTIONS)]
    return [float(flat.norm()), *(float(flat @ direction) / math.sqrt(len(flat)) for direction in directions)]


def _timeless(value: Any) -> Any:
    """A copy without any seconds, at any depth."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds" and not k.startswith("seconds_")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _close(now: list[Any], then: list[Any], tolerance: float) -> bool:
    return len(now) == len(then) and all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        if isinstance(a, int | float) and isinstance(b, int | float)
        else a == b
        for a, b in zip(now, then, strict=True)
    )
