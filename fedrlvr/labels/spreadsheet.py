"""The ledger as a table, out and in, for experts who prefer a spreadsheet.

Out: a row for every opinion, and one with an empty answer for every problem that is still open. In: an expert's rows
are those that name no expert or this one; others' are left alone. All is checked before anything is stored.

A cell that a spreadsheet would take for a formula gets an apostrophe in front, which is taken off again on reading;
plain numbers are harmless and stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TextIO

from fedrlvr.errors import LedgerError
from fedrlvr.labels.ledger import VERDICTS, Entry, LabelLedger, Opinion, Verdict, check_answer, expert_name, spelling

COLUMNS = (
    "problem",
    "prompt",
    "kind",
    "majority",
    "votes",
    "group",
    "response_1",
    "response_2",
    "score",
    "asked_at",
    "answer",
    "verdict",
    "expert",
)
_KNOWN = ", ".join(COLUMNS)
NEEDED = ("problem", "answer")
SEPARATORS = ",;\t"
MOST_BYTES = 64 * 2**20
MOST_ROWS = 100_000
LONGEST_CELL = 32_000
"""Largest number of characters in a cell (spreadsheets hold 32,767). Longer prompts and responses are cut for display.
"""

_FORMULA = frozenset("=+-@\N{MINUS SIGN}")
"""What a formula begins with, in NFKC: full-width and small forms become these."""
_INVISIBLE = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me"))
"""Unicode categories that a spreadsheet may pass over before it looks for a formula."""
_NUMBER = re.compile(r"[-+]?[0-9]+(?:[.,][0-9]+)?")


def guard(text: str) -> str:
    """The text as a cell that no spreadsheet computes."""
    return f"'{text}" if _computed(text) and not _NUMBER.fullmatch(text) else text


def unguard(cell: str) -> str:
    """The text that `guard` made this cell of."""
    return cell[1:] if cell.startswith("'") and _computed(cell) else cell


def _computed(text: str) -> bool:
    """Whether a spreadsheet could take the text, apostrophes in front aside, for a formula."""
    text = text.lstrip("'")
    visible = next((character for character in text if unicodedata.category(character) not in _INVISIBLE), "")
    return text[:1] in ("\t", "\r", "\n") or unicodedata.normalize("NFKC", visible)[:1] in _FORMULA


def write_csv(entries: Iterable[Entry], file: TextIO) -> None:
    """Write the table, with commas, CRLF, and the mark in front by which spreadsheets know UTF-8; `file` is open with
    newline=""."""
    file.write("\ufeff")
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        first, second = (*entry.responses, "", "")[:2]
        asked = [
            guard(entry.problem),
            guard(_cut(entry.prompt)),
            entry.kind,
            guard(_cut(entry.majority or "")),
            entry.votes,
            entry.group,
            guard(_cut(first)),
            guard(_cut(second)),
            "" if entry.score is None else f"{entry.score:.6g}",
            datetime.fromtimestamp(entry.asked_at, UTC).isoformat(timespec="seconds"),
        ]
        for opinion in entry.opinions:
            if opinion.verdict != "skip":
                writer.writerow([*asked, guard(opinion.answer or ""), opinion.verdict, guard(opinion.expert)])
        if entry.state == "open":
            writer.writerow([*asked, "", "", ""])


def read_csv(text: bytes, ledger: LabelLedger, expert: str, at: float) -> int:
    """Store a table's answers as this expert's, and say how many are new.

    Read is UTF-8 with commas, semicolons or tabs. The columns `problem` and `answer` are needed, and none may be there
    that are not in `COLUMNS`. `verdict` may say unanswerable; an answer that is the majority's is accept, any other
    correct. Rows without answer are passed over, and so are those whose answer is stored already.

    Raises:
        LedgerError: something is wrong in the table; the text names the line, and nothing is stored.
    """
    expert = expert_name(expert)
    known = {entry.problem: entry for entry in ledger.entries()}
    lines: dict[str, str] = {}
    words: list[tuple[str, Verdict, str | None]] = []
    for line, row in _rows(_decoded(text)):
        problem = row["problem"] if row["problem"] in known else row["problem"].strip()
        if problem not in known:
            raise LedgerError(
                f"{line}: {problem[:80]!r} is no problem that this ledger asked about. Leave the column problem as it "
                "was exported, and see that the table is this client's."
            )
        word = _word(row, known[problem], expert, line)
        if word is None:
            continue
        if problem in lines:
            raise LedgerError(f"{line}: problem {problem!r} is answered in {lines[problem]} too. Keep one of the rows.")
        lines[problem] = line
        earlier = _said(known[problem], expert)
        if earlier is None:
            words.append((problem, *word))
        elif earlier.answer != word[1]:
            raise LedgerError(
                f"{line}: {expert} has given problem {problem!r} another answer before: "
                f"{earlier.answer or earlier.verdict!r}. Correct it at the desk, or take the row out."
            )
    ledger.answer_all(words, expert=expert, at=at)
    return len(words)


def _word(row: dict[str, str], entry: Entry, expert: str, line: str) -> tuple[Verdict, str | None] | None:
    """What a row says for this expert; None if nothing."""
    answer, verdict, named = row["answer"].strip(), row["verdict"].strip().casefold(), spelling(row["expert"])
    if verdict not in ("", *VERDICTS):
        raise LedgerError(
            f"{line}: there is no verdict {verdict[:80]!r}. Write unanswerable, or write an answer and no verdict."
        )
    if verdict in ("unanswerable", "skip") and answer:
        raise LedgerError(f"{line}: it says {verdict}, and {answer[:80]!r} is its answer. Take one of the two out.")
    if verdict in ("accept", "correct") and not answer:
        raise LedgerError(f"{line}: it says {verdict} and has no answer. Write the answer, or empty the verdict.")
    if not answer and verdict != "unanswerable":
        return None
    if named and named != expert:
        stored = _said(entry, named)
        if stored is not None and (stored.answer or "").strip() == answer:
            return None
        raise LedgerError(
            f"{line}: {named[:80]!r} did not answer that, and the table is read as {expert}'s. Empty the column expert "
            "in a row that you answer."
        )
    if not answer:
        return "unanswerable", None
    try:
        check_answer(answer, entry.problem, entry.kind)
    except LedgerError as error:
        raise LedgerError(f"{line}: {error}") from None
    return ("accept" if answer == (entry.majority or "").strip() else "correct"), answer


def _said(entry: Entry, expert: str) -> Opinion | None:
    return next((word for word in entry.opinions if word.expert == expert and word.verdict != "skip"), None)


def _decoded(text: bytes) -> str:
    if len(text) > MOST_BYTES:
        raise LedgerError(f"The table has more than {MOST_BYTES // 2**20} MiB. Import it in parts.")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise LedgerError(
            f"line {line}: the table is not in UTF-8. Save it from the spreadsheet as CSV in UTF-8."
        ) from error


def _rows(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row that is not blank, with where it is; columns that are not there are empty."""
    table = _cells(text, _separator(text))
    _, header = next(table, ("line 1", []))
    names = [name.strip().casefold() for name in header]
    while names and not names[-1]:
        names.pop()
    for name in NEEDED:
        if name not in names:
            raise LedgerError(f"line 1: there is no column {name!r}. The first line names the columns.")
    for place, name in enumerate(names):
        if name not in COLUMNS:
            raise LedgerError(f"line 1: there is no use for a column {name[:80]!r}. Take it out; known are {_KNOWN}.")
        if name in names[:place]:
            raise LedgerError(f"line 1: two columns are called {name!r}. Keep one of them.")
    for number, (line, cells) in enumerate(table):
        if number >= MOST_ROWS:
            raise LedgerError(f"{line}: the table has more than {MOST_ROWS} rows. Import it in parts.")
        if len(cells) < len(names) or any(cells[len(names) :]):
            raise LedgerError(
                f"{line}: there are {len(cells)} cells for {len(names)} columns. Put a text with separators in it in "
                "double quotes."
            )
        yield line, dict.fromkeys(COLUMNS, "") | dict(zip(names, map(unguard, cells), strict=False))


def _cells(text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, with the line each begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    row = 0
    while True:
        begun, row = reader.line_num + 1, row + 1
        line = f"line {begun}" if begun == row else f"line {begun} (row {row})"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise LedgerError(f"{line}: this is no table in CSV: {error}. Export it again as CSV.") from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _separator(text: str) -> str:
    """The one by which the first line has most columns that are known."""
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]

    def known(separator: str) -> int:
        return len({name.strip(' "').casefold() for name in first.split(separator)} & set(COLUMNS))

    return max(SEPARATORS, key=known)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"
