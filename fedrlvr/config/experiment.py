"""The whole configuration, read from one TOML file, and the checks that need several of its sections.

An unknown key is an error that names the nearest key.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from fedrlvr.aggregation.lora_rule import RULES
from fedrlvr.config.methods import (
    HOSTILE,
    LARGEST_GROUP,
    TRIM,
    AggregationConfig,
    Asking,
    CareSupervision,
    Coordination,
    LabelsSupervision,
    MajoritySupervision,
    NoCoordination,
    PubSwapCoordination,
    Supervision,
)
from fedrlvr.config.sections import (
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    FederationConfig,
    LoraConfig,
    ModelConfig,
    Partition,
    RunConfig,
    SamplingConfig,
    Section,
    SourcePartition,
    TrainConfig,
)
from fedrlvr.errors import ConfigError, suggestion


class Config(Section):
    """A whole experiment."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    partition: Partition = SourcePartition()
    federation: FederationConfig = FederationConfig()
    sampling: SamplingConfig = SamplingConfig()
    train: TrainConfig = TrainConfig()
    supervision: Supervision = LabelsSupervision()
    coordination: Coordination = NoCoordination()
    aggregation: AggregationConfig = AggregationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: EngineConfig = EngineConfig()

    def ledger_file(self, run_directory: Path, client: str) -> Path:
        """The file of a client's label ledger, also if the run's directory has been moved since."""
        if self.run.ledgers is not None:
            return self.run.ledgers / f"{client}.sqlite"
        return run_directory / "clients" / client / "ledger.sqlite"

    @model_validator(mode="after")
    def _settings_that_would_do_nothing(self) -> Config:
        aggregation = self.aggregation
        # By value, not by what was set: the config.json of a run directory states every setting.
        alone = {
            "federation.fraction": self.federation.fraction != 1.0,
            f"aggregation.type = {aggregation.type!r}": aggregation.type != "fedit",
            f"aggregation.precision = {aggregation.precision!r}": aggregation.precision != "float32",
            f"aggregation.robust = {aggregation.robust!r}": aggregation.robust != "none",
            "aggregation.largest_change": aggregation.largest_change is not None,
            "aggregation.weights = 'fgrpo'": aggregation.weights == "fgrpo",
            "coordination.type = 'pubswap'": isinstance(self.coordination, PubSwapCoordination),
        }
        if self.federation.arm != "federated" and any(alone.values()):
            useless = next(setting for setting, given in alone.items() if given)
            raise ValueError(
                f"{useless} has no effect with federation.arm = {self.federation.arm!r}, where nothing passes between "
                "clients"
            )
        if self.federation.arm == "local" and self.train.proximal_mu:
            raise ValueError("train.proximal_mu pulls towards the round's adapter, which the arm 'local' does not have")
        if isinstance(self.coordination, PubSwapCoordination):
            self._check_exchanges(self.coordination)
        if isinstance(self.lora.rank, dict):
            self._check_ranks(self.lora.rank)
        self._check_aggregation()
        self._check_supervision()
        if self.train.warmup_steps >= self.train.rounds * self.train.local_steps > 1:
            raise ValueError("train.warmup_steps must be fewer than rounds x local_steps")
        return self

    def _check_ranks(self, ranks: dict[str, int]) -> None:
        names = self.federation.names
        if strange := sorted(set(names) ^ set(ranks)):
            name = strange[0]
            what = f"no rank for the client {name!r}" if name in names else f"{name!r}, which is no client"
            raise ValueError(f"lora.rank has {what}: the clients are {', '.join(names)}")
        if len(set(ranks.values())) == 1:
            return
        if self.federation.arm == "central":
            raise ValueError("lora.rank: the arm 'central' has one client, and so one rank")
        if self.federation.arm == "federated" and not self.aggregation.rule.mixes_ranks:
            takes = ", ".join(sorted(rule.name for rule in RULES.values() if rule.mixes_ranks))
            raise ValueError(
                f"aggregation.type = {self.aggregation.type!r} cannot mix the ranks of lora.rank; {takes} can"
            )

    def _check_aggregation(self) -> None:
        aggregation, train = self.aggregation, self.train
        if aggregation.rule.new_components and train.optimizer_state == "keep":
            raise ValueError(
                f"train.optimizer_state = 'keep' has no meaning with aggregation.type = {aggregation.type!r}, after "
                "which an adapter's components are others than before"
            )
        federation = self.federation
        clients = max(1, math.floor(federation.fraction * len(federation.names) + 0.5))
        if aggregation.robust == "krum" and clients < (needed := 2 * (aggregation.robust_hostile or HOSTILE) + 3):
            raise ValueError(f"aggregation.robust = 'krum' needs at least {needed} clients in a round, not {clients}")
        if aggregation.robust == "median" and clients < 3:
            raise ValueError(f"aggregation.robust = 'median' needs at least 3 clients in a round, not {clients}")
        if aggregation.robust == "trimmed_mean" and int((aggregation.robust_trim or TRIM) * clients) < 1:
            raise ValueError(
                f"aggregation.robust = 'trimmed_mean' drops robust_trim x {clients} clients at either end, which is "
                "none: set robust_trim to at least 1 / clients"
            )

    def _check_supervision(self) -> None:
        supervision = self.supervision
        if self.aggregation.weights == "fgrpo" and isinstance(supervision, MajoritySupervision):
            raise ValueError(
                "aggregation.weights = 'fgrpo' weighs by verified rewards, of which supervision.type = 'majority' has "
                "none"
            )
        if self.run.ledgers is not None and not (isinstance(supervision, Asking) and supervision.labels_from == "desk"):
            raise ValueError("run.ledgers has no effect without supervision.labels_from = 'desk'")
        if not isinstance(supervision, CareSupervision):
            return
        if self.sampling.group_size > LARGEST_GROUP:
            raise ValueError(
                f"supervision.type = 'care' takes sampling.group_size up to {LARGEST_GROUP}, not "
                f"{self.sampling.group_size}"
            )
        if supervision.share_probes and self.federation.arm != "federated":
            raise ValueError(f"supervision.share_probes has no effect with federation.arm = {self.federation.arm!r}")
        if supervision.share_probes and len(self.federation.names) == 1:
            raise ValueError("supervision.share_probes has no effect with one client")

    def _check_exchanges(self, coordination: PubSwapCoordination) -> None:
        if coordination.exchanges > self.train.local_steps:
            raise ValueError(
                f"coordination.exchanges = {coordination.exchanges} do not fit into train.local_steps = "
                f"{self.train.local_steps}: an exchange follows at least one local step"
            )
        if coordination.public_problems > self.data.public_size:
            raise ValueError(
                f"coordination.public_problems = {coordination.public_problems} are more than data.public_size = "
                f"{self.data.public_size}: set at least as many problems aside"
            )


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides.

    A value is read as TOML where it parses, else as a bare string. Relative paths mean relative to the working
    directory.

    Raises:
        ConfigError: the file is missing, not TOML, or a key or value does not fit; the text names the key.
    """
    tree: dict[str, Any] = {}
    where = "the configuration"
    if path is not None:
        where = str(path)
        try:
            tree = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file. Give the path of a TOML configuration.") from None
        except IsADirectoryError:
            raise ConfigError(f"{path} is a directory. Give the path of a TOML configuration in it.") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}.") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, where=where)


def parse_config(tree: dict[str, Any], *, where: str = "the configuration") -> Config:
    """Validate a nested dict; `where` names it in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def load_resolved(path: Path) -> Config:
    """Read the `config.json` of a run directory."""
    try:
        tree = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file, so this is not a run directory.") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} does not hold a JSON object.")
    return parse_config(tree, where=str(path))


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: write section.key=value, for example --set train.rounds=20.")
    for part in parts[:-1]:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section.")
        tree = child
    try:
        tree[parts[-1]] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        tree[parts[-1]] = value.strip()


_UNIONS = {"partition": "source", "supervision": "care", "coordination": "pubswap"}
"""Sections that are one of several by their `type`, and one of these types."""


def _explain(error: ValidationError, where: str) -> str:
    """One paragraph: each wrong key by its dotted path, with the nearest known key where it is unknown."""
    parts = []
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        if len(location) > 1 and location[0] in _UNIONS:
            del location[1:2]  # pydantic names the member of the union there, the file does not
        dotted = ".".join(location)
        if item["type"] == "extra_forbidden" and len(location) == 2 and location[1] in _siblings(location):
            parts.append(f"{dotted} has no effect with this {location[0]}.type")
        elif item["type"] == "extra_forbidden":
            parts.append(f"unknown key {dotted!r} ({_hint(location)})")
        elif item["type"] == "union_tag_not_found":
            parts.append(f"{dotted}: say which type it is, for example {dotted}.type = {_UNIONS[dotted]!r}")
        elif item["type"] == "union_tag_invalid":
            known, given = item["ctx"]["expected_tags"], item["ctx"]["tag"]
            parts.append(f"{dotted}.type: input should be one of {known} (got {given!r})")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if isinstance(item["input"], dict | Section) else f" (got {item['input']!r})"
            # A check across sections has no place of its own; its message names the settings.
            parts.append(f"{dotted}: {message[0].lower()}{message[1:]}{got}" if dotted else message)
    return f"{where}: {'; '.join(parts)}."


def _sections() -> dict[str, set[str]]:
    """Keys of each section; a union section knows the keys of all its members."""
    known: dict[str, set[str]] = {}
    for name, info in Config.model_fields.items():
        members = [m for m in getattr(info.annotation, "__args__", (info.annotation,)) if m is not None]
        known[name] = {key for member in members for key in member.model_fields}
    return known


def _siblings(location: list[str]) -> list[str]:
    sections = _sections()
    return sorted(sections) if len(location) == 1 else sorted(sections.get(location[0], set()))


def _hint(location: list[str]) -> str:
    *sections, key = location
    for section, keys in _sections().items():  # the right key in the wrong section, or in none
        if key in keys and location[0] != section:
            return f"did you mean {f'{section}.{key}'!r}?"
    return suggestion(key, _siblings(location), "".join(f"{section}." for section in sections))
