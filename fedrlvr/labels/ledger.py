"""The label ledger: the problems that a client asked about, the experts' answers, and the uses of each label.

One SQLite file on the client's own disk, which training and the desk use at once. What it holds never leaves the
client. A problem is asked about, and so paid for, once: drawn again, it has its label or is still open.

An expert's word on a problem is accept (the majority's answer is right), correct (another answer is), unanswerable,
or skip, which is no opinion and may be said of a problem again and again. Every method is one transaction.
"""

from __future__ import annotations

import math
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fedrlvr.errors import LedgerError
from fedrlvr.labels.database import Database
from fedrlvr.supervision.majority import clusters
from fedrlvr.supervision.types import Query
from fedrlvr.tasks.grading import canonical
from fedrlvr.tasks.problem import Kind

Verdict = Literal["accept", "correct", "unanswerable", "skip"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
State = Literal["open", "labelled", "unanswerable", "disputed"]

LONGEST_ANSWER = 1000
"""Largest number of characters in an expert's answer."""
LONGEST_NAME = 100
"""Limit on the length of an expert's name, in characters."""
DATASET = "dataset"
"""Name of the expert that stands for the data set. A run that goes back forgets the answers bought from it."""


@dataclass(frozen=True)
class Opinion:
    """Last verdict of one expert on a problem; the answer is None unless the verdict is accept or correct."""

    expert: str
    verdict: Verdict
    answer: str | None
    at: float


@dataclass(frozen=True)
class AskedProblem:
    """A problem that was asked about: the `Query`'s fields, and when it was asked first, in unix seconds."""

    problem: str
    prompt: str
    kind: Kind
    source: str
    step: int
    rank: int
    score: float | None
    reliable: float | None
    majority: str | None
    votes: int
    group: int
    responses: tuple[str, ...]
    asked_at: float


@dataclass(frozen=True)
class OpenProblem(AskedProblem):
    """A problem as an expert sees it, without opinions. `left`: problems open to this expert, this one included."""

    left: int


@dataclass(frozen=True)
class Entry(AskedProblem):
    """Everything that the ledger holds on one problem.

    opinions: every expert's last word, skips too, in the order they were given.
    wanted: how many experts are to answer.
    state, label: what the opinions come to, as in `Counts`.
    """

    opinions: tuple[Opinion, ...]
    wanted: int
    state: State
    label: str | None
    uses: int


@dataclass(frozen=True)
class Counts:
    """Numbers of problems that were asked about, in all and by the state of their opinions, and the number of uses of
    labels.

    Answers count as the same if they have one key (`tasks.grading.canonical`).
    """

    asked: int
    open: int
    labelled: int
    unanswerable: int
    disputed: int
    uses: int


def outcome(opinions: Sequence[Opinion], wanted: int, same: Callable[[str, str], bool]) -> tuple[State, str | None]:
    """State of a problem by its experts' opinions, and its label if they agree on one.

    Open until `wanted` experts have one. Then what strictly more experts say than anything else: an answer, by the
    first who gave it, or that there is none. A tie is a dispute.
    """
    answers = [opinion.answer for opinion in opinions if opinion.verdict != "skip"]
    if len(answers) < wanted:
        return "open", None
    groups = clusters(answers, same)
    none = len(answers) - groups.valid
    most = max(groups.votes, none)
    if groups.sizes.count(most) + (none == most) > 1:
        return "disputed", None
    return ("unanswerable", None) if none == most else ("labelled", groups.label)


def check_answer(answer: str, problem: str, kind: Kind) -> None:
    """Check a person's answer to a problem of this kind.

    Raises:
        LedgerError: the answer is over `LONGEST_ANSWER`, or none that the kind can have.
    """
    if len(answer) > LONGEST_ANSWER:
        raise LedgerError(
            f"The answer to problem {problem!r} has {len(answer)} characters, and at most {LONGEST_ANSWER} are "
            "taken. Write the final answer only."
        )
    if canonical(answer, kind) is None:
        raise LedgerError(
            f"{answer[:80]!r} cannot be the answer to problem {problem!r}, which is of kind {kind!r}. Write one of "
            "that kind."
        )


def spelling(name: str) -> str:
    """A name in Unicode's composed form, with one space between words."""
    return " ".join(unicodedata.normalize("NFC", _text(name)).split())


def expert_name(name: str) -> str:
    """A person's name as the ledger keeps it, see `spelling`.

    Raises:
        LedgerError: nothing is left of it, it is too long, or it is what answers of data sets go by.
    """
    name = _expert(name)
    if name == DATASET:
        raise LedgerError(f"No expert can be called {DATASET!r}: answers from data sets go by that. Take another name.")
    return name


class LabelLedger:
    """A client's ledger of the labels it asked for, and of the opinions that experts gave.

    path: its file, made if there is none.
    run: which run asks; its steps are told from those of other runs on this file when uses are counted.
    durable: what was done is on the disk at once. Off where it can be bought again: a crash of the machine, not of a
        process, may then lose the newest.

    Raises:
        LedgerError: the file is damaged, no ledger, one of a newer fedrlvr, or cannot be written. So do all methods.
    """

    def __init__(self, path: Path, *, run: str = "", durable: bool = True) -> None:
        self._database = Database(path, durable=durable)
        self._run = _text(run)

    def close(self) -> None:
        """Close the file; nothing can be asked of this object any more, by any thread."""
        self._database.close()

    # Training's side.

    def ask(self, query: Query, *, at: float) -> bool:
        """Ask about a problem; at: unix seconds. False if it was asked about before.

        What was asked before and nobody has said anything on, nor is looking at, takes the newer query's vote and
        rank; anything else stays as it is.
        """
        with self._database.writing() as database:
            return _ask(database, query, at)

    def buy(self, query: Query, answer: str, *, at: float) -> bool:
        """`ask`, with the data set's answer in the same transaction: a crash leaves both or neither. False, and no
        answer stored, if it was asked about before.

        Raises:
            LedgerError: the answer cannot be taken, as in `answer`.
        """
        with self._database.writing() as database:
            if not _ask(database, query, at):
                return False
            _answer(database, query.question.id, "correct", answer, DATASET, at)
            return True

    def answer(self, problem: str, verdict: Verdict, answer: str | None, *, expert: str, at: float) -> None:
        """Store an expert's verdict, which replaces an earlier one of the same expert; the log keeps both.

        answer: needed with correct. With accept, what was accepted: left out, it is the majority's answer that this
        expert was shown last; if the vote has changed since, the verdict becomes correct. Else it is not looked at.

        Raises:
            LedgerError: a problem that was not asked about, an unknown verdict, no expert's name, or an answer that
                is empty or, from a person, over `LONGEST_ANSWER` or none that the problem's kind can have.
        """
        with self._database.writing() as database:
            _answer(database, problem, verdict, answer, _expert(expert), at)

    def answer_all(self, words: Iterable[tuple[str, Verdict, str | None]], *, expert: str, at: float) -> None:
        """Store several (problem, verdict, answer) of an expert, all or none; only a skip is replaced.

        Raises:
            LedgerError: as `answer`, or the expert has answered one of the problems.
        """
        expert = _expert(expert)
        with self._database.writing() as database:
            for problem, verdict, answer in words:
                if database.execute(
                    "SELECT 1 FROM opinion WHERE problem = ? AND expert = ? AND verdict <> 'skip'",
                    (_text(problem), expert),
                ).fetchone():
                    raise LedgerError(f"{expert} has answered problem {problem!r} already.")
                _answer(database, problem, verdict, answer, expert, at)

    def label(self, problem: str, same: Callable[[str, str], bool]) -> str | None:
        """Label of a problem by its opinions (`outcome`); None without a label, or if it was not asked about.

        same: whether two answers are the same to the problem's grader, see `supervision.majority.clusters`.
        """
        with self._database.reading() as database:
            row = database.execute("SELECT wanted FROM question WHERE problem = ?", (_text(problem),)).fetchone()
            opinions = _opinions(database, problem)
        # Outside the transaction: a grader may take its time.
        return None if row is None else outcome(opinions.get(_text(problem), []), row["wanted"], same)[1]

    def was_asked(self, problem: str) -> bool:
        """Whether the problem was ever asked about."""
        return self._number("SELECT count(*) FROM question WHERE problem = ?", _text(problem)) > 0

    def uses(self, problem: str, *, this_run: bool = False) -> int:
        """Number of times that all runs, or this run's steps alone, have used a problem's label."""
        if not this_run:
            return self._number("SELECT count(*) FROM used WHERE problem = ?", _text(problem))
        return self._number("SELECT count(*) FROM used WHERE problem = ? AND run = ?", _text(problem), self._run)

    def use(self, problem: str, step: int) -> None:
        """Count that a step trained on a problem's label; a step done again is counted once.

        Raises:
            LedgerError: the problem was not asked about.
        """
        with self._database.writing() as database:
            _known(database, problem)
            database.execute("INSERT OR IGNORE INTO used VALUES (?, ?, ?)", (_text(problem), self._run, step))

    def rewind(self, step: int) -> None:
        """Forget this run's uses at this step and later, and problems asked about then that only the data set answered.

        What a person has said or been shown stays. A problem without any answer goes too if this is a data set's
        ledger, where it can only come from a crash before the answer.
        """
        with self._database.writing() as database:
            database.execute("DELETE FROM used WHERE run = ? AND step >= ?", (self._run, step))
            database.execute(
                """DELETE FROM question WHERE first_step >= :step
                   AND EXISTS (SELECT 1 FROM opinion WHERE expert = :dataset)
                   AND NOT EXISTS (SELECT 1 FROM log WHERE log.problem = question.problem AND expert <> :dataset)
                   AND NOT EXISTS (SELECT 1 FROM shown WHERE shown.problem = question.problem)""",
                {"step": step, "dataset": DATASET},
            )

    def asked(self, since: float = -math.inf) -> int:
        """Number of problems that were asked about, in all or first at this time or later."""
        return self._number("SELECT count(*) FROM question WHERE asked_at >= ?", since)

    def asked_among(self, problems: Iterable[str]) -> int:
        """Number of these problems that were asked about."""
        with self._database.reading() as database:
            asked = {row["problem"] for row in database.execute("SELECT problem FROM question")}
        return sum(_text(problem) in asked for problem in problems)

    def _number(self, query: str, *parameters: str | float) -> int:
        with self._database.reading() as database:
            return int(database.execute(query, parameters).fetchone()[0])

    def counts(self) -> Counts:
        """The ledger's totals, by the state of each question."""
        with self._database.reading() as database:
            questions = database.execute("SELECT problem, kind, wanted FROM question").fetchall()
            opinions = _opinions(database)
            uses = database.execute("SELECT count(*) FROM used").fetchone()[0]
        states = [_state(opinions.get(row["problem"], []), row)[0] for row in questions]
        by_state = {state: states.count(state) for state in get_args(State)}
        return Counts(asked=len(states), **by_state, uses=uses)

    # The desk's side.

    def next_open(self, expert: str, *, at: float, lease: float = 300.0) -> OpenProblem | None:
        """The most urgent problem that is open to this expert and shown to no other; None if there is none.

        It is this expert's for `lease` seconds, and given again if asked for again. The newest step's problems come
        first, since their votes are today's, then by rank; what this expert skipped comes last, longest ago first.

        Raises:
            LedgerError: no name for a person (`expert_name`).
        """
        given = {"expert": expert_name(expert), "at": at}
        with self._database.writing() as database:
            row = database.execute(
                f"""SELECT question.*, mine.until > :at AS leased FROM question
                    LEFT JOIN opinion AS said ON said.problem = question.problem AND said.expert = :expert
                    LEFT JOIN shown AS mine ON mine.problem = question.problem AND mine.expert = :expert
                    WHERE {_OPEN_TO} AND NOT EXISTS (
                        SELECT 1 FROM shown AS other
                        WHERE other.problem = question.problem AND other.expert <> :expert AND other.until > :at)
                    ORDER BY leased IS NOT 1, said.entry IS NOT NULL, said.entry, batch DESC, rank, question.problem
                    LIMIT 1""",
                given,
            ).fetchone()
            # One expert looks at one problem.
            database.execute("UPDATE shown SET until = 0 WHERE expert = ? AND until <> 0", (given["expert"],))
            if row is None:
                return None
            database.execute(
                "INSERT OR REPLACE INTO shown VALUES (?, ?, ?, ?)",
                (row["problem"], given["expert"], row["majority"], at + lease),
            )
            left = database.execute(f"SELECT count(*) FROM question WHERE {_OPEN_TO}", given).fetchone()[0]
        return OpenProblem(**_fields(row), left=left)

    def ask_second(self, problem: str, *, at: float) -> None:
        """Want another expert's opinion besides those there are, or two if there is none yet; until it is given the
        problem has no label. Asking again changes nothing.

        Raises:
            LedgerError: the problem was not asked about.
        """
        with self._database.writing() as database:
            _known(database, problem)
            database.execute(
                f"UPDATE question SET wanted = max(wanted, 1 + max(1, {_SAID})) WHERE problem = ?", (_text(problem),)
            )

    def release(self, expert: str) -> None:
        """Make the problem that this expert looks at available to others."""
        with self._database.writing() as database:
            database.execute("UPDATE shown SET until = 0 WHERE expert = ? AND until <> 0", (_expert(expert),))

    def entries(self) -> list[Entry]:
        """All entries, in the order in which the problems were asked about."""
        with self._database.reading() as database:
            questions = database.execute("SELECT * FROM question ORDER BY batch, rank, problem").fetchall()
            opinions = _opinions(database)
            uses = dict(database.execute("SELECT problem, count(*) FROM used GROUP BY problem").fetchall())
        entries = []
        for row in questions:
            words = tuple(opinions.get(row["problem"], []))
            state, label = _state(words, row)
            entries.append(
                Entry(
                    **_fields(row),
                    opinions=words,
                    wanted=row["wanted"],
                    state=state,
                    label=label,
                    uses=uses.get(row["problem"], 0),
                )
            )
        return entries


_SAID = "(SELECT count(*) FROM opinion WHERE opinion.problem = question.problem AND verdict <> 'skip')"
_OPEN_TO = f"""{_SAID} < wanted AND NOT EXISTS (
    SELECT 1 FROM opinion WHERE opinion.problem = question.problem AND expert = :expert AND verdict <> 'skip')"""


def _ask(database: sqlite3.Connection, query: Query, at: float) -> bool:
    newest = database.execute("SELECT batch, step FROM question ORDER BY batch DESC LIMIT 1").fetchone()
    batch = 1 if newest is None else newest["batch"] + (newest["step"] != query.step)
    problem = _text(query.question.id)
    responses = [*map(_text, query.responses[:2]), None, None]
    vote = {
        "batch": batch,
        "step": query.step,
        "rank": query.rank,
        "score": query.score,
        "reliable": query.reliable,
        "majority": None if query.majority is None else _text(query.majority),
        "votes": query.votes,
        "size": query.group,
        "response_1": responses[0],
        "response_2": responses[1],
    }
    if database.execute("SELECT 1 FROM question WHERE problem = ?", (problem,)).fetchone():
        database.execute(
            f"""UPDATE question SET {", ".join(f"{name} = :{name}" for name in vote)} WHERE problem = :problem
                AND {_SAID} = 0
                AND NOT EXISTS (SELECT 1 FROM shown WHERE shown.problem = question.problem AND until > :at)""",
            {**vote, "problem": problem, "at": at},
        )
        return False
    row = {
        "problem": problem,
        "prompt": _text(query.question.prompt),
        "source": _text(query.question.source),
        "kind": query.question.kind,
        "first_step": query.step,
        "asked_at": at,
        **vote,
    }
    database.execute(f"INSERT INTO question ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})", row)
    return True


def _answer(
    database: sqlite3.Connection, problem: str, verdict: str, answer: str | None, expert: str, at: float
) -> None:
    question = _known(database, problem)
    answer = _text(answer).strip() if answer is not None else ""
    if verdict not in VERDICTS:
        raise LedgerError(f"There is no verdict {verdict!r}. Use one of {', '.join(VERDICTS)}.")
    if verdict == "accept" and not answer:
        shown = database.execute(
            "SELECT majority FROM shown WHERE problem = ? AND expert = ?", (question["problem"], expert)
        ).fetchone()
        answer = str((question if shown is None else shown)["majority"] or "").strip()
        if not answer:
            raise LedgerError(f"Problem {problem!r} has no majority answer to accept. Write the right answer.")
    if verdict in ("accept", "correct") and not answer:
        raise LedgerError(f"The answer to problem {problem!r} is empty. Write it, or say that there is none.")
    if verdict in ("accept", "correct") and expert != DATASET:  # what a data set gives as answers is its own affair
        check_answer(answer, problem, question["kind"])
    if verdict == "accept" and answer != (question["majority"] or "").strip():
        verdict = "correct"
    word = (question["problem"], expert, verdict, answer if verdict in ("accept", "correct") else None, at)
    entry = database.execute("INSERT INTO log VALUES (NULL, ?, ?, ?, ?, ?)", word).lastrowid
    database.execute("INSERT OR REPLACE INTO opinion VALUES (?, ?, ?, ?, ?, ?)", (*word, entry))
    database.execute("UPDATE shown SET until = 0 WHERE problem = ? AND expert = ?", (question["problem"], expert))


def _known(database: sqlite3.Connection, problem: str) -> sqlite3.Row:
    row: sqlite3.Row | None = database.execute("SELECT * FROM question WHERE problem = ?", (_text(problem),)).fetchone()
    if row is None:
        raise LedgerError(f"Nobody asked about problem {problem!r}: this ledger does not know it.")
    return row


def _opinions(database: sqlite3.Connection, problem: str | None = None) -> dict[str, list[Opinion]]:
    """The opinions on each problem, or on one, in the order they were given."""
    where = "" if problem is None else "WHERE problem = ?"
    rows = database.execute(
        f"SELECT problem, expert, verdict, answer, at FROM opinion {where} ORDER BY entry",
        () if problem is None else (_text(problem),),
    )
    opinions: dict[str, list[Opinion]] = {}
    for row in rows:
        opinions.setdefault(row["problem"], []).append(Opinion(row["expert"], row["verdict"], row["answer"], row["at"]))
    return opinions


def _state(opinions: Sequence[Opinion], row: sqlite3.Row) -> tuple[State, str | None]:
    kind = row["kind"]
    return outcome(opinions, row["wanted"], lambda first, second: canonical(first, kind) == canonical(second, kind))


def _fields(row: sqlite3.Row) -> dict[str, Any]:
    names = ("problem", "prompt", "kind", "source", "step", "rank", "score", "reliable", "majority", "votes")
    responses = tuple(text for text in (row["response_1"], row["response_2"]) if text is not None)
    return {name: row[name] for name in names} | {
        "group": row["size"],
        "responses": responses,
        "asked_at": row["asked_at"],
    }


def _expert(name: str) -> str:
    name = spelling(name)
    if not name or len(name) > LONGEST_NAME:
        raise LedgerError(f"An expert needs a name, of at most {LONGEST_NAME} characters.")
    return name


def _text(text: str) -> str:
    # A lone surrogate, which JSON can hold, cannot be written as UTF-8.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
