"""The adapters of a run, while it is under way and afterwards: of its directory, and of each of its checkpoints.

A run's directory stands for its newest checkpoint. Where the checkpoints have been deleted, it stands for the exported
adapter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flwr.app import Context

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation.stacking import add
from fedrlvr.client.state import OWN_ADAPTER, arrays_in
from fedrlvr.config import Config, load_resolved
from fedrlvr.errors import AdapterError, CheckpointError, ConfigError
from fedrlvr.policy.peft_format import CONFIG_FILE, load_peft
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints, read_checkpoint
from fedrlvr.server.run_directory import STATE_FILE, personal_directory, resume_command
from fedrlvr.wire.messages import arrays_to_adapter

T = TypeVar("T")

_ROUND = re.compile(r"round-(\d{4,9})")


@dataclass(frozen=True)
class SavedRun:
    """The directory of a run, with its configuration.

    round: that of the checkpoint meant; None is the newest.
    """

    directory: Path
    config: Config
    round: int | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the directory of the run."""
        return Checkpoints(self.directory, self.config.run.keep_checkpoints)

    @property
    def finished(self) -> bool:
        """Whether the exported adapter is that of the last round."""
        newest = max(self.checkpoints.rounds(), default=self.config.train.rounds)
        return self.round is None and newest >= self.config.train.rounds and (self.directory / "adapter").is_dir()

    @property
    def adapter_round(self) -> int:
        """The round whose adapter `adapter` reads now; 0 is the start."""
        if self.round is not None:
            return self.round
        last = self.config.train.rounds
        return last if self.finished else max(self.checkpoints.rounds(), default=last)

    @property
    def local(self) -> bool:
        """Whether each client has an adapter of its own."""
        return self.config.federation.arm == "local"

    def newest(self, read: Callable[[Checkpoint], T]) -> T | None:
        """Result of `read` for the checkpoint; None where the run has none.

        A run that is under way may delete the checkpoint at any moment. Then the next newest is read.

        Raises:
            CheckpointError: the checkpoint, or a client's memory of its round, cannot be read or is damaged.
            AdapterError: whatever `read` raises.
        """
        while True:
            round_ = self.round if self.round is not None else max(self.checkpoints.rounds(), default=None)
            if round_ is None:
                return None
            try:
                checkpoint = self.checkpoints.load(round_)
                assert checkpoint is not None
                return read(checkpoint)
            except CheckpointError:
                directory, newer = self.checkpoints.directories.path(round_), max(self.checkpoints.rounds(), default=-1)
                if self.round is not None and not directory.is_dir():
                    raise CheckpointError(
                        f"{directory} does not exist. The run keeps its newest {self.config.run.keep_checkpoints} "
                        "checkpoints (run.keep_checkpoints) and deletes older ones."
                    ) from None
                if self.round is not None or newer <= round_:
                    raise

    def adapter(self, client: str | None = None) -> Adapter:
        """The adapter on the original base weights. client: whose, in the arm `local`; else whose personal adapter.

        Raises:
            ConfigError: a client is named and there is one adapter for all, the reverse, or no client of this name.
            AdapterError: the run has no adapter yet, or none of this client.
            CheckpointError: as `newest`.
        """
        names = self.config.federation.names
        if self.local and client not in names:
            hint = f"name one with --client ({', '.join(names)})"
            if client is not None:
                hint = f"--client {client}: there is no such client; {hint}"
            raise ConfigError(f"{self.directory}: the arm 'local' has one adapter per client; {hint}.")
        if client is not None and self.config.personal.method.makes_adapters:
            if (adapter := self.personal_adapter(client)) is not None:
                return adapter
            raise AdapterError(
                f"{self.directory}: there is no personal adapter of {client} here. They are made after the last "
                "round, without clients that are left out then (metrics.jsonl); in a deployment each lies at its "
                "organisation, in state/runs/RUN/clients/NAME/personal."
            )
        if self.config.personal.method.keeps is not None:
            raise ConfigError(
                f"{self.directory}: personal.type = {self.config.personal.type!r} has one adapter per client; name one "
                f"with --client ({', '.join(names)})."
            )
        if client is not None and not self.local:
            arm = self.config.federation.arm
            raise ConfigError(f"{self.directory}: the arm {arm!r} has one adapter for all clients; leave out --client.")
        if not self.finished:
            name = client
            adapter = self.newest(lambda c: whole(c) if name is None else self.own_adapter(c, name))
            if adapter is not None:
                return adapter
        if not (self.directory / "adapter").is_dir():
            raise AdapterError(
                f"{self.directory}: the run has no adapter yet, since its first checkpoint is not written. Wait for "
                f"it, or go on with the run by `{resume_command(self.directory)}`."
            )
        return load_peft(self.directory / "adapter" / (client or ""))

    def personal_adapter(self, client: str) -> Adapter | None:
        """A client's personal adapter of a finished run, on the original base weights (`personal.type`).

        None: the run is not finished, has no personal adapters, or this client was left out when they were made. In a
        deployment they lie at the organisations, and this machine has none.

        Raises:
            ConfigError: there is no client of this name.
            AdapterError: the adapter cannot be read.
        """
        names = self.config.federation.names
        if client not in names:
            raise ConfigError(f"--client {client}: there is no such client; name one of {', '.join(names)}.")
        directory = personal_directory(self.directory, client)
        if not self.finished or not (directory / CONFIG_FILE).is_file():
            return None
        try:
            return load_peft(directory)
        except AdapterError as error:
            again = f"Delete this directory and `{resume_command(self.directory)}` makes it again."
            raise AdapterError(f"{error} {again}") from None

    def own_adapter(self, checkpoint: Checkpoint, client: str) -> Adapter:
        """A client's own adapter in the arm `local`, after the checkpoint's round.

        Raises:
            CheckpointError: the client's memory of the round is missing or damaged.
            AdapterError: it is not what was written.
        """
        context = Context(0, 0, {}, self.checkpoints.load_memory(checkpoint.round, client), {})
        like = checkpoint.adapter.at_rank(self.config.lora.rank_of(client))
        arrays = arrays_in(context, OWN_ADAPTER)
        return like if arrays is None else arrays_to_adapter(arrays, like, place=client)


def open_run(path: Path) -> SavedRun:
    """A run by its directory, or by that of one of its checkpoints.

    Raises:
        ConfigError: neither; the text says what the path is.
    """
    path = path.expanduser()
    place = Path(os.path.abspath(path))
    if place.name == "checkpoints" and (place.parent / "config.json").is_file():
        raise ConfigError(f"{path} holds several checkpoints. Give one of them, or the run's directory {place.parent}.")
    if (number := _ROUND.fullmatch(place.name)) and (place.parent.parent / "config.json").is_file():
        return SavedRun(place.parent.parent, _resolved(place.parent.parent), int(number[1]))
    if not path.is_dir():
        raise ConfigError(f"{path} {_described(path)}. Give a run's directory, or one of its checkpoints.")
    if (path / STATE_FILE).is_file():
        if (real := path.resolve()) != place:  # a link
            return open_run(real)
        raise ConfigError(
            f"{path} is a checkpoint outside of its run's directory, so its model and problems are unknown. Give "
            "RUN/checkpoints/round-NNNN, or evaluate it with a TOML configuration and --adapter."
        )
    return SavedRun(path, _resolved(path))


def load_adapter(path: Path) -> Adapter:
    """The adapter in a PEFT directory, a run's directory, or a checkpoint's, on the original base weights.

    Raises:
        ConfigError: the path is none of these, or is a run of the arm `local`, which has an adapter for each client.
        AdapterError, CheckpointError: the adapter cannot be read.
    """
    path = path.expanduser()
    if (path / CONFIG_FILE).is_file():
        return load_peft(path)
    try:
        run = open_run(path)
    except ConfigError as error:
        if (path / STATE_FILE).is_file():
            return whole(read_checkpoint(path))  # one that was copied out of its run's directory
        raise AdapterError(f"{error} It is no PEFT directory either: {CONFIG_FILE} is missing.") from None
    if run.local:
        raise ConfigError(
            f"{path}: the arm 'local' has one adapter per client. Write one with `fedrlvr export {path} OUT --client "
            "NAME`, and give OUT."
        )
    return run.adapter()


def whole(checkpoint: Checkpoint) -> Adapter:
    """A checkpoint's model as one adapter on the original base weights."""
    change = checkpoint.updates.get("change")
    if change is None:
        return checkpoint.adapter
    if not any(bool(factors.B.any()) for factors in checkpoint.adapter.layers.values()):
        return change  # the adapter has just been begun, and adds nothing
    total = add(checkpoint.adapter, change)
    assert total is not None
    return total


def _resolved(run: Path) -> Config:
    """The configuration of a run, wherever its directory lies now."""
    config = load_resolved(run / "config.json")
    return config.model_copy(update={"run": config.run.model_copy(update={"directory": run.absolute()})})


def _described(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"
