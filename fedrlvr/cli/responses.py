"""`fedrlvr responses`: what the clients of a simulation answered, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import expanded
from fedrlvr.errors import ConfigError

RoundNumber = Annotated[
    int | None, typer.Option("--round", min=1, help="A round; by default each client's newest with responses.")
]
Wrong = Annotated[bool, typer.Option("--wrong", help="Show only responses that are known to be wrong.")]
Most = Annotated[int, typer.Option("--most", min=1, help="Largest number of responses to show.")]
Whole = Annotated[bool, typer.Option("--whole", help="Show long prompts and responses whole.")]


def responses(
    run_directory: Annotated[Path, typer.Argument(callback=expanded, help="The directory of a run on this machine.")],
    client: Annotated[str | None, typer.Option(metavar="NAME", help="Show one client's responses only.")] = None,
    round_: RoundNumber = None,
    wrong: Wrong = False,
    most: Most = 12,
    whole: Whole = False,
) -> None:
    """Show some of a run's responses: prompt, text, answer, gold answer and reward.

    An organisation reads its own with `fedrlvr site responses`.
    """
    from fedrlvr.reporting.responses import choose_client, response_files, show

    files = response_files(run_directory)
    if not files:
        raise ConfigError(
            f"{run_directory} holds no responses (clients/NAME/responses.jsonl). A run on this machine writes some in "
            "each round unless run.responses = 0. In a federation across machines `fedrlvr site responses` reads them "
            "at each organisation."
        )
    show(choose_client(files, client), round_=round_, wrong=wrong, most=most, whole=whole)
