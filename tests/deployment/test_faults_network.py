"""A federation on a network of its own: a line that is cut, a slow one, and every packet there was."""

from __future__ import annotations

import re

import pytest
from faulty import DELAY_S, NO_NETWORK, SERVER, SLOW_DEADLINE_S, Left, Traces
from federations import Deployment, text
from small_runs import CLIENTS

from benchmarks.packets import connections

pytest_plugins = ["faulty"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NO_NETWORK is not None, reason=str(NO_NETWORK))]

EXCHANGES = 5
"""Requests that at least are made for a message, one after another: it is asked for, fetched, confirmed, answered."""


def test_a_client_whose_line_is_cut_misses_the_round_and_is_back_when_it_is_mended(
    second: Traces, deployment: Deployment
) -> None:
    assert second.records[1]["left_out"]["bob"] == f"round 1: no answer within {SLOW_DEADLINE_S} s from bob"
    assert deployment["bob"].log.count(f"run {second.run}, round 1: sent") == 1
    assert "Connection attempt failed" in text(deployment["bob"].console)
    assert (2, "bob") not in second.missed


def test_a_slow_and_lossy_line_costs_time_and_nothing_else(second: Traces) -> None:
    (seconds,) = re.findall(r"round 1, train: ann has answered with [\d.]+ kB after ([\d.]+) s", second.said)
    assert float(seconds) > EXCHANGES * 2 * DELAY_S
    assert (1, "ann") not in second.missed


def test_nobody_asks_for_anything_but_the_superlink(second: Traces, deployment: Deployment) -> None:
    """Nor for a name, a clock or a newer release: no other packet was sent, answered or not."""
    network, port = deployment.network, int(second.link.address.rpartition(":")[2])
    assert network is not None
    server, packets = network.address(SERVER), second.notes["packets"]
    outside = [packet for packet in packets if packet.device != "lo"]
    assert {packet.protocol for packet in outside} <= {"tcp", "arp"}
    addresses = {name: network.address(name) for name in CLIENTS}
    opened = connections(outside)
    assert {(connection.source, connection.destination, connection.port) for connection in opened} == {
        (address, server, port) for address in addresses.values()
    }
    assert {frozenset((packet.source, packet.destination)) for packet in outside if packet.protocol == "tcp"} == {
        frozenset((address, server)) for address in addresses.values()
    }
    inside = [packet for packet in packets if packet.device == "lo"]
    # A host whose line is cut tells itself that the SuperLink cannot be reached: its kernel, by ICMP.
    loops = {(packet.source, packet.destination) for packet in inside if packet.protocol == "icmp"}
    assert loops <= {(addresses["bob"], addresses["bob"])}
    assert {packet.protocol for packet in inside} <= {"tcp", "icmp"}
    for name in CLIENTS:
        opened = {connection.port for connection in connections(inside) if connection.where == name}
        assert opened == {deployment[name].port}
    assert second.notes["lost"] == 0


def test_no_port_is_left_open(left: Left) -> None:
    assert set(left.ports) == {SERVER, *CLIENTS}
    assert not any(left.ports.values())
