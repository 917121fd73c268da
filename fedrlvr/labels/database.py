"""The ledger's SQLite file: opened and checked, one connection for each thread, transactions.

Training and the desk have it open at once. It is in WAL mode, so that who reads and who writes do not wait for each
other, and `synchronous` is FULL, so that what was committed is on the disk; NORMAL where that does not matter.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrlvr.errors import LedgerError
from fedrlvr.files import private_directory, private_file

VERSION = 1
APPLICATION = 0x66726C76
"""SQLite application id that marks a file as a label ledger."""
PATIENCE = 30.0
"""Seconds to wait for another process that is writing."""
_STORED = {"TEXT": ("text",), "INTEGER": ("integer",), "REAL": ("real", "integer")}
"""What SQLite calls the values that a column of a declared type may hold."""

# `first_step` is when a problem was asked about first, `step` when last. `batch` counts the steps that asked, over all
# runs on this ledger. `wanted` is how many experts are to answer. `shown` is what an expert was given, and until when
# it is kept for that expert. `log` is every word ever said, `opinion` each expert's last.
_TABLES = """
CREATE TABLE question (
    problem TEXT PRIMARY KEY, prompt TEXT NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL,
    first_step INTEGER NOT NULL, asked_at REAL NOT NULL, batch INTEGER NOT NULL, step INTEGER NOT NULL,
    rank INTEGER NOT NULL, score REAL, reliable REAL, majority TEXT, votes INTEGER NOT NULL, size INTEGER NOT NULL,
    response_1 TEXT, response_2 TEXT, wanted INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX question_order ON question (batch DESC, rank);
CREATE INDEX question_asked ON question (asked_at);
CREATE TABLE opinion (
    problem TEXT NOT NULL REFERENCES question ON DELETE CASCADE, expert TEXT NOT NULL, verdict TEXT NOT NULL,
    answer TEXT, at REAL NOT NULL, entry INTEGER NOT NULL, PRIMARY KEY (problem, expert)
);
CREATE TABLE log (
    entry INTEGER PRIMARY KEY AUTOINCREMENT, problem TEXT NOT NULL REFERENCES question ON DELETE CASCADE,
    expert TEXT NOT NULL, verdict TEXT NOT NULL, answer TEXT, at REAL NOT NULL
);
CREATE INDEX log_problem ON log (problem);
CREATE TABLE shown (
    problem TEXT NOT NULL REFERENCES question ON DELETE CASCADE, expert TEXT NOT NULL, majority TEXT,
    until REAL NOT NULL, PRIMARY KEY (problem, expert)
);
CREATE INDEX shown_until ON shown (until);
CREATE TABLE used (
    problem TEXT NOT NULL REFERENCES question ON DELETE CASCADE, run TEXT NOT NULL, step INTEGER NOT NULL,
    PRIMARY KEY (problem, run, step)
);
"""


class Database:
    """One ledger file, as a SQLite database with transactions.

    Raises (and every transaction on it):
        LedgerError: it cannot be opened or read, is damaged, is no ledger, or one of a newer fedrlvr.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self._synchronous = "FULL" if durable else "NORMAL"
        self._local = threading.local()
        self._closed = False
        try:
            private_directory(path.parent)
        except OSError as error:
            raise LedgerError(f"The directory of the label ledger {path} cannot be made: {error}.") from error
        with contextlib.suppress(OSError):  # sqlite says what is wrong with the path, and gives -wal and -shm its mode
            if path.is_file():
                path.chmod(0o600)  # written by an earlier release
            else:
                os.close(private_file(path))
        with self._explained():
            self._prepare(self._connection())

    def close(self) -> None:
        """Close it for all threads; another thread's connection goes when that thread asks again or ends."""
        self._closed = True
        self._drop()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the file."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: all of it is on the disk at its end, or nothing if it raises."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._explained():
            connection = self._connection()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            self._drop()
            raise LedgerError(f"The label ledger {self.path} was closed.")
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _drop(self) -> None:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables of a new file, check those of an old one."""
        try:
            if self._state(connection) == (0, 0, 0):
                self._to_wal(connection)
                connection.execute("BEGIN IMMEDIATE")
                if self._state(connection) == (0, 0, 0):  # nobody else was faster
                    for statement in _TABLES.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("COMMIT")
            application, version, _ = self._state(connection)
            if application != APPLICATION or version < 1:
                raise LedgerError(f"{self.path} is a database, but no label ledger. Give another path for the ledger.")
            if version > VERSION:
                raise LedgerError(
                    f"The label ledger {self.path} was written by a newer fedrlvr (format {version}; this one reads "
                    f"{VERSION}). Update fedrlvr to use it."
                )
            self._to_wal(connection)
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            self._check_types(connection)
        except BaseException:
            self._drop()
            raise

    def _check_types(self, connection: sqlite3.Connection) -> None:
        """SQLite stores a value of any type in a column, whatever the column was declared as.

        Raises:
            sqlite3.DatabaseError: a value is of another type than its column.
        """
        for table in ("question", "opinion", "log", "shown", "used"):
            wrong = []
            for _, column, declared, needed, _, key in connection.execute(f"PRAGMA table_info({table})"):
                kinds = [*_STORED.get(declared, ()), *([] if needed or key else ["null"])]
                wrong.append(f"typeof({column}) NOT IN ({', '.join(map(repr, kinds))})")
            if connection.execute(f"SELECT 1 FROM {table} WHERE {' OR '.join(wrong) or 0} LIMIT 1").fetchone():
                raise sqlite3.DatabaseError(f"table {table} holds a value of another type than its column")

    def _state(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Application, version, and how many tables there are."""
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        return application, version, connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _to_wal(self, connection: sqlite3.Connection) -> None:
        # Two that change the mode at once are told "locked" without being made to wait.
        end = time.monotonic() + PATIENCE
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a mistake of the caller's
            raise
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise LedgerError(
                    f"The label ledger {self.path} was kept locked by another program for {PATIENCE:.0f} seconds. End "
                    "whatever else has it open, other than fedrlvr's runs and desks."
                ) from error
            raise LedgerError(
                f"The label ledger {self.path} cannot be used: {error}. See that its path is a file in a directory "
                "that may be written to, and that the disk is not full."
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # sqlite3 decodes text, and what it says of it
            raise LedgerError(
                f"The label ledger {self.path} is damaged or no ledger at all: {error}. Put a copy of it back, or move "
                f"it out of the way together with {self.path.name}-wal, and a new one is begun; what of it can be read "
                "`sqlite3 FILE .recover` gives."
            ) from error
