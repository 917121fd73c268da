"""Checkpoints after each round, written atomically, and resume from them, exactly.

    <run>/checkpoints/round-0003/     adapter.safetensors  state.json        the server's
    <run>/clients/<name>/round-0003/  memory.packed        memory.json       each client's own

A client's memory is written before the server's checkpoint of the same round, so every checkpoint has its memories;
both keep the newest few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load, save

from fedrlvr.adapter import Adapter
from fedrlvr.errors import CheckpointError
from fedrlvr.files import RoundDirectories, private_directory
from fedrlvr.interrupts import raise_again
from fedrlvr.server.run_directory import STATE_FILE, checkpoint_directories
from fedrlvr.wire.serialization import pack, unpack

ADAPTER, MEMORY = "adapter.safetensors", "memory.packed"
PROBES = "probes"
"""Name of the shared probes, beside the names of factors, which end in .A or .B."""
RULE = "rule/"
"""Prefix of the tensors of the LoRA rule's state."""
STEP = "step/"
"""Prefix of the tensors that the server's step remembers."""


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a round.

    strategy: what the strategy must remember, in JSON types. updates: of scale 1, by name, that the global model has
    besides its adapter (delta_model.py). probes: everybody's, averaged (shared_probes.py). rule: the LoRA rule's state.
    step: what the server's step remembers.
    """

    round: int
    adapter: Adapter
    strategy: dict[str, Any]
    updates: Mapping[str, Adapter] = field(default_factory=dict)
    probes: torch.Tensor | None = None
    rule: Mapping[str, torch.Tensor] = field(default_factory=dict)
    step: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run directory.

    memories: by client, the contexts that are saved with each checkpoint.
    """

    run: Path
    keep: int
    memories: Mapping[str, Context] = field(default_factory=dict)

    @property
    def directories(self) -> RoundDirectories:
        """Directories of the server's checkpoints, one for each round."""
        return checkpoint_directories(self.run)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a round's memories, then its checkpoint, and drop the oldest.

        Raises:
            CheckpointError: the disk is full or cannot be written; earlier rounds are intact.
            KeyboardInterrupt: a signal came in this round, and something in it may have failed with that alone.
        """
        raise_again()
        self.save_memories(checkpoint.round, self.memories)
        parts = {"": checkpoint.adapter, **{f"{name}/": update for name, update in checkpoint.updates.items()}}
        tensors = {prefix + name: t.contiguous() for prefix, part in parts.items() for name, t in part.tensors()}
        if checkpoint.probes is not None:
            tensors[PROBES] = checkpoint.probes.contiguous()
        for prefix, kept in ((RULE, checkpoint.rule), (STEP, checkpoint.step)):
            tensors.update({prefix + name: tensor.contiguous() for name, tensor in kept.items()})
        state = {
            "alpha": checkpoint.adapter.alpha,
            "strategy": checkpoint.strategy,
            # safetensors sorts its tensors; messages and checks go by the model's order
            "order": [name for name, _ in checkpoint.adapter.tensors()],
        }
        self._write(self.directories, checkpoint.round, {ADAPTER: save(tensors)}, state)

    def save_memories(self, round_: int, contexts: Mapping[str, Context]) -> None:
        """Write each client's `context.state` of this round, and drop the oldest.

        Raises:
            CheckpointError: as `save`.
        """
        for client, context in contexts.items():
            with contextlib.suppress(OSError):  # which writing the round's directory reports
                private_directory(memory_directories(self.run, client).root)
            self._write(memory_directories(self.run, client), round_, {MEMORY: pack(context.state)}, {})

    def _write(self, directories: RoundDirectories, round_: int, files: Mapping[str, bytes], note: Any) -> None:
        try:
            directories.write(round_, files, note)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} Earlier rounds are intact: make room or mend the disk, then go on with --resume."
            ) from error
        directories.prune(self.keep)

    def rounds(self) -> list[int]:
        """Rounds with a complete checkpoint, in order."""
        return self.directories.rounds()

    def load(self, round_: int | None = None) -> Checkpoint | None:
        """The checkpoint of a round, by default the newest, or None if there is none.

        Raises:
            CheckpointError: it cannot be read, or is not what was written.
        """
        rounds = self.rounds() if round_ is None else [round_]
        return self.directories.read(rounds[-1], _checkpoint, self._remedy(rounds[-1])) if rounds else None

    def load_memory(self, round_: int, client: str) -> RecordDict:
        """A client's `context.state` after a round; empty where it had none yet.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        directories = memory_directories(self.run, client)
        return directories.read(round_, lambda files, _: unpack(files[MEMORY]), self._remedy(round_))

    def _remedy(self, round_: int) -> str:
        # Also where a memory is damaged: it is of use only together with the server's checkpoint of its round.
        return f"Delete {self.directories.path(round_)} to go on from the round before it, or start a new run."


def read_checkpoint(directory: Path) -> Checkpoint:
    """The checkpoint in a directory that need not lie within its run's.

    Raises:
        CheckpointError: the directory is not called as its run called it, cannot be read, or is damaged.
    """
    number = directory.resolve().name.removeprefix("round-")
    if not number.isdecimal():
        raise CheckpointError(f"{directory}: a checkpoint's directory keeps its name, round-NNNN. Rename it back.")
    return RoundDirectories(directory.resolve().parent, STATE_FILE).read(int(number), _checkpoint)


def memory_directories(run: Path, client: str) -> RoundDirectories:
    """Directories of a client's memories of a run, one for each round."""
    return RoundDirectories(run / "clients" / client, "memory.json")


def _checkpoint(files: Mapping[str, bytes], state: Mapping[str, Any]) -> Checkpoint:
    tensors, order = load(files[ADAPTER]), state["order"]
    adapter = Adapter.from_tensors({name: tensors[name] for name in order}, float(state["alpha"]))
    updates = {name.partition("/")[0] for name in tensors if "/" in name and not name.startswith((RULE, STEP))}
    rule, step = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (RULE, STEP)
    )
    kept = {name: _update(tensors, f"{name}/", order) for name in updates}
    return Checkpoint(int(state["round"]), adapter, dict(state["strategy"]), kept, tensors.get(PROBES), rule, step)


def _update(tensors: Mapping[str, torch.Tensor], prefix: str, order: list[str]) -> Adapter:
    """The update of scale 1 that lies under this prefix."""
    factors = {name: tensors[prefix + name] for name in order}
    return Adapter.from_tensors(factors, float(next(iter(factors.values())).shape[0]))
