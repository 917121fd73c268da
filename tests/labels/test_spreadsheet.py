"""The ledger as a spreadsheet: out and in again, formulas, and mistakes that change nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledgers import query

from fedrlvr.errors import LedgerError
from fedrlvr.labels import spreadsheet
from fedrlvr.labels.ledger import LabelLedger, Opinion
from fedrlvr.labels.spreadsheet import COLUMNS, guard, read_csv, unguard, write_csv


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LabelLedger]:
    """Three problems asked about: p1 and p2 of sums, p3 of a choice."""
    ledger = LabelLedger(tmp_path / "ledger.sqlite")
    ledger.ask(query("p1"), at=0.0)
    ledger.ask(query("p2", rank=2, majority="-5"), at=0.0)
    ledger.ask(query("p3", rank=3, majority="B", kind="choice"), at=0.0)
    yield ledger
    ledger.close()


def read(table: str | bytes, ledger: LabelLedger, expert: str, at: float) -> int:
    return read_csv(table.encode("utf-8", "surrogatepass") if isinstance(table, str) else table, ledger, expert, at)


def exported(ledger: LabelLedger) -> str:
    file = io.StringIO(newline="")
    write_csv(ledger.entries(), file)
    return file.getvalue()


def table(ledger: LabelLedger) -> list[list[str]]:
    return list(csv.reader(io.StringIO(exported(ledger).removeprefix("\ufeff"), newline="")))


def filled(ledger: LabelLedger, answers: dict[str, str], **cells: str) -> str:
    """The exported table with answers written into it."""
    header, *rows = table(ledger)
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(header)
    for row in rows:
        named = dict(zip(header, row, strict=True))
        if named["problem"] in answers:
            named |= {"answer": answers[named["problem"]], **cells}
        writer.writerow(named.values())
    return file.getvalue()


def opinions(ledger: LabelLedger) -> dict[str, tuple[Opinion, ...]]:
    return {entry.problem: entry.opinions for entry in ledger.entries()}


def test_the_table_as_it_is_written(ledger: LabelLedger) -> None:
    ledger.answer("p1", "correct", "7", expert="Ann", at=1.0)
    ledger.answer("p3", "skip", None, expert="Ann", at=1.0)
    assert exported(ledger) == (
        "\ufeffproblem,prompt,kind,majority,votes,group,response_1,response_2,score,asked_at,answer,verdict,expert\r\n"
        "p1,What is 2 + 2?,math,4,5,8,It is 4,It is 5,2.5,1970-01-01T00:00:00+00:00,7,correct,Ann\r\n"
        "p2,What is 2 + 2?,math,-5,5,8,It is 4,It is 5,2.5,1970-01-01T00:00:00+00:00,,,\r\n"
        "p3,What is 2 + 2?,choice,B,5,8,It is 4,It is 5,2.5,1970-01-01T00:00:00+00:00,,,\r\n"
    )


def test_what_is_filled_in_is_stored_and_can_be_read_again(ledger: LabelLedger) -> None:
    text = filled(ledger, {"p1": " 5 ", "p2": "-5"})
    assert read(text, ledger, "Ann", 7.0) == 2
    assert opinions(ledger) == {
        "p1": (Opinion("Ann", "correct", "5", 7.0),),
        "p2": (Opinion("Ann", "accept", "-5", 7.0),),
        "p3": (),
    }
    assert read(text, ledger, "Ann", 8.0) == 0
    assert read(exported(ledger), ledger, "Ann", 8.0) == 0
    assert read(filled(ledger, {"p3": ""}, verdict=" Unanswerable "), ledger, "Ann", 9.0) == 1
    assert opinions(ledger)["p3"] == (Opinion("Ann", "unanswerable", None, 9.0),)
    assert read(exported(ledger), ledger, "Ann", 10.0) == 0
    assert opinions(ledger)["p1"][0].at == 7.0


def test_others_rows_are_left_alone_and_an_open_second_opinion_has_a_row(ledger: LabelLedger) -> None:
    ledger.answer("p1", "correct", "5", expert="Ann", at=1.0)
    ledger.ask_second("p1", at=1.0)
    header, *rows = table(ledger)
    assert [row[0] for row in rows] == ["p1", "p1", "p2", "p3"]
    assert [row[-3:] for row in rows[:2]] == [["5", "correct", "Ann"], ["", "", ""]]
    rows[1][header.index("answer")] = "6"
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    assert read(file.getvalue(), ledger, "Bob", 2.0) == 1
    assert [(opinion.expert, opinion.answer) for opinion in opinions(ledger)["p1"]] == [("Ann", "5"), ("Bob", "6")]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text,
        lambda text: "\ufeff" + text,
        lambda text: text.encode("utf-8"),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.replace("\r\n", "\n"),
        lambda text: text.replace("\r\n", "\r"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("problem", ' "Problem" ', 1).replace(' "', '"').replace('" ', '"'),
        lambda text: text + "\r\n,,\r\n",
        lambda text: text.replace("\r\n", ",,\r\n"),
    ],
)
def test_what_spreadsheets_make_of_a_table_is_read(ledger: LabelLedger, encode: object) -> None:
    text = "problem,verdict,answer\r\np1,,é 7\r\np2,unanswerable,\r\np3,,\r\n"
    assert read(encode(text), ledger, "Ann", 1.0) == 2  # type: ignore[operator]
    assert [given[0].answer if given else "-" for given in opinions(ledger).values()] == ["é 7", None, "-"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("-5", "-5"),
        ("+5", "+5"),
        ("-5.25", "-5.25"),
        ("-5,25", "-5,25"),
        ("", ""),
        ("it's", "it's"),
        ("'quoted'", "'quoted'"),
        ("-x", "'-x"),
        ("-1/2", "'-1/2"),
        ("-5+cmd|' /C calc'!A0", "'-5+cmd|' /C calc'!A0"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+", "'+"),
        ("\tx", "'\tx"),
        ("\r=x", "'\r=x"),
        ("\n-5", "'\n-5"),
        ("＝1", "'＝1"),
        (" =1", "' =1"),
        ("\u200b=1", "'\u200b=1"),
        ("\xa0\ufeff\u2060 @a", "'\xa0\ufeff\u2060 @a"),
        ("\x00=1", "'\x00=1"),
        ("\ufe66x", "'\ufe66x"),
        ("\u2212x", "'\u2212x"),
        ("' =1", "'' =1"),
        (" 'x=1", " 'x=1"),
        (" -5", "' -5"),
        ("  text", "  text"),
        ("'=x", "''=x"),
        ("''=x", "'''=x"),
        ("'-5", "''-5"),
    ],
)
def test_formulas_are_guarded_and_reading_undoes_it(text: str, cell: str) -> None:
    assert guard(text) == cell
    assert unguard(cell) == text


def test_hostile_texts_make_the_round_trip(ledger: LabelLedger) -> None:
    texts = ("\t tab \t", "=HYPERLINK(A1)", "'=x", '"quoted", and; cut\r\nin two', "-1/2", "'", "@a", "<b>é \U0001f600")
    for number, text in enumerate(texts):
        ledger.ask(query(f"={number}{text}", prompt=text, kind="exact", majority=text, responses=(text,)), at=0.0)
        ledger.answer(f"={number}{text}", "accept", None, expert="=Ann", at=1.0)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in table(ledger)[1:]]
    assert [unguard(row["prompt"]) for row in rows if row["kind"] == "exact"] == list(texts)
    computed = [
        cell for row in rows for cell in row.values() if cell[:1] in tuple("=+-@\t") and cell[:1] and cell != "-5"
    ]
    assert computed == []
    before = opinions(ledger)
    assert read(exported(ledger), ledger, "=Ann", 2.0) == 0
    assert opinions(ledger) == before


def test_long_texts_are_cut_to_what_a_cell_holds(ledger: LabelLedger) -> None:
    ledger.ask(query("long", prompt="x" * 200_000), at=0.0)
    (row,) = (row for row in table(ledger) if row[0] == "long")
    assert row[1] == "x" * 31_999 + "…"
    assert read(exported(ledger), ledger, "Ann", 1.0) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: there is no column 'problem'"),
        ("problem,verdict\np1,\n", "line 1: there is no column 'answer'"),
        ("problem,answer,colour\np1,5,red\n", "line 1: there is no use for a column 'colour'"),
        ("problem,answer,answer\np1,5,5\n", "line 1: two columns are called 'answer'"),
        ("problem,answer,,kind\np1,5,,math\n", "line 1: there is no use for a column ''"),
        ("problem,answer\np1,5\np9,5\n", "line 3: 'p9' is no problem"),
        ("problem,answer\np1,5\np9,\n", "line 3: 'p9' is no problem"),
        ("problem,answer\np1,5\n,5\n", "line 3: '' is no problem"),
        ("problem,answer\np1,5\np3,C\np1,5\n", "line 4: problem 'p1' is answered in line 2 too"),
        ('prompt,problem,answer\n"a\nb",p1,5\nc,p9,5\n', r"line 4 \(row 3\): 'p9' is no problem"),
        ("problem,answer\np1,5\n\np9,5\n", "line 4: 'p9' is no problem"),
        ("problem,answer\np1,5\np3,both\n", "line 3: 'both' cannot be the answer to problem 'p3'.*kind 'choice'"),
        ("problem,answer\np1,5\np2," + "1" * 1001, "line 3: The answer to problem 'p2' has 1001 characters"),
        ("problem,answer\np1,5\np2\n", "line 3: there are 1 cells for 2 columns"),
        ("problem,answer\np1,5\np2,1,5\n", "line 3: there are 3 cells for 2 columns"),
        ("problem,answer,verdict\np1,5,\np2,5,maybe\n", "line 3: there is no verdict 'maybe'"),
        ("problem,answer,verdict\np1,5,\np2,5,unanswerable\n", "line 3: it says unanswerable, and '5'"),
        ("problem,answer,verdict\np1,5,\np2,,accept\n", "line 3: it says accept and has no answer"),
        ("problem,answer,expert\np1,5,\np3,C,Bob\n", "line 3: 'Bob' did not answer that"),
        ("problem,answer,expert\np1,5,\np3,A,Cid\n", "line 3: 'Cid' did not answer that"),
        ("problem,answer\np1,5\np2,8\n", "line 3: Ann has given problem 'p2' another answer before: '9'"),
        ("problem,answer,verdict\np1,5,\np2,,unanswerable\n", "line 3: Ann has given .*before: '9'"),
        ('problem,answer\np1,5\np2,"5"x\n', "line 3: this is no table in CSV"),
        ('problem,answer\np1,5\np2,"5\n', "line 3: this is no table in CSV"),
        (b"problem,answer\np1,5\np2,\xe9\n", "line 3: the table is not in UTF-8"),
        ("problem,answer\np1,5\np2," + "1" * 200_000, "line 3: this is no table in CSV: field larger"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_nothing_is_stored(
    ledger: LabelLedger, text: str | bytes, message: str
) -> None:
    ledger.answer("p2", "correct", "9", expert="Ann", at=0.0)
    ledger.answer("p3", "correct", "A", expert="Bob", at=0.0)
    before = ledger.entries()
    with pytest.raises(LedgerError, match=message):
        read(text, ledger, "Ann", 1.0)
    assert ledger.entries() == before


def test_an_expert_who_skipped_may_answer_in_the_table(ledger: LabelLedger) -> None:
    ledger.answer("p1", "skip", None, expert="Ann", at=0.0)
    assert read("problem,answer\np1,4\n", ledger, "Ann", 1.0) == 1
    assert opinions(ledger)["p1"] == (Opinion("Ann", "accept", "4", 1.0),)


def test_a_table_needs_a_persons_name(ledger: LabelLedger) -> None:
    for name in ("", "dataset"):
        with pytest.raises(LedgerError, match="name"):
            read("problem,answer\np1,4\n", ledger, name, 1.0)
    assert ledger.counts().open == 3


def test_a_table_that_is_too_large_is_refused(ledger: LabelLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "problem,answer\np1,é\np2,4\n"
    size = len(text.encode())
    monkeypatch.setattr(spreadsheet, "MOST_BYTES", size - 1)
    with pytest.raises(LedgerError, match="MiB"):
        read(text, ledger, "Ann", 1.0)
    monkeypatch.setattr(spreadsheet, "MOST_BYTES", size)
    monkeypatch.setattr(spreadsheet, "MOST_ROWS", 1)
    with pytest.raises(LedgerError, match="line 3: the table has more than 1 rows"):
        read(text, ledger, "Ann", 1.0)
    assert ledger.counts().open == 3
    monkeypatch.setattr(spreadsheet, "MOST_ROWS", 2)
    assert read(text, ledger, "Ann", 1.0) == 2
