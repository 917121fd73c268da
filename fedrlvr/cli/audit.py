"""`fedrlvr audit` and `fedrlvr site audit`: what a trained adapter gives away of its training problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrlvr.cli.options import Directory, Overrides, expanded
from fedrlvr.config import load_config
from fedrlvr.deployment.site.config import load_site
from fedrlvr.output import echo

if TYPE_CHECKING:
    from fedrlvr.audit.run import Audit

Problems = Annotated[int, typer.Option(min=2, help="Largest number of training and of other problems of each client.")]
Responses = Annotated[int, typer.Option(min=2, help="Responses to each problem.")]
Canaries = Annotated[
    Path | None,
    typer.Option(callback=expanded, help="JSON lines with the canaries that were planted (docs/privacy.md)."),
]


def audit(
    run_directory: Annotated[
        Path, typer.Argument(callback=expanded, help="The directory of a run on this machine, or of its checkpoint.")
    ],
    canaries: Canaries = None,
    problems: Problems = 200,
    responses: Responses = 8,
) -> None:
    """Attack the adapters of a run: which problems were trained on, and which canaries were learnt.

    audit.json and audit.html in the run's directory hold figures alone, and no problem, response or problem's score.
    """
    from fedrlvr.audit.canaries import read_canaries
    from fedrlvr.audit.run import AuditSettings, audit_run
    from fedrlvr.server.saved_adapter import open_run

    run = open_run(run_directory)
    planted = [] if canaries is None else read_canaries(canaries)
    _show(audit_run(run, AuditSettings(problems, responses), planted), run.directory, run.config.run.name)


def audit_site(
    directory: Directory,
    config: Annotated[
        Path, typer.Option(callback=expanded, help="The TOML configuration that the server ran, from its operator.")
    ],
    adapter: Annotated[
        Path, typer.Option(callback=expanded, help="Directory of the federation's adapter, from the server's operator.")
    ],
    canaries: Canaries = None,
    problems: Problems = 200,
    responses: Responses = 8,
    overrides: Overrides = None,
) -> None:
    """Attack the federation's adapter with this organisation's own problems. Nothing is sent.

    audit.json and audit.html lie in state/audit. They hold figures alone.
    """
    org, experiment = load_site(directory), load_config(config, overrides or ())
    from fedrlvr.audit.canaries import read_canaries
    from fedrlvr.audit.run import AuditSettings
    from fedrlvr.deployment.site.audit import audit_here

    planted = [] if canaries is None else read_canaries(canaries)
    result, place = audit_here(org, experiment, adapter, AuditSettings(problems, responses), planted)
    _show(result, place, f"{org.name} in {experiment.run.name}")


def _show(result: Audit, place: Path, title: str) -> None:
    from fedrlvr.reporting.audit_page import sentences, write_audit
    from fedrlvr.reporting.tables import audit_table

    tree = result.to_json()
    page = write_audit(place, title, tree, result.curves())
    audit_table(tree)
    for sentence in [*sentences(tree), *result.notes]:
        echo(sentence)
    echo(f"written: {place / 'audit.json'} and {page}")
