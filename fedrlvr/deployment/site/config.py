"""An organisation's own configuration, `site.toml`: who it is, what it lets be trained on, and how far.

Only this file decides what a server may ask for; no message changes it. Relative paths in it mean relative to it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from fedrlvr.config.methods import LabelSource, SupervisionType
from fedrlvr.config.sections import DataConfig, Dtype, EngineConfig, ModelConfig, Name, Section
from fedrlvr.errors import ConfigError, validation_text
from fedrlvr.hosts import LOOPBACK, is_loopback, split_address

MessageType = Literal["train", "query.respond", "evaluate"]


class TaskConfig(DataConfig):
    """Problems a server may ask this organisation to train on; they never leave it. Settings as in [data]."""

    @model_validator(mode="after")
    def _no_public_problems(self) -> TaskConfig:
        if self.public_size:
            raise ValueError("public_size has no place here: public problems come from the server")
        return self


class MachineConfig(Section):
    """How the model is held on this machine."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Dtype = "auto"
    """Of the base weights. `auto` is bfloat16 on a GPU that has it, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class Limits(Section):
    """The most a server may ask for. What is beyond it is refused, with the reason, and nothing is computed."""

    message_types: tuple[MessageType, ...] = get_args(MessageType)
    """What may be asked at all. Without "query.respond" no response to a public problem leaves; without "evaluate" no
    score does."""
    rounds: int = Field(1000, ge=1)
    """Of a run."""
    local_steps: int = Field(100, ge=1)
    """Of a round."""
    problems_per_step: int = Field(256, ge=1)
    """Of a local step."""
    group_size: int = Field(64, ge=2)
    """Responses to a problem."""
    max_new_tokens: int = Field(4096, ge=1)
    """Of a response."""
    tokens_per_message: int = Field(100_000_000, ge=1)
    """Sampled for one message at most: steps x problems x responses x longest response, public problems included."""
    public_problems: int = Field(256, ge=0)
    """Of an exchange."""
    public_steps: int = Field(16, ge=1)
    """Optimizer steps on an exchange's groups."""
    updates_per_batch: int = Field(8, ge=1)
    """Optimizer steps on a sampled batch."""
    evaluate_samples: int = Field(64, ge=1)
    """Responses to each held-out problem."""
    lora_rank: int = Field(64, ge=1)
    """Of this organisation's adapter, and of anybody's."""
    change_rank: int = Field(1024, ge=0)
    """Of a change of the base weights that the server sends (aggregation flora, fedex, flexlora). 0: none."""
    supervision: tuple[SupervisionType, ...] = ("labels", "majority", "care", "random", "entropy", "probability")
    """Where rewards may come from. "oracle" reads every answer to choose; it is for experiments."""
    labels_from: tuple[LabelSource, ...] = get_args(LabelSource)
    """Who may be asked for labels, where supervision asks."""
    label_share: float = Field(1.0, ge=0, le=1)
    """Share of a step's problems whose label may be asked for (supervision.budget)."""
    labels: int | None = Field(None, ge=1)
    """Labels in all that a run may ask for; a server must then state a budget_total up to it. None: no limit."""
    audit: bool = False
    """Whether a server may have accuracies measured that only all answers together give; for experiments."""
    share_probes: bool = True
    """Whether CARE's probes may leave."""
    least_clients: int = Field(2, ge=1)
    """Privacy floor: fewer organisations than this, and the server's average would tell of this one alone."""
    source_names: bool = True
    """Whether scores may leave under the names of their sources. False: all are summed under the name of the task."""
    least_problems: int = Field(1, ge=1)
    """Privacy floor: with fewer training problems nothing is trained, lest the adapter tell of single ones."""


class SiteConfig(Section):
    """An organisation."""

    name: Name
    """As it is registered with the SuperLink."""
    superlink: str
    """host:port."""
    root_certificates: Path | None = Path("ca.crt")
    """PEM file of the authority that signed the SuperLink's certificate."""
    key: Path | None = None
    """This organisation's private key, which its registered public key belongs to. None: <name>.key beside the file."""
    insecure: bool = False
    """No TLS and no keys: only with a SuperLink on this very machine, to try things out."""
    port: int = Field(9094, ge=1, le=65535)
    """Of the SuperNode's own interface, on 127.0.0.1 only."""
    idle_minutes: float = Field(10.0, gt=0)
    """The worker, and the model in its memory, goes after so long without a message."""
    keep_runs: int = Field(5, ge=1)
    """States of so many of the newest runs stay on disk. What people answered always stays."""
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    """What may be trained on, by the name a server asks for it by."""
    models: dict[str, str] = Field(min_length=1)
    """Base models that may be asked for, and where each lies here: a directory, a hub id, or `embedded`."""
    machine: MachineConfig = MachineConfig()
    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()

    @field_validator("superlink")
    @classmethod
    def _address(cls, value: str) -> str:
        split_address(value)
        return value

    @model_validator(mode="after")
    def _insecure_on_this_machine_only(self) -> SiteConfig:
        host, _ = split_address(self.superlink)
        if self.insecure and not is_loopback(host):
            raise ValueError(f"insecure is for a SuperLink on this machine ({LOOPBACK[0]}), not on {host}")
        return self


@dataclass(frozen=True)
class Organisation:
    """An organisation's configuration and where its own files lie.

    path: of its site.toml, absolute.
    """

    config: SiteConfig
    path: Path

    @property
    def name(self) -> str:
        """As it is registered."""
        return self.config.name

    @property
    def directory(self) -> Path:
        """Where site.toml is; paths in it are relative to this."""
        return self.path.parent

    @property
    def state(self) -> Path:
        """What it remembers, its logs and its worker's socket; nobody else's business."""
        return self.directory / "state"

    @property
    def log(self) -> Path:
        """What was asked of it and what it sent, a line each."""
        return self.state / "site.log"

    def resolve(self, path: Path) -> Path:
        """A path of the configuration."""
        return path if path.is_absolute() else self.directory / path

    @cached_property
    def key(self) -> Path:
        """Its private key."""
        return self.resolve(self.config.key or Path(f"{self.name}.key"))

    @cached_property
    def root_certificates(self) -> Path | None:
        """The authority's certificate."""
        return None if self.config.root_certificates is None else self.resolve(self.config.root_certificates)

    def task(self, name: str) -> TaskConfig:
        """A task with its paths resolved.

        Raises:
            KeyError: there is none of this name.
        """
        task = self.config.tasks[name]
        return task if task.path is None else task.model_copy(update={"path": self.resolve(task.path)})

    def model(self, name: str) -> ModelConfig:
        """A model as it is loaded on this machine; a relative path that exists is one beside site.toml.

        Raises:
            KeyError: there is none of this name.
        """
        place = self.config.models[name]
        if place != "embedded" and self.resolve(Path(place)).exists():
            place = str(self.resolve(Path(place)))
        return ModelConfig(name=place, **self.config.machine.model_dump())


def load_site(path: Path | str) -> Organisation:
    """Read a site.toml, or that of a directory.

    Raises:
        ConfigError: the file is missing, not TOML, or a key or value does not fit; the text names file and key.
    """
    file = Path(path).expanduser().absolute()
    file = file / "site.toml" if file.is_dir() else file
    try:
        tree = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file. `fedrlvr site init` makes one.") from None
    except (OSError, ValueError, RecursionError) as error:  # UTF-8, TOML, or a number of thousands of digits
        raise ConfigError(f"{file} cannot be read as TOML: {error}.") from None
    try:
        return Organisation(SiteConfig.model_validate(tree), file)
    except ValidationError as error:
        raise ConfigError(f"{file}: {validation_text(error)}.") from None
