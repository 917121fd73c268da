"""`fedrlvr superlink`: the server that organisations connect to, its certificate, and its registered organisations."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import shlex
import subprocess
import threading
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedrlvr.cli.options import CONNECTION, Directory, ExtraNames, Insecure, toml_lines, write_connection
from fedrlvr.config.client_names import check_client_names
from fedrlvr.config.sections import NAME
from fedrlvr.errors import ConfigError
from fedrlvr.files import private_directory
from fedrlvr.hosts import LOOPBACK, WILDCARDS, is_loopback, split_address
from fedrlvr.output import echo, echo_lines

SETTINGS = "superlink.toml"

superlink = typer.Typer(
    no_args_is_help=True, help="The server that organisations connect to: certificate, start, and who may connect."
)


@dataclass(frozen=True)
class SuperLink:
    """Settings that `superlink init` wrote: where organisations reach it, where it listens, and whether it has TLS."""

    address: str
    host: str
    port: int
    insecure: bool

    @property
    def local(self) -> str:
        """The address by which this machine connects."""
        host = WILDCARDS.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@superlink.command()
def init(
    directory: Directory,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="The address that organisations connect to.")],
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; by default every interface, or loopback if --address is loopback."),
    ] = None,
    name: ExtraNames = None,
    insecure: Insecure = False,
) -> None:
    """Make the authority, the certificate and the settings of a SuperLink."""
    try:
        outer, port = split_address(address)
    except ValueError as error:
        raise ConfigError(f"--address {address}: {error}.") from None
    if outer in WILDCARDS:
        raise ConfigError(f"--address {address}: give the name organisations reach it by; --host is where it listens.")
    local = is_loopback(outer)
    bind = host or ("127.0.0.1" if local and ":" not in outer else outer if local else "0.0.0.0")
    if insecure and not (local and is_loopback(bind)):
        raise ConfigError(
            f"--insecure is for loopback ({LOOPBACK[0]}) only: what {address} serves would be open to everybody."
        )
    link = SuperLink(address, bind, port, insecure)
    directory = directory.absolute()
    flower = directory / "flower"
    for file in (directory / SETTINGS, flower / "config.toml"):
        if file.exists():
            raise ConfigError(f"{file} exists already and is never overwritten. Give another directory.")
    private_directory(directory)
    if not insecure:
        from fedrlvr.deployment import certificates

        certificates.make_authority(directory, f"fedrlvr SuperLink {address}")
        # The processes of this machine come by loopback, or by the address it listens on.
        inner = [] if bind in WILDCARDS else [bind]
        certificates.make_server_certificate(directory, [outer, *inner, *(name or []), *LOOPBACK])
    flower.mkdir(mode=0o700, exist_ok=True)
    write_connection(flower, link.local, None if insecure else directory / "ca.crt")
    (directory / SETTINGS).write_text(toml_lines(asdict(link)), "utf-8")
    _say_next(directory, link)


@superlink.command()
def run(directory: Directory) -> None:
    """Run the SuperLink. Ctrl-C ends it; runs in progress can be resumed."""
    link = load_superlink(directory)
    directory = directory.absolute()
    arguments = ["--host", link.host, "--port", str(link.port), "--database", str(directory / "state.db")]
    arguments += ["--disable-runtime-dependency-installation"]
    if link.insecure:
        arguments += ["--insecure"]
    else:
        for option, file in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")):
            if not (directory / file).is_file():
                raise ConfigError(f"{directory / file} is missing. Restore it from a backup, or start anew with init.")
            arguments += [f"--ssl-{option}", str(directory / file)]
        arguments += ["--enable-supernode-auth"]
        from fedrlvr.deployment.certificates import check_validity

        check_validity(directory, _now())
    from fedrlvr.deployment.flower_private import environment, run_superlink

    os.environ.update(environment(directory / "flower"))  # before flwr is imported
    # Its database holds adapters, and takes its mode from the file that is there.
    os.close(os.open(directory / "state.db", os.O_RDWR | os.O_CREAT, 0o600))
    log = logging.getLogger("fedrlvr")
    handler = logging.StreamHandler()
    handler.setFormatter(_utc())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    lock = "no TLS and no keys" if link.insecure else "TLS; organisations need a registered key"
    log.info("SuperLink of %s, listening on %s port %d: %s", link.address, link.host, link.port, lock)
    log.info("from other machines only the Fleet API can be reached; runs are started on this machine")
    if not link.insecure:
        threading.Thread(target=_watch_certificates, args=(directory, log), daemon=True).start()
    run_superlink(arguments)


def _watch_certificates(directory: Path, log: logging.Logger) -> None:
    """Warn in the log, at the start and then once a day, of certificates that expire soon or have expired."""
    from fedrlvr.deployment.certificates import check_validity

    while True:
        try:
            for warning in check_validity(directory, _now()):
                log.warning("%s", warning)
        except ConfigError as error:
            log.error("%s", error)
        time.sleep(24 * 3600)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@superlink.command()
def renew(directory: Directory, name: ExtraNames = None) -> None:
    """Make a new certificate, before the old one expires or for further names. Organisations need not do anything."""
    from fedrlvr.deployment import certificates

    if load_superlink(directory).insecure:
        raise ConfigError(f"{directory} is without TLS (--insecure), so it has no certificate.")
    certificates.renew_server_certificate(directory, name or [])
    fresh = certificates.read_certificate(directory / "server.crt")
    until = fresh.not_valid_after_utc.date()
    echo(f"{directory / 'server.crt'} is good until {until}, for {', '.join(certificates.hosts_of(fresh))}")
    echo("The SuperLink uses it after its next start.")


@superlink.command()
def register(
    directory: Directory,
    public_key: Annotated[Path, typer.Argument(help="The organisation's <name>.key.pub.")],
    name: Annotated[str, typer.Option(help="The organisation's name in configs, logs and reports.")],
) -> None:
    """Register an organisation, so that it can connect. The SuperLink must run on this machine."""
    from fedrlvr.deployment.certificates import key_fingerprint, read_public_key

    link = load_superlink(directory)
    if link.insecure:
        raise ConfigError(f"{directory} is without keys (--insecure): every user of this machine may connect.")
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--name {name!r}: letters, digits, - and _ only, at most 64.")
    key = read_public_key(public_key)
    mark = key_fingerprint(key)
    for member in _members(directory, link):
        fingerprint = _fingerprint(member.public_key)
        if member.name not in ("", name):
            try:
                check_client_names([member.name, name])
            except ValueError as error:
                raise ConfigError(f"--name {name}: {error}. {member.name} is registered already.") from None
        if member.name == name or fingerprint == mark:
            raise ConfigError(
                f"{member.name} is registered already, with the key {fingerprint}. Each organisation has its own "
                "name and key: give others, or unregister it (fedrlvr superlink unregister "
                f"{shlex.quote(str(directory))} {member.name})."
            )
    try:
        _flwr(directory, "supernode", "register", str(public_key.absolute()), CONNECTION, "--name", name)
    except ConfigError as error:
        if "already in use" not in str(error):
            raise
        raise ConfigError(
            f"{public_key} was unregistered here before, and Flower does not take such a key again. Have {name} make a "
            "new pair (move the old one away, then ssh-keygen -t ecdsa -b 384 -N '' -f NAME.key)."
        ) from None
    echo(f"registered {name}, whose key has the fingerprint {mark}")


@superlink.command()
def members(directory: Directory) -> None:
    """List the registered organisations, and which of them are connected."""
    link = load_superlink(directory)
    registered = _members(directory, link)
    if not registered:
        echo("no organisation is registered")
    width = max((len(member.name) for member in registered), default=0)
    for member in registered:
        echo(f"{member.name:<{width}}  {member.status:<10}  {_fingerprint(member.public_key)}")


@superlink.command()
def unregister(
    directory: Directory,
    name: Annotated[str, typer.Argument(help="The organisation's registered name.")],
) -> None:
    """Revoke an organisation's registration, so that it can no longer connect."""
    link = load_superlink(directory)
    matching = [member for member in _members(directory, link) if member.name == name]
    if not matching:
        raise ConfigError(f"There is no organisation {name}; `fedrlvr superlink members` lists who is registered.")
    for member in matching:
        _flwr(directory, "supernode", "unregister", str(member.node_id), CONNECTION)
    echo(f"{name} can no longer connect; to come back, it needs a new key")


def load_superlink(directory: Path) -> SuperLink:
    """The settings that `superlink init` wrote to a directory.

    Raises:
        ConfigError: it holds no SuperLink, or its settings cannot be used.
    """
    file = directory / SETTINGS
    try:
        tree: dict[str, Any] = tomllib.loads(file.read_text("utf-8-sig"))
        link = SuperLink(str(tree["address"]), str(tree["host"]), int(tree["port"]), tree["insecure"] is True)
        if set(tree) != set(asdict(link)):
            raise ValueError(f"it must hold {', '.join(asdict(link))} and nothing else")
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file. `fedrlvr superlink init` makes one.") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be used: {error}.") from None
    if link.insecure and not is_loopback(link.host):
        raise ConfigError(f"{file}: insecure is for loopback only, and host is {link.host}.")
    return link


def _members(directory: Path, link: SuperLink) -> list[Any]:
    from fedrlvr.deployment.flower_private import environment, members

    os.environ.update(environment(directory.absolute() / "flower"))
    try:
        authority = None if link.insecure else (directory / "ca.crt").read_bytes()
    except OSError as error:
        raise ConfigError(f"{directory / 'ca.crt'} cannot be read: {error.strerror}.") from None
    known = members(link.local, authority)
    return sorted((m for m in known if m.status != "unregistered"), key=lambda member: member.name)


def _flwr(directory: Path, *arguments: str) -> None:
    """One of Flower's own commands, against this SuperLink."""
    from fedrlvr.deployment.flower_private import environment

    command, env = ["flwr", *arguments], environment(directory.absolute() / "flower")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        output = " ".join(re.sub("[─│╭╮╰╯]+", " ", done.stderr or done.stdout).split())[-400:]
        raise ConfigError(f"Flower's command failed (flwr {' '.join(arguments[:2])}): {output}")


def _fingerprint(public_key: bytes) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from fedrlvr.deployment.certificates import key_fingerprint

    with contextlib.suppress(ValueError):
        key = load_pem_public_key(public_key)
        if isinstance(key, ec.EllipticCurvePublicKey):
            return key_fingerprint(key)
    return "a key that cannot be read"


def _say_next(directory: Path, link: SuperLink) -> None:
    place = shlex.quote(str(directory))
    lines = [f"A SuperLink in {directory}, for {link.address}, listening on {link.host} port {link.port}.", ""]
    if link.insecure:
        lines += ["It has no TLS and no keys: every user of this machine can use it.", ""]
    else:
        from fedrlvr.deployment.certificates import certificate_fingerprint, read_certificate

        mark = certificate_fingerprint(read_certificate(directory / "ca.crt"))
        lines += [
            f"Give every organisation {directory / 'ca.crt'}; it is public. Have them compare, by telephone, its",
            f"fingerprint (SHA-256): {mark}",
            "Keep ca.key and server.key private: anyone who has ca.key can pose as this SuperLink.",
            "",
        ]
    lines += ["Start it:", f"  fedrlvr superlink run {place}"]
    if not link.insecure:
        lines += ["Register an organisation that sent you its public key, and list those registered:"]
        lines += [f"  fedrlvr superlink register {place} NAME.key.pub --name NAME"]
        lines += [f"  fedrlvr superlink members {place}"]
    lines += ["Start a run, on this machine:", f"  fedrlvr federate exp.toml --superlink {place}"]
    echo_lines("\n".join(lines))


def _utc() -> logging.Formatter:
    formatter = logging.Formatter("%(asctime)s %(levelname)s [%(name)s] %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter
