"""What `fedrlvr watch` answers: who gets in, views of what a run has, responses, and that text of files stays text."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from watched import (
    CLIENTS,
    TOKEN,
    everything,
    full_run,
    line,
    response,
    round_record,
    write_responses,
    write_run,
    write_verdict,
    wrong,
)

from fedrlvr.reporting.watch import app as watch_app
from fedrlvr.reporting.watch import response_index
from fedrlvr.reporting.watch.app import FILES, changes, make_watch
from fedrlvr.reporting.watch.hub import Hub
from fedrlvr.reporting.watch.views import VIEWS

RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u200b]")
HOSTILE = "<img src=x onerror=alert(1)>\x1b]0;x\x07\u202e\u200b"


def hub_of(*roots: Path) -> Hub:
    """The runs of some directories as they are now, without the thread that follows them."""
    hub = Hub(list(roots))
    hub.search()
    hub.look()
    return hub


def web_of(hub: Hub) -> TestClient:
    app = make_watch(hub, TOKEN, names=["watch.example"])
    return TestClient(app, "http://localhost:8766", headers={"Authorization": f"Bearer {TOKEN}"})


def get(web: TestClient, path: str, **parameters: Any) -> Any:
    answer = web.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return web_of(hub_of(full_run(tmp_path_factory.mktemp("runs") / "full")))


def only_run(web: TestClient) -> str:
    (run,) = get(web, "/api/runs")["runs"]
    return str(run["id"])


# Who gets in.


def test_all_but_the_pages_own_files_needs_the_token(full: TestClient) -> None:
    run = only_run(full)
    routes = {route.path for route in full.app.routes} - {*FILES}  # type: ignore[attr-defined]
    assert {"/api/runs", "/api/runs/{run}", "/api/events", "/api/runs/{run}/responses"} <= routes
    for path in [*(route.replace("{run}", run).replace("{name}", "summary") for route in routes), "/docs", "/api/x"]:
        for given in ("", "Bearer ", f"Bearer {TOKEN}x", TOKEN):
            answer = full.get(path, headers={"Authorization": given})
            assert answer.status_code == 401, path
            assert "watch page" in answer.json()["error"]
    for path in FILES:
        answer = full.get(path, headers={"Authorization": ""})
        assert answer.status_code == 200
        assert not re.search(rf"{TOKEN}|\bann\b", answer.text)


def test_a_request_by_another_name_is_refused(full: TestClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "", "10.0.0.1"):
        assert full.get("/api/runs", headers={"Host": host}).status_code == 421
        assert full.get("/", headers={"Host": host}).status_code == 421
    for host in ("localhost:1", "127.0.0.1", "watch.example:8766"):
        assert full.get("/api/runs", headers={"Host": host}).status_code == 200


def test_the_page_takes_nothing_from_elsewhere_and_no_markup(full: TestClient) -> None:
    answer = full.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "trusted-types 'none'" in policy
    for path in FILES.values():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        if path.parent.name == "vendor":
            text = re.sub(r"^/\*!.*?\*/", "", text, flags=re.S)
        assert not re.search(r"https?://|//[a-z]+\.|@import|innerHTML|outerHTML|insertAdjacentHTML|eval\(", text), path
    licence = FILES["/vendor/uPlot.iife.min.js"].with_name("uPlot.LICENSE")
    assert licence.read_text("utf-8").startswith("The MIT License")


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="token"):
        make_watch(Hub([]), "")


# Runs and views.


def test_the_list_of_runs_has_state_progress_and_scores(tmp_path: Path) -> None:
    write_run(tmp_path / "under" / "new", [])
    full_run(tmp_path / "full")
    runs = {run["name"]: run for run in get(web_of(hub_of(tmp_path)), "/api/runs")["runs"]}
    assert (runs["new"]["state"], runs["new"]["round"], runs["new"]["rounds"]) == ("interrupted", None, 4)
    shown = runs["full"]
    assert (shown["state"], shown["round"], shown["clients"], shown["left"]) == ("finished", 4, 3, None)
    assert shown["pass_at_1"] == [pytest.approx(0.2), pytest.approx(0.6)]
    assert shown["reward"] == pytest.approx(0.4)  # ann's alone: the others are left out of the last round


def test_a_view_is_offered_only_where_the_run_has_data_for_it(tmp_path: Path, full: TestClient) -> None:
    assert get(full, f"/api/runs/{only_run(full)}")["views"] == list(VIEWS)
    plain = web_of(hub_of(write_run(tmp_path / "plain", [round_record(0), round_record(1)])))
    assert get(plain, f"/api/runs/{only_run(plain)}")["views"] == ["summary", "clients", "learning", "costs"]
    new = web_of(hub_of(write_run(tmp_path / "new", [])))
    assert get(new, f"/api/runs/{only_run(new)}")["views"] == []


@pytest.mark.parametrize("name", list(VIEWS))
def test_every_view_of_a_full_run_is_finite_json(full: TestClient, name: str) -> None:
    answer = full.get(f"/api/runs/{only_run(full)}/views/{name}")
    assert answer.status_code == 200
    assert not re.search(r"NaN|Infinity", answer.text)
    for chart in answer.json().get("charts", ()):
        assert all(len(line["values"]) == len(chart["x"]) for line in chart["lines"]), chart["title"]


def test_views_hold_the_numbers_of_the_run(full: TestClient) -> None:
    run = only_run(full)
    summary = get(full, f"/api/runs/{run}/views/summary")["charts"]
    first = {line["name"]: line["values"] for line in summary[0]["lines"]}
    assert (summary[0]["x"], first["ann"]) == ([0, 2, 4], [0.2, 0.4, 0.6])
    assert first["low"][0] < first["mean"][0] < first["high"][0]
    costs = get(full, f"/api/runs/{run}/views/costs")
    assert costs["wall"] == {"aggregate": 4.0, "evaluate": 6.0, "train": 16.0}
    assert costs["bytes"][0] == {"name": "ann", "up": 4010.0, "down": 8500.0}
    labels = get(full, f"/api/runs/{run}/views/labels")
    assert (labels["budget"], labels["rows"][0]) == (0.2, {"name": "ann", "asked": 8.0, "used": 8.0, "held": 8.0})
    exchanges = get(full, f"/api/runs/{run}/views/exchanges")
    assert exchanges["dropped"] == [{"client": "ann", "sent": 16, "reasons": {"duplicate": 4}}]
    assert exchanges["charts"][0]["lines"][0]["values"] == [6, 7, 8, 9]
    server = get(full, f"/api/runs/{run}/views/server")
    assert server["cosine_rounds"] == [1, 2, 3, 4]
    matrix = get(full, f"/api/runs/{run}/cosines", round=3)
    assert matrix["names"] == list(CLIENTS)
    assert matrix["rows"][0] == [None, 0.3, 0.3]
    verdict = get(full, f"/api/runs/{run}/views/verdict")
    assert [(row["client"], row["word"], row["n"]) for row in verdict["rows"]] == [
        ("ann", "better", 40),
        ("bob", "worse", 40),
    ]
    assert verdict["notes"] == ["The learning rates differ."]


def test_advice_names_its_settings(tmp_path: Path) -> None:
    records = [round_record(0), round_record(1), round_record(2)]
    for record in records[1:]:
        for values in record["clients"].values():
            values |= {"reward": 0.0, "unfinished": 0.9, "tokens_sampled": 5000}
    web = web_of(hub_of(write_run(tmp_path / "run", records)))
    (advice,) = get(web, f"/api/runs/{only_run(web)}")["advice"]
    assert advice["rule"] == "no reward"
    assert "sampling.max_new_tokens" in advice["settings"]


def test_what_is_not_there_is_told(full: TestClient) -> None:
    run = only_run(full)
    for path in (
        "/api/runs/0",
        "/api/runs/..%2f..%2fetc",
        f"/api/runs/{run}/views/none",
        f"/api/runs/{run}/cosines?round=9",
    ):
        assert full.get(path).status_code == 404, path
    assert full.get(f"/api/runs/{run}/responses?client=nobody").status_code == 404
    assert full.get(f"/api/runs/{run}/responses?shown=some").status_code == 422
    assert full.get(f"/api/runs/{run}/responses?start=-1").status_code == 422
    assert full.post("/api/runs").status_code == 405


def test_a_run_is_shown_as_it_goes_on_and_forgotten_when_it_is_gone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "run", [round_record(0)])
    hub = hub_of(tmp_path / "runs")
    web = web_of(hub)
    before = hub.version
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(round_record(1)) + '{"round": 2, "cli')
    hub.look()
    assert hub.version > before
    assert get(web, f"/api/runs/{only_run(web)}")["round"] == 1
    with (run / "metrics.jsonl").open("a") as file:
        file.write("broken\n" + line(round_record(2)))
    hub.look()
    head = get(web, f"/api/runs/{only_run(web)}")
    assert head["round"] == 2
    assert "line 3" in head["notes"][0]
    run.rename(tmp_path / "elsewhere")
    hub.search()
    assert get(web, "/api/runs")["runs"] == []


def test_a_verdict_that_cannot_be_read_is_told_and_one_of_another_round_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", everything(), finished=True)
    write_verdict(run, 3)
    hub = hub_of(run)
    web = web_of(hub)
    head = get(web, f"/api/runs/{only_run(web)}")
    assert "verdict" not in head["views"]
    (run / "verdict.json").write_text("{")
    hub.look()
    head = get(web, f"/api/runs/{only_run(web)}")
    assert "verdict.json" in head["notes"][0]


# Events.


def events_of(hub: Hub, count: int, between: list[Any]) -> list[str]:
    """The first events of a stream; before each but the first, something happens."""

    async def collect() -> list[str]:
        stream, events = changes(hub), []
        for number in range(count):
            if number:
                between[number - 1]()
            events.append(await asyncio.wait_for(anext(stream), 10))
        hub.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(stream), 10)
        return events

    return asyncio.run(collect())


def test_the_stream_of_events_tells_what_has_changed_and_ends_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_app, "POLL", 0.01)
    monkeypatch.setattr(watch_app, "PING", 0.05)
    run = write_run(tmp_path / "run", [round_record(0)])
    write_run(tmp_path / "other", [round_record(0)])
    hub = hub_of(tmp_path)

    def goes_on() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line(round_record(1)))
        hub.look()

    first, second, third = events_of(hub, 3, [goes_on, lambda: None])
    versions = [json.loads(event.partition("data: ")[2]) for event in (first, second)]
    assert len(versions[0]) == 2
    assert [*versions[1].values()] == [2]
    assert third.startswith(":")


# Responses.


def test_wrong_responses_come_first_and_their_answers_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0)])
    write_responses(
        run,
        "ann",
        [
            wrong(),
            response(round=2, problem="b"),
            wrong(round=2, problem="c", text="It is 12, so 12.", answer="12"),
            response(round=2, problem="a", grade=None, gold=None),
            wrong(round=2, problem="d", answer=None, text="no idea"),
        ],
    )
    write_responses(run, "bob", [response(problem="z", answer="1/2", text="a half")])
    web = web_of(hub_of(run))
    path = f"/api/runs/{only_run(web)}/responses"
    page = get(web, path)
    assert [(r["client"], r["problem"], r["verdict"]) for r in page["responses"]] == [
        ("ann", "c", "wrong"),
        ("ann", "d", "wrong"),
        ("ann", "a", "ungraded"),
        ("ann", "b", "right"),
        ("bob", "z", "right"),
    ]
    assert [r["text"] for r in page["responses"]][:2] == [["It is 12, so ", "12", "."], ["no idea", "", ""]]
    assert page["responses"][4]["text"] == ["a half", "", ""]  # the answer does not stand there word for word
    assert page["rounds"] == [1, 2]
    assert [r["problem"] for r in get(web, path, round=1)["responses"]] == ["p1", "z"]
    assert [r["problem"] for r in get(web, path, client="ann", shown="right")["responses"]] == ["b"]
    assert get(web, path, start=4)["total"] == 5
    assert len(get(web, path, start=4)["responses"]) == 1


def test_the_responses_to_one_problem_stand_in_the_order_of_the_rounds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0)])
    write_responses(run, "ann", [wrong(), response(problem="p2"), wrong(round=3), response(round=5)])
    write_responses(run, "bob", [response()])
    web = web_of(hub_of(run))
    id_ = only_run(web)
    shown = next(r for r in get(web, f"/api/runs/{id_}/responses", round=1)["responses"] if r["problem"] == "p1")
    assert shown["times"] == 3
    page = get(web, f"/api/runs/{id_}/problem", client="ann", problem=shown["problem_key"])
    assert [(r["client"], r["round"], r["verdict"]) for r in page["responses"]] == [
        ("ann", 1, "wrong"),
        ("ann", 3, "wrong"),
        ("ann", 5, "right"),
    ]


def test_responses_are_followed_and_bad_lines_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0)])
    file = write_responses(run, "ann", [response()])
    hub = hub_of(run)
    web = web_of(hub)
    path = f"/api/runs/{only_run(web)}/responses"
    assert get(web, path)["total"] == 1
    with file.open("a") as out:
        out.write('{"round": 2}\n[]\n')
    version = hub.runs[0].version
    hub.look()
    assert hub.runs[0].version > version
    notes = get(web, path)["notes"]
    assert "ann" in notes[0]
    assert "line 2" in notes[0]
    write_responses(run, "ann", [wrong()])  # a round that is done again
    assert [r["verdict"] for r in get(web, path)["responses"]] == ["wrong"]


def test_long_texts_are_shortened_and_the_list_has_pages(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0)])
    many = [wrong(problem=f"p{n:03}") for n in range(response_index.MOST_LISTED + 3)]
    write_responses(
        run,
        "ann",
        [
            *many,
            response(
                problem="x" * 10**6,
                prompt="y" * 10**6,
                text="z" * 10**6,
                answer="z" * 10**6,
                gold="g" * 10**6,
                fate="f" * 10**6,
            ),
        ],
    )
    web = web_of(hub_of(run))
    path = f"/api/runs/{only_run(web)}/responses"
    page = get(web, path)
    assert (len(page["responses"]), page["total"]) == (response_index.MOST_LISTED, len(many) + 1)
    (last,) = get(web, path, shown="right")["responses"]
    assert len(json.dumps(last)) < 20_000


# Text of files stays text.


def texts(tree: Any) -> list[str]:
    """Every string of a JSON tree, keys too."""
    if isinstance(tree, dict):
        return [text for key, value in tree.items() for text in [key, *texts(value)]]
    if isinstance(tree, list):
        return [text for value in tree for text in texts(value)]
    return [tree] if isinstance(tree, str) else []


def test_hostile_text_is_printable_bounded_and_in_json_only(tmp_path: Path) -> None:
    names = (HOSTILE, f"{'n' * 10**6}", "cyd")
    records = [round_record(round_, names) for round_ in range(4)]
    for record in records:
        record["left_out"] = {HOSTILE: HOSTILE * 10_000}
        record["seconds"] = {HOSTILE: 1.0}
        record["server_step"] = {"learning_rate": 1.0, "cosines": {HOSTILE: {"cyd": 0.5}}}
        record["exchanges"] = [{"clients": {HOSTILE: {"sent": 1, f"dropped_{HOSTILE}": 1}}}]
        record["evaluate"] = {HOSTILE: {HOSTILE: {"n": 1, "total": 1.0, "squares": 1.0}}}
    run = write_run(tmp_path / "run", records, rounds=3, run={"name": HOSTILE})
    bad = {
        "problem": HOSTILE,
        "source": HOSTILE,
        "prompt": HOSTILE,
        "answer": "<b>",
        "text": f"<b>{HOSTILE}",
        "fate": HOSTILE,
    }
    write_responses(run, "ann", [response(**bad), wrong(text="\ud800", gold=HOSTILE)])
    write_verdict(run, 3)
    tree = json.loads((run / "verdict.json").read_text())
    tree["notes"], tree["clients"] = [HOSTILE * 1000], {HOSTILE: tree["clients"]["ann"]}
    (run / "verdict.json").write_text(json.dumps(tree))
    web = web_of(hub_of(run))
    id_ = only_run(web)
    answers: list[httpx.Response] = [web.get("/api/runs"), web.get(f"/api/runs/{id_}")]
    views = answers[1].json()["views"]
    assert {"server", "exchanges", "verdict", "responses"} <= {*views}
    answers += [web.get(f"/api/runs/{id_}/views/{name}") for name in views]
    answers += [web.get(f"/api/runs/{id_}/responses"), web.get(f"/api/runs/{id_}/cosines?round=2")]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for text in texts(answer.json()):
            assert not RAW.search(text)
            assert len(text) <= 5_000
    assert any("<img src=x" in text for text in texts(answers[0].json()))  # shown as what it is
