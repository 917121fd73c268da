"""The Flower app of an organisation: what it hands on, what it answers itself, and what of an error it tells."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from organisations import Organisations, allow

from fedrlvr import __version__
from fedrlvr.deployment.site import client_app
from fedrlvr.deployment.site.client_app import app
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import CheckpointError
from fedrlvr.simulation.grid import delivered
from fedrlvr.wire.codes import FAILED, REFUSED, WITHHELD
from fedrlvr.wire.serialization import pack, unpack

CONTENT = RecordDict({"config": ConfigRecord({"k": 1})})


def message(kind: str) -> Message:
    return delivered(CONTENT, run_id=5, node_id=9, message_type=kind, group_id="3", message_id="m")


def context(org: Organisation | None = None) -> Context:
    return Context(5, 9, {} if org is None else {"site": str(org.path)}, RecordDict(), {})


@pytest.mark.parametrize("kind", ["train", "evaluate", "query.respond"])
def test_messages_go_to_the_worker_and_its_answer_comes_back(
    kind: str, organisation: Organisations, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Organisation, dict[str, Any]]] = []

    def ask(org: Organisation, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        asked.append((org, header))
        assert unpack(data) == CONTENT
        answer = pack(RecordDict({"back": ConfigRecord({"k": 2})}))
        allow(org, answer, "m")
        return {"ok": True}, answer

    monkeypatch.setattr(client_app, "ask", ask)
    org = organisation("ann")
    reply = app(message(kind), context(org))
    assert reply.content == RecordDict({"back": ConfigRecord({"k": 2})})
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == ("m", 9)
    header = {"type": "message", "message_type": kind, "run_id": 5, "node_id": 9, "group_id": "3", "message_id": "m"}
    assert asked == [(org, header)]
    assert capsys.readouterr().err.startswith(f"ann: {kind} of round 3 answered after ")


@pytest.mark.parametrize(("kind", "code"), [("refused", REFUSED), ("failed", FAILED), ("withheld", WITHHELD)])
def test_a_reason_of_the_worker_is_passed_on(
    kind: str,
    code: int,
    organisation: Organisations,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(client_app, "ask", lambda *_: ({"ok": False, "kind": kind, "reason": "too much"}, b""))
    reply = app(message("train"), context(organisation("ann")))
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (code, "too much")
    prefix = "" if kind == "failed" else f"{kind}: "
    assert capsys.readouterr().err == f"ann: train of round 3: {prefix}too much\n"


def test_what_goes_wrong_here_is_told_here_only(
    organisation: Organisations, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*_: object) -> None:
        raise CheckpointError("/home/ann/state cannot be made")

    monkeypatch.setattr(client_app, "ask", ask)
    reply = app(message("train"), context(organisation("ann")))
    assert (reply.error.code, reply.error.reason) == (
        FAILED,
        "failed at ann (CheckpointError); the log there says why",
    )
    assert "/home/ann/state cannot be made" in capsys.readouterr().err


def test_without_a_site_nothing_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("train", "query.hello"):
        reply = app(message(kind), context())
        assert reply.error.reason == "failed at the organisation (ConfigError); the log there says why"
        assert "--node-config" in capsys.readouterr().err


def test_it_says_itself_who_it_is(organisation: Organisations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app, "ask", lambda *_: pytest.fail("a worker was asked"))
    reply = app(message("query.hello"), context(organisation("ann")))
    assert reply.content == RecordDict({"hello": ConfigRecord({"name": "ann", "version": __version__})})


@pytest.mark.parametrize("kind", ["query", "query.other", "train.other", "evaluate.more"])
def test_other_messages_are_refused(kind: str, organisation: Organisations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app, "ask", lambda *_: pytest.fail("a worker was asked"))
    reply = app(message(kind), context(organisation("ann")))
    assert (reply.error.code, reply.error.reason) == (REFUSED, f"messages of type {kind} are not answered")
