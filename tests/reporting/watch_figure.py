"""Makes docs/figures/watch_*.png: `.venv/bin/python tests/reporting/watch_figure.py OUT.png RUN VIEW [dark]`.

RUN is the directory of a run, or `-` for one whose numbers are made up: some of its clients are late, fail or are away.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from run_samples import score
from watched import round_record, serving, write_run

from fedrlvr.files import file_lock
from fedrlvr.reporting.absence import FAILED_WORDS, LATE_WORDS, NOT_CONNECTED, WITHHELD_WORDS
from fedrlvr.reporting.observer import ClientAnswered, ClientsAsked, PhaseStarted, RoundStarted
from fedrlvr.reporting.under_way import UnderWayNote

CLIENTS = ("aalborg", "bergen", "cork", "dresden", "evora", "fermo")
DONE, ROUNDS = 24, 40
SIZES = {"summary": (1280, 780), "responses": (1280, 860), "clients": (1280, 1180)}


def made_up(directory: Path) -> Path:
    """A run of six clients: cork is slow and often late, others are missing now and then."""
    rng = random.Random(4)
    records = []
    for round_ in range(DONE + 1):
        record = round_record(round_, CLIENTS)
        record.pop("evaluate", None)
        if round_ % 4 == 0:
            record["evaluate"] = {c: {"triage": score(120, 30 + 2 * round_ + 5 * i)} for i, c in enumerate(CLIENTS)}
        if round_:
            for place, (client, values) in enumerate(record["clients"].items()):
                gained = 0.55 * (1 - 2.7 ** (-round_ / 9)) + 0.04 * place + 0.05 * rng.random()
                values |= {"reward": 0.25 + gained, "pass@1": 0.25 + gained, "num-examples": 180 + 31 * place}
                values |= {"bytes_up": 2_400_000, "bytes_down": 2_500_000}
                values |= {"seconds_sample": 20 + 4 * rng.random() + 45 * (client == "cork"), "seconds_train": 15.0}
            record["left_out"] = left_out(round_)
            for client in record["left_out"]:
                record["clients"][client] = {"bytes_up": 0, "bytes_down": 2_500_000}
        record["seconds"] = {"train": 55 + 4 * rng.random(), "aggregate": 1.0}
        records.append(record)
    return write_run(directory, records, rounds=ROUNDS, federation={"clients": list(CLIENTS), "quorum": 0.5})


def left_out(round_: int) -> dict[str, str]:
    """The clients that are left out of a round of the made-up run, with reasons in the server's words."""
    reasons = {}
    if round_ in (9, 14, 15, 18, 21, 22, 24):
        reasons["cork"] = f"round {round_}: {LATE_WORDS} 3600 s from cork"
    if round_ in (11, 12, 13):
        reasons["dresden"] = f"round {round_}, dresden: {FAILED_WORDS} ({NOT_CONNECTED})"
    if round_ == 5:
        reasons["evora"] = f"round {round_}, evora: {WITHHELD_WORDS} (too few groups)"
    if round_ == 23:
        reasons["fermo"] = f"round {round_}, fermo: {FAILED_WORDS} (the GPU's memory ran out in the phase train)"
    return reasons


def main(out: Path, run: str, view: str, look: str = "light") -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = made_up(Path(folder) / "clinics") if run == "-" else Path(run)
        if run == "-":
            lock = file_lock(directory / "run.lock")
            assert lock is not None
            note = UnderWayNote(directory)
            note.notify(RoundStarted(DONE + 1))
            note.notify(PhaseStarted(DONE + 1, "train"))
            note.notify(ClientsAsked(DONE + 1, "train", CLIENTS))
            for client in ("aalborg", "bergen", "dresden", "evora"):
                note.notify(ClientAnswered(DONE + 1, client))
        with serving(directory) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            width, height = SIZES.get(view, (1280, 900))
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if look == "dark" else "light"
            )
            page.goto(url)
            page.click(".run a")
            page.click(f".tabs a[href$='/{view}']")
            page.wait_for_timeout(3000)
            page.evaluate("document.querySelectorAll('#roots, .title + .mono').forEach((part) => part.remove())")
            page.screenshot(path=out)
            browser.close()
    Image.open(out).convert("RGB").quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
