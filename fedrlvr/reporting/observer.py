"""What a run tells whoever watches it, as it happens. The null observer is the default; the command line shows more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Observer:
    """Hears everything and does nothing. Override what you want to see."""

    def started(self, directory: str, clients: list[str], rounds: int, first_round: int) -> None:
        """A run begins, or goes on, with `first_round`."""

    def phase(self, round_: int, phase: str) -> None:
        """The round enters a phase: evaluate, train, aggregate, checkpoint."""

    def step(self, round_: int, step: int, steps: int, rewards: Mapping[str, float], tokens: int) -> None:
        """One local step of a cohort is done: mean reward per client, and tokens sampled by all of them."""

    def evaluated(self, round_: int, problems: int) -> None:
        """A cohort has evaluated this many problems."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round is complete: its line of metrics.jsonl."""

    def close(self) -> None:
        """The run is over, or has failed."""
