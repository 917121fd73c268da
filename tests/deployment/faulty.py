"""Two runs in which things go wrong, one after another on the same organisations, and what the local engine makes of
runs in which the same clients miss the same rounds. Fixtures for test_faults and test_faults_network.

First server: round 1, bob's client app is killed and ann is late; round 2, bob is away and cyd's disk is full; round 3,
bob is away still and the SuperLink is killed, so it is done again; round 4, bob is back.
Second server, on a network if there can be one: round 1, ann's line is slow and lossy, bob's is cut and cyd's SuperNode
is killed; round 2, ann's worker is killed.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from federations import Deployment, SuperLink, records, text, until
from flwr.app import Context, Error, Message
from models import tiny_model
from organisations import give_secrets
from small_runs import CLIENTS, settings, write_problems, write_toml

from benchmarks.netns import Listening, Network, available
from fedrlvr.config import Config, parse_config
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.link import is_alive
from fedrlvr.reporting.observer import Observer
from fedrlvr.simulation.run import Federation, new_cohort

DEADLINE_S, SLOW_DEADLINE_S = 20, 40
DELAY_S, LOSS = 0.5, 0.01
FULL = 16_000
"""Bytes that a file may have on cyd's disk in round 2: enough for its logs, not for what its worker remembers."""
NO_NETWORK = available()
SERVER = "server"

LATE, AWAY = "computed, but not taken", "not computed"
Misses = Mapping[tuple[int, str], str]


@dataclass
class Traces:
    """The files and notes that a run has left.

    log: what `fedrlvr federate` printed. notes: what was seen on the way.
    """

    directory: Path
    config: Config
    log: Path
    link: SuperLink
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The output of `fedrlvr federate`."""
        return text(self.log)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return records(self.directory)

    @property
    def run(self) -> str:
        """The run's name in messages."""
        return text(self.directory / "run-id").strip() or "not begun"

    @property
    def missed(self) -> set[tuple[int, str]]:
        """The rounds and clients without training, as pairs."""
        return {
            (record["round"], name)
            for record in self.records[1:]
            for name in CLIENTS
            if "reward" not in record["clients"].get(name, {})
        }

    def misses(self, deployment: Deployment) -> Misses:
        """The reason of each miss: LATE if the client sent an answer, since it then remembers it, else AWAY."""
        return {
            (round_, name): LATE if f"run {self.run}, round {round_}: sent" in deployment[name].log else AWAY
            for round_, name in self.missed
        }

    def reached(self, round_: int) -> None:
        """Wait until a round is written down."""
        until(lambda: any(record["round"] == round_ for record in self.records), lambda: self.said)

    def ends(self, running: Callable[[], int | None]) -> int:
        """The exit status of `fedrlvr federate`, when it has ended."""
        until(lambda: running() is not None, lambda: self.said)
        return running() or 0


def a_config(deployment: Deployment, name: str, deadline: int, rounds: int) -> Config:
    """A run of the tests' organisations, of whom one is enough."""
    problems = write_problems(deployment.root / "problems")
    changes: dict[str, Any] = {
        "run": {"seed": 3, "keep_checkpoints": 20},
        "federation": {"clients": list(CLIENTS), "quorum": 0.3, "deadline": deadline},
        "train": {
            "rounds": rounds,
            "local_steps": 2,
            "problems_per_step": 2,
            "learning_rate": 1e-2,
            "optimizer_state": "keep",
        },
    }
    return parse_config(settings(deployment.model, problems, deployment.root / name, **changes))


def begin(deployment: Deployment, link: SuperLink, name: str, deadline: int, rounds: int) -> tuple[Traces, Path]:
    """A run's traces to be, and its configuration in a file."""
    config = a_config(deployment, name, deadline, rounds)
    assert config.run.directory is not None
    tree = config.model_dump(mode="json", exclude_unset=True)
    toml = write_toml(deployment.root / f"{name}.toml", tree)
    return Traces(config.run.directory, config, deployment.root / f"{name}.log", link), toml


def locally(config: Config, directory: Path, misses: Misses, refuses: Sequence[str]) -> Path:
    """The same run by the local engine, where clients miss the same rounds, and some refuse to be evaluated."""
    torch.set_num_threads(1)
    engine = config.engine.model_copy(update={"cohort": False, "threads": 1})
    secrets = give_secrets(directory.with_name("secrets"), CLIENTS)
    where = config.run.model_copy(update={"directory": directory, "secrets": secrets})
    config = config.model_copy(update={"engine": engine, "run": where})
    federation = Federation(config, directory, new_cohort(config), Observer())

    def answer(message: Message, context: Context) -> Message:
        name, round_ = federation.names[message.metadata.dst_node_id], int(message.metadata.group_id)
        if message.metadata.message_type == "evaluate":
            how = AWAY if name in refuses else None
        else:
            how = misses.get((round_, name))
        if how == AWAY:
            return Message(Error(1, how), reply_to=message)
        (reply,) = federation.app([message], [context])
        return reply if how is None else Message(Error(1, how), reply_to=message)

    def handler(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        return [answer(*pair) for pair in zip(messages, contexts, strict=True)]

    federation.go(resume=False, handler=handler)
    return directory


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Organisations whose workers run; cyd does not let itself be evaluated."""
    root = tmp_path_factory.mktemp("deployment")
    deployment = Deployment(root, tiny_model(root / "tiny"))
    try:
        config = a_config(deployment, "first", DEADLINE_S, 4)
        deployment.organisations(config, "127.0.0.1:1", {"cyd": {"limits": {"message_types": ["train"]}}})
        yield deployment
    finally:
        deployment.close()


@pytest.fixture(scope="session")
def first(deployment: Deployment) -> Traces:
    """The first server's run."""
    link = deployment.superlink("hub")
    traces, toml = begin(deployment, link, "first", DEADLINE_S, rounds=4)
    for name in CLIENTS:
        deployment.start_site(name, link)
    ann, bob, cyd = deployment.members.values()
    for member, round_ in ((ann, 1), (bob, 1), (cyd, 2), (ann, 3)):
        member.close_gate(round_)
    running = deployment.federate(link, traces.log, str(toml))
    for name in CLIENTS:
        deployment.start_worker(name)

    ann.at_gate(1)
    worker = psutil.Process(ann.worker)
    worker.suspend()
    ann.open_gate(1)
    bob.at_gate(1)
    deployment.client_app(bob).kill()
    bob.open_gate(1)
    traces.reached(1)
    worker.resume()
    assert bob.node is not None
    bob.node.send_signal(signal.SIGTERM)

    cyd.at_gate(2)
    before = resource.prlimit(cyd.worker, resource.RLIMIT_FSIZE)
    resource.prlimit(cyd.worker, resource.RLIMIT_FSIZE, (FULL, before[1]))
    cyd.open_gate(2)
    traces.reached(2)
    resource.prlimit(cyd.worker, resource.RLIMIT_FSIZE, before)
    traces.notes["bob's SuperNode"] = bob.node.wait(30)

    ann.at_gate(3)
    traces.notes["done before the kill"] = text(traces.directory / "metrics.jsonl")
    deployment.kill(link.process)
    ann.open_gate(3)
    traces.notes["status"] = traces.ends(running)
    ann.says("round 3: sent")
    ann.close_gate(3)
    deployment.start_superlink(link)
    running = deployment.federate(link, traces.log, "--resume", str(traces.directory), "--wait", "1")
    ann.at_gate(3)
    deployment.start_site("bob", link)
    deployment.start_worker("bob")  # the last ended with its `site run`
    deployment.connected("bob")
    ann.open_gate(3)
    assert traces.ends(running) == 0, traces.said
    for member in deployment.members.values():
        assert member.node is not None
        member.node.send_signal(signal.SIGTERM)
    return traces


@pytest.fixture(scope="session")
def second(deployment: Deployment, first: Traces) -> Traces:
    """The second server's run."""
    ann, bob, cyd = deployment.members.values()
    if NO_NETWORK is None:
        deployment.network = Network([SERVER, *CLIENTS], slowable=["ann"])
        capture = deployment.network.capture()
    link = deployment.superlink("other-hub", SERVER)
    traces, toml = begin(deployment, link, "second", SLOW_DEADLINE_S, rounds=2)
    for name, member in deployment.members.items():
        assert member.node is not None
        member.node.wait(30)
        deployment.start_site(name, link, name)
    for name in CLIENTS:  # they ended with `site run`
        deployment.start_worker(name)
    for member, round_ in ((bob, 1), (cyd, 1), (ann, 2)):
        member.close_gate(round_)
    running = deployment.federate(link, traces.log, str(toml))

    until(lambda: traces.run in ann.log, lambda: traces.said)
    ann.says("round 0: sent", 2)
    if deployment.network:
        deployment.network.slow("ann", DELAY_S, LOSS)
    bob.at_gate(1)
    if deployment.network:
        deployment.network.cut("bob")
    cyd.at_gate(1)
    deployment.supernode(cyd).kill()  # its `site run` starts another
    cyd.open_gate(1)
    with contextlib.suppress(AssertionError):  # else the tests tell of it
        until(lambda: is_alive(cyd.org), seconds=SLOW_DEADLINE_S / 2)
    bob.open_gate(1)
    traces.reached(1)
    if deployment.network:
        deployment.network.slow("ann", 0)
        deployment.network.mend("bob")

    ann.at_gate(2)
    worker = psutil.Process(ann.worker)
    worker.suspend()
    ann.open_gate(2)
    worker.kill()
    assert traces.ends(running) == 0, traces.said
    if deployment.network:
        traces.notes["packets"] = set(capture.stop())
        traces.notes["lost"] = capture.lost
    return traces


@dataclass
class Left:
    """Processes and ports, of this machine and of the network, that are left after everything was told to end."""

    processes: list[str]
    open: list[int]
    ports: dict[str, set[Listening]]


@pytest.fixture(scope="session")
def left(deployment: Deployment, first: Traces, second: Traces) -> Left:
    """Ends SuperNodes, SuperLinks and workers; returns what is still there."""
    servers = [process for process in deployment.started if process.poll() is None]
    for process in servers:
        process.send_signal(signal.SIGTERM)
    for process in servers:
        process.wait(30)
    for member in deployment.members.values():
        channel.stop(member.org)
    with contextlib.suppress(AssertionError):
        until(lambda: not deployment.processes(), seconds=30)
    network = deployment.network
    ports = {host: network.listening(host) for host in network.hosts} if network else {}
    here = [member.port for member in deployment.members.values()]
    here += [int(run.link.address.rpartition(":")[2]) for run in (first, second)]
    processes = [" ".join(process.cmdline()) for process in deployment.processes()]
    return Left(processes, [port for port in here if listens(port)], ports)


def listens(port: int) -> bool:
    """Says if a process listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
