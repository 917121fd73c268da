"""`site run` keeps a SuperNode: what it does when the SuperNode reports, is silent, or ends. A child of ours plays the
SuperNode, and findings of ours are those of the checks."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from siteparts import init_site

from fedrlvr.deployment import flower_private as flowerparts
from fedrlvr.deployment.site import check as checks
from fedrlvr.deployment.site import keeper as keeping
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.keeper import Keeper, OwnFault, diagnose
from fedrlvr.deployment.site.link import SiteLink, is_alive, place_of, read_link, said_of, write_link
from fedrlvr.deployment.site.socket import state_directory
from fedrlvr.reporting.doctor import Finding

CHILD = """
import json, os, socket, sys
channel = socket.socket(fileno=os.dup(0))
for line in sys.argv[1:]:
    channel.sendall(line.encode() + b"\\n")
os._exit(3)
"""


@pytest.fixture
def org(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Organisation:
    """An organisation whose checks all pass."""
    made = init_site(tmp_path / "ann")
    state_directory(made)
    (made.directory / "ca.crt").write_text("an authority")
    for name in ("key_pair", "server_certificate", "registration", "free_port"):
        monkeypatch.setattr(checks, name, lambda *args, name=name: Finding(name, "fine"))
    return made


def keeper(org: Organisation, *reports: dict[str, Any]) -> Keeper:
    """A keeper whose child reports so and ends."""
    return Keeper(org, [sys.executable, "-c", CHILD, *map(json.dumps, reports)], {})


def turns(
    monkeypatch: pytest.MonkeyPatch, kept: Keeper, count: int, between: Callable[[int], None] = id
) -> list[float]:
    """Run the keeper until it has paused so often, and then tell it to end; its pauses."""
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        between(len(pauses))
        if len(pauses) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(kept, "_wait", wait)
    kept.run()
    return pauses


def log_of(org: Organisation) -> list[str]:
    return [line.partition(" ")[2] for line in org.log.read_text("utf-8").splitlines()]


CONNECTED = {"event": "connected", "node": 12}


def test_a_link_that_ends_is_made_again_with_growing_pauses_and_its_reason_is_said_once(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the SuperLink answers with the error 500"
    kept = keeper(org, CONNECTED, {"event": "ended", "reason": reason})
    links: list[SiteLink | None] = []
    pauses = turns(monkeypatch, kept, 7, lambda _: links.append(read_link(org)))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    for link in links:
        assert link is not None
        assert (link.state, link.reason, link.node) == ("waiting", reason, 12)
    said = log_of(org)
    assert said[0] == "connected to link.example:9092"
    assert reason in said[1]
    assert said[-1] == "site run ends: it was told to end"
    last = read_link(org)
    assert last is not None
    assert last.state == "ended"
    assert "SuperNode does not run; it ended at" in said_of(org)


def test_the_reason_is_what_the_checks_find_and_no_supernode_starts_before_it_is_mended(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = Finding("certificate", "certificate has expired", "problem", "The operator renews it.")
    monkeypatch.setattr(checks, "server_certificate", lambda *args: expired)

    def between(turn: int) -> None:
        if turn == 2:
            monkeypatch.setattr(checks, "server_certificate", lambda *args: Finding("certificate", "fine"))

    turns(monkeypatch, keeper(org, CONNECTED), 3, between)
    said = log_of(org)
    assert sum("certificate has expired. The operator renews it." in line for line in said) == 1
    assert said[1] == "connected to link.example:9092"


def test_what_is_wrong_in_its_own_directory_ends_it(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "key_pair", lambda *args: Finding("key", "ann.key", "problem", "It is missing."))
    with pytest.raises(OwnFault, match=r"key: ann\.key\. It is missing\."):
        keeper(org, CONNECTED).run()
    assert log_of(org) == ["site run ends: key: ann.key. It is missing."]
    assert "It is missing" in said_of(org)


def test_a_port_that_is_taken_is_named_before_a_supernode_fails_on_it(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "free_port", lambda org: Finding("port", "9094 is taken", "problem", "Give another."))
    turns(monkeypatch, keeper(org, CONNECTED), 1)
    assert "port: 9094 is taken. Give another." in log_of(org)[0]


def test_a_key_that_was_known_before_is_told_apart(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[str] = []
    fine = Finding("registration", "fine")
    monkeypatch.setattr(checks, "registration", lambda org, until="": known.append(until) or fine)
    turns(monkeypatch, keeper(org, CONNECTED), 1)
    assert known[0] == ""
    assert known[1].startswith("20")
    again = keeper(org, CONNECTED)
    turns(monkeypatch, again, 1)
    assert known[2].startswith("20"), "also after site run was started again"


def test_trouble_is_examined_again_after_a_while(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(org)
    kept._take(CONNECTED)
    kept._take({"event": "trouble", "reason": "it does not answer"})
    expired = Finding("certificate", "it has expired", "problem", "Renew it.")
    monkeypatch.setattr(checks, "server_certificate", lambda *args: expired)
    kept._take({"event": "trouble", "reason": "it does not answer"})
    assert kept.link.reason == "it does not answer"
    monkeypatch.setattr(keeping, "EXAMINE_S", 0.0)
    kept._take({"event": "trouble", "reason": "it does not answer"})
    assert kept.link.reason == "certificate: it has expired. Renew it."


def test_a_key_in_use_elsewhere_is_said_and_nobody_is_deactivated(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied directory holds the state of a link that is alive, with the number of its SuperNode."""
    write_link(org, SiteLink("connected", 0.0, node=12, place="elsewhere:1:2:0"))
    gone: list[int] = []
    monkeypatch.setattr(flowerparts, "let_go", lambda *args: gone.append(args[-1]))
    kept = keeper(org, {"event": "ended", "reason": flowerparts.IN_USE})
    turns(monkeypatch, kept, 2)
    assert gone == []
    assert sum("another SuperNode with the same key" in line for line in log_of(org)) == 1


def test_only_an_own_supernode_that_crashed_is_deactivated(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    monkeypatch.setattr(flowerparts, "let_go", lambda *args: gone.append(args[-1]) or True)
    write_link(org, SiteLink("connected", 0.0, node=11, place=place_of(org)))
    turns(monkeypatch, keeper(org, CONNECTED), 2)
    assert gone == [11, 12]  # of the `site run` before, which was killed; and the one that ended here


def test_a_silent_supernode_is_killed(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "SILENT_S", 0.0)
    monkeypatch.setattr(keeping, "TICK_S", 0.05)
    kept = Keeper(org, [sys.executable, "-c", "import time; time.sleep(600)"], {})
    turns(monkeypatch, kept, 1)
    assert any("no sign of life" in line for line in log_of(org))


def test_trouble_is_shown_until_the_superlink_answers_again(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(org)
    kept._take(CONNECTED)
    assert kept.link.alive
    kept._take({"event": "trouble", "reason": "the SuperLink answers with the error 500"})
    assert read_link(org) == kept.link
    assert kept.link.reason == "the SuperLink answers with the error 500"
    kept._take({"event": "answer"})
    assert kept.link.reason == ""
    assert log_of(org)[-1] == "link.example:9092 answers again"
    assert read_link(org) == kept.link


def test_a_link_without_answers_is_not_alive(org: Organisation) -> None:
    write_link(org, SiteLink("connected", 0.0, heard=0.0))
    assert not is_alive(org)
    assert not SiteLink("connected", 0.0, heard=0.0).alive


def test_without_keys_only_the_connection_is_checked(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    insecure = init_site(org.directory / "b", "--insecure", superlink="127.0.0.1:9092")
    monkeypatch.setattr(checks, "key_pair", lambda *args: Finding("key", "none", "problem", "None is used."))
    assert diagnose(insecure) is None


def test_systemd_is_told_that_it_runs_that_it_lives_and_about_the_link(
    org: Organisation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        turns(monkeypatch, keeper(org, CONNECTED, {"event": "ended", "reason": "a reason"}), 1)
        lines = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.append(listening.recv(1000).decode())
    assert lines[0] == "READY=1"
    assert "WATCHDOG=1" in lines
    statuses = [line for line in lines if line.startswith("STATUS=")]
    assert statuses == ["STATUS=connecting", "STATUS=connected", "STATUS=waiting: a reason", statuses[-1]]
    assert statuses[-1].startswith("STATUS=ended")
