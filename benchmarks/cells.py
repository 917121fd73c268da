"""What benchmarks of many cells share: cells handed to processes of one torch thread, and the seconds each took."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Cell = tuple[Any, ...]


def run_all(cells: Iterable[Cell], run: Callable[..., None], jobs: int) -> None:
    """`run(*cell)` for each, in `jobs` processes.

    run: of a module's top level, so that a new process finds it.

    Raises:
        SystemExit: a process failed.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    todo = context.SimpleQueue()
    for cell in cells:
        todo.put(cell)
    workers = [context.Process(target=_work, args=(todo, run)) for _ in range(jobs)]
    for worker in workers:
        todo.put(None)
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a process failed; the same command goes on with what is left")


def _work(todo: Any, run: Callable[..., None]) -> None:
    while (cell := todo.get()) is not None:
        print(datetime.datetime.now().strftime("%H:%M:%S"), *cell, flush=True)
        run(*cell)


@contextmanager
def timed(directory: Path) -> Iterator[None]:
    """Add what is done here, if it ends well, to the CPU and wall seconds in <directory>/seconds.json."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    path = directory / "seconds.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({key: value + before.get(key, 0.0) for key, value in took.items()}), "utf-8")
