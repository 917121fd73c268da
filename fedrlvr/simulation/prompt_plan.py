"""Candidates that `fedrlvr prompts` compares: the run's own prompt, and those that are given or built in. Nothing heavy
is imported, so that a mistake in a candidate is said at once.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrlvr.config import Config, load_config, parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.simulation.sweep_plan import split_values

OWN = "as given"
"""Name of the candidate that is the run's own section [prompt]."""
SHOWN_EXAMPLES = 4
"""Number of training problems before each problem in the built-in few-shot candidate."""


@dataclass(frozen=True)
class Candidate:
    """A prompt to try on some problems.

    name: for the table. config: of the run, with this prompt.
    """

    name: str
    config: Config


def candidates(
    path: Path | str, overrides: Sequence[str] = (), vary: Sequence[str] = (), files: Sequence[Path] = ()
) -> list[Candidate]:
    """The run's own prompt first, then those of files and varied settings; without either the built-in ones.

    path, overrides: as `load_config`. vary: `prompt.key=value,value`, as a sweep takes it. files: TOML files with
    tables of settings of [prompt], one for each candidate by its name, or with a section [prompt].

    Raises:
        ConfigError: a file or setting that cannot be used; the text names it.
    """
    config = load_config(path, overrides)
    given = [*(made for file in files for made in _of_file(config, file)), *_varied(path, overrides, vary)]
    names = [candidate.name for candidate in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"Two candidates are called {twice!r}. Give each a name of its own.")
    return [Candidate(OWN, config), *(given or _built_in(config))]


def with_prompt(config: Config, settings: dict[str, Any], where: str) -> Config:
    """The configuration with another section [prompt].

    Raises:
        ConfigError: a setting does not fit; the text begins with `where`.
    """
    return parse_config({**config.model_dump(), "prompt": settings}, where=where)


def _of_file(config: Config, file: Path) -> Iterator[Candidate]:
    try:
        tree = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid TOML in UTF-8: {error}.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    if isinstance(section := tree.get("prompt"), dict):
        yield Candidate(file.stem, with_prompt(config, section, f"{file}"))
        return
    if not tree or not all(isinstance(settings, dict) for settings in tree.values()):
        raise ConfigError(f"{file} holds no candidates: write a table [NAME] with settings of [prompt] for each.")
    for name, settings in tree.items():
        yield Candidate(name, with_prompt(config, settings, f"{file}, the candidate {name!r}"))


def _varied(path: Path | str, overrides: Sequence[str], vary: Sequence[str]) -> Iterator[Candidate]:
    settings: dict[str, list[str]] = {}
    for text in vary:
        key, _, given = text.partition("=")
        values = split_values(given)
        if not key.strip().startswith("prompt.") or not all(values) or key.strip() in settings:
            raise ConfigError(f"--vary {text!r}: write prompt.key=value,value, once for each key.")
        settings[key.strip()] = values
    for combination in itertools.product(*settings.values()) if settings else ():
        stated = [f"{key}={value}" for key, value in zip(settings, combination, strict=True)]
        config = load_config(path, [*overrides, *stated])
        yield Candidate(", ".join(text.removeprefix("prompt.") for text in stated), config)


def _built_in(config: Config) -> list[Candidate]:
    from fedrlvr.tasks import instruction, task_of

    kind = config.data.options.get("kind", task_of(config.data.name).kinds[0])
    stated = config.prompt.model_dump()
    chat = "auto" if config.prompt.chat == "off" else "off"
    without: dict[str, Any] = {"template_args": {}} if chat == "off" else {}
    made = {f"chat={chat}": {**stated, "chat": chat, **without}, "boxed": {**stated, "instruction": instruction(kind)}}
    if config.supervision.type == "labels" and config.coordination.type == "none":
        made["few-shot"] = {"chat": "off", "instruction": "", "examples": SHOWN_EXAMPLES, "stop": ["\n\n"]}
    return [Candidate(name, with_prompt(config, settings, f"the prompt {name!r}")) for name, settings in made.items()]
