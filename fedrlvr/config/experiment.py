"""The whole configuration, read from one TOML file, and the checks that need several of its sections.

An unknown key is an error that names the nearest key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo

from fedrlvr.config.aggregation import AggregationConfig
from fedrlvr.config.also import AlsoConfig, EvaluateSection, OtherTask
from fedrlvr.config.coordination import Coordination, NoCoordination
from fedrlvr.config.engine import EngineConfig
from fedrlvr.config.federation import Deviation, FederationConfig
from fedrlvr.config.personal import PersonalConfig
from fedrlvr.config.privacy import PrivacyConfig
from fedrlvr.config.problems import DataConfig, Partition, RewardConfig, SourcePartition
from fedrlvr.config.prompt import PromptConfig, with_template
from fedrlvr.config.reference import members, type_of
from fedrlvr.config.sections import (
    FEDERATED,
    NO_EFFECT,
    LoraConfig,
    ModelConfig,
    OnlyWith,
    RunConfig,
    SamplingConfig,
    Section,
    TrainConfig,
)
from fedrlvr.config.sft import SftConfig
from fedrlvr.config.supervision import LabelsSupervision, Supervision
from fedrlvr.errors import ConfigError, suggestion
from fedrlvr.files import read_json
from fedrlvr.tasks.problem import GRADER
from fedrlvr.zoo import embedded_config


class Config(Section):
    """A whole experiment, as its TOML file describes it."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    partition: Partition = SourcePartition()
    """Method that divides the problems among the clients."""
    federation: FederationConfig = FederationConfig()
    sampling: SamplingConfig = SamplingConfig()
    train: TrainConfig = TrainConfig()
    supervision: Supervision = LabelsSupervision()
    """Method that gives the rewards for training: true labels, votes, or some of both."""
    coordination: Annotated[Coordination, FEDERATED] = NoCoordination()
    """Method by which clients exchange more than their adapters."""
    aggregation: Annotated[AggregationConfig, FEDERATED] = AggregationConfig()
    personal: Annotated[PersonalConfig, FEDERATED] = PersonalConfig()
    privacy: Annotated[PrivacyConfig, FEDERATED] = PrivacyConfig()
    sft: SftConfig = SftConfig()
    evaluate: EvaluateSection = EvaluateSection()
    engine: EngineConfig = EngineConfig()

    def ledger_file(self, run_directory: Path, client: str) -> Path:
        """The file of a client's label ledger, also if the run's directory has been moved since."""
        if self.run.ledgers is not None:
            return self.run.ledgers / f"{client}.sqlite"
        return run_directory / "clients" / client / "ledger.sqlite"

    def in_arm(self, arm: str) -> Config:
        """The configuration of another arm of the experiment, on the same problems. Settings that have no effect in
        that arm are at their defaults.

        Raises:
            ConfigError: another setting cannot be had in that arm; the text names it.
        """
        tree = self.model_dump()
        tree["federation"]["arm"] = arm
        # A client that has withdrawn trains in no other arm either, where `excluded` says so.
        tree["federation"]["excluded"] += [
            n for n in tree["federation"]["withdrawn"] if n not in self.federation.excluded
        ]
        for section, info in type(self).model_fields.items():
            fields = type(getattr(self, section)).model_fields
            if _without_effect(info, "federation.arm", arm):
                del tree[section]
                continue
            for name, field in fields.items():
                if _without_effect(field, "arm" if section == "federation" else "federation.arm", arm):
                    del tree[section][name]
        return parse_config(tree, where=f"the configuration of the arm {arm!r}")

    def for_sft(self) -> Config:
        """The configuration of the supervised training that goes before this run, in a directory of its own.

        Settings of [sft] take the place of those of [train]; what needs rewards or exchanges is left out.

        Raises:
            ConfigError: another setting does not go together with it; the text names it.
        """
        tree = self.model_dump()
        del tree["coordination"], tree["personal"]
        tree["supervision"] = {"type": "demonstrations", "responses": self.sft.responses}
        stated = self.sft.model_dump(exclude={"responses"}, exclude_none=True)
        fixed = {
            "loss": "cross_entropy",
            "kl_beta": 0.0,
            "updates_per_batch": 1,
            "warmup_steps": 0,
            "dynamic_sampling": 0,
        }
        tree["train"] |= fixed | stated
        directory = self.run.directory
        named = None if directory is None else directory.with_name(f"{directory.name}-sft")
        tree["run"] |= {"name": f"{self.run.name}-sft", "directory": named, "verdict": False, "ledgers": None}
        if self.aggregation.weights == "fgrpo":
            tree["aggregation"]["weights"] = "examples"
            for name, field in AggregationConfig.model_fields.items():
                if _without_effect(field, "weights", "examples"):
                    del tree["aggregation"][name]
        return parse_config(tree, where="the configuration of the supervised training")

    def with_absolute_paths(self) -> Config:
        """The configuration with its local paths absolute, so that it means the same from any working directory."""
        names = ("directory", "ledgers", "started_in", "secrets")
        run = {name: _absolute(getattr(self.run, name)) for name in names}
        deviations = self.federation.deviations.values()
        rewards = [*self.data.rewards, *(entry for deviation in deviations for entry in deviation.rewards)]
        if any(entry.use != GRADER for entry in rewards) and run["started_in"] is None:
            run["started_in"] = Path.cwd()
        model: dict[str, Any] = {"adapter": _absolute(self.model.adapter)}
        if (path := self.model.local) is not None:
            model["name"] = str(path.absolute())
        also = self.evaluate.also
        if also is not None:
            task = also.task and also.task.model_copy(update={"path": _absolute(also.task.path)})
            also = also.model_copy(update={"text": _absolute(also.text), "task": task})
        changed = {
            "evaluate": self.evaluate.model_copy(update={"also": also}),
            "run": self.run.model_copy(update=run),
            "model": self.model.model_copy(update=model),
            "data": self.data.model_copy(update={"path": _absolute(self.data.path)}),
            "engine": self.engine.in_directory(Path.cwd()),
        }
        return self.model_copy(update=changed)

    @model_validator(mode="after")
    def _sections_go_together(self) -> Config:
        for name, section in self:
            section.check_effects(self, f"{name}.")
        for _, section in self:
            section.check(self)
        return self


def _without_effect(info: FieldInfo, setting: str, value: str) -> bool:
    """Whether a section or a setting has no effect with this value of another setting."""
    return any(isinstance(m, OnlyWith) and m.setting == setting and value not in m.values for m in info.metadata)


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


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
        where = "the embedded default" if path == embedded_config() else str(path)
        try:
            tree = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid TOML in UTF-8: {error}.") from None
        except OSError as error:
            reason = f"{error.strerror}. Give the path of a TOML configuration"
            raise ConfigError(f"{path} cannot be read: {reason}.") from None
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, where=f"{where} with --set" if overrides else where)


def parse_config(tree: dict[str, Any], *, where: str = "the configuration") -> Config:
    """Validate a nested dict; `where` names it in errors. A file that `prompt.template` names is read.

    Raises:
        ConfigError: a key or value does not fit; the text names the key.
    """
    if isinstance(prompt := tree.get("prompt"), Mapping):
        tree = {**tree, "prompt": with_template(prompt)}
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, tree, where)) from None


EXTENDABLE = "train.rounds"
"""The only setting that a run which goes on may change."""


def load_resolved(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the `config.json` of a run directory.

    overrides: `train.rounds=N`, for a run that is to go on for longer.

    Raises:
        ConfigError: there is no such file, it cannot be used, or an override is of another key.
    """
    for override in overrides:
        if (key := override.partition("=")[0].strip()) != EXTENDABLE:
            raise ConfigError(
                f"--set {key}: --resume goes on with the configuration the run was started with; only {EXTENDABLE} "
                "may be set, to go on for longer."
            )
    try:
        tree = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: there is no such file, so {path.parent} is not a run directory.") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} does not hold a JSON object.")
    if not tree.keys() & Config.model_fields.keys():
        raise ConfigError(f"{path} is not the configuration of a run, so {path.parent} is not a run directory.")
    _translate(tree)
    before = parse_config(tree, where=str(path)) if overrides else None
    for override in overrides:
        _override(tree, override)
    config = parse_config(tree, where=str(path))
    if before is not None and config.privacy.unit != "none" and config.train.rounds != before.train.rounds:
        raise ConfigError(
            f"--set {EXTENDABLE}: the noise of this run (privacy.unit = {config.privacy.unit!r}) was computed for "
            f"{before.train.rounds} rounds, and more would exceed privacy.epsilon. Start a new run from its adapter "
            "(model.adapter), whose privacy loss comes on top."
        )
    return config


def _translate(tree: dict[str, Any]) -> None:
    """Give settings in a resolved config of an earlier release their names of today."""
    run, coordination, train = tree.get("run"), tree.get("coordination"), tree.setdefault("train", {})
    if isinstance(run, dict) and (tracker := run.pop("tracker", "none")) != "none":  # up to 0.10.0
        run.setdefault("trackers", [tracker])
    cap = coordination.pop("cap", None) if isinstance(coordination, dict) else None  # up to 0.11.1
    if cap is not None and isinstance(train, dict):
        train["ratio_cap"] = cap


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
    except (ValueError, RecursionError):
        tree[parts[-1]] = value.strip()


_RENAMED = {
    "run.tracker": 'run.trackers, a list such as ["tensorboard"]',
    "data.reward": "data.rewards",
    "coordination.cap": "train.ratio_cap",
    "federation.deviations.*.reward": "federation.deviations.*.rewards",
    "supervision.warm_up": "supervision.vote_free_share, a share of the run's local steps",
    "supervision.vote_free_steps": "supervision.vote_free_share, a share of the run's local steps",
    "supervision.trust_above": "supervision.min_reliability",
    "model.chat_template": 'prompt.chat, which is "auto", "on" or "off"',
    "data.instruction": "prompt.instruction",
    "federation.deviations.*.prompt_template": "federation.deviations.*.template, with {{ prompt }} for {prompt}",
}
"""Settings of earlier versions and their names today. A * stands for a name in a table of sections."""
_UNIONS = {"partition": "source", "supervision": "care", "coordination": "pubswap"}
"""Sections that are one of several by their `type`, and one of these types."""


_TABLES: dict[tuple[str, ...], type[Section]] = {
    ("federation", "deviations"): Deviation,
    ("data", "rewards"): RewardConfig,
    ("evaluate", "also"): AlsoConfig,
}
"""Settings that are tables of sections by name, or lists of sections, and these sections' class."""


def _explain(error: ValidationError, tree: dict[str, Any], where: str) -> str:
    """One paragraph: each wrong key by its dotted path, with the nearest known key where it is unknown."""
    parts = []
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        if len(location) > 1 and location[0] in _UNIONS:
            del location[1:2]  # pydantic names the member of the union there, the file does not
        if values := _values(location, item["type"]):
            del location[2:]  # pydantic has an error for each kind of value that a setting takes
            item = {**item, "msg": f"allowed: {values}", "input": tree[location[0]][location[1]]}
        dotted = ".".join(location)
        renamed = ".".join([*location[:2], "*", *location[3:]]) if tuple(location[:2]) in _TABLES else dotted
        if item["type"] == "extra_forbidden" and renamed in _RENAMED:
            parts.append(f"{dotted} is now called {_RENAMED[renamed].replace('*', ''.join(location[2:3]))}")
        elif item["type"] == "extra_forbidden" and len(location) == 2 and location[1] in _siblings(location):
            parts.append(f"{dotted} has no effect with this {location[0]}.type")
        elif item["type"] == "extra_forbidden":
            parts.append(f"unknown key {dotted!r} ({_hint(location)})")
        elif item["type"] == NO_EFFECT and dotted:  # within one section, which knows no name of its own
            names = item["ctx"]
            parts.append(f"{dotted}.{names['setting']} has no effect {names['word']} {dotted}.{names['other']}")
        elif item["type"] == "union_tag_not_found":
            parts.append(f"{dotted}: say which type it is, for example {dotted}.type = {_UNIONS[dotted]!r}")
        elif item["type"] == "union_tag_invalid":
            known, given = item["ctx"]["expected_tags"], item["ctx"]["tag"]
            parts.append(f"{dotted}.type: input should be one of {known} (got {given!r})")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if isinstance(item["input"], dict | Section) else f" (got {item['input']!r})"
            # A check across sections has no place of its own; its message names the settings.
            message = "this is a section of settings" if item["type"].startswith("model_") else message
            parts.append(f"{dotted}: {message[0].lower()}{message[1:]}{got}" if dotted else message)
    return f"{where}: {'; '.join(dict.fromkeys(parts))}."


def _values(location: list[str], kind: str) -> str:
    """The values that a setting takes, in words; nothing where the error is of no setting or not of a kind of value."""
    if len(location) < 2 or (len(location) == 2 and not kind.endswith(("_type", "_parsing"))):
        return ""
    section, name = location[:2]
    classes = members(Config.model_fields[section].annotation)
    if tuple(location[:2]) in _TABLES and len(location) > 2:
        return ""  # of a setting within the table
    return next((type_of(member, name) for member in classes if name in member.model_fields), "")


def _sections() -> dict[str, set[str]]:
    """Keys of each section; a union section knows the keys of all its members."""
    known: dict[str, set[str]] = {}
    for name, info in Config.model_fields.items():
        known[name] = {key for member in members(info.annotation) for key in member.model_fields}
    return known


def _siblings(location: list[str]) -> list[str]:
    sections = _sections()
    if location[:2] == ["evaluate", "also"] and 2 < len(location) < 5:
        return sorted((AlsoConfig if len(location) == 3 else OtherTask).model_fields)
    if len(location) > 3 and location[-3] == "rewards":
        return sorted(RewardConfig.model_fields)
    if len(location) == 4 and tuple(location[:2]) in _TABLES:
        return sorted(_TABLES[location[0], location[1]].model_fields)
    return sorted(sections) if len(location) == 1 else sorted(sections.get(location[0], set()))


def _hint(location: list[str]) -> str:
    *sections, key = location
    for section, keys in _sections().items():  # the right key in the wrong section, or in none
        if key in keys and location[0] != section:
            return f"did you mean {f'{section}.{key}'!r}?"
    return suggestion(key, _siblings(location), "".join(f"{section}." for section in sections))
