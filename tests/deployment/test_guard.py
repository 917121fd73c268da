"""What another machine may ask of the SuperLink, by where a request comes from and what it asks for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from fedrlvr.deployment.superlink.access_guard import MachineGuard

CONTROL = "/v1/control/start-run"
FLEET = "/v1/fleet/pull-messages"


def asked(client: Any, server: Any, path: str, *, kind: str = "http", headers: Any = ()) -> list[dict[str, Any]] | None:
    """The guard's answer to a request; None if it passes the request to the app."""
    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "POST", "path": path, "client": client, "server": server, "headers": list(headers)}
    asyncio.run(MachineGuard(app)(scope, receive, send))
    assert bool(reached) != bool(sent)
    assert not reached or reached == [scope]
    return sent or None


def status(*what: Any, **more: Any) -> int | None:
    answer = asked(*what, **more)
    return None if answer is None else int(answer[0]["status"])


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (("127.0.0.1", 5), ("127.0.0.1", 9092)),
        (("127.0.0.9", 5), ("127.0.0.1", 9092)),
        (("::1", 5), ("::1", 9092)),
        (("::ffff:127.0.0.1", 5), ("::ffff:127.0.0.1", 9092)),
        (("10.0.0.7", 5), ("10.0.0.7", 9092)),
        (("::ffff:10.0.0.7", 5), ("10.0.0.7", 9092)),
        (("fd00::2", 5), ("fd00:0::2", 9092)),
    ],
)
def test_this_machine_gets_everything(client: Any, server: Any) -> None:
    for path in (CONTROL, FLEET, "/docs"):
        assert asked(client, server, path) is None


@pytest.mark.parametrize("client", [("10.0.0.8", 5), ("::ffff:10.0.0.8", 5), ("fd00::3", 5), ("nonsense", 5), None])
@pytest.mark.parametrize("server", [("10.0.0.7", 9092), ("127.0.0.1", 9092), ("nonsense", 9092), None])
def test_another_machine_gets_the_fleet_api_and_health_alone(client: Any, server: Any) -> None:
    for path in (FLEET, "/health"):
        assert asked(client, server, path) is None
    for path in (CONTROL, "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/"):
        assert status(client, server, path) == 403


@pytest.mark.parametrize("path", ["/v1/fleet", "/V1/FLEET/x", "//v1/fleet/x", "/x/v1/fleet/x", "/health/", "/healthy"])
def test_only_the_very_paths_are_open(path: str) -> None:
    assert status(("10.0.0.8", 5), ("10.0.0.7", 9092), path) == 403


@pytest.mark.parametrize("header", [b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip", b"origin"])
def test_what_comes_through_a_proxy_or_from_a_page_is_not_from_this_machine(header: bytes) -> None:
    local = ("127.0.0.1", 5), ("127.0.0.1", 9092)
    assert status(*local, CONTROL, headers=[(header, b"127.0.0.1")]) == 403
    assert asked(*local, FLEET, headers=[(header, b"10.0.0.8")]) is None


def test_a_web_socket_is_for_this_machine_alone_and_starting_up_is_nobodys_request() -> None:
    answer = asked(("10.0.0.8", 5), ("10.0.0.7", 9092), FLEET, kind="websocket")
    assert answer == [{"type": "websocket.close", "code": 1008}]
    assert asked(("127.0.0.1", 5), ("127.0.0.1", 9092), CONTROL, kind="websocket") is None
    assert asked(None, None, "", kind="lifespan") is None


def test_a_refusal_is_one_line_in_the_log_with_address_and_path(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asked(("10.0.0.8", 5), ("10.0.0.7", 9092), "/v1/control/\nINFO all is well" + 500 * "x")
        asked(None, None, CONTROL)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(r"refused 10.0.0.8, which asked for '/v1/control/\nINFO all is well")
    assert "\n" not in first
    assert len(first) < 300
    assert second.startswith("refused an unknown address")


def test_a_refusal_says_why() -> None:
    answer = asked(("10.0.0.8", 5), ("10.0.0.7", 9092), CONTROL)
    assert answer is not None
    assert b"Only the machine of the SuperLink may ask" in answer[1]["body"]
