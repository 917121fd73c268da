"""A browser for the tests of pages. A module that imports it is skipped where there is no Chromium (Debian:
`apt-get install chromium`) or no Playwright (the extra `test`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright, of the extra `test`, is not installed")
if not CHROMIUM.exists():
    pytest.skip(f"there is no browser at {CHROMIUM} (Debian's package chromium)", allow_module_level=True)

Browser, BrowserContext, Page = sync_api.Browser, sync_api.BrowserContext, sync_api.Page
SECONDS = 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser that asks nobody of its own accord."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu"]
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox needs another user than root
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=quiet + sandbox)
        yield launched
        launched.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page at the address, which must not complain, and must ask nobody but its own server."""
    address, _, token = url.partition("#token=")
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(30 * SECONDS)
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    # A server that is away is told by the browser itself.
    complaints = [words for words in complaints if "ERR_CONNECTION" not in words and "ERR_INCOMPLETE" not in words]
    assert complaints == [], complaints
    elsewhere = [other for other in asked if not other.startswith(address)]
    assert elsewhere == [], elsewhere
    assert token not in "".join(asked)
    context.close()
