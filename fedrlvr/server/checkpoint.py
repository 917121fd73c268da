"""Checkpoints after each round, written atomically, and resume from them, exactly.

    <run>/checkpoints/round-0003/   adapter.safetensors  state.json          the server's
    <run>/clients/<name>/round-0003/  memory.safetensors  memory.json        each client's own

A directory is written under another name, synced and renamed, so it is whole or absent. A client's memory is written
before the server's checkpoint of the same round, so every checkpoint has its memories; both keep the newest few.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedrlvr.adapter import Adapter
from fedrlvr.errors import CheckpointError, FedrlvrError
from fedrlvr.files import sync

PROBES = "probes"
"""Among the names of factors, which end in .A or .B."""
RULE = "rule/"
"""Prefix of the tensors of the LoRA rule's state."""


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a round.

    strategy: what the strategy must remember, in JSON types. updates: of scale 1, by name, that the global model has
    besides its adapter (delta_model.py). probes: everybody's, averaged (shared_probes.py). rule: the LoRA rule's state.
    """

    round: int
    adapter: Adapter
    strategy: dict[str, Any]
    updates: Mapping[str, Adapter] = field(default_factory=dict)
    probes: torch.Tensor | None = None
    rule: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run directory.

    memories: by client, the contexts that are saved with each checkpoint.
    """

    def __init__(self, run: Path, keep: int, memories: Mapping[str, Context] | None = None) -> None:
        self.run = run
        self.root = run / "checkpoints"
        self.keep = keep
        self.memories = {} if memories is None else memories

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a round's memories, then its checkpoint, and drop the oldest.

        Raises:
            CheckpointError: the disk is full or cannot be written; earlier rounds are intact.
        """
        self.save_memories(checkpoint.round, self.memories)
        parts = {"": checkpoint.adapter, **{f"{name}/": update for name, update in checkpoint.updates.items()}}
        tensors = {prefix + name: t.contiguous() for prefix, part in parts.items() for name, t in part.tensors()}
        if checkpoint.probes is not None:
            tensors[PROBES] = checkpoint.probes.contiguous()
        tensors.update({RULE + name: tensor.contiguous() for name, tensor in checkpoint.rule.items()})
        state = {
            "round": checkpoint.round,
            "alpha": checkpoint.adapter.alpha,
            "strategy": checkpoint.strategy,
            # safetensors sorts its tensors; messages and checks go by the model's order
            "order": [name for name, _ in checkpoint.adapter.tensors()],
        }
        _write(self.root, checkpoint.round, "adapter.safetensors", tensors, "state.json", state)
        _prune(self.root, self.keep)

    def rounds(self) -> list[int]:
        """Rounds with a complete checkpoint, in order."""
        return _rounds(self.root)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, or None if there is none.

        Raises:
            CheckpointError: it cannot be read, or is not what was written.
        """
        rounds = self.rounds()
        if not rounds:
            return None
        newest = self.root / _name(rounds[-1])
        tensors, state = _read(newest, rounds[-1], "adapter.safetensors", "state.json", newest)
        try:
            order = state["order"]
            adapter = Adapter.from_tensors({name: tensors[name] for name in order}, float(state["alpha"]))
            updates = {name.partition("/")[0] for name in tensors if "/" in name and not name.startswith(RULE)}
            strategy = dict(state["strategy"])
            rule = {name.removeprefix(RULE): tensor for name, tensor in tensors.items() if name.startswith(RULE)}
            kept = {name: _update(tensors, f"{name}/", order) for name in updates}
            return Checkpoint(int(state["round"]), adapter, strategy, kept, tensors.get(PROBES), rule)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(newest, error, newest) from None

    def save_memories(self, round_: int, contexts: Mapping[str, Context]) -> None:
        """Write each client's `context.state` of this round, and drop the oldest.

        Raises:
            CheckpointError: as `save`.
        """
        for client, context in contexts.items():
            tensors: dict[str, torch.Tensor] = {}
            values: dict[str, Any] = {}
            orders: dict[str, list[str]] = {}
            for name, record in context.state.items():
                if isinstance(record, ArrayRecord):
                    orders[name] = list(record)
                    tensors.update({f"{name}/{key}": t for key, t in record.to_torch_state_dict().items()})
                elif isinstance(record, ConfigRecord):
                    values[name] = dict(record)
            state = {"round": round_, "values": values, "arrays": orders}
            root = self.run / "clients" / client
            _write(root, round_, "memory.safetensors", tensors, "memory.json", state)
            _prune(root, self.keep)

    def load_memory(self, round_: int, client: str) -> RecordDict:
        """A client's `context.state` after a round; empty where it had none yet.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        root = self.run / "clients" / client
        if not (root / _name(round_)).is_dir():
            raise CheckpointError(
                f"{root / _name(round_)}: {client} has no memory of round {round_}, which the checkpoint of that round "
                f"needs. Restore the directory, delete {self.root / _name(round_)} to go on from the round before it, "
                "or start a new run."
            )
        tensors, state = _read(
            root / _name(round_), round_, "memory.safetensors", "memory.json", self.root / _name(round_)
        )
        memory = RecordDict()
        try:
            for name, values in state["values"].items():
                memory[name] = ConfigRecord(values)
            for name, keys in state["arrays"].items():
                memory[name] = ArrayRecord(OrderedDict((key, tensors[f"{name}/{key}"]) for key in keys))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(root / _name(round_), error, self.root / _name(round_)) from None
        return memory


def _update(tensors: Mapping[str, torch.Tensor], prefix: str, order: list[str]) -> Adapter:
    """The update of scale 1 that lies under this prefix."""
    factors = {name: tensors[prefix + name] for name in order}
    return Adapter.from_tensors(factors, float(next(iter(factors.values())).shape[0]))


def _name(round_: int) -> str:
    return f"round-{round_:04d}"


def _rounds(root: Path) -> list[int]:
    names = [path.name for path in root.glob("round-*") if path.is_dir()]
    return sorted(int(name[6:]) for name in names if name[6:].isdigit())


def _write(
    root: Path, round_: int, tensor_file: str, tensors: dict[str, torch.Tensor], json_file: str, state: dict[str, Any]
) -> None:
    final, temporary = root / _name(round_), root / f".{_name(round_)}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / tensor_file)
        state = {**state, "sha256": _digest(temporary / tensor_file)}
        (temporary / json_file).write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", "utf-8")
        for file in (tensor_file, json_file):
            sync(temporary / file)
        shutil.rmtree(final, ignore_errors=True)  # a round being done again after a resume
        temporary.rename(final)
        sync(root)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(
            f"{final} cannot be written ({reason}). Earlier rounds are intact: make room or mend the disk, then go on "
            "with --resume."
        ) from error


def _read(
    directory: Path, round_: int, tensor_file: str, json_file: str, remove: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        state = json.loads((directory / json_file).read_text("utf-8"))
        if not isinstance(state, dict) or state.get("round") != round_:
            raise ValueError(f"{json_file} is not of round {round_}")
        if state.get("sha256") != _digest(directory / tensor_file):
            raise ValueError(f"{tensor_file} is not what was written")
        return load_file(directory / tensor_file), state
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(directory, error, remove) from None


def _damaged(directory: Path, error: Exception, remove: Path) -> FedrlvrError:
    """`remove`: the server's checkpoint of the round. A client's memory is of use only together with it."""
    return CheckpointError(
        f"{directory} is damaged ({error}). Delete {remove} to go on from the round before it, or start a new run."
    )


def _prune(root: Path, keep: int) -> None:
    for round_ in _rounds(root)[:-keep]:
        shutil.rmtree(root / _name(round_), ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
