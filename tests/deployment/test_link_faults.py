"""`fedrlvr site run` when its link ends: the reason stands in site.log, in `site status` and in the exit code, and the
SuperNode is back by itself once the cause is mended. Real processes; no run is made, so no model is loaded."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from factories import write_site
from federations import Deployment, Member, SuperLink, free_port, text, until
from typer.testing import CliRunner

from fedrlvr.cli.site import NOT_BY_RESTARTING, site
from fedrlvr.deployment import certificates
from fedrlvr.deployment.certificates import key_fingerprint, read_public_key
from fedrlvr.deployment.site.link import read_link

pytestmark = pytest.mark.slow

NAMES = ("stranger", "keyless", "jumping", "expired", "lost", "full")
DAY_S = 24 * 3600
COMPILER = shutil.which("cc")
needs_clock = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler, which makes a clock that is off")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Organisations without problems; no message comes to them."""
    root = tmp_path_factory.mktemp("links")
    deployment = Deployment(root, root / "no-model", NAMES)
    try:
        for name, member in deployment.members.items():
            write_site(member.directory, superlink="127.0.0.1:1", port=member.port)
            certificates.make_node_key(member.directory / f"{name}.key")
        yield deployment
    finally:
        deployment.close()


@pytest.fixture(scope="module")
def hub(deployment: Deployment) -> SuperLink:
    """A SuperLink that knows them all."""
    return deployment.superlink("hub")


def status(member: Member) -> tuple[str, int]:
    """The output of `site status --check`, and its exit code."""
    result = CliRunner().invoke(site, ["status", str(member.directory), "--check"])
    return result.output, result.exit_code


def shows(member: Member, reason: str) -> None:
    """Wait until the reason of a missing link stands in status and site.log."""
    until(lambda: reason in status(member)[0].partition("\n")[0], lambda: f"{status(member)}\n{text(member.console)}")
    assert status(member)[1] == 1
    assert reason in member.log


def is_back(deployment: Deployment, member: Member) -> None:
    """Wait until the link is alive, and look at what that says."""
    deployment.connected(member.name)
    assert status(member)[1] == 0
    assert "connected since" in status(member)[0]


def ends(member: Member) -> int:
    """Exit code of `site run` after SIGTERM, when nothing of it is left."""
    assert member.node is not None
    children = psutil.Process(member.node.pid).children(recursive=True)
    member.node.send_signal(signal.SIGTERM)
    code = member.node.wait(60)
    until(lambda: not any(child.is_running() for child in children))
    return code


class Clock:
    """The clock of processes that are started with `variables`: off by what `set` was given, in days."""

    def __init__(self, directory: Path, days: int = 0) -> None:
        self._file, library = directory / "clock", directory / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", library, source], check=True)
        self.variables = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}
        self.set(days)

    def set(self, days: int) -> None:
        """Move the clock."""
        self._file.write_text(str(days * DAY_S))


def test_an_unregistered_key_is_named_and_the_site_connects_once_it_is_registered(
    deployment: Deployment, hub: SuperLink
) -> None:
    member = deployment["stranger"]
    for file in member.directory.glob("stranger.key*"):
        file.unlink()
    certificates.make_node_key(member.directory / "stranger.key")
    mark = key_fingerprint(read_public_key(member.directory / "stranger.key.pub"))
    deployment.start_site("stranger", hub)
    shows(member, f"does not know the key {mark}")
    assert "superlink register DIRECTORY stranger.key.pub --name stranger" in member.log
    assert member.node is not None
    assert member.node.poll() is None
    deployment.register(hub, "stranger")
    is_back(deployment, member)
    assert ends(member) == 0
    assert "SuperNode does not run" in status(member)[0]


def test_a_key_that_is_gone_ends_site_run_with_the_code_for_what_restarting_cannot_mend(
    deployment: Deployment, hub: SuperLink
) -> None:
    member = deployment["keyless"]
    deployment.start_site("keyless", hub)
    is_back(deployment, member)
    key = (member.directory / "keyless.key").rename(member.directory / "away.key")
    deployment.supernode(member).kill()
    assert member.node is not None
    assert member.node.wait(60) == NOT_BY_RESTARTING
    shows(member, "keyless.key")
    assert "error: key: " in text(member.console)
    key.rename(member.directory / "keyless.key")  # other tests register all members


@needs_clock
def test_a_clock_that_jumps_is_named_and_the_site_is_back_when_it_is_right_again(
    deployment: Deployment, hub: SuperLink, tmp_path: Path
) -> None:
    member, clock = deployment["jumping"], Clock(tmp_path)
    member.variables = clock.variables
    deployment.start_site("jumping", hub)
    is_back(deployment, member)
    clock.set(days=1)
    shows(member, "set the clocks of both machines")
    clock.set(days=0)
    is_back(deployment, member)
    assert ends(member) == 0


@needs_clock
def test_an_expired_certificate_is_named_and_the_site_is_back_after_its_renewal(
    deployment: Deployment, tmp_path: Path
) -> None:
    """It is made so long ago that it has expired; all clocks are behind until the site is connected."""
    member, clock = deployment["expired"], Clock(tmp_path, days=-731)
    link = SuperLink(tmp_path / "old", f"127.0.0.1:{free_port()}", None)

    def superlink(*command: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "fedrlvr", "superlink", *command],
            check=True,
            env={**os.environ, **clock.variables},
            capture_output=True,
        )

    superlink("init", str(link.directory), "--address", link.address)
    clock.set(days=-2)
    deployment.start_superlink(link, clock.variables)
    superlink("register", str(link.directory), str(member.directory / "expired.key.pub"), "--name", "expired")
    member.variables = clock.variables
    deployment.start_site("expired", link)
    member.says(f"connected to {link.address}")
    deployment.kill(link.process)
    deployment.start_superlink(link, clock.variables)  # with an expired one it would not start
    clock.set(days=0)
    shows(member, "certificate has expired")
    assert "superlink renew" in member.log

    deployment.kill(link.process)
    superlink("renew", str(link.directory))
    deployment.start_superlink(link)
    is_back(deployment, member)
    assert ends(member) == 0


def test_a_lost_database_is_named_and_the_site_is_back_once_its_key_is_registered_again(
    deployment: Deployment, tmp_path: Path
) -> None:
    member = deployment["lost"]
    link = deployment.superlink("forgetful")
    deployment.start_site("lost", link)
    is_back(deployment, member)
    deployment.kill(link.process)
    shows(member, "nothing listens on that port")
    for database in link.directory.glob("state.db*"):
        database.unlink()
    deployment.start_superlink(link)
    shows(member, "which it knew until")
    deployment.register(link, "lost")
    is_back(deployment, member)
    assert ends(member) == 0


def test_a_full_disk_at_the_server_is_named_and_the_link_lives_on_when_there_is_room(
    deployment: Deployment, hub: SuperLink, tmp_path: Path
) -> None:
    member = deployment["full"]
    deployment.start_site("full", hub)
    is_back(deployment, member)
    supernode = deployment.supernode(member)
    assert hub.process is not None
    before = resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    shows(member, "its disk may be full")
    (tmp_path / "exp.toml").write_text('[federation]\nclients = ["ann", "bob"]\n')
    log = tmp_path / "log"
    arguments = [str(tmp_path / "exp.toml"), "--set", f"run.directory={tmp_path / 'run'}"]
    run = deployment.federate(hub, log, *arguments)
    until(lambda: run() is not None, lambda: text(log))
    assert "its disk may be full" in text(log)
    assert "its own machine only" not in text(log)
    resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, before)
    is_back(deployment, member)
    assert deployment.supernode(member) == supernode
    assert ends(member) == 0


def test_a_copied_directory_waits_and_the_live_site_stays_connected(
    deployment: Deployment, hub: SuperLink, tmp_path: Path
) -> None:
    member = deployment["stranger"]
    deployment.start_site("stranger", hub)
    is_back(deployment, member)
    before = read_link(member.org)
    shutil.copytree(member.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("gates", "*.sock"))
    copied = Member(tmp_path / "copy", free_port())
    write_site(copied.directory, name="stranger", superlink="127.0.0.1:1", port=copied.port)
    deployment.members["copy"] = copied
    try:
        deployment.start_site("copy", hub)
        shows(copied, "another SuperNode with the same key")
        assert ends(copied) == 0
    finally:
        del deployment.members["copy"]
    after = read_link(member.org)
    assert before is not None
    assert after is not None
    assert (after.since, after.node) == (before.since, before.node)  # the same connection as before
    assert status(member)[1] == 0
    assert ends(member) == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit", ["fedrlvr-site.service", "fedrlvr-superlink.service"])
def test_systemd_reads_the_units_without_a_complaint(tmp_path: Path, unit: str) -> None:
    written = (Path(__file__).parents[2] / "examples" / "systemd" / unit).read_text("utf-8")
    assert "/opt/fedrlvr/bin/fedrlvr" in written
    (tmp_path / unit).write_text(
        written.replace("/opt/fedrlvr/bin/fedrlvr", sys.executable).replace("User=fedrlvr", "User=root")
    )
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
