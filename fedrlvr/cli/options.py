"""Options, constants and TOML writing that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument

from fedrlvr.config import Config
from fedrlvr.output import echo

CONNECTION = "fedrlvr"
"""Name of the SuperLink in Flower's own configuration."""


def expanded(path: Path | None) -> Path | None:
    """A path of the command line in which ~ stands for the home directory, also where the shell left it (--x=~/y)."""
    try:
        return None if path is None else path.expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from None


ConfigPath = Annotated[
    Path | None, typer.Argument(callback=expanded, help="A TOML configuration; without one, the embedded default runs.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
]
Resume = Annotated[Path | None, typer.Option(callback=expanded, help="Continue the run in this directory.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print one line a round instead of live progress.")]
AllowNothing = Annotated[
    bool, typer.Option("--allow-nothing", help="Exit with 0, not 3, also if the run has trained nothing.")
]
Directory = Annotated[Path, typer.Argument(help="The directory that holds its settings, keys and state.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use neither TLS nor keys; with a SuperLink on this machine, to try it out.")
]
ExtraNames = Annotated[
    list[str] | None,
    typer.Option("--name", help="A further name or IP address that the certificate is for; may be repeated."),
]


TRAINED_NOTHING = 3
"""Exit code of a run whose adapter is the one that it started from."""


def end_run(directory: Path, *, trained_nothing: bool, allowed: bool) -> None:
    """End the command of a run: if it has trained nothing, with a line that says so, and exit code 3 unless allowed.

    Raises:
        typer.Exit: with `TRAINED_NOTHING`.
    """
    if not trained_nothing:
        return
    echo(
        "Nothing was trained: no optimizer step had a gradient, so the adapter is the one that the run started from. "
        f"{directory / 'report.html'} says what is known of the cause (docs/start.md, Nothing is learnt).",
        err=True,
    )
    if not allowed:
        raise typer.Exit(TRAINED_NOTHING)


def warn_of_schedule(settings: Config, overrides: Sequence[str]) -> None:
    """Say that a run which is made longer is no run of that length from the start, where its learning rate falls."""
    if overrides and settings.train.schedule != "constant":
        echo(
            f"train.schedule = {settings.train.schedule!r} goes by train.rounds: from the next round on the learning "
            f"rate is that of a run of {settings.train.rounds} rounds. Earlier rounds had that of a shorter run.",
            err=True,
        )


class _Argument(TyperArgument):
    """A positional argument that keeps its help, which click 8.5 overwrites in typer 0.20's."""

    def __init__(self, *, help: str | None = None, **settings: Any) -> None:
        super().__init__(help=help, **settings)
        self.help = help


typer.main.TyperArgument = _Argument  # type: ignore[misc]


def toml_value(value: Any) -> str:
    """A value as TOML; JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_lines(values: Mapping[str, Any]) -> str:
    """A line `key = value` for each entry."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


def write_connection(home: Path, address: str, root_certificates: Path | None) -> None:
    """Write the config.toml by which Flower's own commands find a SuperLink.

    home: Flower's directory (FLWR_HOME). root_certificates: PEM file of the authority; None is without TLS.
    """
    trust = {"insecure": True} if root_certificates is None else {"root-certificates": root_certificates.absolute()}
    heading = f"[superlink]\ndefault = {toml_value(CONNECTION)}\n\n[superlink.{CONNECTION}]\n"
    (home / "config.toml").write_text(heading + toml_lines({"address": address, **trust}), "utf-8")
