"""Numbers of many clients over many rounds, kept as arrays, and the few points of them that a curve needs.

Shapes: R rounds, K clients, L lines, P points. A missing number is NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 400
"""Number of points of a line above which rounds are drawn together."""
BAND = 0.1
"""Share of the clients that lies below the band of many clients, and above it."""


class NumberTable:
    """Numbers by key, round and client.

    keys: those that are kept; others are passed over.
    """

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = tuple(keys)
        self._rows: list[int] = []
        self._places: dict[str, int] = {}
        self._values: dict[str, Floats] = {}

    @property
    def clients(self) -> list[str]:
        """Names of the clients, in the order of the columns."""
        return list(self._places)

    @property
    def rounds(self) -> Floats:
        """The numbers of the rounds so far, [R]."""
        return np.array(self._rows, dtype=np.float64)

    def add(self, round_: int, clients: Mapping[str, Mapping[str, Any]]) -> None:
        """Add a round's numbers, or nothing of them.

        Raises:
            ValueError, TypeError, AttributeError, OverflowError: the round does not follow the last one, or a kept
                value is no number.
        """
        if self._rows and round_ <= self._rows[-1]:
            raise ValueError(f"round {round_} does not follow round {self._rows[-1]}")
        columns: dict[str, Floats] = {}
        for key in self._keys:
            values = [numbers.get(key) for numbers in clients.values()]
            if any(value is not None for value in values):
                columns[key] = _finite(np.array(values, dtype=np.float64))
        places = [self._places.setdefault(client, len(self._places)) for client in clients]
        row = len(self._rows)
        self._rows.append(round_)
        for key, column in columns.items():
            grid = self._values[key] = self._with_room(self._values.get(key), row + 1, len(self._places))
            grid[row, places] = column

    @staticmethod
    def _with_room(grid: Floats | None, rows: int, columns: int) -> Floats:
        """A grid of at least this size, with what is in `grid`."""
        if grid is not None and grid.shape[0] >= rows and grid.shape[1] >= columns:
            return grid
        before = (0, 0) if grid is None else grid.shape
        size = [
            now if now >= need else max(need, 2 * now, 8) for now, need in zip(before, (rows, columns), strict=True)
        ]
        larger = np.full(size, np.nan)
        if grid is not None:
            larger[: before[0], : before[1]] = grid
        return larger

    def grid(self, key: str) -> Floats | None:
        """All values of a key, [R, K]; None if no client has any."""
        grid = self._values.get(key)
        return None if grid is None else self._with_room(grid, *self.shape)[: self.shape[0], : self.shape[1]]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rounds and of clients."""
        return len(self._rows), len(self._places)

    def last(self, key: str) -> dict[str, float]:
        """The newest value of each client that has one."""
        grid = self.grid(key)
        if grid is None:
            return {}
        known = ~np.isnan(grid)
        rows = grid.shape[0] - 1 - known[::-1].argmax(axis=0)
        return {
            client: float(grid[rows[place], place]) for client, place in self._places.items() if known[:, place].any()
        }

    def total(self, key: str) -> dict[str, float]:
        """The sum over the rounds of each client that has a value."""
        grid = self.grid(key)
        if grid is None:
            return {}
        known = ~np.isnan(grid)
        sums = np.nansum(grid, axis=0)
        return {client: float(sums[place]) for client, place in self._places.items() if known[:, place].any()}


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def mean(grid: Floats) -> Floats:
    """The mean of each row's known values; of [R, K] it is [R]."""
    known = ~np.isnan(grid)
    counts = known.sum(axis=1)
    return np.where(counts, np.where(known, grid, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def band(grid: Floats) -> tuple[Floats, Floats]:
    """The values between which all but a share of `BAND` at either end of each row's known values lie; [R] each."""
    ordered = np.sort(grid, axis=1)  # NaN last
    counts = (~np.isnan(ordered)).sum(axis=1)
    rows = np.arange(len(ordered))
    low = np.floor(BAND * np.maximum(counts - 1, 0)).astype(int)
    high = np.maximum(counts - 1, 0) - low
    return ordered[rows, low], ordered[rows, high]


def decimated(rounds: Floats, lines: Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """Reduce lines over the same rounds to at most about `most` points: [R] and [L, R] to [P] and [L, P].

    The first and the last round stay as they are. Those between are cut into equal parts, and of each part a line keeps
    its smallest and its largest value in their order, so that no peak is lost; they stand at the part's first and last
    round.
    """
    count = len(rounds)
    if count <= most:
        return rounds, lines
    edges = np.linspace(1, count - 1, max((most - 2) // 2, 1) + 1).astype(int)
    places, columns = [rounds[0]], [lines[:, 0]]
    for begin, end in pairwise(edges):
        part = lines[:, begin:end]
        unknown = np.isnan(part)
        low = np.where(unknown, np.inf, part).argmin(axis=1)
        high = np.where(unknown, -np.inf, part).argmax(axis=1)
        every = np.arange(len(lines))
        for place, column in ((begin, np.minimum(low, high)), (end - 1, np.maximum(low, high))):
            if place == end - 1 and end - begin == 1:
                continue
            places.append(rounds[place])
            columns.append(part[every, column])
    return np.array([*places, rounds[-1]]), np.stack([*columns, lines[:, -1]], axis=1)
