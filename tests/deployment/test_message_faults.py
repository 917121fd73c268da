"""A message that a site cannot finish: a reward function hangs, or SIGTERM comes in the middle of training. In one run
of two organisations bob is struck in both rounds."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest
from faulty import Traces, a_config, begin
from federations import Deployment
from models import tiny_model
from small_runs import CLIENTS
from typer.testing import CliRunner

from fedrlvr.cli.site import site

pytestmark = pytest.mark.slow

MINUTES = 1.0
"""bob's message_minutes; on a busy machine a new worker takes a good part of it."""
DEADLINE_S = 180


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The organisations, of whom cyd never connects."""
    root = tmp_path_factory.mktemp("messages")
    deployment = Deployment(root, tiny_model(root / "tiny"))
    try:
        config = a_config(deployment, "struck", DEADLINE_S, 2)
        deployment.organisations(config, "127.0.0.1:1", {"bob": {"message_minutes": MINUTES}})
        yield deployment
    finally:
        deployment.close()


@pytest.fixture(scope="module")
def struck(deployment: Deployment) -> Traces:
    """The run; its notes have what was seen of bob."""
    link = deployment.superlink("hub")
    traces, toml = begin(deployment, link, "struck", DEADLINE_S, rounds=2)
    ann, bob, _ = (deployment[name] for name in CLIENTS)
    bob.close_gate(1)
    bob.close_gate(2)
    for member in (ann, bob):
        deployment.start_site(member.name, link)
        deployment.start_worker(member.name)
    deployment.connected("ann", "bob")
    running = deployment.federate(link, traces.log, str(toml), "--wait", "1")

    bob.at_gate(1)
    traces.notes["status"] = CliRunner().invoke(site, ["status", str(bob.directory)]).output
    traces.notes["hanging"] = psutil.Process(bob.worker)
    traces.reached(1)
    traces.notes["log"] = bob.log

    bob.at_gate(2)
    assert bob.node is not None
    traces.notes["processes"] = [*psutil.Process(bob.node.pid).children(recursive=True), psutil.Process(bob.worker)]
    bob.node.send_signal(signal.SIGTERM)
    traces.notes["code"] = bob.node.wait(60)
    psutil.wait_procs(traces.notes["processes"], 10)
    traces.notes["left"] = [process for process in traces.notes["processes"] if process.is_running()]
    assert traces.ends(running) == 0, traces.said
    return traces


def test_a_reward_function_that_hangs_is_killed_and_both_sides_are_told(struck: Traces) -> None:
    assert "busy train of round 1, busy_since 20" in struck.notes["status"]
    assert f"no answer within message_minutes = {MINUTES:g}" in struck.notes["log"]
    assert "message_minutes" in struck.records[1]["left_out"]["bob"]
    assert not struck.notes["hanging"].is_running()


def test_its_site_is_back_in_the_next_round(struck: Traces, deployment: Deployment) -> None:
    assert f"run {struck.run}, round 2: asked to train" in deployment["bob"].log
    assert deployment["bob"].log.count("a worker begins") == 2


def test_sigterm_ends_supernode_client_app_and_worker_in_mid_message(struck: Traces, deployment: Deployment) -> None:
    assert struck.notes["code"] == 0
    assert len(struck.notes["processes"]) > 3
    assert struck.notes["left"] == []
    assert "site run ends: it was told to end" in deployment["bob"].log
    assert (2, "bob") in struck.missed
    assert (2, "ann") not in struck.missed
