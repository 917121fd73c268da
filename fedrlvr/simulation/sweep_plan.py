"""Plan of a sweep: its arms, its seeds, and a directory for each federation. Nothing heavy is imported.

<directory>/<arm>/seed-<n>/    what `fedrlvr run` writes
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrlvr.config import Config, load_config, load_resolved
from fedrlvr.errors import ConfigError
from fedrlvr.server.run_directory import new_directory

MOST_FEDERATIONS = 4096
AS_GIVEN = "as-given"
"""The arm of a sweep that varies nothing but the seed."""
_LONGEST_VALUE, _LONGEST_NAME = 60, 180  # of a directory's name
_PLACES = {("run", "directory"), ("run", "started_in")}
_SETTLED: dict[tuple[str, str], Any] = {("engine", "threads"): None, ("aggregation", "precision"): "auto"}
"""Settings that a run settles when it starts, and the values that leave this to it."""
_NEVER = {"run", "run.seed", "run.directory"}


@dataclass(frozen=True)
class Arm:
    """One configuration of an experiment, for all seeds.

    name: serves as a directory. settings: the varied keys and their values as given. config: at the first seed.
    """

    name: str
    settings: dict[str, str]
    config: Config


@dataclass(frozen=True)
class Planned:
    """One federation of a sweep: an arm at a seed.

    started: its directory holds a run to go on with. finished: one with nothing left to do.
    """

    arm: str
    seed: int
    config: Config
    directory: Path
    started: bool
    finished: bool

    @property
    def name(self) -> str:
        """`<arm>/seed-<n>`, its place in the sweep's directory."""
        return f"{self.arm}/seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A sweep: every arm at every seed, arm after arm."""

    directory: Path
    arms: list[Arm]
    seeds: list[int]
    federations: list[Planned]


def plan(
    path: Path | str,
    overrides: Sequence[str] = (),
    vary: Sequence[str] = (),
    *,
    seeds: int = 1,
    directory: Path | None = None,
) -> Plan:
    """Every combination of the varied values, at the seeds run.seed, run.seed + 1, ...

    path, overrides: as `load_config`.
    vary: `section.key=value,value,...`, each value read as one of `--set` is; commas in brackets or quotes do not part.
    directory: None takes run.directory, else makes runs/<name>-sweep-<date>-<time>. What lies there already is gone on
        with.

    Raises:
        ConfigError: a key or value that does not fit, a value given twice, too many federations, or a directory with
            runs of another configuration; the text names the key.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: a sweep needs at least one seed.")
    values = dict(_varied(text, overrides) for text in vary)
    if len(values) < len(vary):
        raise ConfigError("--vary: a key is varied twice. Give all its values in one --vary, parted by commas.")
    many = seeds
    for given in values.values():
        many *= len(given)
    if many > MOST_FEDERATIONS:
        raise ConfigError(f"This sweep has {many} federations; at most {MOST_FEDERATIONS} are run together.")
    base = load_config(path, overrides)
    if base.run.verdict:
        raise ConfigError(
            "run.verdict: a sweep makes no verdicts. Leave it out, vary federation.arm=federated,local, and give two "
            "runs of the sweep to `fedrlvr verdict RUN --alone RUN`."
        )
    arms = _arms(path, overrides, values)
    place = directory or base.run.directory or new_directory(f"{base.run.name}-sweep")
    if (place / "config.json").exists():
        raise ConfigError(f"{place} holds a single run. Give the sweep a directory of its own with --directory.")
    numbers = list(range(base.run.seed, base.run.seed + seeds))
    federations = [_planned(arm, seed, place) for arm in arms for seed in numbers]
    return Plan(place, arms, numbers, federations)


def split_values(text: str) -> list[str]:
    """The parts of a text between its commas, except those in brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and not depth:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _varied(text: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    key, _, given = text.partition("=")
    key = key.strip()
    values = split_values(given)
    if not key or not all(values):
        raise ConfigError(
            f"--vary {text!r}: write section.key=value,value, as in --vary train.learning_rate=1e-3,3e-3."
        )
    if key in _NEVER:
        raise ConfigError(f"--vary {key}: a sweep sets run.seed and run.directory itself, by --seeds and --directory.")
    if any(override.partition("=")[0].strip() == key for override in overrides):
        raise ConfigError(f"--set {key} has no effect, since --vary {key} gives its values. Leave one of them out.")
    return key, values


def _arms(path: Path | str, overrides: Sequence[str], values: dict[str, list[str]]) -> list[Arm]:
    lasts = [key.rpartition(".")[2] for key in values]
    labels = {key: last if lasts.count(last) == 1 else key for key, last in zip(values, lasts, strict=True)}
    arms: list[Arm] = []
    seen: list[tuple[Config, str]] = []
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        given = [f"{key}={value}" for key, value in settings.items()]
        config = load_config(path, [*overrides, *given])
        for other, other_settings in seen:
            if other == config:
                raise ConfigError(
                    f"--vary: {other_settings} and {', '.join(given)} are the same. Give each value once."
                )
        seen.append((config, ", ".join(given)))
        parts = [f"{labels[key]}={_safe(value)}" for key, value in settings.items()]
        arms.append(Arm(_unused(",".join(parts) or AS_GIVEN, arms), settings, config))
    return arms


def _safe(value: str) -> str:
    """A value as part of a file name on any system."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", value).strip("-.")[:_LONGEST_VALUE]


def _unused(name: str, arms: Sequence[Arm]) -> str:
    """The name, or with a number where another arm has it (some file systems do not tell case apart)."""
    used = {arm.name.casefold() for arm in arms}
    name = name[:_LONGEST_NAME]
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(new for new in names if new.casefold() not in used)


def _planned(arm: Arm, seed: int, place: Path) -> Planned:
    """
    Raises:
        ConfigError: its directory holds a run of another configuration.
    """
    directory = place / arm.name / f"seed-{seed}"
    config = arm.config.model_copy(update={"run": arm.config.run.model_copy(update={"seed": seed})})
    started = (directory / "config.json").exists()
    if started:
        stored = load_resolved(directory / "config.json")
        if (reason := difference(config, stored)) is not None:
            raise ConfigError(
                f"{directory} holds a run of another configuration ({reason}). Give the same command as before, or "
                "another --directory."
            )
        # The number of threads decides how sums are rounded: what was begun with some goes on with as many.
        config = config.model_copy(update={"engine": stored.engine})
    finished = started and (directory / "adapter").is_dir() and (directory / "report.html").exists()
    return Planned(arm.name, seed, config, directory, started, finished)


def difference(config: Config, started: Config) -> str | None:
    """The first setting that is not the same, with both values; None where all are.

    Not the directory, which may have moved, nor what only the run settled.
    """
    given, stored = (either.with_absolute_paths().model_dump(mode="json") for either in (config, started))
    for section in given:
        for key in [*given[section], *(key for key in stored[section] if key not in given[section])]:
            value, other_value = _shown(given[section], key), _shown(stored[section], key)
            left_open = (section, key) in _SETTLED and given[section].get(key) == _SETTLED[section, key]
            if value != other_value and (section, key) not in _PLACES and not left_open:
                return f"{section}.{key} is {other_value} there and {value} here"
    return None


def _shown(section: dict[str, Any], key: str) -> str:
    return repr(section[key]) if key in section else "absent"
