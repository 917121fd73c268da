"""The approval page's API: cards that wait, decisions by the digest that was shown, and the guard before both."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from factories import make_card
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from fedrlvr.cli.main import app as command
from fedrlvr.labels.desk.approval_app import APPROVAL_FILES, make_approval_desk
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.privacy.card import Card

TOKEN = "a-token-of-these-tests"


def client_of(approvals: Approvals, token: str = TOKEN) -> TestClient:
    desk = make_approval_desk(approvals, TOKEN, "clinic", "all")
    return TestClient(desk, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {token}"})


def put(approvals: Approvals, data: bytes = b"bytes") -> Card:
    """A card that waits, as a worker writes it."""
    card = make_card(data, asked_at=time.time(), expires_at=time.time() + 100)
    approvals.directory.mkdir(exist_ok=True)
    (approvals.directory / f"{card.id}.json").write_text(card.model_dump_json())
    return card


def test_a_card_is_shown_in_full_and_decided_by_its_digest(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    card, other = put(approvals), put(approvals, b"other")
    desk = client_of(approvals)
    answer = desk.get("/api/approvals").json()
    assert (answer["client"], answer["approve"], len(answer["waiting"])) == ("clinic", "all", 2)
    shown = next(entry for entry in answer["waiting"] if entry["id"] == card.id)
    assert shown["digest"] == card.digest
    assert ["SHA-256", card.digest] in shown["rows"]
    assert ["epsilon", "none: no noise is added"] in shown["rows"]
    word = {"id": card.id, "digest": other.digest, "allow": True, "name": "Dr. Ruiz"}
    refused = desk.post("/api/approvals", json=word)
    assert (refused.status_code, "not the one that was shown" in refused.json()["error"]) == (400, True)
    assert desk.post("/api/approvals", json=word | {"digest": card.digest, "name": " "}).status_code == 400
    assert desk.post("/api/approvals", json=word | {"digest": card.digest, "more": 1}).status_code == 422
    assert desk.post("/api/approvals", json=word | {"digest": card.digest}).json() == {"decided": True}
    decision = json.loads((approvals.directory / f"{card.id}.decision").read_text())
    assert (decision["allow"], decision["by"], decision["digest"]) == (True, "Dr. Ruiz", card.digest)
    assert [entry["id"] for entry in desk.get("/api/approvals").json()["waiting"]] == [other.id]


def test_cards_need_the_token_and_the_pages_files_none(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    stranger = client_of(approvals, "another-token-than-that")
    assert stranger.get("/api/approvals").status_code == 401
    assert stranger.post("/api/approvals", json={}).status_code == 401
    for path in APPROVAL_FILES:
        assert stranger.get(path).status_code == 200
        assert "require-trusted-types-for" in stranger.get(path).headers["content-security-policy"]
    assert stranger.get("/api/approvals", headers={"Host": "elsewhere.example"}).status_code == 421


@pytest.mark.parametrize("more", [["--client", "ann"], ["--ledger", "file"], ["run"]])
def test_a_site_s_desk_is_for_approvals_alone(tmp_path: Path, more: list[str]) -> None:
    result = CliRunner().invoke(command, ["desk", "--site", str(tmp_path), *more])
    assert "--site" in str(result.exception)
