"""Where the tests of tasks find files: the project's own small ones, and the published ones if they are there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fixtures() -> Path:
    """The project's own files in the published formats; their content is invented."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The directory of a published data set: under $FEDRLVR_DATA, else ../shared/data beside the checkout."""

    def find(name: str) -> Path:
        base = Path(os.environ.get("FEDRLVR_DATA") or ROOT.parent / "shared" / "data")
        if not (base / name).is_dir():
            reason = f"no {base / name}: set FEDRLVR_DATA to a directory that holds the published data sets"
            print(reason)
            pytest.skip(reason)
        return base / name

    return find
