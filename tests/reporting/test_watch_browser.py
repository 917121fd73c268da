"""The page of `fedrlvr watch` as a person has it: a real browser, real runs, and the real command as a process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsers import SECONDS, Browser, Page, browser, opened
from small_runs import start_command, write_toml
from watched import (
    TOKEN,
    everything,
    full_run,
    large_run,
    line,
    response,
    round_record,
    serving,
    start_watch,
    write_responses,
    write_run,
    wrong,
)

from fedrlvr.files import file_lock
from fedrlvr.reporting.observer import ClientAnswered, ClientsAsked, PhaseStarted, RoundStarted
from fedrlvr.reporting.under_way import UnderWayNote

__all__ = ["browser"]
pytestmark = pytest.mark.slow

VIEWS = ("summary", "responses", "clients", "learning", "server", "exchanges", "labels", "costs", "verdict")
MARKUP = (
    "<img src=x onerror=\"document.title='ran'\"><b>bold</b><script>document.title='ran'</script>"
    "<a href=\"javascript:document.title='ran'\">x</a>"
)


def shown(page: Page) -> None:
    """Waits until nothing is being asked for."""
    page.wait_for_selector("#content[aria-busy=false]")


def enter(page: Page, name: str) -> str:
    """Opens a run from the list; its address without the view."""
    page.click(f"a:text-is('{name}')")
    page.wait_for_selector(".tabs, .card:has-text('Nothing is written down')")
    shown(page)
    return str(page.url.rpartition("/")[0])


def see(page: Page, view: str) -> None:
    page.click(f".tabs a[href$='/{view}']")
    page.wait_for_selector(f".tabs a[href$='/{view}'][aria-current]")
    shown(page)


def test_every_view_of_a_run_opens_in_both_themes_and_on_a_telephone(browser: Browser, tmp_path: Path) -> None:
    full_run(tmp_path / "full")
    with serving(tmp_path) as url:
        for look, width in (("light", 1280), ("dark", 1280), ("light", 390)):
            with opened(browser, url, color_scheme=look, viewport={"width": width, "height": 844}) as page:
                enter(page, "full")
                assert page.locator(".tabs a").count() == len(VIEWS)
                for view in VIEWS:
                    see(page, view)
                    assert page.locator(".chart canvas, table, .response").count() > 0, view
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, view
                    unnamed = page.evaluate(
                        """() => [...document.querySelectorAll("a, button, select, input, [tabindex='0']")]
                        .filter((e) => e.offsetParent && !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
                        .length"""
                    )
                    assert unnamed == 0, view


CONTRAST = """
() => {
  const parse = (text) => {
    const srgb = text.match(/color\\(srgb ([\\d.]+) ([\\d.]+) ([\\d.]+)(?: \\/ ([\\d.]+))?\\)/);
    if (srgb) return [...srgb.slice(1, 4).map((part) => 255 * part), srgb[4] === undefined ? 1 : Number(srgb[4])];
    const parts = text.match(/[\\d.]+/g).map(Number);
    return [parts[0], parts[1], parts[2], parts[3] ?? 1];
  };
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter((node) => node.nodeType === 3 && node.textContent.trim());
    if (!words.length || !element.offsetParent || element.closest("option, canvas")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(parse(style.color)), light(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      poor.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)} ${element.textContent.slice(0, 30)}`);
    }
  }
  return poor;
}
"""


@pytest.mark.parametrize("look", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(browser: Browser, tmp_path: Path, look: str) -> None:
    full_run(tmp_path / "full")
    records = everything()
    for record in records[1:]:
        for values in record["clients"].values():
            values |= {"reward": 0.0, "tokens_sampled": 5000} if "reward" in values else {}
    write_run(tmp_path / "poor", records)
    with (tmp_path / "poor" / "metrics.jsonl").open("a") as file:
        file.write("broken\n")
    with serving(tmp_path) as url, opened(browser, url, color_scheme=look) as page:
        page.wait_for_selector("table")
        assert page.evaluate(CONTRAST) == []
        enter(page, "poor")
        assert page.is_visible(".advice")
        assert page.is_visible(".banner")
        assert page.evaluate(CONTRAST) == []
        page.click(".crumb a")
        enter(page, "full")
        for view in VIEWS:
            see(page, view)
            assert page.evaluate(CONTRAST) == [], view
        # Lines of a chart stand out from their card (WCAG 1.4.11).
        assert (
            page.evaluate(
                """() => {
            const sample = document.body.appendChild(document.createElement("i"));
            const light = (name) => {
              sample.style.color = `var(${name})`;
              return getComputedStyle(sample).color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
                .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
                .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
            };
            const card = light("--card");
            const names = ["--ink", "--muted", "--late", "--failed", "--refused", "--withheld", "--not-connected",
              ...Array.from({length: 8}, (_, n) => `--line-${n + 1}`)];
            return names.filter((name) => { const one = light(name);
              return (Math.max(one, card) + 0.05) / (Math.min(one, card) + 0.05) < 3; }); }"""
            )
            == []
        )


def test_the_page_is_used_by_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    full_run(tmp_path / "full")
    with serving(tmp_path) as url, opened(browser, url) as page:
        page.wait_for_selector("table")

        def tab_to(selector: str) -> None:
            for _ in range(80):
                page.keyboard.press("Tab")
                if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
                    return
            raise AssertionError(f"no Tab leads to {selector}")

        tab_to(".skip")
        tab_to(".run a")
        page.keyboard.press("Enter")
        page.wait_for_selector(".tabs a[aria-current]")
        shown(page)
        tab_to(".chip")
        assert page.evaluate("document.activeElement.ariaPressed") == "true"
        page.keyboard.press("Space")
        assert page.evaluate("document.activeElement.ariaPressed") == "false"
        tab_to(".chart")
        assert "Round 4" in page.evaluate("document.activeElement.ariaLabel")
        page.keyboard.press("ArrowLeft")
        assert "Round 2" in page.evaluate("document.activeElement.ariaLabel")
        page.keyboard.press("Home")
        first = page.evaluate("document.activeElement.ariaLabel")
        assert "Round 0" in first
        assert "ann" not in first  # hidden above
        assert "bob 20.0 %" in first
        page.evaluate("document.querySelector('.tabs').querySelector('a').focus()")
        tab_to(".tabs a[href$='/responses']")
        page.keyboard.press("Enter")
        page.wait_for_selector(".response")
        tab_to("select")
        tab_to(".text")


def test_hostile_text_of_every_file_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    names = (MARKUP, "x" * 10**6, "cyd")
    records = [round_record(round_, names) for round_ in range(3)]
    for record in records:
        record["left_out"] = {MARKUP: f"{MARKUP}\x1b[31m\u202e"}
        record["seconds"] = {MARKUP: 1.0}
    run = write_run(tmp_path / "run", records, rounds=2, run={"name": MARKUP})
    texts = dict.fromkeys(("problem", "source", "prompt", "fate", "answer", "gold"), MARKUP)
    write_responses(run, "ann", [wrong(**texts, text=f"{MARKUP}\x1b]0;x\x07\u202e"), response(text="y" * 10**6)])
    with serving(tmp_path) as url, opened(browser, url) as page:
        page.wait_for_selector(".run a")
        assert page.inner_text(".run a") == MARKUP
        page.click(".run a")
        page.wait_for_selector(".tabs a")
        for view in ("summary", "clients", "costs", "responses"):
            see(page, view)
            assert page.locator("#content :is(img, script, a:not([href^='#']))").count() == 0, view
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280, view
        assert page.inner_text("#content h1") == MARKUP
        assert page.inner_text(".prompt >> nth=0") == MARKUP
        text = page.inner_text(".text >> nth=0")
        assert text.startswith(MARKUP)
        assert "\\x1b]0;x\\x07\\u202e" in text
        assert page.inner_text("mark >> nth=0") == MARKUP
        assert page.title() != "ran"


def test_wrong_responses_are_read_first_and_a_problem_side_by_side(browser: Browser, tmp_path: Path) -> None:
    run = full_run(tmp_path / "full")
    path = write_responses(run, "ann", [wrong(), response(problem="p2"), wrong(round=2), response(round=3)])
    with serving(tmp_path) as url, opened(browser, url) as page:
        enter(page, "full")
        see(page, "responses")
        page.select_option("label:has-text('Round') select", "1")
        page.wait_for_function("() => document.querySelector('.response .badge')?.innerText === '✗ wrong'")
        assert page.locator(".response").count() == 2
        assert page.inner_text(".response >> nth=0 >> mark") == "12"
        page.click("button:has-text('All 3 responses')")
        page.wait_for_selector(".side .response")
        assert [words.partition("\n")[0] for words in page.locator(".side h3").all_inner_texts()] == [
            "Round 1",
            "Round 2",
            "Round 3",
        ]
        page.click("button:has-text('Back')")
        page.select_option("label:has-text('Show') select", "right")
        page.wait_for_function("() => document.querySelectorAll('.response').length === 1")
        # What is new does not move what is being read.
        with path.open("a") as file:
            file.write(json.dumps({**response().__dict__, "round": 1, "problem": "p9"}) + "\n")
        page.wait_for_selector(".banner:visible >> button", timeout=40 * SECONDS)
        assert page.locator(".response").count() == 1
        page.click(".banner button")
        page.wait_for_function("() => document.querySelectorAll('.response').length === 2")


def test_a_live_run_is_followed_from_its_first_to_its_last_round(
    browser: Browser, tmp_path: Path, configured: Callable[..., dict[str, Any]]
) -> None:
    """Without a reload, through kill -9 and resume of the run, and through a restart of the page's server."""
    runs = tmp_path / "runs"
    runs.mkdir()
    tree = configured(runs / "live", train={"rounds": 200}, run={"seed": 3, "directory": str(runs / "live")})
    config = write_toml(tmp_path / "run.toml", tree)
    served = start_watch(runs, state=tmp_path / "state")
    run = None
    try:
        with opened(browser, served.url) as page:
            page.evaluate("window.unbroken = true")
            page.wait_for_selector("text=No run here yet")
            run = start_command(["run", str(config), "--quiet"], tmp_path / "run.log")
            page.wait_for_selector(".run a")
            page.wait_for_selector(".badge.running")
            page.click(".run a")
            page.wait_for_selector(".tabs a")

            def done() -> int:
                return int(page.inner_text(".status .progress").split(" of ")[0])

            def at_least(rounds: int) -> None:
                page.wait_for_function(
                    "n => parseInt(document.querySelector('.status .progress')?.textContent) >= n", arg=rounds
                )

            at_least(3)
            run.kill()
            run.join(30)
            page.wait_for_selector(".title .badge.interrupted")
            before = done()
            assert before < 200
            run = start_command(["run", "--resume", str(runs / "live"), "--quiet"], tmp_path / "run.log")
            page.wait_for_selector(".title .badge.running")
            at_least(before + 2)
            port = served.port
            served.kill()
            page.wait_for_selector("#connection.lost")
            served = start_watch(runs, state=tmp_path / "state", port=port)
            page.wait_for_selector("#connection.live")
            run.join(300)
            page.wait_for_selector(".title .badge.finished", timeout=60 * SECONDS)
            assert done() == 200
            assert page.inner_text(".tile:has-text('Held-out') b").endswith("%")
            see(page, "learning")
            assert "Round 200" in page.inner_text(".chart >> nth=0 >> .values")
            assert page.evaluate("window.unbroken")
            assert not page.is_visible("#trouble")
            lines = (runs / "live" / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(words)["round"] for words in lines] == [*range(201)]
        assert "The page is closed" in served.interrupt()
    finally:
        served.kill()
        if run is not None:
            run.kill()


def test_the_page_says_for_whom_a_round_waits(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [round_record(0), round_record(1)])
    note = UnderWayNote(run)
    for event in (RoundStarted(2), PhaseStarted(2, "train"), ClientsAsked(2, "train", ["ann", "bob", "cyd"])):
        note.notify(event)
    lock = file_lock(run / "run.lock")
    assert lock is not None
    with lock, serving(tmp_path) as url, opened(browser, url) as page:
        enter(page, "run")
        page.wait_for_selector(".now:has-text('0 of 3 clients have answered')")
        assert page.inner_text(".now").endswith("for ann, bob, cyd")
        note.notify(ClientAnswered(2, "bob"))
        page.wait_for_selector(".now:has-text('1 of 3 clients have answered')")
        assert page.inner_text(".now").endswith("for ann, cyd")
        lock.close()
        page.wait_for_selector(".badge.interrupted")
        assert not page.is_visible(".now")


def test_a_server_with_another_token_is_told_and_let_in_again(browser: Browser, tmp_path: Path) -> None:
    full_run(tmp_path / "full")
    with serving(tmp_path) as url, opened(browser, url) as page:
        page.wait_for_selector(".run a")
        assert TOKEN not in page.url
    with serving(tmp_path) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url.replace(TOKEN, "some-other-token-of-sixteen"))
        page.wait_for_selector("#token-form:visible")
        assert page.is_visible("#trouble")
        page.fill("#token", url)
        page.keyboard.press("Enter")
        page.wait_for_selector(".run a")
        assert not page.is_visible("#trouble")
        context.close()


def test_a_run_of_1000_rounds_and_100_clients_comes_to_the_page_in_small_parts(
    browser: Browser, tmp_path: Path
) -> None:
    """Seconds and the longest task are printed; bounds are on what the page gets, and on what it is made of."""
    run = large_run(tmp_path / "large", 1000, 100)
    assert (run / "metrics.jsonl").stat().st_size > 40e6
    with serving(tmp_path) as url, opened(browser, url) as page:
        page.add_init_script(
            "window.tasks = []; new PerformanceObserver((list) => list.getEntries().forEach((entry) => "
            "tasks.push(entry.duration))).observe({type: 'longtask', buffered: true})"
        )
        sizes: dict[str, int] = {}
        page.on("response", lambda got: sizes.update({got.url: int(got.headers.get("content-length", 0))}))
        page.reload()
        page.wait_for_selector(".run a", timeout=60 * SECONDS)
        seconds = {}
        enter(page, "large")
        for view in ("clients", "learning", "costs", "summary"):
            began = time.monotonic()
            see(page, view)
            seconds[view] = round(time.monotonic() - began, 2)
            assert page.evaluate("document.querySelectorAll('*').length") < 5000
        longest = page.evaluate("Math.max(0, ...tasks)")
        print(f"seconds by view {seconds}, longest task {longest:.0f} ms")
        assert max(size for address, size in sizes.items() if "/api/" in address) < 300_000
        page.select_option("label:has-text('Draw a client') select", "site-7")
        page.wait_for_selector(".chip:has-text('site-7')")
        page.wait_for_selector(".values li:has-text('site-7')")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line(round_record(1001, ["site-1", "site-2"])))
        page.wait_for_selector(".values li:has-text('Round 1,001')", timeout=60 * SECONDS)
