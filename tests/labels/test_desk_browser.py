"""The desk as a person has it: a real browser, the real command as a process, and what is in the ledger afterwards."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from browsers import SECONDS, Browser, BrowserContext, Page, browser, sync_api
from desks import TOKEN, ask, ledger_of, run_directory, serving, start
from small_runs import start_command, write_toml

from fedrlvr.tasks import load

__all__ = ["browser"]
pytestmark = pytest.mark.slow

READY = "main:not([aria-busy=true])"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_directory(tmp_path / "run")


def enter(context: Browser | BrowserContext, url: str, name: str) -> Page:
    """A new page at the desk, with the name given."""
    page = context.new_page()
    page.set_default_timeout(20 * SECONDS)
    page.goto(url)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{READY} :is(#work, #idle):not([hidden])")
    return page


def problem_of(page: Page) -> str:
    """The problem on display, once it takes keys."""
    page.wait_for_selector(READY)
    return str(page.inner_text("#kicker").split("·")[-1].strip())


def after(page: Page, done: int) -> None:
    """Waits until so many problems are done and the next is there, or none."""
    page.wait_for_function("n => document.getElementById('done').textContent === String(n)", arg=done)
    page.wait_for_selector(READY)


def test_twenty_problems_are_labelled_by_keyboard_and_a_kill_in_the_middle_loses_nothing(
    browser: Browser, run: Path
) -> None:
    ledger = ledger_of(run)
    for rank in range(1, 21):
        ask(ledger, f"p{rank:02}", rank=rank)
    seen, expected = [], {}
    served = start(run)
    try:
        page = enter(browser, served.url, "Dr. Ruiz")
        for done in range(20):
            problem = problem_of(page)
            seen.append(problem)
            if done == 9:
                served.kill()
            if done % 4 == 1:
                page.keyboard.press("c")
                page.keyboard.type(str(done))
                page.keyboard.press("Enter")
                expected[problem] = ("correct", str(done))
            elif done % 4 == 3:
                page.keyboard.press("u")
                expected[problem] = ("unanswerable", None)
            else:
                page.keyboard.press("a" if done % 4 else "Enter")
                expected[problem] = ("accept", "42")
            if done == 9:
                page.wait_for_selector("#trouble:not([hidden])")
                assert "not stored yet" in page.inner_text("#trouble")
                assert ledger.counts().open == 11  # nothing of it is in the ledger
                served = start(run, port=served.port)
            after(page, done + 1)
            assert not page.is_visible("#trouble")
        page.wait_for_selector("#idle:not([hidden])")
    finally:
        served.kill()
    assert seen == [f"p{rank:02}" for rank in range(1, 21)]  # each once, the most wanted first
    said = {
        entry.problem: [(opinion.expert, opinion.verdict, opinion.answer) for opinion in entry.opinions]
        for entry in ledger.entries()
    }
    assert said == {problem: [("Dr. Ruiz", *word)] for problem, word in expected.items()}


def test_a_kill_after_the_answer_was_stored_does_not_ask_again(browser: Browser, run: Path) -> None:
    ledger = ledger_of(run)
    for rank in (1, 2):
        ask(ledger, f"p{rank}", rank=rank)
    with serving(run) as url:
        page = enter(browser, url, "ann")
        # The word arrives, but the answer to it is lost on the way back.
        lost = []

        def lose(route: sync_api.Route) -> None:
            if lost:
                route.continue_()
                return
            route.fetch()
            lost.append(1)
            route.abort()

        page.route("**/api/answer", lose)
        assert problem_of(page) == "p1"
        page.keyboard.press("Enter")
        after(page, 1)
        assert lost
        assert problem_of(page) == "p2"
    assert [[(opinion.verdict, opinion.answer) for opinion in entry.opinions] for entry in ledger.entries()] == [
        [("accept", "42")],
        [],
    ]


def test_two_experts_at_once_never_see_the_same_problem(browser: Browser, run: Path) -> None:
    ledger = ledger_of(run)
    for rank in range(1, 9):
        ask(ledger, f"p{rank}", rank=rank)
    with serving(run) as url:
        people = {name: enter(browser.new_context(), url, name) for name in ("ann", "ben")}
        seen: dict[str, list[str]] = {"ann": [], "ben": []}
        for _ in range(4):
            for name, page in people.items():
                seen[name].append(problem_of(page))
            for page in people.values():
                page.keyboard.press("a")  # without waiting for the other's answer
            for page in people.values():
                after(page, len(seen["ann"]))
        for page in people.values():
            page.wait_for_selector("#idle:not([hidden])")
    assert sorted(seen["ann"] + seen["ben"]) == [f"p{rank}" for rank in range(1, 9)]
    assert {entry.problem: entry.opinions[0].expert for entry in ledger.entries()} == {
        problem: name for name, problems in seen.items() for problem in problems
    }


def test_markup_in_a_problem_is_text_and_a_script_in_it_does_not_run(browser: Browser, run: Path) -> None:
    markup = (
        "<img src=x onerror=\"document.title='ran'\"><b>bold</b><script>document.title='ran'</script>"
        "<a href=\"javascript:document.title='ran'\">x</a>"
    )
    ledger = ledger_of(run)
    ask(ledger, "<i>p1</i>", f"{markup} & 1 < 2", majority=markup, responses=(f"1 {markup}", f"2 {markup}"))
    complaints = []
    with serving(run) as url:
        page = enter(browser, url, "<u>ann</u>")
        page.on("console", lambda message: complaints.append(message.text))
        assert page.inner_text("#prompt") == f"{markup} & 1 < 2"
        assert page.inner_text("#majority") == markup
        assert page.inner_text("#response-2") == f"2 {markup}"
        assert page.inner_text("#change-name") == "<u>ann</u>"
        assert "<i>p1</i>" in page.inner_text("#kicker")
        assert page.locator("main :is(script, a, i:not(#dots i):not(.waiting i), u), main b:not(header b)").count() == 0
        assert page.locator("img").count() == 1  # the page's own
        page.keyboard.press("z")
        page.wait_for_selector(READY)
        page.keyboard.press("Enter")
        after(page, 1)
        assert page.title() != "ran"
        # And were there a hole in the page, the policy would stop what comes through it.
        for hole in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.body.append(Object.assign(document.createElement('script'), {text: 'document.title = \"ran\"'}))",
        ):
            with pytest.raises(sync_api.Error, match=r"TrustedHTML|TrustedScript"):
                page.evaluate(f"() => {{ {hole} }}")
        assert page.title() != "ran"
    assert ledger.entries()[0].label == markup


def test_the_token_leaves_the_address_bar_and_a_wrong_one_is_told(browser: Browser, run: Path) -> None:
    ask(ledger_of(run), "p1")
    sent = []
    with serving(run) as url:
        context = browser.new_context()
        context.on("request", lambda request: sent.append((request.url, request.headers)))
        page = enter(context, url, "ann")
        assert TOKEN not in page.url
        assert page.evaluate("localStorage.length") == 1  # the name
        assert not any(headers.get("referer") for _, headers in sent)
        # What is behind the # stays in the browser.
        assert not any(TOKEN in address.partition("#")[0] for address, _ in sent)
        page.reload()
        assert problem_of(page) == "p1"  # the tab keeps the token, the browser the name
        other = context.new_page()
        other.goto(url.replace(TOKEN, "some-other-token-of-sixteen"))
        other.wait_for_selector("#token-form:not([hidden])")
        assert "not this desk's" in other.inner_text("#trouble")
        other.fill("#token", TOKEN)
        other.keyboard.press("Enter")
        other.wait_for_selector("#work:not([hidden])")
        assert not other.is_visible("#trouble")


def test_an_expert_goes_back_corrects_asks_a_second_opinion_and_skips(browser: Browser, run: Path) -> None:
    ledger = ledger_of(run)
    ask(ledger, "p1", rank=1)
    ask(ledger, "p2", rank=2, kind="choice", majority=None)
    ask(ledger, "p3", rank=3)
    with serving(run) as url:
        page = enter(browser, url, "ann")
        assert page.inner_text("#votes") == "5 of 8 attempts"
        assert page.locator("#dots i.on").count() == 5
        page.keyboard.press("s")
        page.wait_for_function("() => document.getElementById('kicker').textContent.includes('p2')")
        problem_of(page)
        page.keyboard.press("Enter")  # there is no answer to accept: this asks for one
        page.keyboard.type("AB")
        page.keyboard.press("Enter")
        page.wait_for_selector("#refusal:not([hidden])")
        assert "'AB'" in page.inner_text("#refusal")
        assert page.input_value("#answer") == "AB"  # and the problem stays, with what was written
        page.keyboard.press("Control+A")
        page.keyboard.type("b")
        page.keyboard.press("Enter")
        after(page, 1)
        assert problem_of(page) == "p3"
        page.keyboard.press("z")
        page.wait_for_selector("#earlier:not([hidden])")
        assert problem_of(page) == "p2"
        page.keyboard.press("z")
        page.wait_for_function("() => document.getElementById('earlier').textContent.includes('skipped')")
        assert problem_of(page) == "p1"
        page.keyboard.press("s")  # kept as it was
        page.wait_for_selector("#earlier", state="hidden")
        assert problem_of(page) == "p3"
        page.keyboard.press("2")
        page.wait_for_selector("#second[aria-pressed=true]")
        problem_of(page)
        page.click("[data-act=accept]")
        after(page, 2)
        assert problem_of(page) == "p1"  # skipped, so last
        page.keyboard.press("?")
        page.keyboard.press("u")  # help is open: no answer
        page.keyboard.press("Escape")
        page.keyboard.press("z")
        page.wait_for_selector("#earlier:not([hidden])")
        assert problem_of(page) == "p3"
        page.keyboard.press("c")
        page.keyboard.type("7")
        page.keyboard.press("Enter")
        page.wait_for_selector("#earlier", state="hidden")
        assert problem_of(page) == "p1"
    said = {
        entry.problem: ([(opinion.verdict, opinion.answer) for opinion in entry.opinions], entry.wanted)
        for entry in ledger.entries()
    }
    assert said == {"p1": ([("skip", None)], 1), "p2": ([("correct", "b")], 1), "p3": ([("correct", "7")], 2)}


def test_the_page_finds_new_problems_and_fits_a_telephone(browser: Browser, run: Path) -> None:
    ledger = ledger_of(run)
    with serving(run) as url:
        context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
        page = enter(context, url, "ann")
        assert page.is_visible("#idle")
        ask(ledger, "p1", "long " * 60 + "x" * 300, responses=("y" * 900, "z " * 900))
        page.wait_for_selector("#work:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        boxes = [
            page.locator(f"[data-act={act}]").first.bounding_box() for act in ("accept", "correct", "unanswerable")
        ]
        assert all(box is not None and box["height"] >= 44 and box["x"] + box["width"] <= 400 for box in boxes)
        assert all(box is not None and box["y"] + box["height"] <= 800 for box in boxes)  # in sight without scrolling


def test_a_table_with_a_mistake_is_told_by_its_line_and_a_good_one_is_taken(browser: Browser, run: Path) -> None:
    ledger = ledger_of(run)
    for rank in (1, 2, 3):
        ask(ledger, f"p{rank}", rank=rank)
    with serving(run) as url:
        page = enter(browser, url, "ann")
        page.click("#open-table")
        page.wait_for_function("() => document.getElementById('counts').textContent.includes('3 open')")
        with page.expect_download() as download:
            page.click("#download")
        table = Path(download.value.path()).read_text("utf-8-sig")
        answered = re.sub(r",,,$", ",42,,", table, flags=re.M)
        file = {"name": "labels.csv", "mimeType": "text/csv"}
        page.set_input_files("#file", {**file, "buffer": answered.replace("p3", "p9").encode()})
        page.click("#upload")
        page.wait_for_selector("#table-result:not([hidden])")
        assert re.search(r"Nothing was stored. line 4: 'p9'", page.inner_text("#table-result"))
        assert ledger.counts().open == 3
        page.set_input_files("#file", {**file, "buffer": answered.encode()})
        page.click("#upload")
        page.wait_for_selector("#table-result.good")
        assert "3 new answers were stored" in page.inner_text("#table-result")
        page.wait_for_selector("#idle", state="visible")
    assert [entry.label for entry in ledger.entries()] == ["42"] * 3


def write_sums(directory: Path) -> Path:
    """Twelve sums without an answer to train on, four with one held out."""
    directory.mkdir()
    for split in ("train", "test"):
        result = load(
            "embedded", None, split, size=12 if split == "train" else 4, seed=0, families=["sum"], levels=["easy"]
        )
        rows = [{"prompt": p.prompt, "id": p.id, "source": "sum"} for p in result]
        if split == "test":
            rows = [{**row, "answer": p.answer} for row, p in zip(rows, result, strict=True)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return directory


def test_a_run_that_goes_on_uses_the_labels_in_its_next_rounds(browser: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tree = {
        "run": {"directory": str(run)},
        "data": {"name": "jsonl", "path": str(write_sums(tmp_path / "sums"))},
        "prompt": {"instruction": ""},
        "federation": {"clients": ["clinic"]},
        "sampling": {"group_size": 4, "max_new_tokens": 32},
        "train": {"rounds": 2000, "local_steps": 1, "problems_per_step": 4},
        "evaluate": {"every": 0},
        "engine": {"threads": 1},
        "supervision": {"type": "care", "labels_from": "desk", "budget": 0.5},
    }
    training = start_command(["run", str(write_toml(tmp_path / "desk.toml", tree)), "--quiet"], tmp_path / "out")
    served = None
    try:
        end = time.monotonic() + 300
        while not (run / "clients" / "clinic" / "ledger.sqlite").exists():
            assert time.monotonic() < end, (tmp_path / "out").read_text("utf-8")
            time.sleep(0.05)
        served = start(run)
        page = enter(browser, served.url, "Dr. Ruiz")
        for done in range(4):
            page.wait_for_selector(f"{READY} #work:not([hidden])", timeout=60 * SECONDS)
            first, second = re.findall(r"\d+", page.inner_text("#prompt"))
            page.keyboard.press("c")
            page.keyboard.type(str(int(first) + int(second)))
            page.keyboard.press("Enter")
            after(page, done + 1)
        answered = len(rounds_of(run))
        while not any(numbers["labels_used"] for numbers in rounds_of(run)):
            assert time.monotonic() < end, "no label was used"
            assert training.is_alive()
            time.sleep(0.05)
    finally:
        training.kill()
        training.join()
        if served is not None:
            served.kill()
    rounds = rounds_of(run)
    used = next(number for number, numbers in enumerate(rounds) if numbers["labels_used"])
    assert rounds[0]["labels_asked"] == 2
    assert rounds[0]["labels_used"] == 0
    assert used <= answered + 4, "each of the twelve problems is drawn within three steps"
    assert rounds[used]["verified_reward"] >= 0.0
    ledger = ledger_of(run)
    labelled = [entry for entry in ledger.entries() if entry.opinions]
    assert len(labelled) == 4
    assert any(entry.uses for entry in labelled)
    ledger.close()


def rounds_of(run: Path) -> list[dict[str, float]]:
    """The client's numbers of each round that is done."""
    path = run / "metrics.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["clients"]["clinic"] for line in lines[1:]]


def test_characters_that_nobody_sees_are_shown_as_their_escapes(browser: Browser, run: Path) -> None:
    ask(
        ledger_of(run),
        "p1",
        "What\u202e is\u200b 1?\x1b[2J\n\tNow.",
        majority="4\u202e2",
        responses=("\ue000 42", "\u2066"),
    )
    served = start(run)
    try:
        page = enter(browser, served.url, "Dr. Ruiz")
        assert problem_of(page) == "p1"
        assert page.text_content("#prompt") == "What\\u{202e} is\\u{200b} 1?\\u{1b}[2J\n\tNow."
        assert page.text_content("#majority") == "4\\u{202e}2"
        assert page.text_content("#response-1") == "\\u{e000} 42"
        assert page.text_content("#response-2") == "\\u{2066}"
    finally:
        served.kill()
