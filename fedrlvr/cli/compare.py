"""`fedrlvr compare`: runs and sweeps beside each other, in the terminal, as a page and as a table of numbers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedrlvr.cli.options import expanded
from fedrlvr.interrupts import interruptible
from fedrlvr.output import echo


def _all_expanded(paths: list[Path]) -> list[Path]:
    return [path for given in paths if (path := expanded(given)) is not None]


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", callback=_all_expanded, help="Directories of runs and of sweeps.")
    ],
    over: Annotated[
        Literal["rounds", "steps", "tokens", "labels", "bytes", "seconds"],
        typer.Option(help="The cost that curves are drawn over, and up to which arms are compared."),
    ] = "rounds",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=expanded, help="Write a self-contained page with curves."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=expanded, help="Write a line for each round of each run.")
    ] = None,
) -> None:
    """Compare runs: scores, area under the curve, costs, and the settings that differ.

    Runs that differ in nothing but the seed are one arm. Every arm is compared with the first one: paired by seed where
    both have two or more seeds in common, else unpaired. Runs that are unfinished or of another release are compared as
    far as they go.
    """
    with interruptible("nothing was changed; give the same command again"):
        from fedrlvr.files import atomic_text
        from fedrlvr.reporting.comparison import compare as compare_arms
        from fedrlvr.reporting.comparison_files import read_arms, to_csv
        from fedrlvr.reporting.comparison_table import render_comparison, show_comparison

        arms = read_arms(runs)
        result = compare_arms(arms, over)
        show_comparison(result)
        if html is not None:
            command = shlex.join(["fedrlvr", "compare", *map(str, runs), "--over", over])
            atomic_text(html, render_comparison(result, arms, command))
            echo(f"wrote {html}")
        if csv is not None:
            atomic_text(csv, to_csv(arms))
            echo(f"wrote {csv}")
