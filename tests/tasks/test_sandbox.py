"""The grading child can hang, die, or be killed, and grading goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedrlvr.errors import GradingError
from fedrlvr.tasks.sandbox import GraderChild

GYM = '''
"""Stands in for reasoning-gym: a scorer that is right about "same", hangs on "hang" and wants memory for "large"."""
import time
class Family:
    def __getitem__(self, i):
        return {"question": "?", "answer": "same"}
    def score_answer(self, answer, entry):
        if answer == "hang":
            time.sleep(3600)
        if answer == "large":
            bytearray(64 << 30)
        return float(answer == entry["answer"])
def create_dataset(name, **config):
    return Family()
'''


def ask(answer: str) -> dict[str, object]:
    return {"family": "f", "config": {}, "index": 0, "answer": answer}


SAME, OTHER, HANG, LARGE = map(ask, ("same", "other", "hang", "large"))


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GraderChild]:
    (tmp_path / "reasoning_gym.py").write_text(GYM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = GraderChild()
    yield child
    child.close()


def test_it_starts_when_first_asked_and_stays(child: GraderChild) -> None:
    assert child.pid is None
    assert child.ask(SAME) == 1.0
    first = child.pid
    assert child.ask(OTHER) == 0.0
    assert child.pid == first is not None


def test_a_killed_child_is_replaced(child: GraderChild) -> None:
    assert child.ask(SAME) == 1.0
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert child.ask(SAME) == 1.0
    assert child.pid not in (None, first)


def test_a_hanging_check_scores_zero_within_the_limit_and_the_next_works(child: GraderChild) -> None:
    assert child.ask(SAME) == 1.0
    first, child.limit_s = child.pid, 1.0
    start = time.monotonic()
    assert child.ask(HANG) == 0.0
    assert time.monotonic() - start < 3.0
    child.limit_s = 5.0
    assert child.ask(SAME) == 1.0
    assert child.pid not in (None, first)


def test_a_check_that_wants_more_memory_than_there_is_scores_zero(child: GraderChild) -> None:
    assert child.ask(LARGE) == 0.0
    assert child.ask(SAME) == 1.0


def test_killed_in_mid_check_it_is_asked_again(child: GraderChild) -> None:
    assert child.ask(SAME) == 1.0
    first, child.limit_s = child.pid, 2.0
    assert first is not None
    threading.Timer(0.5, os.kill, (first, signal.SIGKILL)).start()
    start = time.monotonic()
    assert child.ask(HANG) == 0.0
    assert time.monotonic() - start > 2.0  # 0.5 s with the first child, then the whole limit with the second
    assert child.pid is None


def test_it_ends_with_its_parent(child: GraderChild) -> None:
    assert child.ask(SAME) == 1.0
    process = psutil.Process(child.pid)
    assert child._process is not None
    assert child._process.stdin is not None
    child._process.stdin.close()  # what the system does when the parent dies
    process.wait(timeout=10)
    child._process.stdin = None


def test_threads_share_it(child: GraderChild) -> None:
    verdicts: list[tuple[int, float]] = []

    def check(n: int) -> None:
        verdicts.append((n, child.ask(SAME if n % 2 else OTHER)))

    threads = [threading.Thread(target=check, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdicts) == [(n, float(n % 2)) for n in range(6)]


def test_a_forked_process_uses_a_child_of_its_own(child: GraderChild) -> None:
    assert child.ask(SAME) == 1.0
    first = child.pid
    forked = os.fork()
    if forked == 0:
        ok = child.ask(SAME) == 1.0 and child.pid != first
        child.close()
        os._exit(0 if ok else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert child.ask(SAME) == 1.0
    assert child.pid == first


def test_a_library_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(GradingError, match=r"reasoning-gym did not start.*broken on purpose"):
        GraderChild().ask(SAME)
