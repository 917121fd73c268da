"""Hosts in network namespaces talk, are cut off, wait for a slow cable; every packet is seen, and nothing is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.netns import HUB, Listening, Network, available
from benchmarks.packets import Connection, Packet, connections, read
from benchmarks.slowlink import Line

PORT = 5000
_why_not = available() if sys.platform.startswith("linux") else "network namespaces are Linux's"
needs_namespaces = pytest.mark.skipif(_why_not is not None, reason=str(_why_not))


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(["ann", "bob"]) as made:
        yield made


def listen(network: Network, host: str, address: str | None = None) -> socket.socket:
    return network.inside(host, lambda: socket.create_server((address or network.address(host), PORT)))


def connect(network: Network, host: str, address: str, port: int = PORT, timeout: float = 5.0) -> socket.socket:
    return network.inside(host, lambda: socket.create_connection((address, port), timeout))


def left(names: list[str]) -> list[str]:
    """The existing namespaces among these names. A namespace of another name may be another process's."""
    there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if name in there]


@pytest.mark.slow
@needs_namespaces
def test_hosts_talk_and_a_cut_cable_parts_them_until_it_is_mended(network: Network) -> None:
    with listen(network, "ann") as server:
        with connect(network, "bob", network.address("ann")) as there, server.accept()[0] as here:
            assert here.getpeername()[0] == network.address("bob")
            network.cut("bob")
            there.sendall(b"late")
            here.settimeout(0.3)
            with pytest.raises(TimeoutError):
                here.recv(4)
            network.mend("bob")
            here.settimeout(5)
            assert here.recv(4) == b"late"  # TCP sends it again
        with connect(network, "bob", network.address("ann")):
            pass


@pytest.mark.slow
@needs_namespaces
def test_a_host_is_one_of_its_own(network: Network) -> None:
    """Its loopback is nobody else's, and the real network cannot be reached."""
    with listen(network, "ann", "127.0.0.1"), pytest.raises(ConnectionRefusedError):
        connect(network, "bob", "127.0.0.1")
    with pytest.raises(OSError, match="No route to host"):  # it is told, and need not wait
        connect(network, "bob", "192.0.2.7", timeout=60)
    with pytest.raises(OSError, match="assign requested address"):
        network.inside("bob", lambda: socket.create_connection(("::1", PORT), 5))


@pytest.mark.slow
@needs_namespaces
def test_a_slow_cable_delays_each_packet_each_way() -> None:
    with Network(["ann", "bob"], slowable=["bob"]) as network, listen(network, "ann") as server:
        with connect(network, "bob", network.address("ann")):  # as quick as any, and knows the way from now on
            pass
        server.accept()[0].close()
        network.slow("bob", 0.1)
        began = time.monotonic()
        with connect(network, "bob", network.address("ann")) as there, server.accept()[0] as here:
            assert time.monotonic() - began >= 0.2  # there and back
            there.sendall(b"ask")
            assert here.recv(3) == b"ask"
            here.sendall(b"say")
            assert there.recv(3) == b"say"
            assert time.monotonic() - began >= 0.4
        network.slow("bob", 0.0, loss=1.0)
        with pytest.raises(TimeoutError):
            connect(network, "bob", network.address("ann"), timeout=0.3)
        network.slow("bob", 0.0)
        network.cut("bob")
        with pytest.raises(TimeoutError):
            connect(network, "bob", network.address("ann"), timeout=0.3)
        network.mend("bob")
        with connect(network, "bob", network.address("ann")):
            pass


@pytest.mark.slow
@needs_namespaces
def test_a_cable_that_loses_packets_still_carries_whole_messages() -> None:
    sent = os.urandom(400_000)
    with Network(["ann", "bob"], slowable=["bob"]) as network, listen(network, "ann") as server:
        network.slow("bob", 0.001, loss=0.02)
        with connect(network, "bob", network.address("ann"), timeout=10) as there, server.accept()[0] as here:
            here.settimeout(10)
            there.sendall(sent[:200_000])
            here.sendall(sent[200_000:])
            assert b"".join(_receive(here, 200_000)) + b"".join(_receive(there, 200_000)) == sent


def _receive(end: socket.socket, size: int) -> Iterator[bytes]:
    while size and (part := end.recv(size)):
        size -= len(part)
        yield part


@pytest.mark.slow
@needs_namespaces
def test_only_a_cable_named_so_can_be_slowed(network: Network) -> None:
    with pytest.raises(ValueError, match="slowable"):
        network.slow("bob", 0.1)
    with pytest.raises(ValueError, match="carol"):
        Network(["ann"], slowable=["carol"])


@pytest.mark.slow
@needs_namespaces
def test_a_capture_sees_exactly_the_connection_that_was_made(network: Network) -> None:
    ann, bob = network.address("ann"), network.address("bob")
    capture = network.capture()
    with listen(network, "ann"), connect(network, "bob", ann) as there:
        port = there.getsockname()[1]
    packets = capture.stop()
    assert connections(packets) == {
        Connection(where, device, bob, ann, PORT)
        for where, device in (("bob", "eth0"), (HUB, "bob"), (HUB, "ann"), ("ann", "eth0"))
    }
    assert {p for p in packets if p.protocol != "arp" and p.where == "ann"} == {
        Packet("ann", "eth0", bob, ann, "tcp", port, PORT, True),
        Packet("ann", "eth0", bob, ann, "tcp", port, PORT, False),
        Packet("ann", "eth0", ann, bob, "tcp", PORT, port, False),
    }
    assert {p.protocol for p in packets} == {"tcp", "arp"}
    assert packets[Packet("bob", "eth0", bob, ann, "tcp", port, PORT, True)] == 1
    assert capture.lost == 0
    before = packets.copy()
    with listen(network, "ann"), connect(network, "bob", ann):
        pass
    assert capture.stop() == before  # what came after it stopped does not count


@pytest.mark.slow
@needs_namespaces
def test_a_capture_sees_loopback_and_attempts_that_lead_nowhere(network: Network) -> None:
    capture = network.capture()
    with listen(network, "ann", "127.0.0.1"), connect(network, "ann", "127.0.0.1"):
        pass
    for attempt in (("192.0.2.7", 443), (network.address("ann"), 6000)):
        with pytest.raises(OSError, match=r"route|refused"):
            connect(network, "bob", *attempt)
    with network.inside("bob", lambda: socket.socket(type=socket.SOCK_DGRAM)) as asking:
        asking.sendto(b"who is example.org", ("192.0.2.53", 53))
    packets = capture.stop()
    assert {(c.where, c.device, c.destination, c.port) for c in connections(packets) if c.where != HUB} == {
        ("ann", "lo", "127.0.0.1", PORT),
        ("bob", "eth0", "192.0.2.7", 443),
        ("bob", "eth0", network.address("ann"), 6000),
        ("ann", "eth0", network.address("ann"), 6000),
    }
    assert [n for p, n in packets.items() if p.device == "lo" and p.opening] == [1]
    assert {(p.where, p.device) for p in packets if p.protocol == "udp" and p.port == 53} == {
        ("bob", "eth0"),
        (HUB, "bob"),
        (HUB, "bridge"),
    }


@pytest.mark.slow
@needs_namespaces
def test_programs_run_at_their_host_and_end_with_the_network() -> None:
    code = f"import socket, time; server = socket.create_server(('', {PORT})); print(flush=True); time.sleep(60)"
    with Network(["ann", "bob"]) as network:
        assert network.listening("ann") == set()
        process = network.popen("ann", [sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        assert network.processes("ann") == [process.pid]
        assert network.processes("bob") == []
        assert network.has(process.pid)
        assert not network.has(os.getpid())
        assert network.listening("ann") == {Listening("tcp", "0.0.0.0", PORT)}
        assert network.listening("bob") == set()
        shown = network.run("bob", ["ip", "-4", "-o", "addr"], capture_output=True, text=True).stdout
        assert network.address("bob") in shown
        assert network.address("ann") not in shown
        with Network(["ann"]) as other:
            assert not other.has(process.pid)
    assert process.wait(5) != 0
    process.stdout.close()
    assert not network.has(process.pid)


@pytest.mark.slow
@needs_namespaces
def test_two_networks_stand_side_by_side_and_leave_nothing() -> None:
    with Network(["ann", "bob"]) as network, Network(["ann", "bob"], slowable=["ann"]) as other:
        both = [*network.namespaces, *other.namespaces]
        assert len(set(left(both))) == 6
        with listen(network, "ann"), pytest.raises(ConnectionRefusedError):
            connect(other, "bob", other.address("ann"))
        capture = other.capture()
        other.close()
        other.close()
        assert not capture.running
        with listen(network, "ann"), connect(network, "bob", network.address("ann")):
            pass
        assert left(both) == network.namespaces
    assert left(both) == []


@pytest.mark.slow
@needs_namespaces
def test_a_network_that_cannot_be_made_or_used_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fail(self: Network, host: str, seed: int) -> None:
        made.extend(self.namespaces)
        assert left(made) == made
        raise OSError("no /dev/net/tun")

    with monkeypatch.context() as patch:
        patch.setattr(Network, "_cable", fail)
        with pytest.raises(OSError, match="tun"):
            Network(["ann", "bob"], slowable=["bob"])
    assert len(made) == 3
    assert left(made) == []
    network = Network(["ann"])
    capture = network.capture()
    with pytest.raises(ZeroDivisionError), network:
        _ = 1 // 0
    assert left(network.namespaces) == []
    assert not capture.running


@pytest.mark.parametrize("names", [["hub"], ["ann", "ann"], ["much-too-long-name"], ["../ann"], ["-ann"], [""]])
def test_names_that_no_device_could_have_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="name of a host"):
        Network(names)


def test_a_line_delays_in_order_and_its_seed_settles_what_is_lost() -> None:
    lines = [Line("0"), Line("0"), Line("1")]
    lost = []
    for line in lines:
        line.delay_s, line.loss = 2.0, 0.25
        for n in range(1000):
            line.take(bytes([n % 256, n // 256]), now=n // 300 / 1000)  # many at one moment
        assert line.arrived(1.999) == []
        first = line.next()
        assert first is not None
        assert first >= 2.0
        came = [part[0] + 256 * part[1] for part in line.arrived(2.5) + line.arrived(9.0)]
        assert came == sorted(came)
        assert line.next() is None
        lost.append(set(range(1000)) - set(came))
    assert lost[0] == lost[1] != lost[2]
    assert all(200 < len(numbers) < 300 for numbers in lost)


@pytest.mark.parametrize(
    ("frame", "packet"),
    [
        # 192.0.2.1:4660 to 192.0.2.2:22136, with 4 bytes of IP options; SYN and ACK: an answer, no opening.
        (
            "0800 46000000 00000000 40060000 c0000201 c0000202 01010101 12345678 00000000 00000000 5012",
            Packet("ann", "eth0", "192.0.2.1", "192.0.2.2", "tcp", 4660, 22136),
        ),
        # The same without options, SYN alone.
        (
            "0800 45000000 00000000 40060000 c0000201 c0000202 12345678 00000000 00000000 5002",
            Packet("ann", "eth0", "192.0.2.1", "192.0.2.2", "tcp", 4660, 22136, True),
        ),
        # A later fragment of a UDP datagram has no ports.
        (
            "0800 45000000 00000001 40110000 c0000201 c0000202 12345678",
            Packet("ann", "eth0", "192.0.2.1", "192.0.2.2", "udp"),
        ),
        # An IPv6 router solicitation, from fe80::1 to ff02::2.
        (
            "86dd 60000000 00083aff fe800000 00000000 00000000 00000001 ff020000 00000000 00000000 00000002 8500",
            Packet("ann", "eth0", "fe80::1", "ff02::2", "icmpv6"),
        ),
        # Who has 192.0.2.2? Tell 192.0.2.1.
        (
            "0806 0001080006040001 020000000001 c0000201 000000000000 c0000202",
            Packet("ann", "eth0", "192.0.2.1", "192.0.2.2", "arp"),
        ),
        ("88cc 0207", Packet("ann", "eth0", "02:00:00:00:00:01", "02:00:00:00:00:02", "ethertype 0x88cc")),
    ],
)
def test_packets_are_told_apart_by_their_headers(frame: str, packet: Packet) -> None:
    assert read(bytes.fromhex("020000000002 020000000001" + frame), "ann", "eth0") == packet
