"""Makes docs/figures/desk.png: `.venv/bin/python tests/labels/desk_figure.py docs/figures/desk.png [dark|narrow]`.

The desk as the command serves it, on problems of the embedded reasoner and its own sampled responses; of those that
eight responses do not agree on, one with a narrow majority and long responses.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from desks import desk, ledger_of, run_directory
from playwright.sync_api import sync_playwright

from fedrlvr.supervision.majority import clusters
from fedrlvr.supervision.types import Query
from fedrlvr.tasks.extraction import extract
from fedrlvr.zoo import weights_dir
from fedrlvr.zoo.generators import problems
from scripts.reasoner.evaluate import load, respond

GROUP = 8
DONE = 3
"""Problems answered before the picture is taken."""


def queries() -> list[Query]:
    """Questions on which the embedded reasoner's own responses disagree, in the order they are shown."""
    model, tokenizer = load(weights_dir())
    torch.manual_seed(0)
    chosen = problems(split="train", size=2, seed=5)
    prompts = [problem.prompt for problem in chosen for _ in range(GROUP)]
    texts = respond(model, tokenizer, prompts, sample=True)
    result = []
    for index, problem in enumerate(chosen):
        group = texts[GROUP * index : GROUP * (index + 1)]
        votes = clusters([extract(text, problem.kind) for text in group])
        if votes.majority is None or not any(votes.others):
            continue
        shown = (group[votes.members.index(votes.majority)], group[votes.others.index(True)])
        result.append(Query(problem.question, 1, 1, None, None, votes.label, votes.votes, GROUP, shown))
    result.sort(key=lambda query: (not 3 <= query.votes <= 5, -sum(map(len, query.responses))))
    return [*reversed(result[: DONE + 1]), *result[DONE + 1 :]]


def main(out: Path, look: str = "light") -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = run_directory(Path(folder) / "run")
        ledger = ledger_of(run)
        for rank, query in enumerate(queries(), 1):
            ledger.ask(replace(query, rank=rank), at=time.time())
        with desk(run) as served, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            size = (400, 860) if look == "narrow" else (1200, 520)
            page = browser.new_page(
                viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if look == "dark" else "light"
            )
            page.goto(served.url)
            page.fill("#name", "Dr. Ruiz")
            page.keyboard.press("Enter")
            for done in range(DONE + 1):
                page.wait_for_function("n => document.getElementById('done').textContent === String(n)", arg=done)
                page.wait_for_selector("main:not([aria-busy=true]) #work")
                if done < DONE:
                    page.keyboard.press("a")
            page.wait_for_timeout(500)
            page.screenshot(path=out)
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
