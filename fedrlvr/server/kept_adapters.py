"""The clients' adapters of each round on the server's disk (`aggregation.keep_adapters`), for subtraction and audits.

    <run>/kept/round-0003/    ann.safetensors  bob.safetensors  kept.json

A round's global adapter is  G_t = G_(t-1) + g (sum_k p_k X_k - G_(t-1)),  with the clients' adapters X_k, weights p_k
of sum 1 and the length g of the server's step. So client c alone has moved it by

    g (sum_k p_k X_k - sum_(k != c) p_k X_k / (1 - p_c)),

which is what subtraction takes away (ours). With X_k = G_(t-1) + U_k the same difference is that of the updates U_k, so
that the sum over the rounds is exact for updates of the others that stay what they were: G_(t-1) is in none of the
terms. The step's length stays what it was too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fedrlvr.adapter import Adapter
from fedrlvr.files import RoundDirectories

DIRECTORY, NOTE, SUFFIX = "kept", "kept.json", ".safetensors"


@dataclass(frozen=True)
class Kept:
    """One round's adapters by client, their weights, and the length of the server's step, g."""

    adapters: Mapping[str, Adapter]
    weights: Mapping[str, float]
    step: float = 1.0

    def part_of(self, client: str) -> Tensor:
        """Change of the global adapter by one client: float64 of all its numbers, in the order of `Adapter.flat`.

        Raises:
            ValueError: no other client's adapter is in the mean.
        """
        others = [name for name in self.adapters if name != client and self.weights[name] > 0]
        if not others:
            raise ValueError("no other client's adapter was averaged in this round")
        return self.step * (self._mean(list(self.adapters)) - self._mean(others))

    def _mean(self, clients: list[str]) -> Tensor:
        total = sum(self.weights[client] for client in clients)
        parts = [self.adapters[client].flat() * (self.weights[client] / total) for client in sorted(clients)]
        return sum(parts[1:], start=parts[0])

    def without(self, client: str) -> Kept:
        """The same round without one client."""
        left = [name for name in self.adapters if name != client]
        return Kept({n: self.adapters[n] for n in left}, {n: self.weights[n] for n in left}, self.step)


@dataclass(frozen=True)
class KeptAdapters:
    """The kept adapters of a run's directory."""

    run: Path

    @property
    def directories(self) -> RoundDirectories:
        """Directories of the rounds with kept adapters."""
        return RoundDirectories(self.run / DIRECTORY, NOTE)

    def save(self, round_: int, kept: Kept) -> None:
        """Write a round's adapters, in the place of older ones of this round.

        Raises:
            CheckpointError: the disk is full or cannot be written; other rounds are intact.
        """
        first = next(iter(kept.adapters.values()))
        files = {
            client + SUFFIX: save({name: tensor.contiguous() for name, tensor in adapter.tensors()})
            for client, adapter in kept.adapters.items()
        }
        note = {
            "alpha": first.alpha,
            "order": [name for name, _ in first.tensors()],  # safetensors sorts its tensors
            "weights": dict(kept.weights),
            "step": kept.step,
        }
        self.directories.write(round_, files, note)

    def load(self, round_: int) -> Kept:
        """Read the kept adapters of one round.

        Raises:
            CheckpointError: they are missing, or not what was written.
        """
        return self.directories.read(round_, _kept)

    def clients(self) -> dict[int, list[str]]:
        """The clients with a kept adapter, by round."""
        rounds = {round_: self.directories.path(round_).glob("*" + SUFFIX) for round_ in self.directories.rounds()}
        return {round_: sorted(path.name.removesuffix(SUFFIX) for path in files) for round_, files in rounds.items()}

    def remove(self, client: str) -> None:
        """Delete a client's adapters of all rounds, and rounds that had no other.

        Raises:
            CheckpointError: as `load` and `save`.
        """
        for round_, clients in self.clients().items():
            if clients == [client]:
                self.directories.remove(round_)
            elif client in clients:
                self.save(round_, self.load(round_).without(client))


def _kept(files: Mapping[str, bytes], note: Mapping[str, Any]) -> Kept:
    adapters = {}
    for name, data in files.items():
        tensors = load(data)
        ordered = {factor: tensors[factor] for factor in note["order"]}
        adapters[name.removesuffix(SUFFIX)] = Adapter.from_tensors(ordered, float(note["alpha"]))
    weights = {str(client): float(weight) for client, weight in note["weights"].items()}
    return Kept(adapters, {client: weights[client] for client in adapters}, float(note["step"]))
