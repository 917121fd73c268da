"""`fedrlvr report`: write the report of a run again, or its compliance page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import expanded
from fedrlvr.output import echo


def report(
    run_directory: Annotated[Path, typer.Argument(callback=expanded, help="The directory of a run.")],
    compliance: Annotated[
        bool,
        typer.Option("--compliance", help="Write compliance.html: GDPR art. 35, EU AI Act annex IV, SATRE 3.3.07."),
    ] = False,
    site: Annotated[
        Path | None,
        typer.Option(callback=expanded, help="A site's directory, whose limits and decision log the page then has."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(callback=expanded, help="Directory for compliance.html; by default the run's.")
    ] = None,
) -> None:
    """Write report.html of a run again, or with --compliance the page for data protection and AI documentation.

    The compliance page is filled from the run's files. What only the organisation can write is left blank.
    """
    from fedrlvr.server.saved_adapter import open_run

    if not compliance and (site or to):
        raise typer.BadParameter("--site and --to require --compliance.")
    run = open_run(run_directory)
    if not compliance:
        from fedrlvr.reporting.report import write_report
        from fedrlvr.server.metrics_log import read_metrics

        echo(f"written: {write_report(run.directory, run.config, read_metrics(run.directory))}")
        return
    from fedrlvr.reporting.compliance import site_facts, write_compliance

    facts = None
    if site is not None:
        from fedrlvr.deployment.site.config import load_site

        facts = site_facts(load_site(site))
    echo(f"written: {write_compliance(run, facts, to)}")
