"""Trackers: observers that copy each round's numbers into an experiment tracker."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrlvr.errors import MissingExtraError
from fedrlvr.reporting.observer import Event, Observer, RoundSaved, RunStarted

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker(Observer):
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
        self._open = functools.partial(SummaryWriter, str(directory / "tensorboard"))
        self._writer: SummaryWriter | None = None

    def notify(self, event: Event) -> None:
        """Open the files; write every scalar of a saved round under `<client>/<metric>`."""
        match event:
            case RunStarted():
                self._writer = self._open()
            case RoundSaved():
                assert self._writer is not None
                for name, value in flatten(event.record):
                    self._writer.add_scalar(name, value, event.round)

    def close(self) -> None:
        """Flush and close the event files of TensorBoard."""
        if self._writer is not None:
            self._writer.close()


def flatten(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of each client's numbers, each evaluation's pass@1, the server's step and the seconds by phase."""
    for client, numbers in record["clients"].items():
        for key, value in numbers.items():
            if isinstance(value, int | float):  # not the tables of a calibration
                yield f"{client}/{key}", value
    for client, sources in record.get("evaluate", {}).items():
        for source, score in sources.items():
            if score["n"]:
                yield f"{client}/evaluate/{source}", score["total"] / score["n"]
    for key, value in record.get("server_step", {}).items():
        if isinstance(value, int | float):  # not the lengths and cosines of clients
            yield f"server_step/{key}", value
    for phase, seconds in record["seconds"].items():
        yield f"seconds/{phase}", seconds


def make_tracker(kind: str, directory: Path) -> Observer:
    """The tracker of `run.tracker`; `none` is the null observer."""
    return TensorBoardTracker(directory) if kind == "tensorboard" else Observer()
