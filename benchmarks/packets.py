"""What goes over a machine's network: packets counted by who sends what to whom.

Read from AF_PACKET sockets, which see every packet of every device of the network namespace they were opened in, also
those that lead nowhere. Headers only; what is in a packet is never looked at.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

_ALL = 0x0003
"""ETH_P_ALL: every protocol."""
_HEADERS = 128
"""Bytes read of each packet: Ethernet 14, IPv4 up to 60, the ports and flags of TCP 14."""
_BUFFER = 16 << 20
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_STATISTICS = 33, 263, 6
_OUTGOING = 4
_SYN, _ACK = 0x02, 0x10
_PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


class Packet(NamedTuple):
    """What is counted. where: the machine it was seen at. device: on which of its devices; `lo` never leaves it.

    source, destination: IP addresses, or those asked for by ARP. ports are 0 where a protocol has none.
    opening: the first packet of a TCP connection, answered or not.
    """

    where: str
    device: str
    source: str
    destination: str
    protocol: str
    source_port: int = 0
    port: int = 0
    opening: bool = False


class Connection(NamedTuple):
    """A TCP connection that somebody tried to open. port: the destination's."""

    where: str
    device: str
    source: str
    destination: str
    port: int


def read(frame: bytes, where: str, device: str) -> Packet:
    """An Ethernet frame, of which the first bytes are enough."""
    kind = int.from_bytes(frame[12:14])
    if kind == 0x0806 and len(frame) >= 42:
        return Packet(where, device, socket.inet_ntoa(frame[28:32]), socket.inet_ntoa(frame[38:42]), "arp")
    if kind == 0x0800 and len(frame) >= 34:
        length = 4 * (frame[14] & 0x0F)
        later = int.from_bytes(frame[20:22]) & 0x1FFF  # a fragment but the first has no ports
        ends = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
        return _ip(where, device, *ends, frame[23], b"" if later else frame[14 + length :])
    if kind == 0x86DD and len(frame) >= 54:
        ends = socket.inet_ntop(socket.AF_INET6, frame[22:38]), socket.inet_ntop(socket.AF_INET6, frame[38:54])
        return _ip(where, device, *ends, frame[20], frame[54:])
    return Packet(where, device, frame[6:12].hex(":"), frame[:6].hex(":"), f"ethertype {kind:#06x}")


def _ip(where: str, device: str, source: str, destination: str, number: int, rest: bytes) -> Packet:
    protocol = _PROTOCOLS.get(number, f"protocol {number}")
    if protocol not in ("tcp", "udp") or len(rest) < 4:
        return Packet(where, device, source, destination, protocol)
    source_port, port = struct.unpack("!HH", rest[:4])
    opening = protocol == "tcp" and len(rest) > 13 and rest[13] & (_SYN | _ACK) == _SYN
    return Packet(where, device, source, destination, protocol, source_port, port, opening)


def connections(packets: Iterable[Packet]) -> set[Connection]:
    """The TCP connections that were opened, or tried."""
    return {Connection(p.where, p.device, p.source, p.destination, p.port) for p in packets if p.opening}


def open_socket() -> socket.socket:
    """A socket that sees every packet of the calling thread's network namespace from now on.

    Raises:
        OSError: this user may not.
    """
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    with contextlib.suppress(OSError):  # a smaller buffer may lose packets, which is counted
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    made.setblocking(False)
    return made


class Capture:
    """Counts packets from when it is made until `stop`.

    sockets: one for each machine, from `open_socket`.
    """

    def __init__(self, sockets: Mapping[str, socket.socket], ended: Callable[[Capture], None] = lambda capture: None):
        self.packets: Counter[Packet] = Counter()
        self.lost = 0
        """Packets that came faster than they were read. Known once it has stopped."""
        self._where = {made.fileno(): (where, made) for where, made in sockets.items()}
        self._ended = ended
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether packets are being counted."""
        return self._thread.is_alive()

    def stop(self) -> Counter[Packet]:
        """All packets, those that came just now too. May be called again."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            for _, made in self._where.values():
                with made:
                    statistics = made.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
                self.lost += struct.unpack("II", statistics)[1]
            self._ended(self)
        return self.packets

    def _count(self) -> None:
        poll = select.poll()
        for number in self._where:
            poll.register(number, select.POLLIN)
        while True:
            last = self._stopping.is_set()  # looked at before reading, so that what came before is read
            for number, _ in poll.poll(0 if last else 100):
                self._drain(*self._where[number])
            if last:
                return

    def _drain(self, where: str, made: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = made.recvfrom(_HEADERS)
                if address[0] == "lo" and address[2] == _OUTGOING:
                    continue  # it is seen once more as it comes back
                self.packets[read(frame, where, address[0])] += 1
