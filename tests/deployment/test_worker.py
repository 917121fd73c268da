"""A worker in its own process: found or started, killed and replaced, told to end, and deaf to strangers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path

import pytest
from flwr.app import Message
from organisations import Deployed, Organisations, References, federation, give_problems, header
from small_runs import adapter_bytes, without_seconds

from fedrlvr.deployment.site import client_app
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.handler import Answering

pytestmark = pytest.mark.slow

SLOW = """\
from pathlib import Path
import time

HERE = Path(__file__).parent

def parity(completion, answer, **info):
    while (HERE / "wait").exists():
        (HERE / "waiting").touch()
        time.sleep(0.01)
    return float(sum(map(ord, completion)) % 2 == 0)
"""
"""A reward beside site.toml: that of small_runs, for which one can be made to wait."""


def until(what: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Says if a process has ended; a child of this process is reaped."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False


def running(org: Organisation) -> int:
    """The worker's process id, which is started if there is none."""
    channel._reach(org).close()
    result = channel.status(org)
    assert result is not None
    return int(result["pid"])


def test_killed_with_kill_9_in_a_message_and_between_messages_it_is_as_if_it_had_not_been(
    model: Path, organisation: Organisations, reference: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = federation(model, tmp_path / "problems", tmp_path / "run", "pubswap")
    give_problems(config, tmp_path / "sites")
    task = {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": "slow_reward:parity"}
    ann = organisation("ann", tasks={"main": task})
    (ann.directory / "slow_reward.py").write_text(SLOW, "utf-8")
    wait, waiting = ann.directory / "wait", ann.directory / "waiting"
    killed: list[int] = []
    asked: list[str] = []

    def kill() -> None:
        result = channel.status(ann)
        assert result is not None
        killed.append(int(result["pid"]))
        os.kill(killed[-1], signal.SIGKILL)

    def kill_when_it_grades() -> None:
        until(waiting.exists)
        result = channel.status(ann)
        assert result is not None
        asked.append(result["busy"])
        wait.unlink()
        kill()

    def before(client: str, message: Message) -> None:
        kind, round_ = message.metadata.message_type, message.metadata.group_id
        if (client, kind, round_) == ("ann", "query.respond", "1") and not killed:
            wait.touch()
            threading.Thread(target=kill_when_it_grades).start()
        if (client, kind, round_) == ("ann", "train", "1"):
            kill()  # in mid-round, between two messages

    bob = organisation("bob")  # he answers in this process, and is not what is tested
    his = Answering(bob, lambda line: None)
    ask = channel.ask
    monkeypatch.setattr(
        client_app, "ask", lambda org, *rest: (his.reply if org.name == "bob" else partial(ask, org))(*rest)
    )
    Deployed(config, {"ann": ann, "bob": bob}, before=before).go()
    assert asked == ["query.respond of round 1"]
    assert len(set(killed)) == 2
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(reference("pubswap"))
    assert without_seconds(tmp_path / "run") == without_seconds(reference("pubswap"))
    log = ann.log.read_text("utf-8")
    assert log.count("a worker begins") == 3
    assert log.count("loaded tiny in ") == 3
    assert "ann-train" not in log
    assert "of ann?" not in log
    result = channel.status(ann)
    assert result is not None
    assert result["models"] == ["tiny"]
    assert (result["busy"], result["waiting"]) == (None, 0)


def test_a_worker_without_work_ends_and_leaves_no_socket(organisation: Organisations) -> None:
    org = organisation(idle_minutes=0.005)
    pid = running(org)
    path = channel.socket_path(org.state)
    assert path.is_socket()
    until(lambda: gone(pid))
    assert not path.exists()
    assert channel.status(org) is None
    assert org.log.read_text("utf-8").splitlines()[-1].endswith("the worker ends: nothing was asked for 0.005 minutes")


def answer_to(connection: Connection, frames: Sequence[bytes]) -> bytes:
    """Send frames, of which a worker that hangs up may not take the last ones, and return what it answers."""
    for frame in frames:
        connection.send_bytes(frame)
    return connection.recv_bytes()


def test_two_client_apps_at_once_start_one_worker_and_a_third_process_goes_by_itself(
    organisation: Organisations,
) -> None:
    org = organisation()
    result: list[int] = []
    threads = [threading.Thread(target=lambda: result.append(running(org))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert result == [result[0]] * 3
    command = [sys.executable, "-m", "fedrlvr.deployment.site.worker", str(org.path)]
    assert subprocess.run(command, check=False, timeout=120).returncode == 0
    assert org.log.read_text("utf-8").count("a worker begins") == 1
    assert (org.state / "worker.lock").read_text("utf-8") == f"{result[0]}\n"

    # Who lacks the secret, or does not show that he has it, gets nothing; nobody else waits for him.
    path = str(channel.socket_path(org.state))
    with pytest.raises(AuthenticationError):
        Client(path, "AF_UNIX", authkey=bytes(32))
    with Client(path, "AF_UNIX") as stranger:
        assert stranger.recv_bytes(1000).startswith(b"#CHALLENGE#")
        stranger.send_bytes(b'{"type": "stop"}')
        assert stranger.recv_bytes(1000) == b"#FAILURE#"
        with pytest.raises(EOFError):
            stranger.recv_bytes(1000)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(path)
        assert channel.status(org) is not None

    # Bytes that are no frames of ours, from somebody with the secret.
    key = channel.secret(org.state)
    for frames in ([b"\xff\xfe"], [b"[1]"], [b'{"type": "other"}', b""], [b"x" * (channel.LARGEST_FRAMES[0] + 1)]):
        with Client(path, "AF_UNIX", authkey=key) as connection, pytest.raises((EOFError, ConnectionError)):
            answer_to(connection, frames)
    reply, _ = channel.ask(org, header(), b"\x80\x04.")
    assert reply == {"ok": False, "kind": "refused", "reason": "bytes that are no content of a message"}
    assert channel.status(org)["pid"] == result[0]  # type: ignore[index]

    files = {*org.state.iterdir(), channel.socket_path(org.state)}  # elsewhere if the directory's path is long
    mode = {path.name: path.stat().st_mode & 0o077 for path in files}
    assert set(mode) >= {"worker.sock", "worker.secret", "worker.lock", "worker.log", "site.log"}
    assert {name for name, others in mode.items() if others} == set()
    assert org.state.stat().st_mode & 0o077 == 0
    assert channel.stop(org) is True
    until(lambda: gone(result[0]))
    assert channel.stop(org) is False


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
def test_who_waits_for_a_worker_that_is_told_to_end_is_told_so(how: str, organisation: Organisations) -> None:
    org = organisation()
    pid = running(org)
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(channel.ask(org, header(), b"")))
    thread.start()
    until(lambda: (channel.status(org) or {}).get("waiting"))  # it still imports what it answers with
    if how == "stop":
        assert channel.stop(org)
    else:
        os.kill(pid, signal.SIGTERM)
    thread.join()
    assert answers == [({"ok": False, "kind": "failed", "reason": "failed at ann: its worker was told to end"}, b"")]
    until(lambda: gone(pid))
    assert not channel.socket_path(org.state).exists()
    assert org.log.read_text("utf-8").count("a worker begins") == 1


def test_a_site_that_cannot_be_used_says_so_before_anybody_waits(organisation: Organisations) -> None:
    org = organisation()
    org.path.write_text("name = 1\n", "utf-8")
    began = time.monotonic()
    with pytest.raises(channel.RoundError, match=r"exit code 1 .*worker\.log.*site\.toml: name"):
        channel.ask(org, header(), b"")
    assert time.monotonic() - began < 20
