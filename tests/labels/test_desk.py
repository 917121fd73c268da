"""The desk's API: who gets in, what is answered, and that what is wrong changes nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import TOKEN, ask, error_of
from fastapi.testclient import TestClient

from fedrlvr.labels.desk import app as desk_module
from fedrlvr.labels.desk.app import FILES, make_desk
from fedrlvr.labels.desk.approval_app import APPROVAL_FILES
from fedrlvr.labels.ledger import LabelLedger

ROUTES = [
    ("GET", "/api/next?expert=ann"),
    ("GET", "/api/last?expert=ann"),
    ("POST", "/api/answer"),
    ("POST", "/api/second"),
    ("POST", "/api/release"),
    ("GET", "/api/progress"),
    ("GET", "/api/labels.csv"),
    ("POST", "/api/labels.csv?expert=ann"),
]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LabelLedger]:
    opened = LabelLedger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def now() -> list[float]:
    """The desk's clock, which the test may set."""
    return [1000.0]


@pytest.fixture
def web(ledger: LabelLedger, now: list[float]) -> TestClient:
    app = make_desk(ledger, TOKEN, "clinic", names=["desk.example"], clock=lambda: now[0])
    return TestClient(app, "http://localhost:8765", headers={"Authorization": f"Bearer {TOKEN}"})


def say(web: TestClient, problem: str, verdict: str, answer: str | None = None, expert: str = "ann") -> httpx.Response:
    return web.post("/api/answer", json={"problem": problem, "expert": expert, "verdict": verdict, "answer": answer})


def shown(web: TestClient, expert: str = "ann") -> str | None:
    problem = web.get("/api/next", params={"expert": expert}).json()["problem"]
    return None if problem is None else str(problem["problem"])


# Who gets in.


def test_the_list_of_routes_is_whole(web: TestClient) -> None:
    there = {(m, route.path) for route in web.app.routes for m in route.methods}  # type: ignore[attr-defined]
    assert there == {(m, path.partition("?")[0]) for m, path in ROUTES} | {("GET", path) for path in FILES}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_the_token_nothing_is_answered(web: TestClient, ledger: LabelLedger, method: str, path: str) -> None:
    ask(ledger, "p1", "a private problem")
    before = ledger.entries()
    del web.headers["Authorization"]
    body = {"problem": "p1", "expert": "ann", "verdict": "accept"} if method == "POST" else None
    almost = [f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN]
    for given in [None, "", "Bearer", "Bearer ", *almost]:
        answer = web.request(method, path, headers={} if given is None else {"Authorization": given}, json=body)
        assert answer.status_code == 401, given
        assert "token" in error_of(answer.text)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert ledger.entries() == before


def test_two_tokens_in_one_request_are_none(web: TestClient) -> None:
    twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
    del web.headers["Authorization"]
    assert web.get("/api/progress", headers=twice).status_code == 401  # type: ignore[arg-type]


def test_what_is_not_a_file_of_the_page_needs_the_token_even_if_it_is_not_there(web: TestClient) -> None:
    del web.headers["Authorization"]
    for path in ("/api", "/api/", "/api/nothing", "/docs", "/openapi.json", "/api//next", "/desk.js/", "/../desk.py"):
        assert web.get(path).status_code == 401, path


def test_the_page_needs_no_token_and_holds_no_data(web: TestClient, ledger: LabelLedger) -> None:
    ask(ledger, "p1", "a private problem")
    del web.headers["Authorization"]
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path, file in FILES.items():
        answer = web.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith(kinds[file.suffix])
        assert not re.search(f"private|clinic|{TOKEN}", answer.text)


def test_a_request_by_the_desks_own_name_is_answered(web: TestClient) -> None:
    for host in ("localhost", "LOCALHOST:1", "localhost.", "127.0.0.1:8765", "[::1]:8765", "[::1]", "Desk.Example:80"):
        assert web.get("/api/progress", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize("path", ["/", "/api/progress"])
def test_a_request_by_any_other_name_is_refused(web: TestClient, path: str) -> None:
    near = ("localhost.evil.example", "127.0.0.1.evil.example", "evil.example:8765", "desk", "[localhost]evil")
    for host in ("evil.example", "10.0.0.1", "", "[evil]", "::2", *near):
        answer = web.get(path, headers={"Host": host})
        assert answer.status_code == 421, host
        assert "--name" in error_of(answer.text)


def test_two_names_in_one_request_are_refused(web: TestClient) -> None:
    both = [("Host", "localhost"), ("Host", "evil.example")]
    assert web.get("/", headers=both).status_code == 421  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/", "/api/progress", "/api/nothing", "/api/next"])
def test_every_answer_tells_browsers_to_be_strict(web: TestClient, path: str) -> None:
    for headers in ({}, {"Authorization": "none"}, {"Host": "evil.example"}):
        said = web.get(path, headers=headers).headers
        policy = said["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert said["X-Content-Type-Options"] == "nosniff"
        assert said["X-Frame-Options"] == "DENY"
        assert said["Referrer-Policy"] == "no-referrer"
        assert said["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in said


@pytest.mark.parametrize(
    ("files", "script"), [(FILES, "desk.js"), (APPROVAL_FILES, "approve.js")], ids=["labels", "approval"]
)
def test_a_page_brings_everything_along_and_has_no_script_inside(files: dict[str, Path], script: str) -> None:
    page = files["/"].read_text("utf-8")
    scripts = [(' src="theme.js"', ""), *((f' src="{name}" defer', "") for name in ("common.js", script))]
    assert re.findall(r"<script([^>]*)>(.*?)</script>", page, re.S) == scripts
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    links = set(re.findall(r'(?:src|href)="([^"]+)"', page)) - {"../../"}  # the list of runs, under `fedrlvr watch`
    assert {f"/{name}" for name in links} <= set(files)
    for file in files.values():
        code = file.read_text("utf-8")
        assert set(re.findall(r"https?://[^\s\"')]+", code)) <= {"http://www.w3.org/2000/svg"}, file
        if file.suffix == ".js":
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", code), file


# What is asked and said.


def test_a_problem_comes_with_its_vote_and_what_is_left(web: TestClient, ledger: LabelLedger) -> None:
    ask(ledger, "p1", "6 times 7?", rank=1)
    ask(ledger, "p2", rank=2)
    assert web.get("/api/next?expert=ann").json() == {
        "problem": {
            "problem": "p1",
            "prompt": "6 times 7?",
            "kind": "math",
            "source": "sums",
            "majority": "42",
            "votes": 5,
            "group": 8,
            "responses": ["It is 42.", "It is 41."],
        },
        "left": 2,
        "open": 2,
        "done": 0,
    }


def test_every_verdict_is_stored_as_it_was_said(web: TestClient, ledger: LabelLedger, now: list[float]) -> None:
    for rank in range(1, 5):
        ask(ledger, f"p{rank}", rank=rank)
    now[0] = 77.5
    assert say(web, "p1", "accept", "42").json() == {"done": 1}
    assert say(web, "p2", "correct", " 43 ").json() == {"done": 2}
    assert say(web, "p3", "unanswerable").json() == {"done": 3}
    assert say(web, "p4", "skip").json() == {"done": 3}
    said = [
        (opinion.expert, opinion.verdict, opinion.answer, opinion.at)
        for entry in ledger.entries()
        for opinion in entry.opinions
    ]
    assert said == [
        ("ann", "accept", "42", 77.5),
        ("ann", "correct", "43", 77.5),
        ("ann", "unanswerable", None, 77.5),
        ("ann", "skip", None, 77.5),
    ]
    assert web.get("/api/progress?expert=ann").json() == {
        "client": "clinic",
        "asked": 4,
        "open": 1,
        "labelled": 2,
        "unanswerable": 1,
        "disputed": 0,
        "uses": 0,
        "done": 3,
    }


def test_what_an_expert_has_done_is_counted_once_a_problem_and_from_the_ledger(
    web: TestClient, ledger: LabelLedger, now: list[float]
) -> None:
    ask(ledger, "p1", rank=1)
    ask(ledger, "p2", rank=2)
    ledger.answer("p1", "accept", None, expert="ann", at=1.0)  # before this desk was opened
    assert say(web, "p1", "correct", "1").json() == {"done": 1}
    assert say(web, "p2", "accept", "42").json() == {"done": 2}
    assert say(web, "p2", "skip").json() == {"done": 1}
    assert web.get("/api/progress?expert=ben").json()["done"] == 0
    web.post("/api/labels.csv?expert=ben", content="problem,answer\np1,42\n")
    assert web.get("/api/progress?expert=ben").json()["done"] == 1


@pytest.mark.parametrize(
    ("kind", "answer"), [("choice", "AB"), ("yes_no_maybe", "perhaps"), ("exact", "  "), ("math", "$"), ("math", "")]
)
def test_an_answer_that_the_problem_cannot_have_is_refused_and_the_problem_stays(
    web: TestClient, ledger: LabelLedger, kind: Any, answer: str
) -> None:
    ask(ledger, "p1", kind=kind, majority=None)
    assert shown(web) == "p1"
    refused = say(web, "p1", "correct", answer)
    assert refused.status_code == 400
    assert "p1" in error_of(refused.text)
    assert shown(web) == "p1"
    assert ledger.counts().open == 1


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/api/answer", {"problem": "p1", "expert": "ann", "verdict": "maybe"}, "verdict"),
        ("/api/answer", {"problem": "p1", "verdict": "accept"}, "expert"),
        ("/api/answer", {"problem": 1, "expert": "ann", "verdict": "accept"}, "problem"),
        ("/api/answer", {"problem": "p1", "expert": "ann", "verdict": "accept", "note": "x"}, "note"),
        ("/api/answer", {"problem": "p1", "expert": "dataset", "verdict": "accept"}, "dataset"),
        ("/api/answer", {"problem": "p1", "expert": " ", "verdict": "accept"}, "name"),
        ("/api/answer", {"problem": "p9", "expert": "ann", "verdict": "accept"}, "p9"),
        ("/api/answer", {"problem": "p1", "expert": "ann", "verdict": "correct", "answer": "1" * 1001}, "1000"),
        ("/api/answer", ["p1"], "body"),
        ("/api/second", {"problem": "p9"}, "p9"),
        ("/api/second", {}, "problem"),
        ("/api/release", {"expert": 3}, "expert"),
    ],
)
def test_a_request_that_is_wrong_is_told_why_and_changes_nothing(
    web: TestClient, ledger: LabelLedger, path: str, body: object, words: str
) -> None:
    ask(ledger, "p1")
    before = ledger.entries()
    answer = web.post(path, json=body)
    assert answer.status_code in (400, 422)
    assert words in error_of(answer.text)
    assert ledger.entries() == before


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 60000, b'"' + b"x" * 100])
def test_a_body_that_is_no_json_is_told_so(web: TestClient, body: bytes) -> None:
    answer = web.post("/api/answer", content=body)
    assert answer.status_code == 422
    assert "JSON" in error_of(answer.text)


def test_errors_of_routes_and_parameters_have_the_same_form(web: TestClient) -> None:
    for method, path, status in [
        ("GET", "/api/nothing", 404),
        ("DELETE", "/api/answer", 405),
        ("GET", "/api/next", 422),
        ("GET", "/api/last?expert=ann&back=x", 422),
        ("GET", "/api/next?expert=dataset", 400),
    ]:
        answer = web.request(method, path)
        assert answer.status_code == status
        assert error_of(answer.text)


def test_a_body_is_read_no_further_than_its_bound(
    web: TestClient, ledger: LabelLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def parts(most: int) -> Iterator[bytes]:
        for _ in range(most):
            taken.append(1)
            yield b" " * 2**14

    assert web.post("/api/answer", content=parts(5)).status_code == 413
    monkeypatch.setattr(desk_module, "MOST_BYTES", 2**15)
    answer = web.post("/api/labels.csv?expert=ann", content=parts(3))
    assert answer.status_code == 413
    assert "32 KiB" in error_of(answer.text)


def test_two_experts_are_not_given_the_same_problem_until_the_lease_is_over(
    web: TestClient, ledger: LabelLedger, now: list[float]
) -> None:
    ask(ledger, "p1", rank=1)
    ask(ledger, "p2", rank=2)
    assert shown(web, "ann") == "p1"
    assert shown(web, "ben") == "p2"
    now[0] += desk_module.LEASE - 1
    assert shown(web, "ann") == "p1"  # asked for again: kept for as long again
    now[0] += 2
    assert web.get("/api/next?expert=cyd").json() == {
        "problem": {**web.get("/api/next?expert=cyd").json()["problem"], "problem": "p2"},
        "left": 2,
        "open": 2,
        "done": 0,
    }
    assert web.get("/api/next?expert=ben").json() == {"problem": None, "left": 0, "open": 2, "done": 0}
    web.post("/api/release", json={"expert": "ann"})
    assert shown(web, "ben") == "p1"


def test_a_second_opinion_goes_to_somebody_else_who_does_not_see_the_first(
    web: TestClient, ledger: LabelLedger
) -> None:
    ask(ledger, "p1")
    assert shown(web) == "p1"
    assert web.post("/api/second", json={"problem": "p1"}).json() == {"second": True}
    say(web, "p1", "correct", "7321")
    assert shown(web, "ann") is None
    given = web.get("/api/next?expert=ben")
    assert given.json()["problem"]["problem"] == "p1"
    assert "7321" not in given.text
    say(web, "p1", "accept", "42", expert="ben")
    assert web.get("/api/progress").json()["disputed"] == 1


def test_going_back_gives_ones_own_words_the_latest_first(
    web: TestClient, ledger: LabelLedger, now: list[float]
) -> None:
    for rank in (1, 2, 3):
        ask(ledger, f"p{rank}", rank=rank)
    for time, problem, verdict, expert in [
        (3.0, "p2", "accept", "ann"),
        (4.0, "p1", "skip", "ann"),
        (5.0, "p3", "accept", "ben"),
    ]:
        now[0] = time
        say(web, problem, verdict, "42" if verdict == "accept" else None, expert)
    last = [web.get(f"/api/last?expert=ann&back={back}").json() for back in (0, 1, 2, -1)]
    assert [reply["problem"] and reply["problem"]["problem"] for reply in last] == ["p1", "p2", None, None]
    assert last[0]["said"] == {"verdict": "skip", "answer": None}
    assert last[1]["said"] == {"verdict": "accept", "answer": "42"}
    assert set(last[1]["problem"]) == set(web.get("/api/next?expert=cyd").json()["problem"] or last[1]["problem"])
    now[0] = 6.0
    say(web, "p2", "correct", "9")
    assert web.get("/api/last?expert=ann").json()["said"] == {"verdict": "correct", "answer": "9"}
    assert [opinion.answer for opinion in ledger.entries()[1].opinions] == ["9"]


# The spreadsheet.


def test_a_table_goes_out_and_comes_in_with_answers(web: TestClient, ledger: LabelLedger) -> None:
    ask(ledger, "p1", 'one, "two"\nthree', rank=1)
    ask(ledger, "p2", rank=2)
    out = web.get("/api/labels.csv")
    assert out.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in out.headers["Content-Disposition"]
    lines = out.content.decode("utf-8-sig").replace("\r\n", "\n")
    assert lines.count(",,,\n") == 2
    assert web.post("/api/labels.csv?expert=ann", content=lines.replace(",,,\n", ",42,,\n").encode()).json() == {
        "stored": 2
    }
    assert [entry.label for entry in ledger.entries()] == ["42", "42"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("problem,answre\np1,42\n", ["line 1", "answer"]),
        ("problem,answer,colour\np1,42,red\n", ["line 1", "colour"]),
        ("problem,answer\np1,42\np77,1\n", ["line 3", "p77"]),
        ("problem,answer\np1,42\np2,42\np1,41\n", ["line 4", "p1", "line 2"]),
        ("problem,answer\np1,42\np2,$\n", ["line 3", "p2"]),
        ("problem,answer\np1,42\np3,1\n", ["line 3", "p3"]),
        (b"problem,answer\np1,42\np2,\xff\n", ["line 3", "UTF-8"]),
    ],
)
def test_a_table_with_a_mistake_is_refused_by_the_line_and_changes_nothing(
    web: TestClient, ledger: LabelLedger, table: str | bytes, words: list[str]
) -> None:
    for rank in (1, 2, 3):
        ask(ledger, f"p{rank}", rank=rank)
    ledger.answer("p3", "accept", None, expert="ann", at=1.0)  # and another answer to it cannot come by table
    before = ledger.entries()
    answer = web.post("/api/labels.csv?expert=ann", content=table)
    assert answer.status_code == 400
    for word in words:
        assert word in error_of(answer.text)
    assert ledger.entries() == before


# When something breaks.


def test_a_failure_says_where_and_repeats_nothing_that_was_said(
    web: TestClient, ledger: LabelLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a private answer")

    monkeypatch.setattr(ledger, "answer", broken)
    with caplog.at_level(logging.DEBUG):
        answer = say(web, "p1", "accept")
    assert answer.status_code == 500
    assert "KeyError" in error_of(answer.text)
    assert "test_desk.py" in caplog.text
    assert "private" not in caplog.text + answer.text


def test_a_closed_ledger_is_an_error_that_names_it(web: TestClient, ledger: LabelLedger) -> None:
    ledger.close()
    answer = web.get("/api/progress")
    assert answer.status_code == 400
    assert "ledger.sqlite" in error_of(answer.text)


def test_a_desk_without_a_token_is_a_mistake(ledger: LabelLedger) -> None:
    with pytest.raises(ValueError, match="token"):
        make_desk(ledger, "", "clinic")
