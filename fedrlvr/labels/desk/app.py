"""The desk: the web page on a client's own machine where experts give labels, and what it talks to.

It shows an expert one open problem at a time, with the model's majority answer and two responses that disagree, and
writes the expert's word into the ledger before it says that it did. The page's own files hold no data and need no
token; everything else does (`fedrlvr/pages/guard.py`). What fails is answered with {"error": text}.

    GET  /api/next?expert=             {"problem": an open problem or null, "left", "open", "done"}
    GET  /api/last?expert=&back=       {"problem", "said"}: what the expert said last, or `back` words before that
    POST /api/answer                   {"problem", "expert", "verdict", "answer"} -> {"done"}
    POST /api/second                   {"problem"}: another expert is to see it too
    POST /api/release                  {"expert"}: is not looking at anything any more
    GET  /api/progress?expert=         {"client", "asked", "open", "labelled", ..., "done"}
    GET  /api/labels.csv               everything, as `spreadsheet.write_csv` writes it
    POST /api/labels.csv?expert=       a table with answers (text/csv) -> {"stored"}
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response

from fedrlvr.labels.ledger import AskedProblem, LabelLedger, Verdict, expert_name
from fedrlvr.labels.spreadsheet import MOST_BYTES, read_csv, write_csv
from fedrlvr.pages.server import Body, bounded_body, guarded_app, page_files, sent_body

PAGE = Path(__file__).parent / "page"
FILES = page_files(PAGE, scripts=("common.js", "desk.js"))
LEASE = 300.0
"""Seconds for which a problem is reserved for the expert who looks at it; the page renews the reservation in time."""


class AnswerBody(Body):
    """An expert's verdict. `answer`: the right answer, or with accept the majority's as it was shown."""

    problem: str
    expert: str
    verdict: Verdict
    answer: str | None = None


class SecondBody(Body):
    """The problem that a second expert is to see."""

    problem: str


class ReleaseBody(Body):
    """The expert who stops looking at a problem."""

    expert: str


def make_desk(
    ledger: LabelLedger,
    token: str,
    client: str,
    *,
    names: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The desk of a client's ledger.

    token: what requests must bring. client: its name, for the page. names: host names the desk may be asked for by,
    besides loopback's. clock: unix seconds.

    Raises:
        ValueError: the token is empty.
    """
    app = guarded_app(token, names, FILES)
    done = _Done(ledger)

    @app.get("/api/next")
    def next_open(expert: str) -> dict[str, Any]:
        problem = ledger.next_open(expert, at=clock(), lease=LEASE)
        count = done.count(expert)
        if problem is not None:
            return {"problem": _shown(problem), "left": problem.left, "open": problem.left, "done": count}
        return {"problem": None, "left": 0, "open": ledger.counts().open, "done": count}

    @app.get("/api/last")
    def last(expert: str, back: int = 0) -> dict[str, Any]:
        expert = expert_name(expert)
        pairs = [(opinion, entry) for entry in ledger.entries() for opinion in entry.opinions]
        pairs = sorted((p for p in pairs if p[0].expert == expert), key=lambda pair: pair[0].at, reverse=True)
        if not 0 <= back < len(pairs):
            return {"problem": None, "said": None}
        opinion, entry = pairs[back]
        return {"problem": _shown(entry), "said": {"verdict": opinion.verdict, "answer": opinion.answer}}

    @app.post("/api/answer")
    def answer(word: Annotated[AnswerBody, sent_body(AnswerBody)]) -> dict[str, int]:
        expert = expert_name(word.expert)
        ledger.answer(word.problem, word.verdict, word.answer, expert=expert, at=clock())
        return {"done": done.note(expert, word.problem, word.verdict)}

    @app.post("/api/second")
    def second(wish: Annotated[SecondBody, sent_body(SecondBody)]) -> dict[str, bool]:
        ledger.ask_second(wish.problem, at=clock())
        return {"second": True}

    @app.post("/api/release")
    def release(leaving: Annotated[ReleaseBody, sent_body(ReleaseBody)]) -> dict[str, bool]:
        ledger.release(leaving.expert)
        return {"released": True}

    @app.get("/api/progress")
    def progress(expert: str | None = None) -> dict[str, Any]:
        return {"client": client, **asdict(ledger.counts()), "done": done.count(expert) if expert else 0}

    @app.get("/api/labels.csv")
    def table() -> Response:
        file = io.StringIO(newline="")
        write_csv(ledger.entries(), file)
        named = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        return Response(file.getvalue().encode(), media_type="text/csv; charset=utf-8", headers=named)

    @app.post("/api/labels.csv")
    def take_table(table: Annotated[bytes, Depends(_sent_table)], expert: str) -> dict[str, int]:
        stored = read_csv(table, ledger, expert, clock())
        done.forget()
        return {"stored": stored}

    return app


class _Done:
    """How many problems each expert has answered: counted once in the whole ledger, which may be long, then kept up."""

    def __init__(self, ledger: LabelLedger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._problems: dict[str, set[str]] | None = None

    def count(self, expert: str) -> int:
        with self._lock:
            return len(self._counted().get(expert_name(expert), ()))

    def note(self, expert: str, problem: str, verdict: Verdict) -> int:
        """An answer has been stored; a skip takes an earlier one back."""
        with self._lock:
            answered = self._counted().setdefault(expert, set())
            (answered.discard if verdict == "skip" else answered.add)(problem)
            return len(answered)

    def forget(self) -> None:
        with self._lock:
            self._problems = None

    def _counted(self) -> dict[str, set[str]]:
        if self._problems is None:
            self._problems = {}
            for entry in self._ledger.entries():
                for opinion in entry.opinions:
                    if opinion.verdict != "skip":
                        self._problems.setdefault(opinion.expert, set()).add(entry.problem)
        return self._problems


def _shown(asked: AskedProblem) -> dict[str, Any]:
    """What the page gets of a problem: no one's opinion, and none of what the probes think of it."""
    names = ("problem", "prompt", "kind", "source", "majority", "votes", "group", "responses")
    return {name: getattr(asked, name) for name in names}


async def _sent_table(request: Request) -> bytes:
    return await bounded_body(request, MOST_BYTES)
