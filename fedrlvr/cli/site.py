"""`fedrlvr site`: an organisation's side of a federation over Flower."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from fedrlvr.config.sections import Section
from fedrlvr.deployment.site.config import NAME, Limits, MachineConfig, Organisation, SiteConfig, load_site
from fedrlvr.errors import ConfigError

if TYPE_CHECKING:
    from fedrlvr.reporting.doctor import Finding

LAST_LINES = 10
_WIDTH = 118

site = typer.Typer(no_args_is_help=True, help="An organisation's side: its keys, its limits, its SuperNode and worker.")

Directory = Annotated[Path, typer.Argument(help="Where its site.toml, key and state lie.")]


@site.command()
def init(
    directory: Directory,
    name: Annotated[str, typer.Option(help="The organisation's name, as it will be registered.")],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink's address.")],
    root_certificates: Annotated[
        Path | None, typer.Option(help="The SuperLink's ca.crt, from its operator; copied here.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Problems: a .jsonl file, or a directory with train.jsonl and test.jsonl.")
    ] = None,
    task: Annotated[str, typer.Option(help="What a server asks for them by.")] = "main",
    model: Annotated[
        str, typer.Option(metavar="NAME[=PLACE]", help="The base model a server may ask for, and where it lies here.")
    ] = "embedded",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="For this organisation's SuperNode, on 127.0.0.1.")
    ] = 9094,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="No TLS and no keys; with a SuperLink on this machine, to try things out."),
    ] = False,
) -> None:
    """Make an organisation's key pair and site.toml, and say what is to be done next."""
    from fedrlvr.deployment import certificates

    directory = directory.absolute()
    asked_for, _, place = model.partition("=")
    text = site_toml(
        name=name,
        superlink=superlink,
        port=port,
        insecure=insecure,
        task=task,
        data=None if data is None else data.absolute(),
        models={asked_for: place or asked_for},
    )
    _refuse_mistakes(text)
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
    directory.mkdir(parents=True, exist_ok=True)
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
        str | None, typer.Option(metavar="HOST:PORT", help="Another address than site.toml's, this time.")
    ] = None,
) -> None:
    """Run this organisation's SuperNode, which fetches what a server asks. Ctrl-C ends it."""
    org = load_site(directory)
    if superlink is not None:
        org = Organisation(_revalidated(org.config, superlink), org.path)
    from fedrlvr.deployment import flower_private as flowerparts
    from fedrlvr.deployment.site import check as checks
    from fedrlvr.deployment.site import socket as channel

    state = channel.state_directory(org)
    state.chmod(0o700)
    home, programs = state / "flower", state / "bin"
    home.mkdir(mode=0o700, exist_ok=True)
    own = flowerparts.environment(home, programs=programs)
    os.environ.update(own)  # before flwr is imported
    flowerparts.write_programs(programs)
    if not org.config.insecure:
        _refuse(checks.key_pair(org))
        reached = checks.server_certificate(org.config.superlink, org.root_certificates)
        if reached.name == checks.UNREACHED:  # may be there later: the SuperNode waits for it
            typer.echo(f"{reached.value}. The SuperNode will try until it answers.", err=True)
        else:
            _refuse(reached)
            _refuse(checks.registration(org))
            _refuse_second(checks.supernode(org), org)
            _let_go(org)
    command = supernode_command(org)
    tasks, models, limits = org.config.tasks, org.config.models, org.config.limits
    typer.echo(
        f"{org.name}: {', '.join(limits.message_types)} for tasks {', '.join(tasks)}, models {', '.join(models)}"
    )
    typer.echo(f"What is asked and sent is in {org.log}; what is allowed is in {org.path}.")
    typer.echo(shlex.join(command))
    os.execvpe(command[0], command, own)


@site.command()
def check(
    directory: Directory,
    skip_model: Annotated[bool, typer.Option("--skip-model", help="Leave out what takes long.")] = False,
) -> None:
    """Try everything that a run will need, and say what is wrong before anybody waits."""
    from fedrlvr.deployment.site.check import examine_site

    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    wrong = 0
    for finding in examine_site(directory, skip_model=skip_model):
        typer.echo(f"{finding.status:<8} {finding.name}: {finding.value}")
        if finding.advice:
            typer.echo(f"         {finding.advice}")
        wrong += finding.status == "problem"
    typer.echo(f"{wrong} of these must be mended before a run." if wrong else "Nothing stands in the way of a run.")
    if wrong:
        raise typer.Exit(1)


@site.command()
def status(directory: Directory) -> None:
    """Whether the worker runs, what it holds, and what was last asked and sent."""
    org = load_site(directory)
    from fedrlvr.deployment.site import check as checks
    from fedrlvr.deployment.site import socket as channel

    pid = checks.supernode(org)
    typer.echo(f"{org.name}: SuperNode " + ("does not run" if pid is None else f"runs (process {pid})"))
    found = channel.status(org)
    told = (
        "" if found is None else ", ".join(f"{key} {_shown(key, value)}" for key, value in found.items() if key != "ok")
    )
    typer.echo("worker does not run; the next message starts it" if found is None else f"worker runs: {told}")
    try:
        lines = org.log.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    typer.echo(f"{org.log}:" if lines else f"{org.log} is empty: nothing was asked yet")
    for line in lines[-LAST_LINES:]:
        typer.echo(f"  {line}")


@site.command()
def stop(directory: Directory) -> None:
    """End the worker, and with it the model in its memory. The next message starts another."""
    org = load_site(directory)
    from fedrlvr.deployment.site import socket as channel

    typer.echo("the worker has ended" if channel.stop(org) else "no worker was running")


def supernode_command(org: Organisation) -> list[str]:
    """The plain command of Flower's that `site run` amounts to.

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


def site_toml(
    *,
    name: str,
    superlink: str,
    port: int,
    insecure: bool,
    task: str,
    data: Path | None,
    models: dict[str, str],
) -> str:
    """A site.toml with every setting in it: those that are given, and the others as comments with their defaults."""
    shown = {"tasks", "models", "machine", "engine", "limits"}
    told: dict[str, Any] = {"name": name, "superlink": superlink, "port": port} | (
        {"insecure": True} if insecure else {}
    )
    lines = ["# An organisation in a federation of fedrlvr. Only this file decides what a server may ask for; relative"]
    lines += ["# paths are relative to it. A line that begins with # is a comment, and shows the default.", ""]
    lines += _settings(SiteConfig, told, leave_out=shown)
    lines += [f"# {line}" for line in _wrapped(SiteConfig.model_fields["tasks"].description or "")]
    lines += [f"[tasks.{task if re.fullmatch(NAME, task) else _value(task)}]"]
    if data is None:
        lines += [
            '# Generated problems, to try things out. Your own: name = "jsonl", path = "problems" (a directory with'
        ]
        lines += ["# train.jsonl and test.jsonl).", 'name = "embedded"', ""]
    else:
        lines += ['name = "jsonl"', f"path = {_value(str(data))}", ""]
    lines += [f"# {line}" for line in _wrapped(SiteConfig.model_fields["models"].description or "")]
    lines += ["[models]", *(f"{_value(key)} = {_value(place)}" for key, place in models.items()), ""]
    lines += [f"# {(MachineConfig.__doc__ or '').strip()}", "[machine]", *_settings(MachineConfig, {})]
    lines += [f"# {(Limits.__doc__ or '').strip()}", "[limits]", *_settings(Limits, {})]
    return "\n".join(lines).rstrip() + "\n"


def _settings(section: type[Section], told: dict[str, Any], leave_out: set[str] | None = None) -> list[str]:
    """Each setting with its description: as told, or commented out with its default."""
    lines = []
    for name, field in section.model_fields.items():
        if name in (leave_out or ()):
            continue
        lines += [f"# {line}" for line in _wrapped(field.description or "")]
        if name in told:
            lines += [f"{name} = {_value(told[name])}"]
        elif field.default is None:
            lines += [f"# {name} is not set"]
        else:
            lines += [f"# {name} = {_value(field.default)}"]
        lines += [""]
    return lines


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, _WIDTH, break_long_words=False)


def _value(value: Any) -> str:
    """As TOML; JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _refuse_mistakes(text: str) -> None:
    try:
        SiteConfig.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"No site.toml can be made of these options: {error}.") from None
    except ValidationError as error:
        raise ConfigError(_told(error)) from None


def _revalidated(config: SiteConfig, superlink: str) -> SiteConfig:
    try:
        return SiteConfig.model_validate(config.model_dump() | {"superlink": superlink})
    except ValidationError as error:
        raise ConfigError(_told(error)) from None


def _told(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    parts = [(".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")) for item in found]
    return "; ".join(f"--{where.split('.')[0]}: {what}" if where else what for where, what in parts) + "."


def _refuse_second(running: int | None, org: Organisation) -> None:
    if running is not None:
        raise ConfigError(f"{org.name}: its SuperNode runs already (process {running}).")


def _let_go(org: Organisation) -> None:
    """Free the place of this organisation's own SuperNode, which was killed."""
    from fedrlvr.deployment import certificates
    from fedrlvr.deployment import flower_private as flowerparts
    from fedrlvr.deployment.site import socket as channel

    try:
        node = int(channel.node_file(org).read_text("ascii"))
    except (OSError, ValueError):
        return
    authority = None if org.root_certificates is None else org.root_certificates.read_bytes()
    if flowerparts.let_go(org.config.superlink, authority, certificates.read_node_key(org.key), node):
        typer.echo("The SuperNode before this one ended without saying so; the SuperLink has let go of it.")


def _refuse(found: Finding) -> None:
    if found.status == "problem":
        raise ConfigError(f"{found.name}: {found.value}. {found.advice}")


def _quotable(path: Path) -> Path:
    """A path that can stand between quotation marks in --node-config.

    Raises:
        ConfigError: it cannot.
    """
    if re.search(r'["\\\x00-\x1f\x7f]', str(path)):
        raise ConfigError(f"{path!s} holds a quotation mark, a backslash or a control character. Choose another place.")
    return path


def _shown(key: str, value: Any) -> str:
    from fedrlvr.reporting import units

    if isinstance(value, int) and ("memory" in key or "bytes" in key):
        return units.size(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _say_next(org: Organisation, authority: Path) -> None:
    from fedrlvr.deployment import certificates

    place = shlex.quote(str(org.directory))
    lines = [f"{org.path} says what a server may ask {org.name} for: look through it first.", ""]
    if not org.config.insecure:
        mark = certificates.key_fingerprint(certificates.read_node_key(org.key).public_key())
        lines += [
            f"Send {org.key}.pub to the SuperLink's operator, by any channel: it is public. Compare by telephone its",
            f"fingerprint: {mark}",
            "The operator lets it in with:",
            f"  fedrlvr superlink register DIRECTORY {org.key.name}.pub --name {org.name}",
            f"Keep {org.key} to yourself: who has it can pass for {org.name}.",
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
        "which runs, with state/bin first in PATH so that no code of a server is ever started:",
        f"  {shlex.join(supernode_command(org))}",
    ]
    typer.echo("\n".join(lines))
