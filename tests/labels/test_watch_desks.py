"""The desks under the page of `fedrlvr watch`: which there are, and that the page's token opens them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from desks import TOKEN, ask, ledger_of, run_directory
from factories import make_card
from fastapi.testclient import TestClient

from fedrlvr.files import atomic_text
from fedrlvr.pages.server import PageWithDesks
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.reporting.watch.app import make_watch
from fedrlvr.reporting.watch.desks import Desks
from fedrlvr.reporting.watch.hub import Hub

SITE = """
name = "clinic"
superlink = "127.0.0.1:18000"
insecure = true
[tasks.main]
path = "problems.jsonl"
[models]
tiny = "embedded"
[egress]
approve = "all"
"""


@pytest.fixture
def watching() -> Iterator[Callable[[Path], TestClient]]:
    """Makes the page over a directory, with its desks."""
    made: list[Desks] = []

    def make(root: Path) -> TestClient:
        hub = Hub([root])
        hub.search()
        hub.look()
        made.append(Desks(hub.roots, lambda: hub.runs, TOKEN))
        app = PageWithDesks(make_watch(hub, TOKEN, desks=made[-1]), made[-1].application)
        return TestClient(app, "http://localhost:8766", headers={"Authorization": f"Bearer {TOKEN}"})

    yield make
    for desks in made:
        desks.close()


def site(directory: Path, text: str = SITE) -> Path:
    directory.mkdir()
    (directory / "site.toml").write_text(text, "utf-8")
    return directory


def waiting_reply(directory: Path) -> dict[str, Any]:
    """Puts a reply before the person who decides at a site."""
    card = make_card(b"leaves", asked_at=time.time(), expires_at=time.time() + 60)
    (directory / "state" / "egress").mkdir(parents=True)
    atomic_text(directory / "state" / "egress" / f"{card.id}.json", card.model_dump_json())
    return {"id": card.id, "digest": card.digest, "allow": True, "name": "Dr. Ruiz"}


def listed(web: TestClient) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = web.get("/api/desks").json()["desks"]
    return lines


def test_a_run_that_asks_people_has_a_desk_for_each_client_that_has_asked(
    tmp_path: Path, watching: Callable[[Path], TestClient]
) -> None:
    run = run_directory(tmp_path / "run", federation={"clients": ["clinic", "ward"]})
    (run / "metrics.jsonl").touch()
    web = watching(tmp_path)
    assert listed(web) == []
    with closing(ledger_of(run)) as ledger:
        ask(ledger, "p1", rank=1)
        ask(ledger, "p2", rank=2)
        (desk,) = listed(web)
        assert (desk["title"], desk["waiting"], desk["directory"]) == ("Labels of clinic", 2, str(run))
        assert web.get(f"/{desk['address']}").text.startswith("<!DOCTYPE html>")
        answer = {"problem": "p1", "expert": "ann", "verdict": "accept", "answer": "42"}
        assert web.post(f"/{desk['address']}api/answer", json=answer).json() == {"done": 1}
        assert ledger.counts().labelled == 1
        assert listed(web)[0]["waiting"] == 1


def test_a_site_that_lets_people_approve_has_a_desk_of_its_own(
    tmp_path: Path, watching: Callable[[Path], TestClient]
) -> None:
    directory = site(tmp_path / "site")
    decision = waiting_reply(directory)
    web = watching(tmp_path)
    (desk,) = listed(web)
    assert (desk["title"], desk["waiting"]) == ("What leaves clinic", 1)
    assert web.post(f"/{desk['address']}api/approvals", json=decision).json() == {"decided": True}
    assert Approvals(directory / "state").waiting() == []
    assert listed(web)[0]["waiting"] == 0


@pytest.mark.parametrize("text", [SITE.replace('"all"', '"none"'), "name = ", "[broken"])
def test_a_site_without_approval_or_with_a_broken_file_has_none(
    tmp_path: Path, text: str, watching: Callable[[Path], TestClient]
) -> None:
    site(tmp_path / "site", text)
    assert listed(watching(tmp_path)) == []


def test_a_desk_needs_the_token_and_an_unknown_one_is_no_page(
    tmp_path: Path, watching: Callable[[Path], TestClient]
) -> None:
    directory = site(tmp_path / "site")
    web = watching(tmp_path)
    (desk,) = listed(web)
    for token in ("", "Bearer another-token-than-that"):
        assert web.get(f"/{desk['address']}api/approvals", headers={"Authorization": token}).status_code == 401
        assert web.get("/api/desks", headers={"Authorization": token}).status_code == 401
    assert web.get(f"/{desk['address']}", headers={"Authorization": ""}).status_code == 200
    assert web.get(f"/{desk['address']}api/approvals", headers={"Host": "evil.example"}).status_code == 421
    for path in ("/desk/0123456789abcdef/api/approvals", "/desk/", "/desk/x", f"/{desk['address']}../../api/nothing"):
        assert web.get(path).status_code == 404, path
    assert not (directory / "state").exists()


def test_a_page_that_was_started_again_finds_a_desk_by_its_address(
    tmp_path: Path, watching: Callable[[Path], TestClient]
) -> None:
    site(tmp_path / "site")
    (desk,) = listed(watching(tmp_path))
    assert watching(tmp_path).get(f"/{desk['address']}api/approvals").json()["client"] == "clinic"
