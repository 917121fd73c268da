"""Twenty runs beside each other on the page of `fedrlvr watch`, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsers import Browser, browser, opened
from watched import everything, serving, write_run

__all__ = ["browser"]
pytestmark = pytest.mark.slow


def test_twenty_runs_are_marked_and_compared(browser: Browser, tmp_path: Path) -> None:
    for number in range(20):
        changes = {"train": {"local_steps": 1 + number // 5}, "run": {"seed": number % 5, "name": f"run {number:02}"}}
        write_run(tmp_path / f"{number:02}", everything(), finished=True, **changes)
    with serving(tmp_path) as url, opened(browser, url) as page:
        page.wait_for_function("() => document.querySelectorAll('.run input').length === 20")
        assert page.locator(".compare a").count() == 0
        for place in range(20):
            page.locator(".run input").nth(place).check()
        page.click("text=Compare 20 runs")
        page.wait_for_selector("#content[aria-busy=false] table")
        rows = page.locator("[aria-label=Scores] tbody tr")
        assert rows.count() == 4
        assert page.locator(".chart canvas").count() == 2
        assert page.locator("[aria-label='Settings that differ'] tbody tr").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.select_option("label:has-text('Compare over') select", "bytes")
        page.wait_for_function("() => location.hash.endsWith('/bytes')")
        page.wait_for_selector("#content[aria-busy=false] .values li:has-text('kB')")
        page.locator(".chip").first.click()
        assert page.locator(".chip[aria-pressed=false]").count() == 1
        page.click(".crumb a")
        page.wait_for_selector("text=Compare 20 runs")
        assert page.locator(".run input:checked").count() == 20
