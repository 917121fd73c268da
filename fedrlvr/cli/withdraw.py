"""`fedrlvr withdraw`: take a client out of a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import expanded
from fedrlvr.output import echo


class Way(StrEnum):
    """Ways to withdraw a client, by `--how`."""

    rewind = "rewind"
    subtract = "subtract"
    restart = "restart"


def withdraw(
    run_directory: Annotated[Path, typer.Argument(callback=expanded, help="The directory of a run.")],
    client: Annotated[str, typer.Option(metavar="NAME", help="The client that withdraws.")],
    how: Annotated[
        Way | None,
        typer.Option(
            help="rewind: go on from the newest checkpoint before the client's first round. subtract: take its part of "
            "each round out of the global adapter. restart: begin again at round 0. By default rewind where there is "
            "such a checkpoint, else subtract."
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without this the command only says what it would do.")
    ] = False,
) -> None:
    """Take a client out of a run: say what can be taken out of the global adapter and what remains, and do it.

    The client gets no message any more. withdrawal-NAME.json in the run's directory says what was done, for the client.
    """
    from fedrlvr.server.saved_adapter import open_run
    from fedrlvr.server.withdrawal import next_command, plan
    from fedrlvr.server.withdrawal import withdraw as carry_out

    run = open_run(run_directory)
    statement = plan(run, client, None if how is None else how.value)
    if yes:
        carry_out(run, statement)
    echo(f"{client} {'has withdrawn' if yes else 'would withdraw'} from {statement.run}: {statement.how}")
    for heading, sentences in (("done" if yes else "would do", statement.done), ("remains", statement.remains)):
        for sentence in sentences:
            echo(f"  {heading}: {sentence}")
    if not yes:
        echo("Nothing was changed. Add --yes to do it.")
        return
    echo(f"written: {run.directory / f'withdrawal-{client}.json'}, and a line in {run.directory / 'decisions.jsonl'}")
    echo(f"go on:   {next_command(run)}")
