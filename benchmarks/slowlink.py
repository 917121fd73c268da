"""A slow and lossy cable: moves Ethernet frames between two TAP devices, each after a delay, and drops some.

    python slowlink.py DESCRIPTOR DESCRIPTOR SEED        started by netns.py, which opens the devices

Each line on its standard input, `DELAY_S LOSS`, changes the cable, in both directions; it ends with its input. TAP
devices, since what goes into a veth has its checksums left to a network card that is not there.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import select
import sys
import time

FRAME = 1 << 16


class Line:
    """One direction of a cable. Which frames are lost is settled by the seed."""

    def __init__(self, seed: str) -> None:
        self.delay_s, self.loss = 0.0, 0.0
        self._random = random.Random(seed)
        self._under_way: list[tuple[float, int, bytes]] = []
        self._taken = 0

    def take(self, frame: bytes, now: float) -> None:
        """A frame goes in at one end."""
        if self._random.random() < self.loss:
            return
        self._taken += 1  # frames of the same moment stay in order
        heapq.heappush(self._under_way, (now + self.delay_s, self._taken, frame))

    def arrived(self, now: float) -> list[bytes]:
        """The frames that come out at the other end by now."""
        frames = []
        while self._under_way and self._under_way[0][0] <= now:
            frames.append(heapq.heappop(self._under_way)[2])
        return frames

    def next(self) -> float | None:
        """When the next frame comes out."""
        return self._under_way[0][0] if self._under_way else None


def move(devices: tuple[int, int], commands: int, seed: str) -> None:
    """Move frames until `commands` ends."""
    ways = {devices[0]: (Line(f"{seed} there"), devices[1]), devices[1]: (Line(f"{seed} back"), devices[0])}
    while True:
        due = [at for line, _ in ways.values() if (at := line.next()) is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        for ready in select.select([*devices, commands], [], [], timeout)[0]:
            if ready == commands:
                command = os.read(commands, FRAME).split()
                if not command:
                    return
                for line, _ in ways.values():
                    line.delay_s, line.loss = map(float, command[-2:])
                os.write(1, b"\n")
            else:
                with contextlib.suppress(OSError):  # a device that is down
                    ways[ready][0].take(os.read(ready, FRAME), time.monotonic())
        for line, to in ways.values():
            for frame in line.arrived(time.monotonic()):
                with contextlib.suppress(OSError):  # the cable is cut
                    os.write(to, frame)


if __name__ == "__main__":
    move((int(sys.argv[1]), int(sys.argv[2])), 0, sys.argv[3])
