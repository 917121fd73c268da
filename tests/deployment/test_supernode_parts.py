"""What is added to Flower's SuperNode and SuperExec: reports on the link, heartbeats that go on, and Flower's own way
where its parts have moved."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedrlvr.deployment import flower_private as flowerparts

COMMAND, LOOP = "flwr.supernode.cli.flower_supernode", "flwr.supernode.start_client_internal"
CONNECTION, EXECUTORS = "flwr.supernode.fleet_http_connection", "flwr.supercore.superexec.run_superexec"
SUPEREXEC = "flwr.supercore.cli.flower_superexec"
REPLACED = [
    (COMMAND, "start_client_internal"),
    (COMMAND, "flower_supernode"),
    (LOOP, "_init_connection"),
    (LOOP, "time"),
    (CONNECTION, "HeartbeatSender"),
    (EXECUTORS, "get_executor"),
    (SUPEREXEC, "flower_superexec"),
]


class Ended(Exception):
    """In place of a process that ends, with its exit code."""


class SuperNode:
    """Flower's SuperNode as it is after our changes, and what it has reported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reports: list[tuple[str, Any]] = []
        self.pauses: list[float] = []
        self.command, self.loop = importlib.import_module(COMMAND), importlib.import_module(LOOP)
        self.connection = importlib.import_module(CONNECTION)
        monkeypatch.setattr(self.loop, "_init_connection", self.connect)
        monkeypatch.setattr(self.command, "start_client_internal", lambda **options: self.start())
        monkeypatch.setattr(self.command, "flower_supernode", lambda: None)
        monkeypatch.setattr(flowerparts.time, "sleep", self.pauses.append)
        self.start: Callable[[], None] = lambda: None
        self.answers: list[Any] = []

    @contextlib.contextmanager
    def connect(self, **options: Any) -> Iterator[Any]:
        """A connection as Flower's, which logs an exception and ends."""
        with contextlib.suppress(httpx.HTTPError):
            yield 7, self.receive, "send"

    def receive(self) -> Any:
        """The next of the SuperLink's answers."""
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def report(self, event: str, **fields: Any) -> None:
        """Take a report."""
        self.reports.append((event, *fields.values()))

    def run(self) -> None:
        """`flower-supernode` with an argument."""
        flowerparts.run_supernode(["--insecure"], self.report)


@pytest.fixture
def supernode(monkeypatch: pytest.MonkeyPatch) -> SuperNode:
    for module, name in REPLACED:  # and so put back afterwards
        owner = importlib.import_module(module)
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(sys, "argv", sys.argv)
    return SuperNode(monkeypatch)


def error(status: int) -> httpx.HTTPStatusError:
    """An answer of the SuperLink that is an error."""
    response = httpx.Response(status, request=httpx.Request("POST", "https://link"))
    return httpx.HTTPStatusError(f"status {status}", request=response.request, response=response)


FULL = "the SuperLink answers with the error 500; its disk may be full (its log says why)"


def test_a_heartbeat_that_is_answered_with_an_error_is_reported_and_sent_again(supernode: SuperNode) -> None:
    answers = [error(500), False, True]

    def send() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    supernode.run()
    sender = supernode.connection.HeartbeatSender(send)
    assert [sender.heartbeat_fn() for _ in range(3)] == [False, False, True]
    assert supernode.reports == [("trouble", FULL), ("trouble", "the SuperLink does not answer"), ("answer",)]


def test_a_refused_heartbeat_ends_the_link_as_in_flower(supernode: SuperNode) -> None:
    def send() -> bool:
        raise error(401)

    supernode.run()
    with pytest.raises(httpx.HTTPStatusError):
        supernode.connection.HeartbeatSender(send).heartbeat_fn()
    assert supernode.reports == []


def test_messages_are_asked_for_until_one_is_there_and_errors_are_reported(supernode: SuperNode) -> None:
    supernode.answers = [None, error(500), None, "a message"]
    supernode.run()
    with supernode.loop._init_connection() as (node, receive, *others):
        assert (node, receive(), others) == (7, "a message", ["send"])
    assert supernode.reports == [("connected", 7), ("answer",), ("trouble", FULL), ("answer",), ("answer",)]
    assert supernode.pauses == [flowerparts.SOON_S] * 3


def test_messages_that_can_be_asked_for_do_not_hide_heartbeats_that_fail(supernode: SuperNode) -> None:
    def send() -> bool:
        raise error(500)

    supernode.answers = ["a message"]
    supernode.run()
    supernode.connection.HeartbeatSender(send).heartbeat_fn()
    with supernode.loop._init_connection() as (_, receive, *_):
        receive()
    assert supernode.reports == [("trouble", FULL), ("connected", 7)]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(error(401), "signature any more"), (error(404), "the error 404 (its log"), (httpx.ReadError("gone"), "gone")],
)
def test_a_link_that_ends_ends_the_process_with_its_reason(
    supernode: SuperNode, monkeypatch: pytest.MonkeyPatch, failure: Exception, reason: str
) -> None:
    def leave(code: int) -> None:
        raise Ended(code)

    def start() -> None:
        with supernode.loop._init_connection() as (_, receive, *_):
            receive()

    monkeypatch.setattr(flowerparts.os, "_exit", leave)
    supernode.start, supernode.answers = start, [failure]
    supernode.run()
    with pytest.raises(Ended, match=str(flowerparts.LINK_ENDED)):
        supernode.command.start_client_internal()
    assert [event for event, *_ in supernode.reports] == ["connected", "ended"]
    assert reason in supernode.reports[-1][1]


def test_flowers_loop_makes_no_long_pauses(supernode: SuperNode) -> None:
    supernode.run()
    supernode.loop.time.sleep(3)
    supernode.loop.time.sleep(0.05)
    assert supernode.pauses == [0.1, 0.05]


@pytest.mark.parametrize(("module", "name"), [(LOOP, "_init_connection"), (CONNECTION, "HeartbeatSender")])
def test_a_flower_of_other_parts_runs_as_it_comes_with_a_word(
    supernode: SuperNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, module: str, name: str
) -> None:
    before, calls = supernode.command.start_client_internal, []
    monkeypatch.setattr(supernode.command, "flower_supernode", lambda: calls.append(sys.argv))
    monkeypatch.delattr(importlib.import_module(module), name)
    supernode.run()
    assert calls == [["flower-supernode", "--insecure"]]
    assert supernode.command.start_client_internal is before
    assert supernode.loop.time is time
    assert f"{module}.{name} is gone" in caplog.text


def test_a_superexec_of_other_parts_runs_as_it_comes_with_a_word(
    supernode: SuperNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(importlib.import_module(SUPEREXEC), "flower_superexec", lambda: calls.append("ran"))
    monkeypatch.delattr(importlib.import_module(EXECUTORS), "get_executor")
    flowerparts.superexec()
    assert calls == ["ran"]
    assert "get_executor is gone" in caplog.text


def test_only_client_apps_are_forked(supernode: SuperNode, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    plain = SimpleNamespace(launch=launched.append, reconcile=lambda: None)
    executors, command = importlib.import_module(EXECUTORS), importlib.import_module(SUPEREXEC)
    monkeypatch.setattr(executors, "get_executor", lambda *_: plain)
    monkeypatch.setattr(flowerparts.forkserver, "ensure_running", lambda: None)
    monkeypatch.setattr(command, "flower_superexec", lambda: None)
    flowerparts.superexec()
    executor = executors.get_executor()
    for kind, install in (("another", False), (constant().CLIENT_APP, True)):
        executor.launch(SimpleNamespace(task_type=kind, runtime_dependency_install=install))
    assert len(launched) == 2
    executor.reconcile()
    assert supernode.pauses[-1] <= flowerparts.LATE_S / 3


def constant() -> Any:
    """Flower's kinds of tasks."""
    return importlib.import_module("flwr.supercore.constant").TaskType
