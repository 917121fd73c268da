"""One tiny model directory of each kind, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from models import KINDS, tiny_model


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny model by kind."""
    made = {kind: tiny_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    return made.__getitem__


@pytest.fixture(scope="session")
def llama(model_of: Callable[[str], Path]) -> Path:
    """The directory of a tiny Llama."""
    return model_of("llama")
