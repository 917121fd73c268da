"""`fedrlvr superlink`: what it writes, and a real SuperLink with TLS and keys: who gets in, who is refused and told."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fedrlvr.cli import superlink as superlink_command
from fedrlvr.cli.site import site
from fedrlvr.cli.superlink import SuperLink, load_superlink, superlink
from fedrlvr.deployment import certificates
from fedrlvr.deployment import flower_private as flowerparts
from fedrlvr.deployment.certificates import hosts_of, key_fingerprint, read_certificate, read_public_key
from fedrlvr.deployment.site import check as checks
from fedrlvr.deployment.site.config import load_site
from fedrlvr.deployment.site.link import is_alive
from fedrlvr.errors import ConfigError

WAIT_S = 90.0
"""Seconds; for a machine with much else to do."""


def output_of(*arguments: object, app: object = superlink) -> str:
    """The output of a command; an error of the command is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    if result.exception is not None:
        raise result.exception
    return result.output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a SuperLink that runs, listening on all addresses; its log is in <directory>/log."""
    directory, port = tmp_path_factory.mktemp("superlink") / "here", free_port()
    output_of("init", directory, "--address", f"127.0.0.1:{port}", "--host", "0.0.0.0")
    log = directory / "log"
    command = [sys.executable, "-m", "fedrlvr", "superlink", "run", str(directory)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        until(lambda: b"Uvicorn running" in log.read_bytes(), process, log)
        yield directory
    finally:
        end(process)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Commands set Flower's variables, which must not reach other tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def organisation(server: Path, directory: Path, name: str) -> Path:
    """An organisation's directory, as `site init` makes it."""
    address = load_superlink(server).address
    options = ["--name", name, "--superlink", address, "--port", free_port()]
    output_of("init", directory, *options, "--root-certificates", server / "ca.crt", app=site)
    return directory


def lines_since(server: Path, start: int, text: str) -> list[str]:
    """The server's log lines with a text, after so many bytes of it, once there is one."""
    end = time.monotonic() + 20
    while True:
        result = [line for line in (server / "log").read_bytes()[start:].decode().splitlines() if text in line]
        if result or time.monotonic() > end:
            return result
        time.sleep(0.05)


def size(server: Path) -> int:
    return (server / "log").stat().st_size


# What it writes.


def test_init_makes_keys_and_settings_and_says_what_is_next(tmp_path: Path) -> None:
    directory = tmp_path / "a b"
    said = output_of("init", directory, "--address", "link.example:9092", "--name", "10.1.2.3")
    assert load_superlink(directory) == SuperLink("link.example:9092", "0.0.0.0", 9092, False)
    names = hosts_of(read_certificate(directory / "server.crt"))
    assert names == ["link.example", "10.1.2.3", "127.0.0.1", "localhost", "::1"]
    assert tomllib.loads((directory / "flower" / "config.toml").read_text()) == {
        "superlink": {
            "default": "fedrlvr",
            "fedrlvr": {"address": "127.0.0.1:9092", "root-certificates": str(directory / "ca.crt")},
        }
    }
    assert certificates.certificate_fingerprint(read_certificate(directory / "ca.crt")) in said
    for command in ("run", "register", "members"):
        assert f"fedrlvr superlink {command} '{directory}'" in said
    for name in ("ca.key", "server.key"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("address", "host", "bind", "local"),
    [
        ("127.0.0.1:9", None, "127.0.0.1", "127.0.0.1:9"),
        ("localhost:9", None, "127.0.0.1", "127.0.0.1:9"),
        ("[::1]:9", None, "::1", "[::1]:9"),
        ("link.example:9", "10.0.0.7", "10.0.0.7", "10.0.0.7:9"),
        ("link.example:9", "::", "::", "[::1]:9"),
    ],
)
def test_it_listens_where_it_is_reached_and_this_machine_finds_it(
    tmp_path: Path, address: str, host: str | None, bind: str, local: str
) -> None:
    output_of("init", tmp_path, "--address", address, *(["--host", host] if host else []))
    link = load_superlink(tmp_path)
    assert (link.host, link.local) == (bind, local)
    assert local.rpartition(":")[0].strip("[]") in hosts_of(read_certificate(tmp_path / "server.crt"))


def test_a_second_init_overwrites_nothing(tmp_path: Path) -> None:
    output_of("init", tmp_path, "--address", "127.0.0.1:9")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=r"superlink\.toml exists already"):
        output_of("init", tmp_path, "--address", "127.0.0.1:9")
    (tmp_path / "superlink.toml").unlink()
    with pytest.raises(ConfigError, match=r"config\.toml exists already"):
        output_of("init", tmp_path, "--address", "127.0.0.1:9")
    shutil.rmtree(tmp_path / "flower")
    with pytest.raises(ConfigError, match=r"ca\.key exists already"):
        output_of("init", tmp_path, "--address", "127.0.0.1:9")
    assert all(file.read_bytes() == before[file] for file in before if file.exists())


@pytest.mark.parametrize("more", [["--address", "link.example:9"], ["--address", "127.0.0.1:9", "--host", "0.0.0.0"]])
def test_without_tls_only_on_loopback(tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        output_of("init", tmp_path, "--insecure", *more)
    assert not list(tmp_path.iterdir())


def test_settings_that_were_changed_by_hand_cannot_open_it(tmp_path: Path) -> None:
    output_of("init", tmp_path, "--address", "127.0.0.1:9", "--insecure")
    assert not (tmp_path / "ca.key").exists()
    file = tmp_path / "superlink.toml"
    file.write_text(file.read_text().replace('host = "127.0.0.1"', 'host = "0.0.0.0"'))
    with pytest.raises(ConfigError, match="insecure is for loopback only"):
        load_superlink(tmp_path)
    for text, match in (("port = 1", "cannot be used"), ("?", "cannot be used")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=match):
            load_superlink(tmp_path)
    with pytest.raises(ConfigError, match="superlink init"):
        load_superlink(tmp_path / "absent")


@pytest.mark.parametrize("address", ["link.example", "link.example:0", "link.example:x", ":9", "0.0.0.0:9"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="--address"):
        output_of("init", tmp_path, "--address", address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("insecure", [False, True])
def test_it_starts_with_tls_and_keys_unless_it_is_insecure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, insecure: bool
) -> None:
    output_of("init", tmp_path, "--address", "127.0.0.1:9", *["--insecure"] * insecure)
    started: list[list[str]] = []
    monkeypatch.setattr(flowerparts, "run_superlink", started.append)
    monkeypatch.setattr(superlink_command.logging.getLogger("fedrlvr"), "handlers", [])
    output_of("run", tmp_path)
    common = ["--host", "127.0.0.1", "--port", "9", "--database", str(tmp_path / "state.db")]
    common += ["--disable-runtime-dependency-installation"]
    secure = ["--ssl-ca-certfile", f"{tmp_path}/ca.crt", "--ssl-certfile", f"{tmp_path}/server.crt"]
    secure += ["--ssl-keyfile", f"{tmp_path}/server.key", "--enable-supernode-auth"]
    assert started == [[*common, *(["--insecure"] if insecure else secure)]]
    assert os.environ["FLWR_HOME"] == str(tmp_path / "flower")
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600


def test_it_does_not_start_without_its_certificate(tmp_path: Path) -> None:
    output_of("init", tmp_path, "--address", "127.0.0.1:9")
    (tmp_path / "server.crt").unlink()
    with pytest.raises(ConfigError, match=r"server\.crt is missing"):
        output_of("run", tmp_path)


def test_it_does_not_start_with_an_expired_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_of("init", tmp_path, "--address", "127.0.0.1:9")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3 * 365)
    monkeypatch.setattr(superlink_command, "_now", lambda: later)
    with pytest.raises(ConfigError, match="superlink renew"):
        output_of("run", tmp_path)


def test_renewing_keeps_the_names_and_says_that_a_start_is_needed(tmp_path: Path) -> None:
    output_of("init", tmp_path, "--address", "link.example:9")
    said = output_of("renew", tmp_path, "--name", "new.example")
    assert "link.example, 127.0.0.1, localhost, ::1, new.example" in said
    assert "next start" in said


# One that runs.


def request(server: Path, method: str, path: str, source: str) -> int:
    """The status of a request that comes from one of this machine's addresses."""
    context = ssl.create_default_context(cafile=server / "ca.crt")
    port = load_superlink(server).port
    connection = HTTPSConnection("127.0.0.1", port, context=context, source_address=(source, 0), timeout=10)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.slow
def test_from_another_address_only_the_fleet_api_can_be_reached(server: Path) -> None:
    addresses = [a.address for entries in psutil.net_if_addrs().values() for a in entries if a.family == socket.AF_INET]
    others = [address for address in addresses if not address.startswith("127.")]
    if not others:
        pytest.skip("this machine has no other address than loopback's")
    start = size(server)
    # 415: let through, and not what Flower reads.
    assert request(server, "POST", "/v1/control/start-run", "127.0.0.1") == 415
    assert request(server, "POST", "/v1/fleet/pull-messages", others[0]) == 415
    assert request(server, "GET", "/health", others[0]) == 200
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"):
        assert request(server, "POST", path, others[0]) == 403
    refused = lines_since(server, start, "refused")
    assert len(refused) == 3
    assert f"refused {others[0]}, which asked for '/v1/control/start-run'" in refused[0]


@pytest.mark.slow
def test_an_organisation_is_registered_listed_and_unregistered(server: Path, tmp_path: Path) -> None:
    key = organisation(server, tmp_path / "ann", "ann") / "ann.key.pub"
    other = organisation(server, tmp_path / "bob", "bob") / "bob.key.pub"
    mark = key_fingerprint(read_public_key(key))
    assert mark in output_of("register", server, key, "--name", "ann")
    listed = output_of("members", server)
    assert [line.split() for line in listed.splitlines() if line.startswith("ann")] == [["ann", "registered", mark]]
    for file, name in ((other, "ann"), (key, "ann-2")):
        with pytest.raises(ConfigError, match="ann is registered already"):
            output_of("register", server, file, "--name", name)
    output_of("unregister", server, "ann")
    assert "ann" not in output_of("members", server)
    with pytest.raises(ConfigError, match="does not take such a key again"):
        output_of("register", server, key, "--name", "ann")
    with pytest.raises(ConfigError, match="no organisation ann"):
        output_of("unregister", server, "ann")
    with pytest.raises(ConfigError, match="letters, digits"):
        output_of("register", server, other, "--name", "b b")
    with pytest.raises(ConfigError, match="no public key"):
        output_of("register", server, server / "ca.crt", "--name", "cyd")


@pytest.mark.slow
def test_an_unregistered_key_is_refused_and_both_sides_say_so(server: Path, tmp_path: Path) -> None:
    directory, start = organisation(server, tmp_path / "dan", "dan"), size(server)
    mark = key_fingerprint(read_public_key(directory / "dan.key.pub"))
    said = told_by_site(directory, f"does not know the key {mark}")
    assert "superlink register DIRECTORY dan.key.pub --name dan" in said
    assert lines_since(server, start, "No SuperNode found with the given public key")


@pytest.mark.slow
def test_a_superlink_of_another_authority_is_refused_and_both_sides_say_so(server: Path, tmp_path: Path) -> None:
    directory, start = organisation(server, tmp_path / "eve", "eve"), size(server)
    certificates.make_authority(tmp_path, "another")
    shutil.copy(tmp_path / "ca.crt", directory / "ca.crt")
    told_by_site(directory, "Another authority than")
    line = lines_since(server, start, "a TLS connection from")[0]
    assert "from 127.0.0.1 failed" in line
    assert "it trusts another authority than ours" in line


@pytest.mark.slow
def test_who_speaks_no_tls_is_in_the_servers_log(server: Path) -> None:
    start = size(server)
    with socket.create_connection(("127.0.0.1", load_superlink(server).port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.recv(1)
    assert "does not speak TLS" in lines_since(server, start, "a TLS connection from")[0]


@pytest.mark.slow
def test_a_registered_organisation_connects_and_a_check_does_not_disturb_it(server: Path, tmp_path: Path) -> None:
    directory = organisation(server, tmp_path / "f f", "fay")
    output_of("register", server, directory / "fay.key.pub", "--name", "fay")
    org, start = load_site(directory), size(server)
    assert checks.registration(org).value.endswith(key_fingerprint(read_public_key(directory / "fay.key.pub")))
    process, log = start_site(directory)
    try:
        until(lambda: is_alive(org), process, log)
        assert state_of(server, "fay") == "online"
        assert checks.registration(org).status == "ok"
        assert (
            checks.port(org).value
            == f"{org.config.port}, on which this organisation's SuperNode listens (site run: {process.pid})"
        )
        assert f"site run is process {process.pid}; connected since" in output_of("status", directory, app=site)
        assert state_of(server, "fay") == "online"
        assert len(lines_since(server, start, "Activated node_id")) == 1
    finally:
        end(process)
    assert "fay: train, query.respond, evaluate for tasks main, models embedded" in log.read_text()
    assert state_of(server, "fay") == "offline"


def state_of(server: Path, name: str) -> str:
    return next(line.split()[1] for line in output_of("members", server).splitlines() if line.startswith(name))


def start_site(directory: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """`fedrlvr site run`, and the file that takes its output."""
    log = directory / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "fedrlvr", "site", "run", str(directory)]
        return subprocess.Popen(command, stdout=out, stderr=out), log


def told_by_site(directory: Path, reason: str) -> str:
    """The output of a `site run` that waits for a reason, which it gives."""
    process, log = start_site(directory)
    try:
        until(lambda: reason in log.read_text(), process, log)
    finally:
        end(process)
    assert process.returncode == 0
    return log.read_text()


def test_commands_say_that_the_superlink_does_not_run(tmp_path: Path) -> None:
    output_of("init", tmp_path, "--address", f"127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="Is `fedrlvr superlink run` running"):
        output_of("members", tmp_path)


def test_an_insecure_superlink_has_nobody_to_register(tmp_path: Path) -> None:
    output_of("init", tmp_path, "--address", "127.0.0.1:9", "--insecure")
    certificates.make_node_key(tmp_path / "ann.key")
    with pytest.raises(ConfigError, match="without keys"):
        output_of("register", tmp_path, tmp_path / "ann.key.pub", "--name", "ann")
    with pytest.raises(ConfigError, match="without TLS"):
        output_of("renew", tmp_path)
