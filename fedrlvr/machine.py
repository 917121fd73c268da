"""Description of this machine for tables and results. Nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo(*keys: str, path: Path = Path("/proc/cpuinfo")) -> str | None:
    """The first processor's value of one of these keys in Linux's cpuinfo; None where there is no such key or file."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), None)


def processor() -> str:
    """The processor's name as the system gives it."""
    return cpuinfo("model name") or platform.machine()


def description() -> str:
    """Cores, processor and system, as results state them."""
    return f"{os.cpu_count()} cores, {processor()}, {platform.system()}"


def package_version(name: str) -> str | None:
    """The version of an installed package; None if it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
