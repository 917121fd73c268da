"""A federation as organisations have it: a SuperLink and SuperNodes with TLS and keys, each a process of its own.

What goes wrong in it is done to these processes. A gate holds a worker in the middle of a message until that was done.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import small_runs
from factories import FLOORS_OFF, write_secret, write_site
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from organisations import give_problems

from benchmarks.netns import Network
from fedrlvr.cli import superlink as superlink_command
from fedrlvr.config import Config
from fedrlvr.deployment import certificates
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.deployment.site.handler import SAMPLING_SECRET
from fedrlvr.deployment.site.link import is_alive

TOKEN, GATES = "FEDRLVR_TEST_FEDERATION", "FEDRLVR_TEST_GATES"
"""In the environment of every process of a federation: which one it is of; and where an organisation's gates are."""
PATIENCE_S = 90.0
RUNTIME = RuntimeVersionHttpInterceptor(component_name="fedrlvr")
_HERE = Path(__file__).parent
_PATHS = [str(_HERE.parents[1]), str(_HERE.parent), str(_HERE)]
_REWARDS = [{"use": "federations:parity", "time_limit": 600.0}]
"""Longer than any gate stays closed."""
_ASKED = re.compile(r"round (\d+): asked to train")
_forks = multiprocessing.get_context("forkserver")  # small_runs has said what is imported before


def parity(completion: str, answer: str, **info: Any) -> float:
    """The reward of small_runs, behind the organisation's gates: grading waits in a round whose gate is closed."""
    gates = Path(os.environ[GATES])
    closed = [path.name for path in gates.iterdir() if path.name.isdigit()]
    asked = _ASKED.findall(text(gates.parent / "state" / "site.log")) if closed else []
    if asked and asked[-1] in closed:
        (gates / f"{asked[-1]}.reached").touch()
        until(lambda: not (gates / asked[-1]).exists())
    return small_runs.parity(completion, answer, **info)


def until(true: Callable[[], Any], why: Callable[[], str] = lambda: "", seconds: float = PATIENCE_S) -> None:
    """Wait for what must come about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not come about in {seconds:.0f} s\n{why()}"
        time.sleep(0.02)


def text(path: Path) -> str:
    """The present content of a file; empty if there is none."""
    return path.read_text("utf-8", "replace") if path.exists() else ""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Member:
    """An organisation. node: its `fedrlvr site run`. variables: further ones in the environment of its processes."""

    def __init__(self, directory: Path, port: int) -> None:
        self.name, self.directory, self.port = directory.name, directory, port
        self.node: subprocess.Popen[bytes] | None = None
        self.console = directory / "console.log"
        self.variables: dict[str, str] = {}
        self._gates = directory / "gates"
        self._gates.mkdir(parents=True)

    @property
    def org(self) -> Organisation:
        """The organisation's configuration."""
        return load_site(self.directory)

    @property
    def log(self) -> str:
        """The content of the organisation's site.log."""
        return text(self.directory / "state" / "site.log")

    @property
    def worker(self) -> int:
        """The process id of its worker."""
        return int(text(self.directory / "state" / "worker.lock"))

    @property
    def environment(self) -> dict[str, str]:
        """The environment variable by which the organisation's processes find its gates, and its further ones."""
        return {GATES: str(self._gates), **self.variables}

    def close_gate(self, round_: int) -> None:
        """Have the worker wait in the middle of a round's training."""
        (self._gates / f"{round_}.reached").unlink(missing_ok=True)
        (self._gates / str(round_)).touch()

    def at_gate(self, round_: int) -> None:
        """Wait until it waits there."""
        until((self._gates / f"{round_}.reached").exists, lambda: f"{self.log}\n{text(self.console)}")

    def open_gate(self, round_: int) -> None:
        """Let it go on."""
        (self._gates / str(round_)).unlink()

    def says(self, line: str, times: int = 1) -> None:
        """Wait until its log has a line so often."""
        until(lambda: self.log.count(line) >= times, lambda: f"{line!r} x {times} in:\n{self.log}")


class SuperLink:
    """A SuperLink in its directory. host: where on the network it is."""

    def __init__(self, directory: Path, address: str, host: str | None) -> None:
        self.directory, self.address, self.host = directory, address, host
        self.console = directory.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None


class Deployment:
    """Organisations and the SuperLinks that they know; all of it is gone after `close`.

    model: a directory; its name is what servers ask for it by.
    """

    def __init__(self, root: Path, model: Path, names: Sequence[str] = small_runs.CLIENTS) -> None:
        self.root, self.model = root, model
        self.token = secrets.token_hex(8)
        self.network: Network | None = None
        self.members = {name: Member(root / "sites" / name, free_port()) for name in names}
        self.started: list[subprocess.Popen[bytes]] = []
        self._forked: list[BaseProcess] = []

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    # How it begins.

    def organisations(self, config: Config, address: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Write each organisation's keys, secrets, site.toml with floors off, and the problems that the local engine
        would deal to it.

        changes: by name, of their site.toml.
        """
        for name, member in self.members.items():
            task = {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": _REWARDS}
            tree = {
                "name": name,
                "superlink": address,
                "port": member.port,
                "tasks": {"main": task},
                "models": {self.model.name: str(self.model)},
                "machine": {"device": "cpu"},
                "engine": {"threads": 1},
            }
            for key, value in {"limits": FLOORS_OFF, **changes.get(name, {})}.items():
                tree[key] = {**FLOORS_OFF, **value} if key == "limits" else value
            write_site(member.directory, **tree)
            write_secret(member.directory / "state" / SAMPLING_SECRET, name)
            certificates.make_node_key(member.directory / f"{name}.key")
        give_problems(config, self.root / "sites")

    def superlink(self, name: str, host: str | None = None) -> SuperLink:
        """A SuperLink with an authority of its own, that runs and knows the organisations' keys."""
        ip = self.network.address(host) if self.network and host else "127.0.0.1"
        link = SuperLink(self.root / name, f"{ip}:{free_port()}", host)
        superlink_command.init(link.directory, link.address)
        self.start_superlink(link)
        if self.network and host:
            self.network.inside(host, lambda: self.register(link, *self.members))
        else:
            self.register(link, *self.members)
        return link

    def register(self, link: SuperLink, *names: str) -> None:
        """Register SuperNodes as `fedrlvr superlink register` does, without a process for each."""
        authority, port = (link.directory / "ca.crt").read_bytes(), link.address.rpartition(":")[2]
        with ControlHttpClient.from_server_address(f"127.0.0.1:{port}", False, authority, [RUNTIME]) as client:
            for name, member in ((name, self.members[name]) for name in names):
                key = certificates.read_node_key(member.directory / f"{name}.key").public_key()
                client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name=name))

    def start_superlink(self, link: SuperLink, more: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it listens. more: variables of its environment."""
        before = len(text(link.console))
        link.process = self.start(["superlink", "run", str(link.directory)], link.console, link.host, more)
        until(lambda: "Uvicorn running" in text(link.console)[before:], lambda: text(link.console))

    def start_worker(self, name: str) -> None:
        """Start an organisation's worker before a message does, in a process that has the imports done."""
        member = self[name]
        state = channel.state_directory(member.org)
        self._fork(_work, str(member.directory), state / "worker.log", member.environment)
        until((state / "worker.sock").exists)

    def _fork(self, target: Callable[..., None], argument: Any, log: Path, more: Mapping[str, str]) -> BaseProcess:
        process = _forks.Process(target=target, args=(argument, str(log), {TOKEN: self.token, **more}))
        process.start()
        self._forked.append(process)
        return process

    def start_site(self, name: str, link: SuperLink, host: str | None = None) -> None:
        """`fedrlvr site run`; returns when the SuperNode is not yet connected."""
        member = self[name]
        (member.directory / "ca.crt").write_bytes((link.directory / "ca.crt").read_bytes())
        member.console.write_bytes(b"")
        command = ["site", "run", str(member.directory), "--superlink", link.address]
        member.node = self.start(command, member.console, host, member.environment)

    def connected(self, *names: str) -> None:
        """Wait until SuperNodes that were started are connected."""
        for member in map(self.members.__getitem__, names or self.members):
            until(lambda member=member: is_alive(member.org), lambda: text(member.console))  # type: ignore[misc]  # noqa: B023

    def federate(self, link: SuperLink, log: Path, *arguments: str) -> Callable[[], int | None]:
        """`fedrlvr federate`, at the SuperLink's machine; gives its exit status, once it has ended."""
        command = ["federate", *arguments, "--superlink", str(link.directory)]
        if self.network and link.host:
            return self.start(command, log, link.host).poll
        process = self._fork(_command, command, log, {})
        return lambda: process.exitcode

    def start(
        self, arguments: Sequence[str], log: Path, host: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """`fedrlvr ARGUMENTS` as a process of its own, at a host of the network if there is one."""
        command = [sys.executable, "-m", "fedrlvr", *arguments]
        environment = {**os.environ, TOKEN: self.token, "PYTHONPATH": os.pathsep.join(_PATHS), **(more or {})}
        with log.open("ab") as out:
            how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "env": environment}
            if self.network and host:
                process = self.network.popen(host, command, **how, start_new_session=True)
            else:
                process = subprocess.Popen(command, **how, start_new_session=True)
        self.started.append(process)
        return process

    # What is done to it.

    def supernode(self, member: Member) -> psutil.Process:
        """The SuperNode that an organisation's `site run` keeps."""
        assert member.node is not None
        (supernode,) = psutil.Process(member.node.pid).children()
        return supernode

    def client_app(self, member: Member) -> psutil.Process:
        """The process that an organisation's SuperExec has forked for a message."""
        for process in self.supernode(member).children(recursive=True):
            parent = process.parent()
            if parent is not None and "forkserver" in " ".join(parent.cmdline()):
                return process
        raise AssertionError(f"{member.name} has no client app")

    def kill(self, process: subprocess.Popen[bytes] | None, *, alone: bool = False) -> None:
        """kill -9 of a process and, unless it dies alone, of those that it had started."""
        assert process is not None
        children = psutil.Process(process.pid).children(recursive=True)
        for target in [process, *([] if alone else children)]:
            with contextlib.suppress(psutil.Error):
                target.kill()
        process.wait()

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for popen in self.started:
            popen.kill()
            popen.wait()
        for fork in self._forked:
            fork.kill()
            fork.join()
        if self.network:
            self.network.close()

    def processes(self) -> list[psutil.Process]:
        """Every process of this federation that is there, whoever started it."""
        result = [psutil.Process(fork.pid) for fork in self._forked if fork.is_alive()]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(TOKEN) == self.token and process.status() != psutil.STATUS_ZOMBIE:
                    result.append(process)
        return result


def _work(site: str, log: str, environment: dict[str, str]) -> None:
    _become(log, environment)
    from fedrlvr.deployment.site.worker import main

    main(site)


def _command(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    _become(log, environment)
    from fedrlvr.cli.main import main

    main(arguments)


def _become(log: str, environment: dict[str, str]) -> None:
    """Make a forked process what a command's would be."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.setsid()
    os.environ.update(environment)


def records(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl so far."""
    return [json.loads(line) for line in text(directory / "metrics.jsonl").splitlines() if line.endswith("}")]
