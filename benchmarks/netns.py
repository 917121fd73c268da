"""Machines on one machine: Linux network namespaces, each with its own devices, addresses, ports, joined by a switch.

    with Network(["server", "ann"]) as network:
        network.popen("server", ["python", "-m", "http.server", "--bind", network.address("server"), "8000"])

Each host has `lo` and `eth0` (10.77.0.1, .2, ...) and a default route. It leads to the hub, which knows no other
network and says so at once: an attempt to reach the world fails as it does offline, but its packets are seen by
`capture`. IPv6 is off. Only the network is a machine's own; files and processes are everybody's. Needs Linux and root.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from benchmarks import slowlink
from benchmarks.packets import Capture, open_socket

HUB, BRIDGE = "hub", "bridge"
PREFIX = "fedrlvr"
_NAMESPACES = Path("/run/netns")
_TUN = Path("/dev/net/tun")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_EVERYWHERE = {
    "ipv6/conf/all/disable_ipv6": 1,
    "ipv6/conf/default/disable_ipv6": 1,
    "ipv4/igmp_link_local_mcast_reports": 0,  # else what forwards tells its neighbours so
}
_LISTEN, _UNBOUND = "0A", "00000000:0000"
_END_S = 3.0

T = TypeVar("T")


class Listening(NamedTuple):
    """A socket that waits for others. protocol: tcp or udp."""

    protocol: str
    address: str
    port: int


def available() -> str | None:
    """Why networks cannot be made here; None if they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is not installed"
    name = f"{PREFIX}-{secrets.token_hex(2)}-try"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "name", BRIDGE, "type", "bridge")
    except OSError as error:
        return f"network namespaces cannot be made: {error}"
    finally:
        with contextlib.suppress(OSError):
            _ip("netns", "del", name)
    return None


def listening_here() -> set[Listening]:
    """The TCP and UDP ports that are open in the calling thread's namespace. IPv4 only."""
    return {entry for kind in ("tcp", "udp") for entry in _listening(kind)}


class Network:
    """Hosts on one switch.

    slowable: hosts whose cable can be slowed down; it is slower than others at any time.
    seed: of the packets that slow cables lose.

    Raises:
        ValueError: a name that no device could have, or twice the same.
        OSError: it cannot be made; `available` says why.
    """

    def __init__(self, hosts: Sequence[str], slowable: Iterable[str] = (), seed: int = 0) -> None:
        taken = {HUB, BRIDGE, "lo"}
        for host in hosts:
            if host in taken or not re.fullmatch(r"[a-z][a-z0-9-]{0,14}", host):
                raise ValueError(f"{host!r} cannot be the name of a host here")
            taken.add(host)
        self.hosts = list(hosts)
        self._token = secrets.token_hex(3)
        self._cables: dict[str, subprocess.Popen[bytes]] = {}
        self._captures: list[Capture] = []
        try:
            self._make(set(slowable), seed)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # What is on it.

    def address(self, host: str) -> str:
        """A host's IP address."""
        return f"10.77.0.{self.hosts.index(host) + 1}"

    @property
    def gateway(self) -> str:
        """The hub's IP address, which default routes lead to."""
        return "10.77.0.254"

    @property
    def namespaces(self) -> list[str]:
        """The names of its namespaces, as `ip netns` knows them: the hosts' and the hub's."""
        return [self._name(host) for host in (*self.hosts, HUB)]

    def popen(self, host: str, args: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program at a host; `kwargs` as for `subprocess.Popen`. Its process id is the program's own."""
        return subprocess.Popen(["ip", "netns", "exec", self._name(host), *args], **kwargs)

    def run(self, host: str, args: Sequence[str], **kwargs: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program at a host to its end; `kwargs` as for `subprocess.run`."""
        return subprocess.run(["ip", "netns", "exec", self._name(host), *args], **kwargs)

    def inside(self, host: str, function: Callable[[], T]) -> T:
        """Call a function in a thread that is at a host. Sockets that it makes stay there."""

        def enter() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            with (_NAMESPACES / self._name(host)).open("rb") as file:
                if libc.setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns to {host}: {os.strerror(ctypes.get_errno())}")
            return function()

        with ThreadPoolExecutor(1) as pool:  # a thread of its own, whose namespace is gone with it
            return pool.submit(enter).result()

    def processes(self, host: str) -> list[int]:
        """Ids of the processes that are at a host."""
        return [int(word) for word in _ip("netns", "pids", self._name(host)).split() if int(word) != os.getpid()]

    def has(self, pid: int) -> bool:
        """Whether a process is at one of its hosts; a process that has ended is not."""
        with contextlib.suppress(OSError):
            at = os.stat(f"/proc/{pid}/ns/net").st_ino
            return any(at == (_NAMESPACES / self._name(host)).stat().st_ino for host in self.hosts)
        return False

    def listening(self, host: str) -> set[Listening]:
        """The TCP and UDP ports that are open at a host."""
        return self.inside(host, listening_here)

    # Its cables.

    def cut(self, host: str) -> None:
        """Pull a host's cable out of the switch."""
        _ip("-n", self._name(HUB), "link", "set", "dev", host, "down")

    def mend(self, host: str) -> None:
        """Put it in again."""
        _ip("-n", self._name(HUB), "link", "set", "dev", host, "up")

    def slow(self, host: str, delay_s: float, loss: float = 0.0) -> None:
        """From now on a packet takes so much longer each way, and each way such a share is lost.

        Raises:
            ValueError: the host is not slowable, or the numbers make no sense.
        """
        if host not in self._cables:
            raise ValueError(f"{host} was not named slowable when the network was made")
        if delay_s < 0 or not 0 <= loss <= 1:
            raise ValueError(f"a delay of {delay_s} s, a loss of {loss}")
        cable = self._cables[host]
        assert cable.stdin is not None
        assert cable.stdout is not None
        cable.stdin.write(f"{delay_s} {loss}\n".encode())
        cable.stdin.flush()
        if not cable.stdout.readline():
            raise OSError(f"the cable of {host} has ended")

    def capture(self) -> Capture:
        """Count every packet at every host and at the hub, from now until its `stop`."""
        sockets: dict[str, socket.socket] = {}
        try:
            for host in (*self.hosts, HUB):
                sockets[host] = self.inside(host, open_socket)
        except BaseException:
            for made in sockets.values():
                made.close()
            raise
        self._captures.append(Capture(sockets, self._captures.remove))
        return self._captures[-1]

    # From beginning to end.

    def close(self) -> None:
        """Remove everything, with the processes that are still there. May be called again."""
        for capture in list(self._captures):
            capture.stop()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + _END_S
            for pid in self._all_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            while self._all_processes() and time.monotonic() < end:
                time.sleep(0.02)
        for cable in self._cables.values():
            with cable:
                cable.kill()
        self._cables.clear()
        for host in (*self.hosts, HUB):
            if (_NAMESPACES / self._name(host)).exists():
                with contextlib.suppress(OSError):
                    _ip("netns", "del", self._name(host))

    def _name(self, host: str) -> str:
        if host != HUB and host not in self.hosts:
            raise ValueError(f"there is no host {host!r} on this network")
        return f"{PREFIX}-{self._token}-{host}"

    def _all_processes(self) -> list[int]:
        return [pid for host in self.hosts if (_NAMESPACES / self._name(host)).exists() for pid in self.processes(host)]

    def _make(self, slowable: set[str], seed: int) -> None:
        if slowable - set(self.hosts):
            raise ValueError(f"slowable: there are no hosts {', '.join(sorted(slowable - set(self.hosts)))}")
        hub = self._name(HUB)
        for host in (HUB, *self.hosts):
            _ip("netns", "add", self._name(host))
            # Before there are devices, which would look for IPv6 routers as soon as they are up.
            self.inside(host, lambda: _settings(_EVERYWHERE))
        _ip("-n", hub, "link", "add", "name", BRIDGE, "type", "bridge")
        _ip("-n", hub, "addr", "add", f"{self.gateway}/24", "dev", BRIDGE)
        _ip("-n", hub, "link", "set", "dev", BRIDGE, "up")
        # What it may not forward it answers with "unreachable", rather than with silence.
        self.inside(HUB, lambda: _settings({"ipv4/ip_forward": 1}))
        _ip("-n", hub, "route", "add", "unreachable", "default")
        for host in self.hosts:
            name = self._name(host)
            if host in slowable:
                self._cables[host] = self._cable(host, seed)
            else:
                _ip("-n", hub, "link", "add", "name", host, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", hub, "link", "set", "dev", host, "master", BRIDGE, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "dev", "lo", "up")
            _ip("-n", name, "link", "set", "dev", "eth0", "up")
            _ip("-n", name, "route", "add", "default", "via", self.gateway)

    def _cable(self, host: str, seed: int) -> subprocess.Popen[bytes]:
        """A cable of two TAP devices and a process between them; the devices are gone when the process is."""
        ends: list[int] = []
        try:
            ends.append(self.inside(HUB, lambda: _tap(host)))
            ends.append(self.inside(host, lambda: _tap("eth0")))
            command = [sys.executable, slowlink.__file__, *map(str, ends), f"{seed} {host}"]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=ends)
        finally:
            for end in ends:
                os.close(end)


def _ip(*args: str) -> str:
    """
    Raises:
        OSError: with what it says.
    """
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def _settings(values: Mapping[str, int]) -> None:
    """Write settings of /proc/sys/net in the calling thread's namespace."""
    for setting, value in values.items():
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            Path("/proc/sys/net", setting).write_text(str(value), "ascii")


def _tap(device: str) -> int:
    """A descriptor of a new TAP device, which lives as long as the descriptor."""
    opened = os.open(_TUN, os.O_RDWR)
    try:
        fcntl.ioctl(opened, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(opened)
        raise
    return opened


def _listening(kind: str) -> set[Listening]:
    """The calling thread's namespace's open ports."""
    entries = set()
    for line in Path("/proc/thread-self/net", kind).read_text("ascii").splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if state == _LISTEN if kind == "tcp" else remote == _UNBOUND:
            address, port = local.split(":")
            # The kernel prints the address as the number that it is on this machine.
            host = socket.inet_ntoa(int(address, 16).to_bytes(4, sys.byteorder))
            entries.add(Listening(kind, host, int(port, 16)))
    return entries
