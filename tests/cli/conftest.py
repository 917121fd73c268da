"""The command line as a person uses it: arguments in, exit code and two streams out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_runs import Configs, write_toml

from fedrlvr.cli.main import main


@dataclass(frozen=True)
class Said:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def fedrlvr(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `fedrlvr ARGUMENTS` in this process."""

    def command(*arguments: object) -> Said:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        code = end.value.code
        streams = capfd.readouterr()
        return Said(code if isinstance(code, int) else int(code is not None), streams.out, streams.err)

    return command


@pytest.fixture
def refused(fedrlvr: Command) -> Callable[..., str]:
    """Runs a command that must end in one paragraph on stderr with these words, and returns the paragraph."""

    def command(words: list[str], *arguments: object) -> str:
        said = fedrlvr(*arguments)
        assert said.code == 1, said
        assert said.err.startswith("error: "), said.err
        assert len(said.err.strip().splitlines()) == 1, "more than a paragraph"
        assert "Traceback" not in said.out + said.err
        for word in words:
            assert str(word) in said.err
        return said.err

    return command


@pytest.fixture
def toml(configured: Configs, tmp_path: Path) -> Callable[..., Path]:
    """A TOML of a small run into tmp_path/run, with changes by section."""

    def write(**changes: Mapping[str, Any]) -> Path:
        return write_toml(tmp_path / "exp.toml", configured(tmp_path / "run", **changes))

    return write


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, configured: Configs) -> Callable[[str], Path]:
    """The directory of a finished run by its arm."""
    import fedrlvr

    made: dict[str, Path] = {}

    def of(arm: str) -> Path:
        if arm not in made:
            made[arm] = tmp_path_factory.mktemp(arm) / "run"
            fedrlvr.run(configured(made[arm], federation={"arm": arm}))
        return made[arm]

    return of
