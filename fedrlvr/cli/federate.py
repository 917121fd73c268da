"""`fedrlvr federate`: the run that was simulated, with organisations on their own machines, over Flower.

Flower is used by its own command line, which is its public interface; what is ours is checked before.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import CONNECTION, Insecure, Overrides, Resume, write_connection
from fedrlvr.config import Config, load_config, load_resolved
from fedrlvr.deployment.flower_private import environment
from fedrlvr.errors import ConfigError, RoundError
from fedrlvr.files import atomic_text
from fedrlvr.hosts import LOOPBACK, is_loopback, split_address
from fedrlvr.output import echo

APP = """\
[project]
name = "fedrlvr-run"
version = "{version}"
description = "A run of fedrlvr. There is no code in here: everybody runs the release that is installed."
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


@dataclass(frozen=True)
class Link:
    """A SuperLink as Flower's commands find it.

    home: Flower's own directory (FLWR_HOME), with the connection in its config.toml.
    """

    home: Path
    insecure: bool

    def flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `flwr ARGUMENTS` quietly."""
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
) -> None:
    """Run a federation of organisations on their own machines.

    The command belongs on the SuperLink's machine. It lists what will travel, then follows the run; Ctrl-C stops
    following, not the run. --resume continues a run that was interrupted.
    """
    if (config is None) == (resume is None):
        raise ConfigError("Give a configuration to start a run, or --resume DIRECTORY to continue one.")
    if resume is not None and overrides:
        raise ConfigError("--resume goes on with the configuration the run was started with; leave out --set.")
    if superlink is None:
        raise ConfigError("Say which SuperLink: --superlink DIRECTORY (of `fedrlvr superlink init`) or host:port.")
    settings = load_config(config, overrides or ()) if resume is None else load_resolved(resume / "config.json")
    from fedrlvr.deployment.superlink.disclosure import check, travels

    check(settings)
    with _link(superlink, root_certificates, insecure) as link:
        directory = _prepared(settings) if resume is None else resume.absolute()
        for line in travels(settings, change=settings.aggregation.rule.changes_base):
            echo(line)
        echo(f"Asked: {', '.join(settings.federation.names)}, for their task {settings.federation.task!r}")
        echo(f"Run directory: {directory}")
        run = _submit(link, directory, wait)
        _follow(link, run, directory, superlink)
    from fedrlvr.reporting.tables import final_table
    from fedrlvr.server.metrics_log import read_metrics

    final_table(read_metrics(directory), settings, directory)


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


def _prepared(settings: Config) -> Path:
    """A run directory with the config that the server is to read."""
    from fedrlvr.server.run_directory import check_unused, locked, new_directory
    from fedrlvr.simulation.run import settled

    directory = (settings.run.directory or new_directory(settings.run.name)).absolute()
    with locked(directory):
        check_unused(directory)
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
        raise RoundError(f"the SuperLink did not take the run. {PLACE} Flower says: {output}") from None


def _follow(link: Link, run: str, directory: Path, superlink: str) -> None:
    """Show the run's log until it ends.

    Raises:
        RoundError: it has failed, or the SuperLink is gone.
    """
    again = f"`fedrlvr federate --resume {directory} --superlink {superlink}`"
    try:
        link.follow("log", run, CONNECTION, "--stream")
    except KeyboardInterrupt:
        echo()
        echo(f"The run goes on. FLWR_HOME={link.home} flwr log {run} {CONNECTION} --stream  follows it again,")
        echo(f"FLWR_HOME={link.home} flwr stop {run} {CONNECTION}  ends it; {again} goes on with it.")
        raise typer.Exit(130) from None
    status = _status(link, run)
    if status is None:
        raise RoundError(f"the SuperLink cannot be reached any more. Rounds that are done are kept: {again}.")
    if status != "finished:completed":
        raise RoundError(
            f"the run has ended as {status!r}; the reason is above. Rounds that are done are kept: {again}."
        )


def _status(link: Link, run: str) -> str | None:
    done = link.flwr("list", CONNECTION, "--run-id", run, "--format", "json")
    try:
        (entry,) = json.loads(done.stdout[done.stdout.index("{") :])["runs"]
        return str(entry["status"])
    except (ValueError, KeyError, TypeError):
        return None
