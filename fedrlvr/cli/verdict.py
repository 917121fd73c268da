"""`fedrlvr verdict`: what each client of a run on this machine gains, compared with training alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import Quiet, expanded
from fedrlvr.interrupts import resumable
from fedrlvr.output import echo


def verdict(
    run_directory: Annotated[
        Path, typer.Argument(callback=expanded, help="The directory of a finished federated run.")
    ],
    alone: Annotated[
        Path | None,
        typer.Option(
            callback=expanded, help="A finished run of the arm `local`; by default RUN/alone, trained if missing."
        ),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Evaluate every client's adapters on every client's problems too.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare, for each client, the federated adapter with one that the client trained alone.

    The comparison is on the client's own held-out problems, paired by problem. The exit code is 0, or 1 if a client is
    worse than alone beyond its 95 % interval, or if the command failed.
    """
    from fedrlvr.server.saved_adapter import open_run

    run = open_run(run_directory)
    again = ["fedrlvr", "verdict", str(run_directory), *(["--alone", str(alone)] if alone else [])]
    with resumable(run.directory, [*again, *["--matrix"] * matrix]):
        from fedrlvr.reporting.progress import progress
        from fedrlvr.reporting.tables import verdict_table
        from fedrlvr.reporting.verdict import VERDICT_FILE
        from fedrlvr.simulation import verdict as engine

        engine.check_judgeable(run)
        if alone is None and (steps := engine.missing_steps(run)):
            clients = len(run.config.federation.training)
            echo(
                f"{run_directory} has no finished run of each client alone, so that is trained first, in "
                f"{run_directory / engine.ALONE_DIRECTORY}: {steps} local steps of {clients} clients together, with as "
                "many rounds as the run."
            )
        result = engine.judge(run, alone=alone, matrix=matrix, watch=lambda: progress(quiet=quiet))
    verdict_table(result)
    echo(f"{VERDICT_FILE} and report.html are in {run_directory}")
    if result.worse:
        echo(f"Worse than alone, beyond the interval: {', '.join(result.worse)}.")
        raise typer.Exit(1)
