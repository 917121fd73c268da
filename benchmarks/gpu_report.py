"""What a session on a GPU has measured, on disk after every measurement, and the time that is left for it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    import torch

START = time.monotonic()
CPU, CUDA = "cpu", "cuda"
SHARES = {"bounds": 0.06, "parity": 0.2, "attention": 0.28, "E1": 0.38, "E2": 0.5, "1.5B": 0.76, "GSM8K": 1.0}
"""Part of the time by whose end each case should be done; what a case leaves over goes to the next."""
MARGIN = 2.0
"""Seconds before the end of the time at which the process ends itself."""
DONE, FAILED, SKIPPED, RUNNING = "done", "failed", "skipped", "running"
VERSIONS = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")


class Results:
    """What has been measured, on disk after every change."""

    def __init__(self, directory: Path, seconds: float, *, after_failure: bool = False) -> None:
        self.directory, self.end = directory, START + seconds - MARGIN
        self._seconds = seconds
        self._lock = threading.RLock()
        try:
            self.tree: dict[str, Any] = json.loads((directory / "results.json").read_text("utf-8"))
        except (OSError, ValueError):
            self.tree = {"about": {}, "status": {}, "cases": {}}
        for name, status in list(self.tree["status"].items()):
            # It was cut, had no time, or failed with code that may have changed since.
            if status["state"] != DONE and not (after_failure and status["state"] == FAILED):
                del self.tree["status"][name]
                self.tree["cases"].pop(name, None)

    def put(self, *keys: str, value: Any) -> None:
        """Set the value at this path and write the files."""
        with self._lock:
            place = self.tree
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = value
            self.write()

    def write(self) -> None:
        """Replace results.json and results.md, each as a whole."""
        from benchmarks.gpu_tables import tables
        from fedrlvr.files import atomic_text

        with self._lock:
            atomic_text(self.directory / "results.json", json.dumps(self.tree, indent=1) + "\n")
            atomic_text(self.directory / "results.md", tables(self.tree))

    def state(self, name: str, state: str, reason: str = "") -> None:
        """Set a case's state."""
        self.put("status", name, value={"state": state, "reason": reason, "at": round(time.monotonic() - START, 1)})

    def watch(self, finish: Callable[[], None] = lambda: os._exit(0)) -> threading.Timer:
        """Have the process end itself when the time is over, whatever it is doing then."""

        def over() -> None:
            with self._lock:
                for status in self.tree["status"].values():
                    if status["state"] == RUNNING:
                        status.update(state=SKIPPED, reason=f"the {self._seconds:g} s were over while it ran")
                for name in SHARES:
                    self.tree["status"].setdefault(name, {"state": SKIPPED, "reason": "no time was left", "at": None})
                self.write()
                finish()

        timer = threading.Timer(max(0.0, self.end - time.monotonic()), over)
        timer.daemon = True
        timer.start()
        return timer


class Report:
    """What a case is given: where to compute, how long, and where its figures go."""

    def __init__(self, results: Results, name: str, args: argparse.Namespace, device: torch.device) -> None:
        self.results, self.name, self.device = results, name, device
        self.tiny: bool = args.tiny
        self.repeats: int = args.repeats
        share = SHARES[name] * (results.end - START)
        self.end = min(results.end, START + share)

    def put(self, *keys: str, value: Any) -> None:
        """Keep a figure of this case."""
        self.results.put("cases", self.name, *keys, value=value)

    def fits(self, what: str, seconds: float) -> bool:
        """Whether there is time for something that takes about so long; if not, that is written down."""
        left = self.end - time.monotonic()
        if seconds <= left:
            return True
        self.put("skipped", what, value=f"it takes about {seconds:.0f} s, and {max(0.0, left):.0f} s were left")
        return False

    def of(self, *keys: str) -> Any:
        """A figure of any case, or None if there is none."""
        place: Any = self.results.tree["cases"]
        for key in keys:
            place = place.get(key) if isinstance(place, dict) else None
        return place
