"""The labelled problems the probes of CARE go back to: first in, first out (arXiv 2605.25864)."""

from __future__ import annotations

from collections import deque

import torch
from torch import Generator

from fedrlvr.supervision.features import Labelled, joined


class Replay:
    """The last `size` labelled problems, in memory of the CPU."""

    def __init__(self, size: int) -> None:
        self._rows: deque[tuple[int, Labelled]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Labelled) -> None:
        """Keep these, and let the oldest go where there is no room."""
        for row in batch.to(torch.device("cpu")).rows():
            self._rows.append((int(row.outside_P), row))

    def draw(self, count: int, rng: Generator, *, stratified: bool = False) -> list[Labelled]:
        """`count` problems without repetition, or all if there are no more.

        stratified: as evenly as the numbers of correct responses outside the majority allow: an equal share of each
        first, then any.
        """
        order: list[int] = torch.randperm(len(self._rows), generator=rng).tolist()
        if stratified and 0 < count < len(order):
            order = self._evenly(order, count)
        return [self._rows[index][1] for index in order[:count]]

    def _evenly(self, order: list[int], count: int) -> list[int]:
        """The order with each label's share in front."""
        by_label: dict[int, list[int]] = {}
        for index in order:
            by_label.setdefault(self._rows[index][0], []).append(index)
        share = max(1, count // len(by_label))
        first = [index for label in sorted(by_label) for index in by_label[label][:share]]
        taken = set(first)
        return first + [index for index in order if index not in taken]

    def everything(self) -> Labelled | None:
        """All of it, oldest first."""
        return joined(row for _, row in self._rows) if self._rows else None

    def replace(self, batch: Labelled | None) -> None:
        """Hold these and nothing else."""
        self._rows.clear()
        if batch is not None:
            self.add(batch)
