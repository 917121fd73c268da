"""What goes wrong in a federation costs the clients it strikes their round, and nobody anything else.

faulty.py says what happens in which round; here is what it left behind.
"""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from faulty import AWAY, DEADLINE_S, LATE, NO_NETWORK, SLOW_DEADLINE_S, Left, Misses, Traces, locally
from federations import Deployment, text
from small_runs import CLIENTS, adapter_bytes

from fedrlvr.deployment import certificates

pytestmark = pytest.mark.slow

pytest_plugins = ["faulty"]

FIRST: Misses = {
    (1, "ann"): LATE,
    (1, "bob"): LATE,
    (2, "bob"): AWAY,
    (2, "cyd"): AWAY,
    (3, "bob"): AWAY,
}
SECOND: Misses = {(1, "cyd"): LATE} | ({(1, "bob"): LATE} if NO_NETWORK is None else {})
REFUSES = ["cyd"]
MORE_S = 5
"""Seconds that a round may take beyond its deadline: to look for replies, on a machine with other things to do."""


def rewards(directory: Path) -> list[dict[str, float]]:
    """Each round's mean reward in training, by client."""
    lines = [json.loads(line) for line in text(directory / "metrics.jsonl").splitlines()]
    return [
        {name: numbers["reward"] for name, numbers in line["clients"].items() if "reward" in numbers} for line in lines
    ]


def checkpoints(directory: Path) -> dict[str, bytes]:
    """The global adapter after each round."""
    result = sorted((directory / "checkpoints").glob("*/adapter.safetensors"))
    return {path.parent.name: path.read_bytes() for path in result}


def assert_as_local(traces: Traces, deployment: Deployment, struck: Misses) -> None:
    """The run is the local engine's with the same clients missing, bit for bit in every round.

    struck: who must have missed a round. On a machine with much else to do another may have been late.
    """
    misses = traces.misses(deployment)
    assert struck.items() <= misses.items()
    local = locally(traces.config, traces.directory.with_name(f"{traces.directory.name}-locally"), misses, REFUSES)
    assert checkpoints(traces.directory) == checkpoints(local)
    assert len(checkpoints(local)) == traces.config.train.rounds + 1
    assert adapter_bytes(traces.directory) == adapter_bytes(local) != {}
    assert rewards(traces.directory) == rewards(local)


# The first server's run.


def test_who_misses_a_round_changes_it_as_in_a_simulation_and_goes_on_from_what_he_has(
    first: Traces, deployment: Deployment
) -> None:
    """Moments are kept by the clients: one that had forgotten a round, or done it twice, would be seen in all later."""
    assert_as_local(first, deployment, FIRST)


def test_who_is_late_is_waited_for_until_the_deadline_and_his_answer_is_never_taken(
    first: Traces, deployment: Deployment
) -> None:
    record = first.records[1]
    assert record["left_out"]["ann"] == f"round 1: no answer within {DEADLINE_S} s from ann"
    assert DEADLINE_S <= record["seconds"]["train"] <= DEADLINE_S + MORE_S
    assert "ann has missed the deadline" in first.said
    assert deployment["ann"].log.count(f"run {first.run}, round 1: sent") == 1  # it was made, and sent
    assert (1, "ann") in first.missed
    assert (2, "ann") not in first.missed


def test_a_client_app_that_is_killed_costs_its_client_the_round_and_its_supernode_still_ends_when_told(
    first: Traces, deployment: Deployment
) -> None:
    assert first.records[1]["left_out"]["bob"] == f"round 1: no answer within {DEADLINE_S} s from bob"
    assert deployment["bob"].log.count(f"run {first.run}, round 1: sent") == 1  # its worker was not struck
    assert first.notes["bob's SuperNode"] == 0


def test_a_client_that_was_away_for_three_rounds_takes_part_in_the_fourth(first: Traces) -> None:
    assert [round_ for round_, name in sorted(first.missed) if name == "bob"] == [1, 2, 3]
    for record in first.records[2:4]:  # nobody waited for it
        assert record["seconds"]["train"] < DEADLINE_S


def test_a_disk_that_is_full_costs_the_round_it_was_full_in(first: Traces, deployment: Deployment) -> None:
    cyd, where = deployment["cyd"], f"run {first.run}, round 2:"
    said = first.records[2]["left_out"]["cyd"]
    assert said == "round 2, cyd: the client failed (failed at cyd (CheckpointError); the log there says why)"
    assert f"{where} failed (CheckpointError); worker.log says why" in cyd.log
    assert f"{where} sent" not in cyd.log
    assert "File too large" in text(cyd.directory / "state" / "worker.log")
    assert cyd.log.split(first.run)[0].count("a worker begins") == cyd.log.count("a worker begins") == 1  # it lives on
    assert (3, "cyd") not in first.missed


def test_what_is_not_allowed_is_refused_and_both_sides_are_told_why(first: Traces, deployment: Deployment) -> None:
    why = "cyd answers no evaluate messages (limits.message_types)"
    assert f"cyd has not: {why}" in first.said
    for round_ in (0, 4):
        assert why in first.records[round_]["left_out"]["cyd"]
        assert "cyd" not in first.records[round_]["evaluate"]
        assert f"run {first.run}, round {round_}: refused: {why}" in deployment["cyd"].log


def test_a_superlink_that_is_killed_loses_no_round_that_was_done(first: Traces, deployment: Deployment) -> None:
    assert first.notes["status"] == 1
    again = f"`fedrlvr federate --resume {first.directory} --superlink {first.link.directory}`"
    assert f"the SuperLink cannot be reached any more. Rounds that are done are kept: {again}" in first.said
    assert "4 rounds, going on with round 3" in first.said
    before = first.notes["done before the kill"]
    assert [json.loads(line)["round"] for line in before.splitlines()] == [0, 1, 2]
    assert text(first.directory / "metrics.jsonl").startswith(before)
    assert [record["round"] for record in first.records] == [0, 1, 2, 3, 4]
    assert deployment["ann"].log.count(f"run {first.run}, round 3: sent") == 2


def test_the_report_says_who_missed_what(first: Traces) -> None:
    page = text(first.directory / "report.html")
    rows = [(record["round"], *miss) for record in first.records for miss in record.get("left_out", {}).items()]
    assert len(rows) >= len(FIRST) + 2
    for round_, name, why in rows:
        assert f'<td class="num">{round_}</td><td>{name}</td><td>{html.escape(why)}</td>' in page


# The second server's.


def test_another_server_finds_the_same_organisations_and_what_each_remembers_stays_apart(
    first: Traces, second: Traces, deployment: Deployment
) -> None:
    authorities = [certificates.read_certificate(run.link.directory / "ca.crt") for run in (first, second)]
    assert authorities[0] != authorities[1]
    assert_as_local(second, deployment, SECOND)
    for name in CLIENTS:
        runs = deployment[name].directory / "state" / "runs"
        assert {path.name for path in runs.iterdir()} == {first.run, second.run}
        assert all(list((path / "clients" / name).glob("round-*/memory.packed")) for path in runs.iterdir())


@pytest.mark.parametrize(("name", "workers"), [("ann", 3), ("bob", 3), ("cyd", 2)])
def test_a_worker_loads_the_model_once_for_all_rounds_and_servers(
    second: Traces, deployment: Deployment, name: str, workers: int
) -> None:
    """Each ended with `site run` once. ann was killed, and bob ended again where its SuperNode was."""
    log = deployment[name].log
    assert log.count("a worker begins") == log.count(f"loaded {deployment.model.name} in ") == workers


def test_a_worker_that_is_killed_in_mid_message_is_replaced_and_the_message_answered(
    second: Traces, deployment: Deployment
) -> None:
    lines = [line.partition(" ")[2] for line in deployment["ann"].log.splitlines()]
    asked = f"run {second.run}, round 2: asked to train"
    (first_time, again) = [number for number, line in enumerate(lines) if line.startswith(asked)]
    assert any(line.startswith("a worker begins") for line in lines[first_time:again])
    assert (2, "ann") not in second.missed


def test_a_supernode_that_is_killed_is_started_again_and_is_back_in_the_next_round(
    second: Traces, deployment: Deployment
) -> None:
    assert (1, "cyd") in second.missed
    assert deployment["cyd"].log.count(f"run {second.run}, round 1: sent") == 1  # its worker was not struck
    assert "the SuperLink has deactivated it" in text(deployment["cyd"].console)
    assert (2, "cyd") not in second.missed
    assert second.records[1]["seconds"]["train"] <= SLOW_DEADLINE_S + MORE_S


def test_nothing_is_left_when_all_was_told_to_end(left: Left) -> None:
    """Nor of what the SuperNode had started that was killed, which nobody told."""
    assert left.processes == []
    assert left.open == []
