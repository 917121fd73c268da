"""What a rule makes of many adapters."""

from __future__ import annotations

from dataclasses import dataclass

from fedrlvr.adapter import Adapter


@dataclass(frozen=True)
class Result:
    """What every client gets next.

    adapter: what all start from, at the result's rank; None: everybody restarts from a fresh adapter.
    change: what is added to every client's base weights W0, as factors of scale 1 (alpha = rank); None: nothing.
    """

    adapter: Adapter | None
    change: Adapter | None = None
