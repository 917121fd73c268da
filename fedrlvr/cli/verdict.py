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
    alone_rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="FACTOR",
            help="Multiple of the learning rate to train alone at, instead of run.alone_rates. May be repeated; each "
            "client then gets the best one on its validation problems.",
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

    run, rates = open_run(run_directory), alone_rate or []
    if alone and rates:
        raise typer.BadParameter("--alone gives a run that is trained already; leave out --alone-rate, or --alone.")
    again = ["fedrlvr", "verdict", str(run_directory), *(["--alone", str(alone)] if alone else [])]
    again += [word for rate in rates for word in ("--alone-rate", f"{rate:g}")]
    with resumable(run.directory, [*again, *["--matrix"] * matrix]):
        from fedrlvr.reporting.progress import progress
        from fedrlvr.reporting.tables import verdict_table
        from fedrlvr.reporting.verdict import VERDICT_FILE
        from fedrlvr.simulation import verdict as engine
        from fedrlvr.simulation.alone import alone_runs

        engine.check_judgeable(run)
        if rates:
            run = engine.with_alone_rates(run, rates)
        if alone is None and (steps := engine.missing_steps(run)):
            clients = len(run.config.federation.training)
            places = ", ".join(str(alone.run.directory) for alone in alone_runs(run))
            echo(
                f"{run_directory} has no finished run of each client alone, so that is trained first, in {places}: "
                f"{steps} local steps of {clients} clients together, with as many rounds as the run."
            )
        result = engine.judge(run, alone=alone, matrix=matrix, watch=lambda: progress(quiet=quiet))
    verdict_table(result)
    echo(f"{VERDICT_FILE} and report.html are in {run_directory}")
    if result.worse:
        echo(f"Worse than alone, beyond the interval: {', '.join(result.worse)}.")
        raise typer.Exit(1)
