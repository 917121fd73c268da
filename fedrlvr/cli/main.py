"""The command line: run | sft | sweep | compare | verdict | contribution | eval | prompts | responses | watch | tasks |
validate | desk | export | model | doctor | withdraw | audit | report, and for organisations on their own machines
superlink | federate | site.

Nothing heavy is imported before it is needed, so that `--help` and a mistake in the config answer at once.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.audit import audit
from fedrlvr.cli.compare import compare
from fedrlvr.cli.contribution import contribution
from fedrlvr.cli.desk import desk
from fedrlvr.cli.federate import federate
from fedrlvr.cli.model import model
from fedrlvr.cli.options import (
    AllowNothing,
    ConfigPath,
    Overrides,
    Quiet,
    Resume,
    end_run,
    expanded,
    warn_of_schedule,
)
from fedrlvr.cli.prompts import prompts
from fedrlvr.cli.report import report
from fedrlvr.cli.responses import responses
from fedrlvr.cli.sft import sft
from fedrlvr.cli.site import site
from fedrlvr.cli.streams import outlive_readers
from fedrlvr.cli.superlink import superlink
from fedrlvr.cli.verdict import verdict
from fedrlvr.cli.watch import watch
from fedrlvr.cli.withdraw import withdraw
from fedrlvr.config import Config, load_config, load_resolved
from fedrlvr.errors import AdapterError, ConfigError, FedrlvrError
from fedrlvr.interrupts import Interrupted, end, exit_code, interruptible, received, resumable
from fedrlvr.out_of_memory import memory_limit
from fedrlvr.output import echo, echo_lines
from fedrlvr.zoo import embedded_config

EMBEDDED = embedded_config()

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Organisations post-train one reasoning LLM together without pooling their problems.",
    epilog="Put --debug anywhere to see the whole traceback of an error.",
)


@app.command()
def run(
    config: ConfigPath = None,
    overrides: Overrides = None,
    resume: Resume = None,
    quiet: Quiet = False,
    allow_nothing: AllowNothing = False,
) -> None:
    """Run a federation on this machine."""
    if resume is not None and config is not None:
        raise ConfigError("--resume goes on with the configuration the run was started with; leave out CONFIG.")
    if resume is None:
        settings = _configured(config, overrides)
    else:
        settings = load_resolved(resume / "config.json", overrides or ())
        warn_of_schedule(settings, overrides or ())
    with interruptible("nothing was written; give the same command again"):
        from fedrlvr.reporting.progress import progress
        from fedrlvr.reporting.tables import final_table, verdict_table
        from fedrlvr.server.run_directory import new_directory
        from fedrlvr.simulation import verdict as local

        if resume is None:
            directory = settings.run.directory or new_directory(settings.run.name)
            settings = settings.model_copy(update={"run": settings.run.model_copy(update={"directory": directory})})
        else:
            directory = resume
        again = ["fedrlvr", "run", "--resume", str(directory)]
        for override in overrides or () if resume is not None else ():
            again += ["--set", override]
        with resumable(directory, again):
            if resume is None:
                judged = local.run(settings, lambda: progress(quiet=quiet))
            else:
                judged = local.resume(resume, overrides or (), lambda: progress(quiet=quiet))
        result = judged.result
        final_table(result.records, result.config, result.directory)
        if judged.verdict is not None:
            verdict_table(judged.verdict)
    end_run(result.directory, trained_nothing=result.trained_nothing, allowed=allow_nothing)


@app.command()
def sweep(
    config: ConfigPath = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each arm: run.seed, run.seed + 1, ...")] = 5,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="SECTION.KEY=VALUE,VALUE", help="A setting and its values; may be repeated."),
    ] = None,
    overrides: Overrides = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            callback=expanded, help="Directory of all runs; an earlier sweep's directory continues that sweep."
        ),
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Run one federation after another, for comparison or where memory is short.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run a federation for every combination of settings and every seed, all as rows of one cohort."""
    from fedrlvr.simulation.sweep_plan import plan

    planned = plan(config or EMBEDDED, overrides or (), vary or (), seeds=seeds, directory=directory)
    words = ["fedrlvr", "sweep", *([str(config)] if config else []), "--seeds", str(seeds)]
    for option, values in (("--vary", vary), ("--set", overrides), ("--directory", [planned.directory])):
        for value in values or ():
            words += [option, str(value)]
    words += ["--apart"] * apart
    with resumable(planned.directory, words):
        from fedrlvr.reporting.progress import progress
        from fedrlvr.reporting.sweep_table import show_sweep
        from fedrlvr.simulation import sweep as engine

        result = engine.sweep(planned, command=shlex.join(words), apart=apart, observer=progress(quiet=quiet))
    if any(line.seeds for line in result.lines):
        show_sweep(result.lines, planned.seeds)
        echo(f"sweep.json, sweep.md and all runs are in {result.directory}")
    result.check()


app.command()(compare)
app.command()(contribution)
app.command()(sft)
app.command()(withdraw)
app.command()(audit)
app.command()(report)


@app.command(name="eval")
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(callback=expanded, help="A run directory, one of its checkpoints, or a TOML configuration."),
    ],
    adapter: Annotated[
        Path | None,
        typer.Option(
            callback=expanded, help="Directory of an adapter: PEFT's, a run's or a checkpoint's; by default SOURCE."
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate the base model without an adapter.")] = False,
    personal: Annotated[
        bool, typer.Option("--personal", help="Evaluate each client's personal adapter of a finished run.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Evaluate pass@1 on the held-out problems of every client.

    A run or checkpoint is evaluated on the problems and random numbers of the run's own evaluations.
    """
    if base and adapter is not None:
        raise ConfigError("--base evaluates without an adapter; leave out --adapter.")
    if personal and (base or adapter is not None or source.is_file()):
        raise ConfigError(
            "--personal evaluates a run's own adapters; give a run directory, without --base and --adapter."
        )
    if source.is_file():
        settings, run = load_config(source, overrides or ()), None
        if not base and adapter is None:
            raise ConfigError("Name the adapter to evaluate: --adapter DIR, or --base for none.")
    elif overrides:
        raise ConfigError("--set changes a TOML configuration; a run directory has its own, fixed one.")
    else:
        from fedrlvr.server.saved_adapter import open_run

        run = open_run(source)
        settings = run.config
    with interruptible("nothing was changed; give the same command again"):
        from fedrlvr.reporting.tables import also_table, scores_table
        from fedrlvr.server.metrics_log import scores_json
        from fedrlvr.simulation import evaluate as engine

        if run is None or base or adapter is not None:
            evaluation = engine.evaluate(settings, adapter)
        else:
            round_, evaluation = engine.evaluate_run(run, personal=personal)
            if round_ is not None:
                echo(f"round {round_} of {settings.train.rounds}")
    scores_table(scores_json(evaluation.scores))
    also_table([{"also": evaluation.also}], settings)


@app.command()
def tasks(
    config: ConfigPath = None,
    overrides: Overrides = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Write each client's problems to files in this directory, for organisations to try out."),
    ] = None,
) -> None:
    """Load a configuration's problems and show how many each client holds. No model is loaded."""
    settings = _configured(config, overrides)
    from fedrlvr.reporting.tables import holdings_table
    from fedrlvr.tasks.deal import deal, written_instruction

    dealt = deal(settings)
    if write is not None:
        from fedrlvr.tasks.own import write_own

        for client in dealt.clients:
            write_own(write / client.name / "train.jsonl", client.answers.everything())
            write_own(write / client.name / "test.jsonl", client.test)
    holdings_table(settings, dealt.train_table, dealt.test_table, len(dealt.public))
    if write is not None and (stated := written_instruction(settings.data, settings.prompt)) is not None:
        # Without it an organisation would append the default instruction, and the rewards of these problems be 0.
        echo(f"In each organisation's site.toml, the task of these problems needs: prompt = {{instruction = {stated}}}")


@app.command()
def validate(
    config: ConfigPath = None,
    overrides: Overrides = None,
    attacked: Annotated[int, typer.Option(min=0, help="Problems tried with adversarial responses.")] = 100,
) -> None:
    """Check that every gold answer earns its reward and that nonsense earns none. No model is loaded."""
    settings = _configured(config, overrides)
    from fedrlvr.tasks import validate as validate_problems
    from fedrlvr.tasks.deal import deal

    dealt = deal(settings)
    failures = 0
    reward = dealt.clients[0].reward  # everybody's
    for name, problems in dealt.by_holder.items():
        checked = validate_problems(problems, reward, attacked=attacked)
        without = f", {checked.unlabelled} without an answer" if checked.unlabelled else ""
        echo(f"{name}: {len(problems)} problems{without}, {len(checked.failures)} failures")
        for failure in checked.failures[:10]:
            echo(f"  {failure.id}: {failure.reason}")
        for note in checked.notes[:10]:
            echo(f"  note: {note.id}: {note.reason}")
        failures += len(checked.failures)
    if failures:
        raise typer.Exit(1)


app.command()(prompts)
app.command()(responses)
app.command()(watch)
app.command()(desk)
app.command()(federate)
app.command()(verdict)
app.add_typer(model, name="model")
app.add_typer(site, name="site")
app.add_typer(superlink, name="superlink")


@app.command()
def export(
    run_directory: Annotated[
        Path, typer.Argument(callback=expanded, help="A run directory, or one of its checkpoints.")
    ],
    out: Annotated[Path, typer.Argument(callback=expanded, help="Directory to write; it must not exist yet.")],
    merged: Annotated[bool, typer.Option("--merged", help="Write whole weights instead of a PEFT adapter.")] = False,
    client: Annotated[
        str | None,
        typer.Option(help="The client whose own adapter is written: its personal one, or that of the arm `local`."),
    ] = None,
    max_rank: Annotated[int | None, typer.Option(min=1, help="Reject an adapter of a higher rank.")] = None,
) -> None:
    """Write the adapter that a run trained as a PEFT directory, or as merged weights, with a model card.

    A run that is not finished gives the adapter of its newest checkpoint. The rules flora and fedex
    change the base weights and end in an adapter whose rank has grown with the rounds.
    """
    if max_rank is not None and merged:
        raise ConfigError("--max-rank limits the rank of an adapter, and --merged writes none. Leave one of them out.")
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already; give a new directory.")
    from fedrlvr.policy.export import export_adapter, export_merged
    from fedrlvr.server.model_card import documents, read_facts
    from fedrlvr.server.saved_adapter import open_run

    run = open_run(run_directory)
    round_, adapter = run.adapter_round, run.adapter(client)
    while round_ != run.adapter_round:  # the run is under way, and has written its next checkpoint meanwhile
        round_, adapter = run.adapter_round, run.adapter(client)
    settings = run.config
    if max_rank is not None and adapter.rank > max_rank:
        rule = settings.aggregation.rule
        reason = f", since {rule.name} adds each round to the base weights" if rule.changes_base else ""
        raise AdapterError(
            f"The adapter has rank {adapter.rank}{reason}, and --max-rank allows {max_rank}. Write whole weights with "
            "--merged, or allow the rank (vLLM: --max-lora-rank)."
        )
    facts = read_facts(run.directory, settings, round_, client, rank=adapter.rank, alpha=adapter.alpha, merged=merged)
    write = export_merged if merged else export_adapter
    comparison = write(
        adapter,
        settings.model,
        settings.lora,
        out,
        lambda base: documents(facts, base.asking(settings.prompt).in_template),
    )
    echo(f"wrote {'merged weights' if merged else f'a PEFT adapter of rank {adapter.rank}'} to {out}")
    echo(str(comparison))


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML configuration to check; without one, this machine alone.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check this machine: versions, cores, threads, GPU, disk, and causes of slowness.

    With a configuration, check also its model, its data and the memory that the run will need.
    """
    if config is None and overrides:
        raise ConfigError("--set changes a configuration; name one.")
    settings = None if config is None else load_config(config, overrides or ())
    from fedrlvr.reporting.doctor import examine, show

    findings = examine()
    if settings is not None:
        from fedrlvr.simulation.doctor import examine as examine_run

        findings += examine_run(settings)
    show(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _configured(config: Path | None, overrides: list[str] | None) -> Config:
    """The settings of a command; without a file those of the embedded default."""
    return load_config(config if config is not None else EMBEDDED, overrides or ())


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command line. Errors raised on purpose are one paragraph on stderr and exit code 1."""
    if arguments is None:
        outlive_readers()
        arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        with memory_limit():
            app([argument for argument in arguments if argument != "--debug"])
    except SystemExit as ended:
        if not received() or not ended.code:  # 0: the command took the signal for its end, as the desk does
            raise
        _fail("interrupted", debug, exit_code())  # outside of what says more
    except Interrupted as stop:
        _fail(str(stop), debug, exit_code())
    except Exception as error:
        if received():  # outside of what says more, as above
            _fail("interrupted", debug, exit_code())
        if isinstance(error, FedrlvrError):
            _fail(f"error: {error}", debug, 1)
        # a bug of ours: say so in one line, and how to see where
        _fail(f"unexpected error, please report it: {type(error).__name__}: {error} (--debug shows where)", debug, 70)


def _fail(message: str, debug: bool, code: int) -> None:
    if debug:
        echo_lines(traceback.format_exc(), err=True)
    if received():
        end(message)
    echo(message, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
