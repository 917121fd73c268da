"""The page of `fedrlvr watch` as the place where people decide, in a real browser: desks, theme, and comparison."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from browsers import SECONDS, Browser, Page, browser, opened
from desks import TOKEN, ask, ledger_of, run_directory
from factories import make_card
from served_pages import served
from test_watch_desks import site

from fedrlvr.pages.server import PageWithDesks
from fedrlvr.privacy.approvals import Approvals, PersonDecision
from fedrlvr.reporting.watch.app import make_watch
from fedrlvr.reporting.watch.desks import Desks
from fedrlvr.reporting.watch.hub import Hub

__all__ = ["browser"]
pytestmark = pytest.mark.slow


def test_labels_and_approval_open_from_the_page_under_its_token(browser: Browser, tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (run / "metrics.jsonl").touch()
    ledger = ledger_of(run)
    ask(ledger, "p1", "What is 6 times 7?")
    approvals = Approvals(site(tmp_path / "site") / "state")
    card = make_card(b"leaves", asked_at=time.time(), expires_at=time.time() + 120)
    results: list[PersonDecision | None] = []
    thread = threading.Thread(target=lambda: results.append(approvals.wait(card)))
    hub = Hub([tmp_path])
    desks = Desks(hub.roots, lambda: hub.runs, TOKEN)
    hub.start()
    try:
        app = PageWithDesks(make_watch(hub, TOKEN, desks=desks), desks.application)
        with served(app, TOKEN) as url, opened(browser, url) as page:
            page.wait_for_selector(".desks li:has-text('Labels of clinic') >> text=1 waits")
            page.wait_for_selector(".desks li:has-text('What leaves clinic') >> text=nothing waits")
            thread.start()
            page.wait_for_selector(".desks li:has-text('What leaves clinic') >> text=1 waits")
            page.click("text=What leaves clinic")
            enter(page, "Dr. Ruiz")
            page.wait_for_selector("main:not([aria-busy=true]) #work:not([hidden])")
            page.keyboard.press("a")
            page.wait_for_selector("main:not([aria-busy=true]) #idle:not([hidden])")
            page.click("#home")
            page.click("text=Labels of clinic")
            enter(page, "Dr. Ruiz")
            page.wait_for_selector("main:not([aria-busy=true]) #work:not([hidden])")
            page.keyboard.press("Enter")
            page.wait_for_function("() => document.getElementById('done').textContent === '1'")
            page.click("#home")
            page.wait_for_selector(".desks li:has-text('Labels of clinic') >> text=nothing waits")
            hub.close()
    finally:
        hub.close()
        desks.close()
        thread.join(30)
    assert [decision is not None and decision.allow for decision in results] == [True]
    assert ledger.counts().labelled == 1
    ledger.close()


def enter(page: Page, name: str) -> None:
    page.fill("#name", name)
    page.keyboard.press("Enter")


def test_a_theme_is_chosen_on_one_page_and_kept_for_all(browser: Browser, tmp_path: Path) -> None:
    site(tmp_path / "site")
    hub = Hub([tmp_path])
    desks = Desks(hub.roots, lambda: hub.runs, TOKEN)
    app = PageWithDesks(make_watch(hub, TOKEN, desks=desks), desks.application)
    dark, light = "rgb(15, 20, 27)", "rgb(243, 245, 248)"

    def background(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with served(app, TOKEN) as url, opened(browser, url, color_scheme="light") as page:
        page.wait_for_selector(".desks a")
        assert background(page) == light
        page.select_option("#theme", "dark")
        assert background(page) == dark
        page.click(".desks a")
        page.wait_for_selector("#name-form:not([hidden])", timeout=20 * SECONDS)
        assert background(page) == dark
        page.select_option("#theme", "")
        assert background(page) == light
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.getElementById('home')).color") == "rgb(110, 168, 255)"
        assert background(page) == dark
        hub.close()
    desks.close()
