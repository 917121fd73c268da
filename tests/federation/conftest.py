"""One tiny model, one set of problems, and reference runs made once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model
from small_runs import VARIANTS, Configs, Runs, settings, write_problems

import fedrlvr


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Llama."""
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four held-out problems of each of three clients."""
    return write_problems(tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="session")
def configured(model: Path, problems: Path) -> Configs:
    """Settings of a small run in a directory, with changes by section."""

    def make(directory: Path | None, **changes: Mapping[str, Any]) -> dict[str, Any]:
        return settings(model, problems, directory, **changes)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, configured: Configs) -> Runs:
    """The directory of the uninterrupted run of a variant, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(variant: str) -> Path:
        if variant not in made:
            directory = tmp_path_factory.mktemp(variant) / "run"
            fedrlvr.run(configured(directory, **VARIANTS[variant]))
            made[variant] = directory
        return made[variant]

    return of
