"""The approval page as a person has it: a real browser, a reply that waits, and a decision by one key."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsers import SECONDS, Browser, Page, browser
from desks import TOKEN
from factories import make_card
from served_pages import served

from fedrlvr.labels.desk.approval_app import make_approval_desk
from fedrlvr.privacy.approvals import Approvals, PersonDecision
from fedrlvr.privacy.card import digest_of

__all__ = ["browser"]
pytestmark = pytest.mark.slow

MARKUP = "It is 4 <img src=x onerror=\"document.title='run'\"> <b>bold</b>\u202e\nend"


@contextmanager
def waiting(approvals: Approvals, data: bytes, results: list[PersonDecision | None], **fields: Any) -> Iterator[None]:
    """A worker that waits for the decision about these bytes."""
    card = make_card(data, asked_at=time.time(), expires_at=time.time() + 60, **fields)
    thread = threading.Thread(target=lambda: results.append(approvals.wait(card)))
    thread.start()
    yield
    thread.join()


def enter(browser: Browser, url: str, name: str) -> Page:
    page = browser.new_page()
    page.set_default_timeout(20 * SECONDS)
    page.goto(url)
    page.fill("#name", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("main:not([aria-busy=true]) :is(#work, #idle):not([hidden])")
    return page


def test_a_card_is_read_approved_and_another_denied_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    approvals, results = Approvals(tmp_path), []
    with served(make_approval_desk(approvals, TOKEN, "clinic", "all"), TOKEN) as url:
        page = enter(browser, url, "Dr. Ruiz")
        assert page.is_visible("#idle")
        responses = [{"problem": "What is 2 + 2?", "text": MARKUP}]
        with waiting(approvals, b"leaves", results, kind="responses", responses=responses, numbers={"reward": 0.5}):
            page.wait_for_selector("main:not([aria-busy=true]) #work:not([hidden])")
            shown = dict(
                zip(page.locator("#rows dt").all_inner_texts(), page.locator("#rows dd").all_inner_texts(), strict=True)
            )
            assert shown["SHA-256"] == digest_of(b"leaves")
            assert shown["behind it"] == "40 private problems"
            assert page.locator("#numbers dd").all_inner_texts() == ["0.5"]
            assert page.inner_text("#public-responses .text") == MARKUP.replace("\u202e", "\\u{202e}")
            assert page.locator("#public-responses :is(img, b)").count() == 0
            assert page.title() == "(1) Approval · clinic"
            page.keyboard.press("a")
        page.wait_for_selector("main:not([aria-busy=true]) #idle:not([hidden])")
        with waiting(approvals, b"stays", results):
            page.wait_for_selector("main:not([aria-busy=true]) #work:not([hidden])")
            assert not page.is_visible("#responses-card")
            page.keyboard.press("Enter")  # decides nothing
            page.keyboard.press("d")
        page.wait_for_selector("main:not([aria-busy=true]) #idle:not([hidden])")
    said = [(decision.allow, decision.by, decision.digest) for decision in results if decision is not None]
    assert said == [(True, "Dr. Ruiz", digest_of(b"leaves")), (False, "Dr. Ruiz", digest_of(b"stays"))]
    assert "run" not in json.dumps(page.title())


def test_a_button_decides_and_a_token_is_needed(browser: Browser, tmp_path: Path) -> None:
    approvals, results = Approvals(tmp_path), []
    with served(make_approval_desk(approvals, TOKEN, "clinic", "all"), TOKEN) as url:
        stranger = browser.new_page()
        stranger.goto(url.replace(TOKEN, "another-token-than-that"))
        stranger.wait_for_selector("#token-form:not([hidden])")
        assert not stranger.is_visible("#work")
        with waiting(approvals, b"bytes", results):
            page = enter(browser, url, "Ames")
            page.click("[data-act=approve]")
    assert [decision is not None and decision.allow for decision in results] == [True]
