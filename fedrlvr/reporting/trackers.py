"""Where a round's numbers go besides metrics.jsonl. The null tracker is the default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedrlvr.errors import MissingExtraError


class Tracker:
    """Takes each round's record and does nothing with it."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""

    def close(self) -> None:
        """The run is over."""


class TensorBoardTracker(Tracker):
    """Scalars by client into `<run>/tensorboard`; local files, no account.

    Raises (on construction):
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError(
                "run.tracker = 'tensorboard' needs the extra: pip install 'fedrlvr[trackers]'."
            ) from None
        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def log(self, record: Mapping[str, Any]) -> None:
        """Every scalar of the record, under `<client>/<metric>`."""
        for name, value in flatten(record):
            self._writer.add_scalar(name, value, record["round"])

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


def flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of each client's numbers, of each evaluation's pass@1, and of the seconds by phase."""
    for client, numbers in record["clients"].items():
        for key, value in numbers.items():
            if isinstance(value, int | float):  # not the tables of a calibration
                yield f"{client}/{key}", value
    for client, sources in record.get("evaluate", {}).items():
        for source, score in sources.items():
            if score["n"]:
                yield f"{client}/evaluate/{source}", score["total"] / score["n"]
    for phase, seconds in record["seconds"].items():
        yield f"seconds/{phase}", seconds


def make_tracker(kind: str, directory: Path) -> Tracker:
    """The tracker of `run.tracker`."""
    return TensorBoardTracker(directory) if kind == "tensorboard" else Tracker()
