"""`fedrlvr sft`: supervised training of a configuration's adapter, from which its run can start."""

from __future__ import annotations

import typer

from fedrlvr.cli.options import TRAINED_NOTHING, ConfigPath, Overrides, Quiet, Resume
from fedrlvr.config import load_config, load_resolved
from fedrlvr.errors import ConfigError
from fedrlvr.interrupts import interruptible, resumable
from fedrlvr.output import echo
from fedrlvr.zoo import embedded_config


def sft(
    config: ConfigPath = None,
    overrides: Overrides = None,
    resume: Resume = None,
    quiet: Quiet = False,
) -> None:
    """Train an adapter to write given correct responses, federated as the run itself, as a start for `fedrlvr run`.

    Settings are those of the run, with those of the section sft in place of the ones of train. The directory is the
    run's with -sft at its end.
    """
    if resume is not None and config is not None:
        raise ConfigError("--resume goes on with the configuration the run was started with; leave out CONFIG.")
    if resume is None:
        settings = load_config(config if config is not None else embedded_config(), overrides or ()).for_sft()
    else:
        settings = load_resolved(resume / "config.json", overrides or ())
        if settings.supervision.type != "demonstrations":
            raise ConfigError(f"{resume} is no supervised training. Go on with it by `fedrlvr run --resume`.")
    with interruptible("nothing was written; give the same command again"):
        from fedrlvr.reporting.progress import progress
        from fedrlvr.reporting.tables import final_table
        from fedrlvr.server.run_directory import new_directory
        from fedrlvr.simulation.run import resume as go_on
        from fedrlvr.simulation.run import run

        directory = resume or settings.run.directory or new_directory(settings.run.name)
        again = ["fedrlvr", "sft", "--resume", str(directory)]
        for override in overrides or () if resume is not None else ():
            again += ["--set", override]
        with resumable(directory, again):
            observer = progress(quiet=quiet)
            if resume is None:
                placed = settings.run.model_copy(update={"directory": directory})
                result = run(settings.model_copy(update={"run": placed}), observer=observer)
            else:
                result = go_on(directory, overrides or (), observer=observer)
        final_table(result.records, result.config, result.directory)
    if result.trained_nothing:
        echo("Nothing was trained: no client had a response to imitate in any step.", err=True)
        raise typer.Exit(TRAINED_NOTHING)
    if result.config.federation.arm == "local":
        start = result.directory / "adapter" / result.config.federation.training[0]
        echo(f"Each client has an adapter of its own. A run starts from one with --set model.adapter={start}")
    else:
        echo(f"A run starts from this adapter with --set model.adapter={result.directory}")
