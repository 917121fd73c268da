"""`fedrlvr federate`: the run that was simulated, with organisations on their own machines, over Flower.

Flower is used by its own command line, which is its public interface; what is ours is checked before.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import (
    CONNECTION,
    AllowNothing,
    Insecure,
    Overrides,
    Resume,
    end_run,
    warn_of_schedule,
    write_connection,
)
from fedrlvr.config import Config, load_config, load_resolved
from fedrlvr.deployment.flower_private import environment
from fedrlvr.errors import ConfigError, FedrlvrError, RoundError
from fedrlvr.files import atomic_text
from fedrlvr.hosts import LOOPBACK, is_loopback, split_address
from fedrlvr.interrupts import interruptible
from fedrlvr.output import echo

APP = """\
[project]
name = "fedrlvr-run"
version = "{version}"
description = "A run of fedrlvr. It contains no code: every organisation runs its own installed release."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedrlvr"

[tool.flwr.app.components]
serverapp = "fedrlvr.deployment.superlink.server_app:app"
clientapp = "fedrlvr.deployment.site.client_app:app"

[tool.flwr.app.config]
directory = ""
wait = 300.0
insecure = false
"""
PLACE = (
    "This machine must be the SuperLink's: the run lies in a directory here, and the SuperLink takes orders from its "
    "own machine only."
)

FULL = "The SuperLink answers with an internal error: its disk may be full, and its log has the cause."


@dataclass(frozen=True)
class Link:
    """A SuperLink as Flower's commands find it.

    home: Flower's own directory (FLWR_HOME), with the connection in its config.toml.
    """

    home: Path
    insecure: bool

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command `flwr ARGUMENTS` and keep its output."""
        command = ["flwr", *arguments]
        return subprocess.run(command, env=environment(self.home), capture_output=True, text=True, check=False)

    def follow(self, *arguments: str) -> int:
        """Run `flwr ARGUMENTS`, show its output and return its exit status."""
        return subprocess.call(["flwr", *arguments], env=environment(self.home))


def federate(
    config: Annotated[Path | None, typer.Argument(help="A TOML configuration, as for `fedrlvr run`.")] = None,
    superlink: Annotated[
        str | None, typer.Option(help="The SuperLink: a directory made by `fedrlvr superlink init`, or host:port.")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="With host:port: PEM file of the SuperLink's authority.")
    ] = None,
    insecure: Insecure = False,
    resume: Resume = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for all organisations to connect.")] = 300.0,
    overrides: Overrides = None,
    allow_nothing: AllowNothing = False,
) -> None:
    """Run a federation of organisations on their own machines.

    The command belongs on the SuperLink's machine. It lists what will travel, then follows the run. Ctrl-C stops
    following, and asks in a terminal whether the run is to end. --resume continues a run that was interrupted.
    """
    if (config is None) == (resume is None):
        raise ConfigError("Give a configuration to start a run, or --resume DIRECTORY to continue one.")
    if superlink is None:
        raise ConfigError("Name the SuperLink: --superlink DIRECTORY (of `fedrlvr superlink init`) or host:port.")
    if resume is None:
        settings = load_config(config, overrides or ())
    else:
        settings = load_resolved(resume / "config.json", overrides or ())
        warn_of_schedule(settings, overrides or ())
    from fedrlvr.deployment.superlink.disclosure import check, travels

    check(settings)
    with interruptible("nothing was started; give the same command again"):
        with _link(superlink, root_certificates, insecure) as link:
            directory = _prepared(settings, resume, overrides or ())
            for line in travels(settings, change=settings.aggregation.rule.changes_base):
                echo(line)
            echo(f"Asked: {', '.join(settings.federation.names)}, for their task {settings.federation.task!r}")
            echo(f"Run directory: {directory}")
            connection = ["--root-certificates", str(root_certificates)] if root_certificates is not None else []
            connection += ["--insecure"] * insecure
            words = ["fedrlvr", "federate", "--resume", str(directory), "--superlink", superlink, *connection]
            again = shlex.join(words)
            with interruptible(f"the run in {directory} was not started; go on with: {again}"):
                run = _submit(link, directory, wait)
            try:
                _follow(link, run, directory, again)
            except RoundError:
                _who_missed_rounds(directory)
                raise
        from fedrlvr.reporting.advice import trained_nothing
        from fedrlvr.reporting.tables import final_table, participation_table
        from fedrlvr.server.metrics_log import read_metrics

        records = read_metrics(directory)
        final_table(records, settings, directory)
        participation_table(records)
    end_run(directory, trained_nothing=trained_nothing(records), allowed=allow_nothing)


@contextmanager
def _link(superlink: str, root_certificates: Path | None, insecure: bool) -> Iterator[Link]:
    """The SuperLink's connection; for a bare address in a directory that is gone afterwards.

    Raises:
        ConfigError: options that do not go together, or no such directory.
    """
    if Path(superlink).is_dir():
        if root_certificates is not None or insecure:
            raise ConfigError(
                "--root-certificates and --insecure are for --superlink host:port; a directory says both."
            )
        home = Path(superlink).absolute() / "flower"
        try:
            connection = tomllib.loads((home / "config.toml").read_text("utf-8"))["superlink"][CONNECTION]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{superlink} is no directory that `fedrlvr superlink init` made ({home / 'config.toml'}: {error})."
            ) from None
        yield Link(home, bool(connection.get("insecure", False)))
        return
    try:
        host, _ = split_address(superlink)
    except ValueError as error:
        raise ConfigError(f"--superlink {superlink}: there is no such directory; for an address {error}.") from None
    if insecure == (root_certificates is not None):
        raise ConfigError("Give --root-certificates FILE with host:port (or --insecure, on this machine only).")
    if insecure and not is_loopback(host):
        raise ConfigError(f"--insecure is for a SuperLink on this machine ({LOOPBACK[0]}), not on {host}.")
    if root_certificates is not None and not root_certificates.is_file():
        raise ConfigError(f"--root-certificates {root_certificates}: there is no such file.")
    with tempfile.TemporaryDirectory(prefix="fedrlvr-") as place:
        write_connection(Path(place), superlink, root_certificates)
        yield Link(Path(place), insecure)


def _prepared(settings: Config, resume: Path | None, overrides: Sequence[str]) -> Path:
    """A run directory with the config that the server is to read.

    Raises:
        ConfigError: the directory holds a run that is to be started, or has done more rounds than train.rounds.
        CheckpointError: another process is at work in it, or it cannot be written.
    """
    from fedrlvr.server.run_directory import check_rounds, check_unused, locked, new_directory, run_id
    from fedrlvr.simulation.run import settled

    directory = (resume or settings.run.directory or new_directory(settings.run.name)).absolute()
    if resume is not None and not overrides:
        return directory
    with locked(directory):
        if resume is None:
            check_unused(directory)
        else:
            check_rounds(directory, settings)
        run_id(directory)  # which marks it as a run of organisations before anything else does
        atomic_text(directory / "config.json", settled(settings, directory).model_dump_json(indent=2) + "\n")
    return directory


def _submit(link: Link, directory: Path, wait: float) -> str:
    """Start the run; Flower's id of it.

    Raises:
        RoundError: Flower would not; its text is in the error's.
    """
    from fedrlvr.version import __version__

    settings = {"directory": json.dumps(str(directory)), "wait": float(wait), "insecure": str(link.insecure).lower()}
    run_config = " ".join(f"{key}={value}" for key, value in settings.items())
    with tempfile.TemporaryDirectory(prefix="fedrlvr-") as place:
        app = Path(place) / "fedrlvr-run"
        app.mkdir()
        (app / "pyproject.toml").write_text(APP.format(version=__version__), "utf-8")
        done = link.flwr("run", str(app), CONNECTION, "--run-config", run_config, "--format", "json")
    try:
        return str(json.loads(done.stdout[done.stdout.index("{") :])["run-id"])
    except (ValueError, KeyError, TypeError):
        output = (done.stderr + done.stdout).strip()[-1500:]
        place = FULL if _has_failed(output) else PLACE
        raise RoundError(f"the SuperLink rejected the run. {place} Flower says: {output}") from None


def _who_missed_rounds(directory: Path) -> None:
    """Print who missed which round of a run that has failed, as far as its metrics can be read."""
    from fedrlvr.reporting.tables import participation_table
    from fedrlvr.server.metrics_log import read_metrics

    with contextlib.suppress(FedrlvrError):
        participation_table(read_metrics(directory))


def _follow(link: Link, run: str, directory: Path, again: str) -> None:
    """Show the run's log until it ends. again: the command that goes on with the run.

    Ctrl-C stops following. In a terminal it asks first whether the run is to end as well.

    Raises:
        Interrupted: Ctrl-C was pressed.
        RoundError: the run has failed, or the SuperLink is gone.
    """
    home = f"FLWR_HOME={shlex.quote(str(link.home))}"
    stopped = False

    def last_line() -> str:
        if stopped:
            return f"the run has ended; finished rounds are kept in {directory}; go on with: {again}"
        return f"the run goes on in {directory}; once it has ended, go on with: {again}"

    with interruptible(last_line):
        try:
            link.follow("log", run, CONNECTION, "--stream")
        except KeyboardInterrupt:
            echo()
            stopped = _wants_it_ended() and link.flwr("stop", run, CONNECTION).returncode == 0
            if not stopped:
                echo(f"The run goes on. {home} flwr log {run} {CONNECTION} --stream  follows it again,")
                echo(f"{home} flwr stop {run} {CONNECTION}  ends it.")
            raise
    status = _status(link, run)
    if status is None or _has_failed(status):
        words = FULL if status else "the SuperLink cannot be reached any more."
        raise RoundError(f"{words} Rounds that are done are kept: `{again}`.")
    if status != "finished:completed":
        raise RoundError(
            f"the run has ended as {status!r}; the reason is above. Rounds that are done are kept: `{again}`."
        )


def _wants_it_ended() -> bool:
    """The answer in a terminal to whether the run is to end; False where nobody can answer. A second Ctrl-C ends the
    command, and the run goes on."""
    return _in_a_terminal() and typer.confirm("End the run as well?", default=False)


def _in_a_terminal() -> bool:
    return sys.stdin.isatty()


def _has_failed(output: str) -> bool:
    """Whether Flower's command reports an answer of the SuperLink with HTTP's code 500."""
    return "internal server error" in output.lower()


def _status(link: Link, run: str) -> str | None:
    """The run's status; what Flower says instead if the SuperLink answers with an error; None if it does not answer."""
    done = link.flwr("list", CONNECTION, "--run-id", run, "--format", "json")
    try:
        (entry,) = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
        return str(entry["status"])
    except (ValueError, KeyError, TypeError):
        output = done.stderr + done.stdout
        return output if _has_failed(output) else None
