"""The one place by which a site's replies leave: who has to allow them, what is written, and what never leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from organisations import (
    Organisations,
    allow,
    answering,
    federation,
    give_problems,
    header,
    log_of,
    terms,
    terms_of,
    train_content,
    trained,
)

from fedrlvr.config import Config
from fedrlvr.deployment.site import client_app, egress
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.client_app import app
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.deployment.terms import TERMS, terms_record
from fedrlvr.policy.cohort import Cohort
from fedrlvr.privacy.approvals import Approvals
from fedrlvr.privacy.card import Card, digest_of
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.simulation.grid import delivered
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.codes import FAILED, WITHHELD
from fedrlvr.wire.messages import ARRAYS, METRICS, RespondRequest, adapter_to_arrays
from fedrlvr.wire.messages import content as content_of
from fedrlvr.wire.public_messages import PUBLIC, RESPOND, RESPONSES, problems_record
from fedrlvr.wire.serialization import pack, unpack

PUBLIC_PROBLEMS = [Problem(f"public {i}?", str(i), f"public-{i}", "public", "math") for i in range(2)]


@pytest.fixture
def problems(config: Config, tmp_path: Path) -> None:
    give_problems(config, tmp_path / "sites")


def asked(org: Organisation, content: RecordDict, kind: str = "train", message_id: str = "m1") -> Message:
    """The site's reply to a message, by the Flower app."""
    message = delivered(content, run_id=5, node_id=9, message_type=kind, group_id="1", message_id=message_id)
    return app(message, Context(5, 9, {"site": str(org.path)}, RecordDict(), {}))


def decisions(org: Organisation, *names: str) -> list[tuple[Any, ...]]:
    """The lines of the decision log, by these fields."""
    log = DecisionLog(org.state)
    assert log.verify().fault == ""
    return [tuple(entry.get(name) for name in ("decision", *names)) for entry in log.entries()]


@contextlib.contextmanager
def person(org: Organisation, decide: Callable[[Approvals, Card], object]) -> Iterator[list[Card]]:
    """A person who decides about the first reply that waits; the cards that were seen."""
    seen: list[Card] = []

    def look() -> None:
        approvals, end = Approvals(org.state), time.monotonic() + 120
        while not seen and time.monotonic() < end:
            if waiting := approvals.waiting():
                seen.append(waiting[0])
                decide(approvals, waiting[0])
            time.sleep(0.01)

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    thread.join()


def respond_content(model: Path, cohort: Cohort, directory: Path, client: str = "ann") -> RecordDict:
    """A message of an exchange: two local steps, then responses to two public problems."""
    config = federation(model, directory / "public", directory / "run", "pubswap")
    request = RespondRequest(
        round=1,
        seed=config.run.seed,
        sampling=config.sampling.model_copy(update={"max_new_tokens": 16}),  # long enough for a canary
        steps=2,
        train=config.train,
        supervision=config.supervision,
        coordination=config.coordination,  # type: ignore[arg-type]
        exchange=1,
    )
    made: RecordDict = content_of(request, arrays=adapter_to_arrays(cohort.fresh_adapter(1)))
    made[PUBLIC] = problems_record(PUBLIC_PROBLEMS)
    made[TERMS] = terms_record(terms_of(config, cohort.base, client))
    return made


# One place.


def test_an_egress_that_refuses_lets_no_byte_leave(
    config: Config,
    cohort: Cohort,
    organisation: Organisations,
    workers: dict[str, Answering],
    problems: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    org = organisation()
    refused: list[Message] = []

    class Refusing(egress.Egress):
        def leave(self, message: Message, reply: Message) -> Message:
            refused.append(reply)
            return Message(Error(FAILED), reply_to=message)

    monkeypatch.setattr(client_app, "Egress", Refusing)
    content = train_content(config, cohort, terms(config, cohort))
    replies = [asked(org, content), asked(org, content, "evaluate", "m2"), asked(org, content, "query.hello", "m3")]
    replies += [asked(org, content, "query.other", "m4"), asked(org, RecordDict(), "train", "m5")]
    for reply in replies:
        assert not reply.has_content()
        assert (reply.error.code, reply.error.reason or "") == (FAILED, "")
    assert [reply.has_content() for reply in refused] == [True, False, True, False, False]
    assert "evaluate" in str(refused[1].error.reason)


def test_bytes_that_nobody_has_allowed_stay_here(organisation: Organisations, monkeypatch: pytest.MonkeyPatch) -> None:
    org = organisation()
    shown, other = (pack(RecordDict({ARRAYS: ArrayRecord({})})), pack(RecordDict({METRICS: ArrayRecord({})})))
    allow(org, shown, "m1")
    monkeypatch.setattr(client_app, "ask", lambda *_: ({"ok": True}, other))
    reply = asked(org, RecordDict())
    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (WITHHELD, "not approved")
    assert decisions(org, "by")[-1] == ("deny", "no decision about these bytes")
    assert "no line of decisions.jsonl allows it" in org.log.read_text("utf-8")
    monkeypatch.setattr(client_app, "ask", lambda *_: ({"ok": True}, shown))
    assert not asked(org, RecordDict(), message_id="m2").has_content(), (
        "they were allowed as the reply to another message"
    )
    assert asked(org, RecordDict()).has_content()


@pytest.mark.parametrize("how", ["changed", "no disk"])
def test_where_no_line_can_be_written_nothing_leaves_but_a_code(
    how: str, organisation: Organisations, workers: dict[str, Answering], monkeypatch: pytest.MonkeyPatch
) -> None:
    org = organisation()
    asked(org, RecordDict())  # a refusal
    log = DecisionLog(org.state)
    if how == "changed":
        log.path.write_bytes(log.path.read_bytes().replace(b'"left"', b'"lost"'))
    else:
        monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for kind in ("train", "query.hello"):
        reply = asked(org, RecordDict(), kind, "m2")
        assert not reply.has_content()
        assert (reply.error.code, reply.error.reason or "") == (FAILED, "")
    assert "nothing leaves: " in org.log.read_text("utf-8")


def test_every_reply_and_every_refusal_has_a_line(
    config: Config, cohort: Cohort, organisation: Organisations, workers: dict[str, Answering], problems: None
) -> None:
    org = organisation()
    content = train_content(config, cohort, terms(config, cohort))
    reply = asked(org, content)
    refusal = asked(org, RecordDict(), message_id="m2")
    assert asked(org, content).content == reply.content, "the same message again"
    data, text = pack(reply.content), str(refusal.error.reason).encode()
    assert decisions(org, "kind", "digest", "bytes", "by", "run", "round") == [
        ("allow", "adapter", digest_of(data), len(data), "egress.approve = none", "run", 1),
        ("left", "adapter", digest_of(data), len(data), None, "run", 1),
        ("left", "text", digest_of(text), len(text), None, None, None),
        ("left", "adapter", digest_of(data), len(data), None, "run", 1),
    ]
    log = (org.state / "decisions.jsonl").read_text("utf-8")
    assert "ann-train" not in log
    assert "of ann?" not in log


# A person, and a rule.


def test_a_round_waits_for_a_person_and_what_was_shown_is_what_leaves(
    config: Config, cohort: Cohort, organisation: Organisations, workers: dict[str, Answering], problems: None
) -> None:
    org = organisation(egress={"approve": "adapter", "wait": 300.0})
    content = train_content(config, cohort, terms(config, cohort))
    with person(org, lambda approvals, card: approvals.decide(card.id, allow=True, by="Dr. Ruiz")) as seen:
        reply = asked(org, content)
    (card,) = seen
    assert card.digest == digest_of(pack(reply.content))
    assert card.size == len(pack(reply.content))
    assert (card.kind, card.server, card.run, card.round) == ("adapter", "127.0.0.1:9092", "run", 1)
    assert (card.problems, card.groups, card.epsilon) == (4, 4, None), "2 steps x 2 problems"
    assert card.numbers == dict(reply.content[METRICS])
    assert "of ann?" not in card.model_dump_json(), "no private prompt"
    assert decisions(org, "by") == [("allow", "person Dr. Ruiz"), ("left", None)]
    assert any("waits 300 s for a person" in line for line in log_of(workers["ann"]))
    assert list((org.state / "egress").iterdir()) == []


@pytest.mark.parametrize("how", ["person", "time", "rule"])
def test_a_reply_that_is_not_approved_stays_as_if_a_floor_had_been_missed(
    how: str, config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path, problems: None
) -> None:
    said, reset = terms(config, cohort), config.train.model_copy(update={"optimizer_state": "reset"})
    settings: dict[str, Any] = {"approve": "all", "wait": 300.0 if how == "person" else 0.01}
    if how == "rule":
        settings = {"rule": "site_rule:nothing"}
        (tmp_path / "sites" / "ann").mkdir(exist_ok=True, parents=True)
        (tmp_path / "sites" / "ann" / "site_rule.py").write_text("def nothing(card): return False, 'closed today'")
    site = answering(organisation(egress=settings))
    first, second = (train_content(config, cohort, said, round_, train=reset) for round_ in (1, 2))
    denies = person(site.org, lambda approvals, card: approvals.decide(card.id, allow=False, by="Ruiz"))
    with denies if how == "person" else contextlib.nullcontext():
        reply, data = site.reply(header(), pack(first))
    assert (reply, data) == ({"ok": False, "kind": "withheld", "reason": "not approved"}, b"")
    expected = {"person": ("deny", "person Ruiz"), "time": ("expired", "egress.wait = 0.01")}
    assert decisions(site.org, "by") == [expected.get(how, ("deny", "rule site_rule:nothing"))]
    if how == "rule":
        assert any("closed today" in line for line in log_of(site))
        assert "closed today" not in (site.org.state / "decisions.jsonl").read_text("utf-8")
        assert site.egress._rule is not None
        site.egress._rule.close()
    again, _ = answering(site.org).reply(header(), pack(first))
    assert again == reply, "the same message again, at another worker"
    # The next round draws the next problems, and begins without what was learnt.
    after = trained(answering(organisation(egress={"approve": "none"})), second, "m2")
    (site.org.state / "runs").rename(tmp_path / "before")
    floored = answering(organisation(limits={"least_tokens": 10_000}, egress={"approve": "none"}))
    assert floored.reply(header(), pack(first))[0]["kind"] == "withheld"
    assert trained(answering(organisation(egress={"approve": "none"})), second, "m2") == after


def test_a_card_of_a_worker_that_ended_is_dropped_with_a_line(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path, problems: None
) -> None:
    site = answering(organisation(egress={"approve": "all", "wait": 300.0}))

    class Killed(BaseException):
        pass

    def kill(seconds: float) -> None:
        kept = (site.org.state / "egress").iterdir()
        copies.update({path: path.read_bytes() for path in kept})
        raise Killed

    copies: dict[Path, bytes] = {}
    site.egress._sleep = kill
    content = train_content(config, cohort, terms(config, cohort))
    with pytest.raises(Killed):
        site.reply(header(), pack(content))
    for path, data in copies.items():  # as a kill leaves them
        path.write_bytes(data)
    assert len(Approvals(site.org.state).waiting()) == 1
    other = answering(organisation(egress={"approve": "none"}))
    assert trained(other, content)
    assert decisions(site.org, "by") == [("dropped", "end of the worker"), ("allow", "egress.approve = none")]
    assert Approvals(site.org.state).cards() == []


@pytest.mark.slow
def test_a_worker_that_is_killed_while_a_reply_waits_is_followed_by_one_that_shows_it_again(
    config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path, problems: None
) -> None:
    org = organisation(egress={"approve": "adapter", "wait": 600.0})
    killed: list[int] = []

    def kill(approvals: Approvals, card: Card) -> None:
        killed.append(int((channel.status(org) or {})["pid"]))
        os.kill(killed[0], signal.SIGKILL)

    answers: list[tuple[dict[str, Any], bytes]] = []
    content = pack(train_content(config, cohort, terms(config, cohort)))
    thread = threading.Thread(target=lambda: answers.append(channel.ask(org, header(), content)))
    with person(org, kill) as first:
        thread.start()
    approvals, end = Approvals(org.state), time.monotonic() + 120
    while not (waiting := [card for card in approvals.waiting() if card.asked_at > first[0].asked_at]):
        assert time.monotonic() < end
        time.sleep(0.05)
    approvals.decide(waiting[0].id, allow=True, by="Ruiz")
    thread.join()
    ((reply, data),) = answers
    assert (reply, digest_of(data)) == ({"ok": True}, waiting[0].digest)
    assert decisions(org, "by") == [("dropped", "end of the worker"), ("allow", "person Ruiz")]


# Responses to public problems.


def responses_of(site: Answering, content: RecordDict, message_id: str = "m1") -> tuple[dict[str, Any], list[int]]:
    """The header of a site's reply, and the problem of each response in it."""
    reply, data = site.reply(header(RESPOND, message_id), pack(content))
    record = unpack(data)[RESPONSES] if data else None
    return reply, record["problem"].numpy().tolist() if isinstance(record, ArrayRecord) else []


def test_a_response_with_private_text_keeps_the_reply_back_or_is_dropped_and_is_counted(
    model: Path, config: Config, cohort: Cohort, organisation: Organisations, tmp_path: Path, problems: None
) -> None:
    content = respond_content(model, cohort, tmp_path)
    site = answering(organisation(egress={"approve": "responses", "wait": 300.0}))
    with person(site.org, lambda approvals, card: approvals.decide(card.id, allow=True, by="Ruiz")) as seen:
        assert responses_of(site, content) == ({"ok": True}, [0, 0, 0, 0, 1, 1, 1, 1])
    (card,) = seen
    assert [response.problem for response in card.responses] == ["public 0?"] * 4 + ["public 1?"] * 4
    letters = [re.sub(r"<\w+>|[\W_]", "", response.text).casefold() for response in card.responses]  # no special tokens
    canary = max(letters, key=len)
    hits = sum(canary in text for text in letters)
    assert len(canary) >= 6

    (site.org.state / "runs").rename(tmp_path / "before")
    kept = answering(organisation(egress={"canaries": [canary]}))
    reply, sent = responses_of(kept, content)
    assert (reply, sent) == ({"ok": False, "kind": "withheld", "reason": "not approved"}, [])
    assert decisions(kept.org, "by", "dropped")[-1] == ("deny", "egress.check_responses", hits)
    assert any(f"{hits} responses hold private text, so the reply stays here" in line for line in log_of(kept))

    (site.org.state / "runs").rename(tmp_path / "kept")
    dropping = answering(organisation(egress={"canaries": [canary], "dropped_responses": 8}))
    reply, sent = responses_of(dropping, content)
    assert reply == {"ok": True}
    assert len(sent) == 8 - hits
    assert decisions(dropping.org, "dropped")[-1] == ("allow", hits)

    (site.org.state / "runs").rename(tmp_path / "dropping")
    off = answering(organisation(egress={"canaries": [canary], "check_responses": False}))
    assert len(responses_of(off, content)[1]) == 8
    assert canary not in json.dumps([*DecisionLog(off.org.state).entries(), log_of(kept), log_of(dropping)])
