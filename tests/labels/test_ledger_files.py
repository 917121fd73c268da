"""The ledger's file: several at once, crashes, and files that are none."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ledgers import asked, given, query

from fedrlvr.errors import LedgerError
from fedrlvr.labels.ledger import Counts, LabelLedger


@pytest.mark.parametrize("umask", [0, 0o277])
def test_a_ledger_and_its_directories_are_this_users_alone(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        ledger = LabelLedger(tmp_path / "clients" / "ann" / "ledger.sqlite")
        ledger.ask(query("p"), at=0.0)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {name: mode for name, mode in modes.items() if "ledger" not in name} == {"clients": 0o700, "ann": 0o700}
    assert {mode for name, mode in modes.items() if "ledger" in name} == {0o600}
    ledger.close()


def test_a_ledger_that_others_could_read_is_closed_to_them(path: Path, ledger: LabelLedger) -> None:
    ledger.close()
    path.chmod(0o644)
    LabelLedger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Several at once, and crashes.

PROBLEMS = 24


def answer_all(path: Path, expert: str, start: threading.Event | None = None) -> None:
    ledger = LabelLedger(path)
    if start is not None:
        start.wait()
    # The time stands still, so that no lease runs out.
    while (result := ledger.next_open(expert, at=1.0)) is not None:
        ledger.answer(result.problem, "accept", None, expert=expert, at=1.0)
    ledger.close()


@pytest.mark.slow
def test_two_processes_and_two_threads_never_answer_the_same_problem(path: Path, ledger: LabelLedger) -> None:
    for number in range(PROBLEMS):
        ledger.ask(query(f"p{number}", rank=number), at=0.0)
    context = multiprocessing.get_context("spawn")
    workers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        *(context.Process(target=answer_all, args=(path, f"process {n}")) for n in range(2)),
        *(threading.Thread(target=answer_all, args=(path, f"thread {n}")) for n in range(2)),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    log = sqlite3.connect(path).execute("SELECT problem FROM log").fetchall()
    assert sorted(log) == sorted((f"p{number}",) for number in range(PROBLEMS))
    assert ledger.counts().labelled == PROBLEMS


def test_two_threads_share_one_ledger_and_are_never_given_the_same_problem(ledger: LabelLedger) -> None:
    for number in range(PROBLEMS):
        ledger.ask(query(f"p{number}", rank=number), at=0.0)
    together = threading.Barrier(2)
    seen: dict[str, list[str]] = {"Ann": [], "Bob": []}
    failed: list[BaseException] = []

    def work(expert: str) -> None:
        try:
            for _ in range(PROBLEMS // 2):
                together.wait(30)
                result = ledger.next_open(expert, at=1.0)
                assert result is not None
                seen[expert].append(result.problem)
                together.wait(30)
                ledger.answer(result.problem, "accept", None, expert=expert, at=1.0)
        except BaseException as error:
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=work, args=(expert,)) for expert in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert len(seen["Ann"]) == len(seen["Bob"]) == PROBLEMS // 2
    assert len({*seen["Ann"], *seen["Bob"]}) == PROBLEMS


def test_many_may_make_the_file_at_once(path: Path) -> None:
    together = threading.Barrier(6)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            together.wait(30)
            ledger = LabelLedger(path)
            ledger.ask(query(f"p{number}"), at=0.0)
            ledger.close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    ledger = LabelLedger(path)
    assert ledger.asked() == 6
    ledger.close()


ANSWERING = """
import sys
from pathlib import Path
from fedrlvr.labels.ledger import LabelLedger
ledger = LabelLedger(Path(sys.argv[1]))
while (found := ledger.next_open("Ann", at=1.0)) is not None:
    ledger.answer(found.problem, "accept", None, expert="Ann", at=1.0)
    print(found.problem, flush=True)
"""


def test_a_process_killed_while_answering_loses_nothing_that_it_had_stored(path: Path, ledger: LabelLedger) -> None:
    for number in range(400):
        ledger.ask(query(f"p{number}", rank=number), at=0.0)
    process = subprocess.Popen([sys.executable, "-c", ANSWERING, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stored = [process.stdout.readline().strip() for _ in range(5)]
    os.kill(process.pid, signal.SIGKILL)
    stored += process.stdout.read().split()
    assert process.wait(30) == -signal.SIGKILL
    again = LabelLedger(path)
    answered = [entry.problem for entry in again.entries() if entry.state == "labelled"]
    # One may have been stored and not yet said.
    assert answered[: len(stored)] == stored
    assert len(stored) <= len(answered) <= len(stored) + 1 < 400
    assert given(again, "Ann", 2.0) == f"p{len(answered)}"
    again.close()


def test_an_answer_that_fails_half_way_leaves_nothing(ledger: LabelLedger) -> None:
    asked(ledger, "a", "b")
    with pytest.raises(LedgerError, match="'c'"):
        ledger.answer_all([("a", "accept", None), ("c", "accept", None)], expert="Ann", at=1.0)
    assert ledger.counts().open == 2
    ledger.answer_all([("a", "accept", None), ("b", "unanswerable", None)], expert="Ann", at=1.0)
    with pytest.raises(LedgerError, match="already"):
        ledger.answer_all([("b", "accept", None)], expert="Ann", at=1.0)
    assert ledger.counts() == Counts(asked=2, open=0, labelled=1, unanswerable=1, disputed=0, uses=0)


# Files.


def test_a_closed_ledger_says_so_in_every_thread(ledger: LabelLedger) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.asked()


def test_a_file_that_is_no_database_is_named_and_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite .*damaged"):
        LabelLedger(path)
    assert path.read_bytes() == b"no database" * 100


def test_a_damaged_file_is_found_on_opening(path: Path) -> None:
    ledger = LabelLedger(path)
    for number in range(200):
        ledger.ask(query(f"p{number}", prompt="x" * 500), at=0.0)
    ledger.close()
    whole = bytearray(path.read_bytes())
    whole[4096 * 12 : 4096 * 20] = b"\xff" * (4096 * 8)
    path.write_bytes(whole)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite is damaged"):
        LabelLedger(path)


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    with pytest.raises(LedgerError, match="no label ledger"):
        LabelLedger(path)


def test_a_newer_ledger_is_refused(path: Path, ledger: LabelLedger) -> None:
    ledger.close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(LedgerError, match=r"newer fedrlvr.*format 2"):
        LabelLedger(path)


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="directory"):
        LabelLedger(tmp_path / "file" / "ledger.sqlite")
    with pytest.raises(LedgerError, match="cannot be used"):
        LabelLedger(tmp_path)


def test_who_waits_too_long_for_the_file_is_told(
    path: Path, ledger: LabelLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrlvr.labels.database.PATIENCE", 0.1)
    other = LabelLedger(path)
    blocker = sqlite3.connect(path)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="locked"):
        other.ask(query(), at=0.0)
    assert other.asked() == 0  # reading does not wait
    blocker.rollback()
    assert other.ask(query(), at=0.0)
    blocker.execute("BEGIN")
    blocker.execute("SELECT * FROM question").fetchall()
    assert other.ask(query("p2"), at=0.0)  # writing does not wait for who reads
    other.close()
    blocker.close()
