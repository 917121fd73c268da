"""`fedrlvr contribution`: how much each client of a federation adds to the model of the others, by leaving it out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import ConfigPath, Overrides, Quiet, expanded
from fedrlvr.interrupts import resumable
from fedrlvr.output import echo
from fedrlvr.zoo import embedded_config


def contribution(
    config: ConfigPath = None,
    seeds: Annotated[int, typer.Option(help="Seeds: run.seed, run.seed + 1, ...; one seed gives a rough answer.")] = 3,
    overrides: Overrides = None,
    directory: Annotated[
        Path | None,
        typer.Option(callback=expanded, help="Directory of all runs; an earlier one continues what is missing there."),
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Run one federation after another, where memory is short.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure what each client contributes: run the federation, and again without the training of each client in turn.

    The client still holds its problems and is evaluated, so every run has the same held-out problems.
    """
    from fedrlvr.simulation.contribution import leave_one_out

    planned = leave_one_out(config or embedded_config(), overrides or (), seeds=seeds, directory=directory)
    place = planned.plan.directory
    echo(planned.cost)
    words = ["fedrlvr", "contribution", *([str(config)] if config else []), "--seeds", str(seeds)]
    for override in overrides or ():
        words += ["--set", override]
    words += ["--directory", str(place), *["--apart"] * apart]
    with resumable(place, words):
        from fedrlvr.reporting.contribution_table import show_contributions
        from fedrlvr.reporting.progress import progress
        from fedrlvr.simulation.contribution import measure

        lines, result = measure(planned, command=shlex.join(words), apart=apart, observer=progress(quiet=quiet))
    if any(line.others for line in lines):
        show_contributions(lines)
        echo(f"contribution.json, contribution.md and all runs are in {place}")
    elif not result.failures:
        echo("No other client has held-out problems, so there are no contributions. Raise data.test_size.")
    result.check()
