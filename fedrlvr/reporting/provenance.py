"""about.json: the command, versions and machine that a run was started with.

config.json says what was to be done, this file by which program. A run that goes on with other versions adds them.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrlvr.files import atomic_text, read_json
from fedrlvr.machine import description, package_version
from fedrlvr.version import __version__

ABOUT_FILE = "about.json"
"""The file of a run's provenance, in the run's directory."""
PACKAGES = ("torch", "transformers", "flwr", "safetensors", "pydantic", "mpmath", "numpy")
"""Packages whose versions can change a result."""


def versions() -> dict[str, str]:
    """Version of fedrlvr, of Python and of each package that can change a result, by name."""
    known = {package: package_version(package) for package in PACKAGES}
    installed = {package: version for package, version in known.items() if version is not None}
    return {"fedrlvr": __version__, "Python": platform.python_version(), **installed}


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The `fedrlvr` command of this process; "" in a program of the user's own.

    arguments: the program and its arguments; by default those of this process.
    """
    program, *rest = sys.argv if arguments is None else arguments
    path = Path(program)
    ours = path.stem == "fedrlvr" or (path.name == "__main__.py" and path.parent.name == "fedrlvr")
    return shlex.join(["fedrlvr", *rest]) if ours else ""


def read_about(directory: Path) -> dict[str, Any]:
    """The provenance of a run; empty where the file is missing or damaged, as in runs of releases up to 0.10.0."""
    try:
        about = read_json(directory / ABOUT_FILE)
    except (OSError, ValueError):
        return {}
    if not isinstance(about, dict) or not isinstance(about.get("versions"), dict):
        return {}
    later = about.get("continued")
    return about | {"continued": [part for part in later if isinstance(part, dict)] if isinstance(later, list) else []}


def write_about(directory: Path, first_round: int) -> None:
    """Write the provenance of a run that starts; of one that goes on, add the versions if they are other ones.

    first_round: the first round that is not done; 0 in a new run.

    Raises:
        CheckpointError: the file cannot be written.
    """
    now, about = versions(), read_about(directory)
    if not first_round or not about:
        about = {"command": command_line(), "machine": description(), "versions": now, "continued": []}
        if first_round:  # nobody wrote down what the run was started with
            about = {
                "command": "",
                "machine": "",
                "versions": {},
                "continued": [{"round": first_round, "versions": now}],
            }
    elif now != latest_versions(about):
        about["continued"].append({"round": first_round, "versions": now})
    else:
        return
    atomic_text(directory / ABOUT_FILE, json.dumps(about, indent=1) + "\n")


def latest_versions(about: Mapping[str, Any]) -> Mapping[str, str]:
    """The versions that a run was last continued with, or started with."""
    parts: list[Mapping[str, str]] = [part.get("versions", {}) for part in about.get("continued", ())]
    return parts[-1] if parts else about.get("versions", {})
