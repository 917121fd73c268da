"""Options, constants and TOML writing that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

CONNECTION = "fedrlvr"
"""Name of the SuperLink in Flower's own configuration."""

ConfigPath = Annotated[
    Path | None, typer.Argument(help="A TOML configuration; without one, the embedded default runs.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.")
]
Resume = Annotated[Path | None, typer.Option(help="Continue the run in this directory.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print one line a round instead of live progress.")]
Directory = Annotated[Path, typer.Argument(help="The directory that holds its settings, keys and state.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use neither TLS nor keys; with a SuperLink on this machine, to try it out.")
]
ExtraNames = Annotated[
    list[str] | None,
    typer.Option("--name", help="A further name or IP address that the certificate is for; may be repeated."),
]


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
