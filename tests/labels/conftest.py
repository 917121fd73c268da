"""A ledger in a file of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrlvr.labels.ledger import LabelLedger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients" / "north" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[LabelLedger]:
    ledger = LabelLedger(path)
    yield ledger
    ledger.close()
