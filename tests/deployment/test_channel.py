"""The client app's end of the socket: a secret for two, a path that fits, and a message that is asked once more."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import pytest
from organisations import Organisations, header

from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import CheckpointError, ConfigError, MessageError, RoundError

Frames = tuple[dict[str, Any], bytes]


class Fake:
    """Stands in for a worker process. code: with which it has ended, if it has."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


def listening(org: Organisation, answer: Callable[[Frames], Frames | None]) -> None:
    """A worker of one connection, which answers or goes without a word."""
    path = channel.socket_path(org.state)
    path.unlink(missing_ok=True)
    listener = Listener(str(path), "AF_UNIX", authkey=channel.secret(org.state))

    def talk() -> None:
        connection = listener.accept()
        listener.close()  # its path goes before the other side can see the end of this connection and start another
        with connection:
            reply = answer(channel.receive(connection))
            if reply is not None:
                channel.send(connection, *reply)

    threading.Thread(target=talk, daemon=True).start()


@pytest.fixture
def org(organisation: Organisations) -> Organisation:
    result = organisation()
    channel.state_directory(result)
    return result


def starting(
    monkeypatch: pytest.MonkeyPatch, org: Organisation, *answers: Callable[[Frames], Frames | None] | int
) -> list[int]:
    """Lets workers be started that answer so, or end with such a code; the list grows with each."""
    started: list[int] = []

    def start(of: Organisation, log: Path) -> Fake:
        answer = answers[len(started)]
        started.append(len(started))
        if isinstance(answer, int):
            return Fake(answer)
        listening(org, answer)
        return Fake()

    monkeypatch.setattr(channel, "_start", start)
    return started


def test_a_worker_that_ends_over_a_message_is_asked_the_same_once_more(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Frames] = []

    def dies(frames: Frames) -> None:
        seen.append(frames)

    def answers(frames: Frames) -> Frames:
        seen.append(frames)
        return {"ok": True}, b"answer"

    started = starting(monkeypatch, org, dies, answers)
    assert channel.ask(org, header(), b"content") == ({"ok": True}, b"answer")
    assert seen == [(header(), b"content")] * 2
    assert len(started) == 2


def test_a_message_that_two_workers_end_over_is_given_up(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    (org.state / "worker.log").write_text("first\n" + "x\n" * 2000 + "Killed\n", "utf-8")
    started = starting(monkeypatch, org, lambda _: None, lambda _: None, lambda _: None)
    with pytest.raises(RoundError, match=r"ann: .*worker\.log.* (x \| ){4}Killed$"):
        channel.ask(org, header(), b"")
    assert len(started) == 2


def test_one_that_found_the_lock_taken_is_followed_by_another(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = starting(monkeypatch, org, 0, 0, lambda _: ({"ok": True}, b""))
    assert channel.ask(org, header(), b"") == ({"ok": True}, b"")
    assert len(started) == 3


def test_one_that_fails_as_it_starts_is_not_waited_for(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    starting(monkeypatch, org, 1)
    with pytest.raises(RoundError, match=r"exit code 1 .*worker\.log$"):
        channel.ask(org, header(), b"")


def test_one_that_never_listens_is_waited_for_so_long_only(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "START_S", 0.2)
    monkeypatch.setattr(channel, "_start", lambda *_: Fake())
    with pytest.raises(RoundError, match="does not listen after 0 s"):
        channel.ask(org, header(), b"")


def test_an_answer_that_cannot_be_read_is_no_reason_to_ask_again(
    org: Organisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = channel.socket_path(org.state)
    listener = Listener(str(path), "AF_UNIX", authkey=channel.secret(org.state))

    def talk() -> None:
        with listener, listener.accept() as connection:
            channel.receive(connection)
            connection.send_bytes(b"[]")

    threading.Thread(target=talk, daemon=True).start()
    monkeypatch.setattr(channel, "_start", lambda *_: pytest.fail("another was started"))
    with pytest.raises(MessageError, match="no JSON object"):
        channel.ask(org, header(), b"")


def test_nobody_there_is_no_status_and_nothing_to_stop(org: Organisation, tmp_path: Path) -> None:
    assert channel.status(org) is None
    assert channel.stop(org) is False
    channel.socket_path(org.state).touch()  # what one left that was killed
    assert channel.status(org) is None


def test_somebody_with_another_secret_is_not_our_worker(org: Organisation) -> None:
    listener = Listener(str(channel.socket_path(org.state)), "AF_UNIX", authkey=bytes(32))

    def talk() -> None:
        with listener, contextlib.suppress(AuthenticationError):
            listener.accept()

    threading.Thread(target=talk, daemon=True).start()
    with pytest.raises(RoundError, match="do not have the same secret"):
        channel.status(org)


def test_the_secret_is_made_once_whoever_comes_first(org: Organisation) -> None:
    command = "import sys; from pathlib import Path; from fedrlvr.deployment.site.socket import secret\n"
    command += "sys.stdout.write(secret(Path(sys.argv[1])).hex())"
    run = [sys.executable, "-c", command, str(org.state)]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    result = {process.communicate()[0] for process in processes}
    path = org.state / "worker.secret"
    assert result == {path.read_bytes().hex()}
    assert len(path.read_bytes()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [path for path in org.state.iterdir() if not path.name.endswith(".secret")], "nothing temporary is left"


def test_a_secret_that_is_none_is_refused(org: Organisation) -> None:
    channel.secret(org.state)
    path = org.state / "worker.secret"
    path.chmod(0o640)
    with pytest.raises(CheckpointError, match=r"can be read by others\. Delete it"):
        channel.secret(org.state)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(CheckpointError, match="does not hold 32 bytes"):
        channel.secret(org.state)


def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    short = Path("/s/state")
    assert channel.socket_path(short) == short / "worker.sock"
    limit = Path("/" + "x" * (100 - len("/worker.sock") - 1))
    assert channel.socket_path(limit) == limit / "worker.sock"
    long, other = tmp_path / ("x" * 100), tmp_path / ("y" * 100)
    result = channel.socket_path(long)
    assert result.parent.parent == tmp_path
    assert result.parent.name.startswith(f"fedrlvr-{os.getuid()}-")
    assert result.parent.stat().st_mode & 0o777 == 0o700
    assert channel.socket_path(long) == result
    assert channel.socket_path(other) != result


@pytest.mark.parametrize("what", ["open", "link", "file"])
def test_a_directory_for_the_socket_that_is_not_ours_alone_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    state = tmp_path / ("x" * 100)
    directory = channel.socket_path(state).parent
    directory.rmdir()
    if what == "open":
        directory.mkdir()
        directory.chmod(0o750)
    elif what == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.touch(0o600)
    with pytest.raises(ConfigError, match="this user's alone"):
        channel.socket_path(state)


def test_somebody_elses_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    state = tmp_path / ("x" * 100)
    directory = channel.socket_path(state).parent
    owner = directory.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    directory.rename(str(directory).replace(f"fedrlvr-{owner}-", f"fedrlvr-{owner + 1}-"))
    with pytest.raises(ConfigError, match="this user's alone"):
        channel.socket_path(state)


def test_frames_are_bounded(org: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LARGEST_FRAMES", (1 << 16, 10))
    caught: list[BaseException] = []
    path = str(channel.socket_path(org.state))
    with Listener(path, "AF_UNIX") as listener:

        def talk() -> None:
            with listener.accept() as connection:
                try:
                    channel.receive(connection)
                except OSError as error:
                    caught.append(error)

        thread = threading.Thread(target=talk)
        thread.start()
        with Client(path, "AF_UNIX") as connection:
            channel.send(connection, {}, b"x" * 11)
            thread.join()
    assert [str(error) for error in caught] == ["bad message length"]
