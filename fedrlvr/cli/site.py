"""`fedrlvr site`: an organisation's side of a federation over Flower."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fedrlvr.cli import egress
from fedrlvr.cli.audit import audit_site
from fedrlvr.cli.egress import egress_lines
from fedrlvr.cli.options import Directory, Insecure, Overrides, Quiet, expanded, toml_value
from fedrlvr.cli.responses import Most, RoundNumber, Whole, Wrong
from fedrlvr.config import load_config
from fedrlvr.config.engine import EngineConfig
from fedrlvr.config.reference import summary
from fedrlvr.config.sections import NAME, Section
from fedrlvr.deployment.site.config import (
    EgressConfig,
    Limits,
    MachineConfig,
    Organisation,
    SiteConfig,
    explanations,
    load_site,
)
from fedrlvr.errors import ConfigError
from fedrlvr.files import file_lock, private_directory
from fedrlvr.interrupts import interruptible, resumable
from fedrlvr.output import echo, echo_lines

LAST_LINES = 10
NOT_BY_RESTARTING = 78
"""Exit code of `site run` (EX_CONFIG) after which a service manager should not start it again."""
SUPERNODE = "fedrlvr.deployment.site.supernode"
"""Module that runs the SuperNode as a child process."""
_WIDTH = 118

site = typer.Typer(no_args_is_help=True, help="An organisation's side: its keys, its limits, its SuperNode and worker.")
site.command()(egress.approve)
site.command()(egress.log)
site.command()(egress.withdraw)
site.command(name="audit")(audit_site)


@site.command()
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="The organisation's name, as it will be registered.")],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink's address.")],
    root_certificates: Annotated[
        Path | None, typer.Option(help="The SuperLink's ca.crt, from its operator; the command copies it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Problems: a .jsonl file, or a directory with train.jsonl and test.jsonl.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task's name, by which a server asks for the problems.")] = "main",
    model: Annotated[
        str, typer.Option(metavar="NAME[=PLACE]", help="The base model a server may ask for, and where it lies here.")
    ] = "embedded",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of this organisation's SuperNode, on 127.0.0.1.")
    ] = 9094,
    insecure: Insecure = False,
) -> None:
    """Make an organisation's key pair and site.toml, and print the next steps."""
    from fedrlvr.deployment import certificates

    directory = directory.absolute()
    model_name, _, place = model.partition("=")
    settings = {"name": name, "superlink": superlink, "port": port} | ({"insecure": True} if insecure else {})
    text = site_toml(settings, task, None if data is None else data.absolute(), {model_name: place or model_name})
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"No site.toml can be made of these options: {error}.") from None
    _validated(tree)
    _quotable(directory)
    file, key, authority = directory / "site.toml", directory / f"{name}.key", directory / "ca.crt"
    if file.exists():
        raise ConfigError(f"{file} exists already and is never overwritten. Edit it, or give another directory.")
    if root_certificates is not None:
        certificates.read_certificate(root_certificates)
        if authority.exists() and authority.read_bytes() != root_certificates.read_bytes():
            raise ConfigError(f"{authority} exists already and is another one. Move it away if it is to be replaced.")
    if data is not None and not data.exists():
        raise ConfigError(f"--data {data}: there is no such file or directory.")
    private_directory(directory)
    if not insecure:
        certificates.make_node_key(key)
    if root_certificates is not None and not authority.exists():
        authority.write_bytes(root_certificates.read_bytes())
    file.write_text(text, "utf-8")
    _say_next(load_site(file), authority)


@site.command()
def run(
    directory: Directory,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address to use this time instead of the one in site.toml.")
    ] = None,
) -> None:
    """Run this organisation's SuperNode, which fetches the server's requests, and keep it connected.

    Ctrl-C or SIGTERM ends it and the worker. The exit code is 78 for what restarting cannot mend: site.toml or the key.
    """
    try:
        org = load_site(directory)
        if superlink is not None:
            org = Organisation(_validated(org.config.model_dump() | {"superlink": superlink}), org.path)
        _keep(org)
    except ConfigError as error:
        echo(f"error: {error}", err=True)
        raise typer.Exit(NOT_BY_RESTARTING) from None


def _keep(org: Organisation) -> None:
    """Run the SuperNode until this process is told to end.

    Raises:
        ConfigError: something in the organisation's own directory is wrong, or its `site run` runs already.
    """
    from fedrlvr.deployment import flower_private as flowerparts
    from fedrlvr.deployment.site import socket as channel
    from fedrlvr.deployment.site.keeper import Keeper
    from fedrlvr.deployment.site.link import lock_file, running

    state = channel.state_directory(org)
    state.chmod(0o700)
    lock = file_lock(lock_file(org))
    if lock is None:
        raise ConfigError(f"{org.name}: `site run` runs already for {org.path} (process {running(org)}).")
    lock.truncate(0)
    with contextlib.suppress(OSError):  # a disk that is full: the lock holds without a number in it
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    home, programs = state / "flower", state / "bin"
    home.mkdir(mode=0o700, exist_ok=True)
    environment = flowerparts.environment(home, programs=programs)
    os.environ.update(environment)  # before flwr is imported
    flowerparts.write_programs(programs)
    command = supernode_command(org)
    tasks, models, limits = org.config.tasks, org.config.models, org.config.limits
    echo(f"{org.name}: {', '.join(limits.message_types)} for tasks {', '.join(tasks)}, models {', '.join(models)}")
    echo(f"Requests and answers are logged in {org.log}; the limits are in {org.path}.")
    echo(shlex.join(command))
    with lock:
        Keeper(org, [sys.executable, "-P", "-m", SUPERNODE, *command[1:]], environment).run()


@site.command()
def check(
    directory: Directory,
    skip_model: Annotated[bool, typer.Option("--skip-model", help="Skip models and the worker (slow).")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            callback=expanded,
            help="The TOML configuration of a run to come, from its operator: prompts are shown as it words them.",
        ),
    ] = None,
) -> None:
    """Check everything that a run needs, and report what is wrong before a run starts.

    The first problem of each task is shown as the model will be asked it, on this terminal only.
    """
    from fedrlvr.deployment.site.check import examine_site

    wrong = 0
    experiment = None if config is None else load_config(config).prompt
    for finding in examine_site(directory, skip_model=skip_model, experiment=experiment):
        echo(f"{finding.status:<8} {finding.name}: {finding.value}")
        if finding.advice:
            echo(f"         {finding.advice}")
        wrong += finding.status == "problem"
    echo(f"{wrong} of these must be mended before a run." if wrong else "Nothing stands in the way of a run.")
    if wrong:
        raise typer.Exit(1)


@site.command()
def status(
    directory: Directory,
    check: Annotated[
        bool, typer.Option("--check", help="End with exit code 1 unless the link is alive, for a monitoring system.")
    ] = False,
) -> None:
    """Show the link to the SuperLink, the worker with its models and message, and the last requests and answers."""
    org = load_site(directory)
    from fedrlvr.deployment.site import link
    from fedrlvr.deployment.site import socket as channel

    echo(f"{org.name}: {link.said_of(org)}")
    worker = channel.status(org)
    if worker is None:
        echo("worker does not run; the next message starts it")
    else:
        fields = (f"{key} {_shown(key, value)}" for key, value in worker.items() if key != "ok")
        echo(f"worker runs: {', '.join(fields)}")
    try:
        lines = org.log.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in egress_lines(org):
        echo(line)
    echo(f"{org.log}:" if lines else f"{org.log} is empty: nothing was asked yet")
    for line in lines[-LAST_LINES:]:
        echo(f"  {line}")
    if check and not link.is_alive(org):
        raise typer.Exit(1)


@site.command()
def responses(
    directory: Directory,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="A run, as state/runs names it; by default the newest.")
    ] = None,
    round_: RoundNumber = None,
    wrong: Wrong = False,
    most: Most = 12,
    whole: Whole = False,
) -> None:
    """Show responses to private problems that site.toml (responses = N) has had written on this machine."""
    org = load_site(directory)
    from fedrlvr.reporting.responses import response_files, show

    files = {path: path.stat().st_mtime for path in (org.state / "runs").glob("*") if response_files(path)}
    if not files:
        raise ConfigError(
            f"{org.state / 'runs'} holds no responses. Set responses = 4 in {org.path}; rounds from then on write some."
        )
    chosen = max(files, key=files.__getitem__) if run is None else org.state / "runs" / run
    if chosen not in files:
        raise ConfigError(f"--run {run}: no responses of this run. Runs: {', '.join(sorted(p.name for p in files))}.")
    echo(f"{org.name}, run {chosen.name}")
    show(response_files(chosen), round_=round_, wrong=wrong, most=most, whole=whole)


@site.command()
def stop(directory: Directory) -> None:
    """End the worker, and with it the model in its memory. The next message starts another."""
    org = load_site(directory)
    from fedrlvr.deployment.site import socket as channel

    echo("the worker has ended" if channel.stop(org) else "no worker was running")


@site.command()
def verdict(
    directory: Directory,
    config: Annotated[
        Path, typer.Option(callback=expanded, help="The TOML configuration that the server ran, from its operator.")
    ],
    adapter: Annotated[
        Path | None,
        typer.Option(
            callback=expanded,
            help="Directory of the federation's adapter, from the server's operator; left out with fedsa and fedalt.",
        ),
    ] = None,
    personal: Annotated[
        Path | None,
        typer.Option(callback=expanded, help="Directory of this organisation's own adapter of the federation."),
    ] = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Compare the federation's adapter with one trained here alone, on this organisation's own held-out problems.

    Nothing is sent. The same command goes on where it was interrupted. The exit code is 0, or 1 if the federation's
    adapter is worse beyond the 95 % interval, or if the command failed.
    """
    org, experiment = load_site(directory), load_config(config, overrides or ())
    again = ["fedrlvr", "site", "verdict", str(directory), "--config", str(config)]
    for option, values in (("--adapter", [adapter]), ("--personal", [personal]), ("--set", overrides or ())):
        for value in values:
            again += [option, str(value)] if value else []
    with interruptible("nothing was written; give the same command again"):
        from fedrlvr.deployment.site import verdict as engine

        planned = engine.plan(org, experiment)
        with resumable(planned.directory, again):
            from fedrlvr.reporting.progress import progress
            from fedrlvr.reporting.tables import verdict_table

            if planned.todo:
                echo(f"{org.name} trains alone first, {planned.todo} local steps, in {planned.directory}.")
            result = planned.make(adapter, personal, lambda: progress(quiet=quiet))
    verdict_table(result)
    echo(f"verdict.json and report.html are in {planned.directory}; nothing was sent")
    if result.worse:
        raise typer.Exit(1)


def supernode_command(org: Organisation) -> list[str]:
    """The Flower command whose part `site run` plays, with a child process that reports on its link.

    Raises:
        ConfigError: site.toml lies where Flower could not be told of it.
    """
    config = org.config
    command = ["flower-supernode", "--superlink", config.superlink, "--host", "127.0.0.1", "--port", str(config.port)]
    if config.insecure:
        command += ["--insecure"]
    else:
        if org.root_certificates is not None:
            command += ["--root-certificates", str(org.root_certificates)]
        command += ["--auth-supernode-private-key", str(org.key)]
    return [*command, "--node-config", f'site="{_quotable(org.path)}"']


def site_toml(settings: dict[str, Any], task: str, data: Path | None, models: dict[str, str]) -> str:
    """The text of a site.toml: the settings given, and all others as comments with their defaults.

    settings: keys outside of any table. task, data: the name and problems of its task; without data, generated ones.
    models: base models by name, and where each lies.
    """
    lines = [
        "# This file configures one organisation in a federation of fedrlvr, and only this file decides what a server"
    ]
    lines += ["# may ask for. Relative paths are relative to its directory. A setting behind # shows its default.", ""]
    lines += _settings(SiteConfig, settings, {"tasks", "models", "machine", "engine", "limits", "egress"})
    lines += [*_comment(SiteConfig, "tasks"), f"[tasks.{task if re.fullmatch(NAME, task) else toml_value(task)}]"]
    if data is None:
        lines += ['# Generated problems, to try things out. Your own: name = "jsonl", path = "problems" (a directory']
        lines += ["# with train.jsonl and test.jsonl).", 'name = "embedded"', ""]
    else:
        lines += ['name = "jsonl"', f"path = {toml_value(data)}", ""]
    lines += [*_comment(SiteConfig, "models"), "[models]"]
    lines += [*(f"{toml_value(name)} = {toml_value(place)}" for name, place in models.items()), ""]
    for name, section in (("machine", MachineConfig), ("limits", Limits), ("egress", EgressConfig)):
        lines += [*_wrapped(summary(section)), f"[{name}]", *_settings(section, {})]
    lines += [*_wrapped(f"{summary(EngineConfig)} docs/settings.md lists them."), "# [engine]"]
    return "\n".join(lines).rstrip() + "\n"


def _settings(section: type[Section], given: dict[str, Any], omitted: Collection[str] = ()) -> list[str]:
    """Each setting with its description: as given, or commented out with its default."""
    lines = []
    for name in (name for name in section.model_fields if name not in omitted):
        default = section.model_fields[name].default
        if name in given:
            setting = f"{name} = {toml_value(given[name])}"
        else:
            setting = f"# {name} is not set" if default is None else f"# {name} = {toml_value(default)}"
        lines += [*_comment(section, name), setting, ""]
    return lines


def _comment(section: type[Section], name: str) -> list[str]:
    return _wrapped(section.model_fields[name].description or "")


def _wrapped(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False)]


def _validated(tree: dict[str, Any]) -> SiteConfig:
    try:
        return SiteConfig.model_validate(tree)
    except ValidationError as error:
        texts = (re.sub(r"^(\w+?)s?(\.[^:]*)?: ", r"--\1: ", text) for text in explanations(error))
        raise ConfigError(f"{'; '.join(texts)}.") from None


def _quotable(path: Path) -> Path:
    """A path that can stand between quotation marks in --node-config.

    Raises:
        ConfigError: it cannot.
    """
    if re.search(r'["\\\x00-\x1f\x7f]', str(path)):
        raise ConfigError(f"{path!s} holds a quotation mark, a backslash or a control character. Choose another place.")
    return path


def _shown(key: str, value: Any) -> str:
    from fedrlvr.deployment.site.link import moment
    from fedrlvr.reporting import units

    if isinstance(value, int) and ("memory" in key or "bytes" in key):
        return units.size(value)
    if isinstance(value, float) and key in ("began", "busy_since"):
        return moment(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _say_next(org: Organisation, authority: Path) -> None:
    from fedrlvr.deployment import certificates

    place = shlex.quote(str(org.directory))
    lines = [f"{org.path} limits what a server may ask of {org.name}: read it first.", ""]
    if not org.config.insecure:
        mark = certificates.key_fingerprint(certificates.read_node_key(org.key).public_key())
        lines += [
            f"Send {org.key}.pub to the SuperLink's operator, by any channel: it is public. Compare by telephone its",
            f"fingerprint: {mark}",
            "The operator registers it with:",
            f"  fedrlvr superlink register DIRECTORY {org.key.name}.pub --name {org.name}",
            f"Keep {org.key} private: anyone who has it can pose as {org.name}.",
        ]
        if authority.exists():
            mark = certificates.certificate_fingerprint(certificates.read_certificate(authority))
            lines += [f"Compare also the fingerprint of {authority} (SHA-256): {mark}", ""]
        else:
            lines += [f"Have the operator send you ca.crt, and put it to {authority}.", ""]
    lines += [
        "Then, here:",
        f"  fedrlvr site check {place}",
        f"  fedrlvr site run {place}",
        "The second command runs this, with state/bin first in PATH so that no code of a server is ever started:",
        f"  {shlex.join(supernode_command(org))}",
    ]
    echo_lines("\n".join(lines))
