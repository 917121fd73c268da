"""Diagnosis of this machine for fedrlvr: its hardware and software, missing parts, and causes of slowness.

Nothing is changed and nothing is sent anywhere. Torch is the one heavy import; other packages are asked by their
metadata.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedrlvr import machine
from fedrlvr.output import console as new_console
from fedrlvr.reporting import units
from fedrlvr.version import __version__
from fedrlvr.zoo import weights_dir

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

Status = Literal["ok", "note", "problem"]

EXTRAS = ("hub", "reasoning-gym", "tensorboard", "mlflow", "trackio", "wandb")
"""The extras a user may want; `test` and `check` are for work on fedrlvr itself."""
_TIGHT_MEMORY, _TIGHT_DISK, _NO_DISK = 2 << 30, 2 << 30, 100 << 20  # bytes
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis, with advice where there is something to do.

    status: `problem` is what a run would fail on; `note` is what would be slow, or is not there and may be wanted.
    advice: what to do; empty where nothing need be done.
    """

    name: str
    value: str
    status: Status = "ok"
    advice: str = ""


def examine(directory: Path = Path(".")) -> list[Finding]:
    """Examine this machine; takes some seconds, most of them to start torch.

    directory: where runs would be written.
    """
    import psutil

    cores, flags = machine.cores(), machine.cpuinfo("flags", "Features")
    return [
        Finding("fedrlvr", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"),
        *packages(importlib.metadata.requires("fedrlvr") or []),
        processor(cores, _quota(_CGROUP / "cpu.max"), psutil.getloadavg()[0]),
        _threads(cores),
        memory(free_memory()),
        *accelerator(None if flags is None else frozenset(flags.split())),
        disk(directory),
        weights(weights_dir()),
    ]


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print findings, then the advice that goes with them."""
    from rich.table import Table
    from rich.text import Text

    console = console or new_console()
    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(Text(finding.status, styles[finding.status]), Text(finding.name), Text(finding.value))
    console.print(table)
    for finding in findings:
        if finding.advice:
            console.print()
            console.print(Text.assemble((f"{finding.name}: ", styles[finding.status]), finding.advice))
    if not any(finding.status == "problem" for finding in findings):
        console.print("\nNothing stands in the way of a run.")


def packages(requirements: Sequence[str]) -> Iterator[Finding]:
    """One finding for the dependencies that fit, one for each that does not, one for each extra.

    requirements: as in a package's metadata, for example "torch<2.14,>=2.13" or "datasets>=4; extra == 'hub'".
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in requirements]
    fitting = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = machine.package_version(requirement.name)
        if version is None:
            yield Finding(requirement.name, "missing", "problem", "Install fedrlvr again, with its dependencies.")
        elif not _fits(requirement, version):
            advice = f"fedrlvr is made for {requirement.specifier}; install that if something misbehaves."
            yield Finding(requirement.name, version, "note", advice)
        else:
            fitting.append(f"{requirement.name} {version}")
    yield Finding("packages", ", ".join(sorted(fitting)))
    for extra in EXTRAS:
        parts = [r for r in wanted if r.marker is not None and r.marker.evaluate({"extra": extra})]
        versions = {r.name: machine.package_version(r.name) for r in parts}
        if lacking := [name for name, version in versions.items() if version is None]:
            yield Finding(f"extra {extra}", f"not installed ({', '.join(lacking)}): pip install 'fedrlvr[{extra}]'")
            continue
        others = [f"{r.name} {versions[r.name]}" for r in parts if not _fits(r, str(versions[r.name]))]
        if others:
            advice = f"Another version than fedrlvr is made for; pip install 'fedrlvr[{extra}]' brings that."
            yield Finding(f"extra {extra}", ", ".join(others), "note", advice)
        else:
            yield Finding(f"extra {extra}", "installed")


def processor(cores: int, quota: float | None, load: float) -> Finding:
    """Cores this process may use against what a container grants and what others take.

    cores: torch threads a run takes unless engine.threads says otherwise. quota: cores' worth of time granted; None is
    no limit. load: processes that want a core, averaged over a minute.
    """
    granted = f", {quota:g} granted" if quota is not None and quota < cores else ""
    value = f"{cores} cores{granted}, load {load:.1f}"
    few = max(1, math.floor(quota)) if quota is not None else cores
    if few < cores:
        advice = (
            f"The container grants {quota:g} cores' worth of time, but a run starts a torch thread for each of {cores} "
            f"cores; threads that wait for each other are slow. Use --set engine.threads={few}."
        )
        return Finding("processor", value, "note", advice)
    if cores > 1 and load >= 0.75 * cores:
        advice = (
            "Other programs keep the cores busy, and torch threads that wait for each other are slower than one. "
            f"Wait for them, or use --set engine.threads={max(1, cores - round(load))}."
        )
        return Finding("processor", value, "note", advice)
    return Finding("processor", value)


def memory(free: int) -> Finding:
    """Memory a run could still take, in bytes."""
    value = f"{units.size(free)} free"
    if free >= _TIGHT_MEMORY:
        return Finding("memory", value)
    advice = (
        "Torch and the embedded model alone want most of that. Close other programs; lower engine.micro_batch_tokens "
        "and engine.decode_rows, which costs time and changes no result."
    )
    return Finding("memory", value, "note", advice)


def accelerator(flags: frozenset[str] | None) -> Iterator[Finding]:
    """GPUs, and whether this machine computes in bfloat16.

    flags: the processor's instruction sets; None if unknown.
    """
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's is missing
        yield Finding("torch", f"cannot be imported: {error}", "problem", "Install fedrlvr again.")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Finding(f"GPU {i}", f"{properties.name}, {units.size(properties.total_memory)}")
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            yield Finding("bfloat16", "on the GPU; model.dtype = 'auto' uses it")
        else:
            yield Finding("bfloat16", "not on this GPU; leave model.dtype at 'auto', which uses float32")
        return
    advice = (
        "The embedded model is made for a CPU. A model of billions of parameters is slow there: each token sampled "
        "reads every weight once."
    )
    if shutil.which("nvidia-smi"):
        advice += (
            f" This machine has a GPU driver, but torch {torch.__version__} does not use it: install a CUDA build."
        )
    yield Finding("GPU", "none that torch can use", "note", advice)
    if flags is None:
        yield Finding("bfloat16", "unknown for this CPU; model.dtype = 'auto' uses float32")
    elif flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        yield Finding("bfloat16", "the CPU has it; model.dtype = 'auto' still uses float32")
    else:
        yield Finding("bfloat16", "not in this CPU, where model.dtype = 'bfloat16' would be slower than 'auto'")
    if flags is not None and not flags & {"avx2", "asimd"}:
        yield Finding("vectors", "no AVX2", "note", "Everything will be slow: torch is written for AVX2 and later.")


def disk(directory: Path) -> Finding:
    """Room and rights where runs would be written."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    value = f"{units.size(free)} free at {existing}"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("disk", value, "problem", f"{existing} cannot be written to. Give another run.directory.")
    if free < _NO_DISK:
        return Finding("disk", value, "problem", "That is too little for checkpoints. Make room.")
    if free < _TIGHT_DISK:
        advice = "Checkpoints of a large adapter may not fit: make room, or lower run.keep_checkpoints."
        return Finding("disk", value, "note", advice)
    return Finding("disk", value)


def weights(directory: Path) -> Finding:
    """The embedded model's files, and whether its weights can be read."""
    from safetensors import SafetensorError, safe_open

    name, advice = "embedded model", "Install fedrlvr again: its own files are damaged."
    lacking = [file for file in ("config.json", "tokenizer.json") if not (directory / file).is_file()]
    if lacking:
        return Finding(name, f"{directory}: {', '.join(lacking)} missing", "problem", advice)
    try:
        with safe_open(directory / "model.safetensors", framework="np") as file:
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return Finding(name, f"{directory / 'model.safetensors'}: {error}", "problem", advice)
    return Finding(name, f"{units.count(parameters)} parameters")


def _fits(requirement: Requirement, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def _threads(cores: int) -> Finding:
    setting = os.environ.get("OMP_NUM_THREADS")
    if setting and setting.isdigit() and int(setting) > 0:
        return Finding("torch threads", f"{setting} in a run, by OMP_NUM_THREADS, unless engine.threads says otherwise")
    return Finding("torch threads", f"{cores} in a run, 1 with a small model, unless engine.threads says otherwise")


def _quota(path: Path) -> float | None:
    """Cores' worth of time a container grants (cgroup v2's cpu.max: microseconds in each period); None is no limit."""
    try:
        granted, period = path.read_text("ascii").split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        return None


def free_memory() -> int:
    """Bytes free on the machine or, if less, up to the container's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit = int((_CGROUP / "memory.max").read_text("ascii"))
        free = min(free, limit - int((_CGROUP / "memory.current").read_text("ascii")))
    return free
