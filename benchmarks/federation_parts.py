"""What `federation.py` is made of: machines with programs on them, and Flower's own floor."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.netns import Listening, Network, available, listening_here
from benchmarks.packets import Capture

SERVER = "server"
CLIENTS = ("clinic-a", "clinic-b", "clinic-c")
PORT = 18000
FIRST_PORT = 9094
"""Of the first clinic's SuperNode, on its own loopback; the next has the next."""
EVERYBODY = "this machine, all programs"
PATIENCE_S = 120.0
END_S = 20.0
"""What Flower's programs have started must be gone so soon after them."""
_BIN = Path(sys.executable).parent
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}

FLOOR_PROJECT = """\
[project]
name = "floor"
version = "1.0.0"
description = "An app that does nothing."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "floor:server"
clientapp = "floor:client"

[tool.flwr.app.config]
"""
FLOOR_APP = """\
import time
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()

@client.query()
@client.train()
@client.evaluate()
def nothing(message, context):
    return Message(RecordDict(), reply_to=message)

@server.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < {clients}:
        time.sleep(0.5)
    ask(grid, [Message(RecordDict(), node, "query") for node in nodes])  # the first has the app unpacked
    with open({times!r}, "w") as file:
        print(time.time(), file=file, flush=True)
        for round_ in range({rounds}):
            for kind in ("query", "train", "evaluate"):
                messages = [Message(RecordDict(), node, kind) for node in nodes]
                assert all(reply.has_content() for reply in ask(grid, messages))
            print(time.time(), file=file, flush=True)

"""
ASK = {
    False: """\
def ask(grid, messages):
    return grid.send_and_receive(messages)
""",
    True: """\
def ask(grid, messages):
    waiting, replies = set(grid.push_messages(messages)), []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
        time.sleep(0.25 if waiting else 0)
    return replies
""",
}
"""Flower's own way looks for replies every three seconds; the other every quarter of one, as fedrlvr does."""


class Machines:
    """Hosts with a network each and one disk, and what runs on them.

    work: the directory that programs run in; what they print is in its `logs`.
    """

    def __init__(self, hosts: Sequence[str], work: Path, *, loopback: bool) -> None:
        self.hosts, self.work, self.logs = list(hosts), work, work / "logs"
        self.why_not = "left out by --loopback" if loopback else available()
        """Why there are no namespaces; None if there are."""
        self.network = Network(hosts) if self.why_not is None else None
        if self.network is None:
            print(f"No machines of their own ({self.why_not}): all of it on 127.0.0.1, and no packets are captured.")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.logs.mkdir()

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *raised: object) -> None:
        for name in list(self._running):
            self.stop(name)
        if self.network is not None:
            self.network.close()

    def address(self, host: str) -> str:
        """Where others reach a host."""
        return self.network.address(host) if self.network else "127.0.0.1"

    def names(self) -> dict[str, str]:
        """The hosts by address."""
        return {self.address(host): host for host in self.hosts}

    def capture(self) -> Capture | None:
        """Count packets from now on, where there are machines with a network of their own."""
        return self.network.capture() if self.network else None

    def others(self) -> Callable[[], float | None]:
        """What other programs take from now on; to be asked once, for cores. None where they cannot be told apart."""
        return Others(self.network).stop if self.network else lambda: None

    # Programs.

    def fedrlvr(self, host: str, *arguments: object) -> None:
        """`fedrlvr ARGUMENTS` at a host, to its end.

        Raises:
            SystemExit: it has failed; what it printed is shown.
        """
        self.program(host, "fedrlvr", *arguments)

    def program(self, host: str, name: str, *arguments: object, **environment: str) -> None:
        """A program of the virtual environment at a host, to its end; as `fedrlvr`."""
        command = [str(_BIN / name), *map(str, arguments)]
        print(f"{host}$ {' '.join([name, *command[1:]])}", flush=True)
        log = self.logs / f"{host}-{name}-{arguments[0]}.log"
        with log.open("ab") as out:
            code = self._popen(host, command, out, environment).wait()
        if code:
            raise SystemExit(f"It has failed ({code}):\n{log.read_text('utf-8', 'replace')[-4000:]}")

    def start(self, host: str, *arguments: object) -> None:
        """`fedrlvr ARGUMENTS` at a host, which stays; a host has one such program at a time."""
        self.start_program(host, "fedrlvr", *arguments)

    def start_program(self, host: str, name: str, *arguments: object, **environment: str) -> None:
        """A program of the virtual environment at a host, which stays."""
        command = [str(_BIN / name), *map(str, arguments)]
        print(f"{host}$ {' '.join([name, *command[1:]])} &", flush=True)
        with (self.logs / f"{host}.log").open("ab") as out:
            self._running[host] = self._popen(host, command, out, environment)

    def stop(self, host: str) -> None:
        """Ctrl-C for what was started at a host.

        Raises:
            SystemExit: it does not end. It is killed.
        """
        process = self._running.pop(host)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"What runs at {host} does not end at Ctrl-C: see {self.logs / host}.log") from None

    def _popen(
        self, host: str, command: Sequence[str], out: Any, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        # Flower's programs start others by name.
        path = os.pathsep.join([str(_BIN), os.environ.get("PATH", os.defpath)])
        more: dict[str, Any] = {"env": {**os.environ, **_QUIET, "PATH": path, **environment}, "stdout": out}
        more |= {"stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "cwd": self.work, "start_new_session": True}
        return self.network.popen(host, command, **more) if self.network else subprocess.Popen(command, **more)

    # Waiting, and looking.

    def until_open(self, host: str, port: int) -> None:
        """Wait until a host listens on a port."""
        self._until(host, f"{host} does not listen on {port}", lambda: any(p.port == port for p in self.open(host)))

    def until_workers_went(self, sites: Sequence[Path], seconds: float) -> None:
        """Wait until no site has a worker any more."""

        def gone() -> bool:
            return not any((site / "state" / "worker.sock").exists() for site in sites)

        self._until("", f"a worker is still there after {seconds:.0f} s", gone, seconds)

    def open(self, host: str) -> set[Listening]:
        """The ports open at a host; with --loopback all of this machine."""
        return self.network.listening(host) if self.network else listening_here()

    def open_ports(self) -> dict[str, list[str]]:
        """The ports open at each host, in words."""
        hosts = self.hosts if self.network else [EVERYBODY]
        return {host: sorted(f"{p.protocol} {p.address}:{p.port}" for p in self.open(host)) for host in hosts}

    def left(self) -> list[str]:
        """Processes and open ports that are still there a while after everything was stopped, in words."""
        end = time.monotonic() + END_S
        while (processes := self._left()) and time.monotonic() < end:
            time.sleep(0.5)
        return processes

    def _left(self) -> list[str]:
        processes = []
        expected_ports = {PORT, *range(FIRST_PORT, FIRST_PORT + len(CLIENTS))}
        for host in self.hosts if self.network else [EVERYBODY]:
            ports = self.open(host)
            processes += [
                f"{host}: {p.protocol} {p.address}:{p.port} is open"
                for p in ports
                if self.network or p.port in expected_ports
            ]
            for pid in self.network.processes(host) if self.network else []:
                processes.append(f"{host}: process {pid}")
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or ())
            if str(self.work) in command:
                processes.append(f"process {process.pid}: {command[:200]}")
        return processes

    def _until(self, host: str, else_say: str, true: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        end = time.monotonic() + seconds
        while not true():
            ended = host in self._running and self._running[host].poll() is not None
            if ended or time.monotonic() > end:
                log = self.logs / f"{host}.log"
                said = log.read_text("utf-8", "replace")[-3000:] if log.exists() else ""
                raise SystemExit(f"{else_say}{'; it has ended' if ended else ''}. {said}")
            time.sleep(0.1)

    # Flower's own floor.

    def floor(self, app: Path, address: str, prompt: bool) -> list[float]:
        """Seconds of each round of an app that does nothing, on SuperNodes of Flower's own with keys of their own.

        prompt: their SuperExecs look for messages every 0.2 s, as fedrlvr's, instead of every second.
        """
        often = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"} if prompt else {}
        for number, host in enumerate(CLIENTS):
            key = f"{app.name}/{host}.key"
            command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(self.work / key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
            registered = [f"{key}.pub", "--name", f"{app.name}-{host}"]
            self.fedrlvr(SERVER, "superlink", "register", "superlink", *registered)
            options = ["--superlink", address, "--root-certificates", "superlink/ca.crt"]
            options += ["--auth-supernode-private-key", key, "--port", str(FIRST_PORT + number)]
            self.start_program(host, "flower-supernode", *options, FLWR_HOME=str(app / f"home-{host}"), **often)
        self.program(
            SERVER, "flwr", "run", app.name, "fedrlvr", "--stream", FLWR_HOME=str(self.work / "superlink/flower")
        )
        for host in CLIENTS:
            self.stop(host)
        times = [float(line) for line in (app / "times").read_text("utf-8").split()]
        return [after - before for before, after in itertools.pairwise(times)]


class Others:
    """How many cores programs other than ours keep busy, from when it is made until `stop`.

    Looked at once a second, so what lives shorter is not counted: it is rather too low than too high.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._seconds, self._began = 0.0, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Their CPU seconds a second."""
        self._over.set()
        self._thread.join()
        return self._seconds / (time.monotonic() - self._began)

    def _look(self) -> None:
        before: dict[tuple[int, float], float] = {}
        first = True
        while not self._over.wait(0 if first else 1.0):
            now = {}
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    # Who has ended and is not buried yet says no more where it was.
                    ended = process.status() == psutil.STATUS_ZOMBIE
                    if not ended and process.pid != os.getpid() and not self._network.has(process.pid):
                        spent = process.cpu_times()
                        now[process.pid, process.create_time()] = spent.user + spent.system
            if not first:
                self._seconds += sum(spent - before.get(pid, 0.0) for pid, spent in now.items())
            before, first = now, False


def floor_app(work: Path, rounds: int, *, prompt: bool) -> Path:
    """A Flower app that does nothing, with as many messages a round as a round with one exchange has."""
    app = work / ("floor-prompt" if prompt else "floor")
    (app / "floor").mkdir(parents=True)
    (app / "pyproject.toml").write_text(FLOOR_PROJECT, "utf-8")
    code = FLOOR_APP.format(clients=len(CLIENTS), rounds=rounds, times=str(app / "times")) + ASK[prompt]
    (app / "floor" / "__init__.py").write_text(code, "utf-8")
    return app


def edit(site_toml: Path, *, instruction: str, idle_minutes: float, threads: int) -> None:
    """What an organisation changes in its site.toml by hand."""
    text = site_toml.read_text("utf-8")
    text, tasks = re.subn(
        r'^(name = "jsonl")$', rf"\1\nprompt = {{instruction = {json.dumps(instruction)}}}", text, flags=re.M
    )
    text, idle = re.subn(r"^# idle_minutes = .*$", f"idle_minutes = {idle_minutes}", text, flags=re.M)
    if (tasks, idle) != (1, 1):
        raise SystemExit(f"{site_toml} is not as `fedrlvr site init` used to write it.")
    site_toml.write_text(f"{text}\n[engine]\nthreads = {threads}\n", "utf-8")
