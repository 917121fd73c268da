"""`fedrlvr desk`: experts give labels, on a web page or through a spreadsheet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrlvr.cli.serving import Address, Certificate, Host, Key, Names, check_token
from fedrlvr.config import Asking, Config, load_resolved
from fedrlvr.errors import ConfigError
from fedrlvr.files import private_file
from fedrlvr.output import echo

if TYPE_CHECKING:
    from fastapi import FastAPI

TOKEN = "FEDRLVR_DESK_TOKEN"
_TABLES = "A spreadsheet instead"


def desk(
    run_directory: Annotated[Path | None, typer.Argument(help="The run's directory; not needed with --ledger.")] = None,
    client: Annotated[str | None, typer.Option(help="The client to label for, if the run has several.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="A client's ledger file, instead of a run.")] = None,
    site: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="A site: serve the page where its replies are approved, no labels."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN, show_envvar=True, help="Secret that admits a browser; by default a new one at each start."
        ),
    ] = None,
    host: Host = "127.0.0.1",
    name: Names = None,
    certificate: Certificate = None,
    key: Key = None,
    export_to: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write problems and answers as CSV, and end.", rich_help_panel=_TABLES
        ),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE", help="Read answers from an exported CSV, and end.", rich_help_panel=_TABLES
        ),
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="Name of the expert whose answers --import reads.", rich_help_panel=_TABLES)
    ] = None,
) -> None:
    """Serve the page where experts give the labels that a run asks for. The run does not wait for them.

    Needs supervision.labels_from = "desk". Prints the page's address; Ctrl-C ends it, and the run may come and go.
    """
    address = Address(host, name or [], certificate, key)
    if export_to is None and import_from is None:
        check_token(token, TOKEN)
    if site is not None:
        labels = (run_directory, client, ledger, export_to, import_from, expert)
        if any(option is not None for option in labels):
            raise ConfigError("--site serves approvals and no labels; leave out the run, --ledger and the like.")
        _serve_approvals(site, port, token, address)
        return
    path, client_name = find_ledger(run_directory, client, ledger, read_only=export_to is not None)
    if (import_from is None) != (expert is None):
        raise ConfigError("--import requires --expert, and --expert is for --import only.")
    if export_to is not None and import_from is not None:
        raise ConfigError("--export and --import are two commands; give one of them.")
    if export_to is not None:
        _export(path, export_to)
    elif import_from is not None and expert is not None:
        _import(path, import_from, expert)
    else:
        _serve_labels(path, client_name, port, token, address)


def find_ledger(
    run_directory: Path | None, client: str | None, ledger: Path | None, *, read_only: bool
) -> tuple[Path, str]:
    """The file of a ledger, and the name of its client.

    Raises:
        ConfigError: there is no such ledger, or the run has several.
    """
    if ledger is not None:
        if not ledger.is_file():
            raise ConfigError(f"--ledger {ledger}: there is no such file.")
        return ledger, client or ledger.stem
    if run_directory is None:
        raise ConfigError("Name the labels: fedrlvr desk RUN_DIRECTORY, or --ledger FILE.")
    settings = load_resolved(run_directory / "config.json")
    supervision = settings.supervision
    if not isinstance(supervision, Asking):
        raise ConfigError(f"{run_directory} asks for no labels: its supervision.type is {supervision.type!r}.")
    if supervision.labels_from != "desk" and not read_only:
        raise ConfigError(
            f"{run_directory} takes its labels from the data set; people are asked with supervision.labels_from = "
            "'desk'. (--export shows what it took.)"
        )
    name = _client(settings, client)
    path = settings.ledger_file(run_directory, name)
    if read_only and not path.is_file():
        raise ConfigError(f"{path}: there is no such file; {name} has asked for no label yet.")
    return path, name


def _client(settings: Config, wanted: str | None) -> str:
    clients = ["central"] if settings.federation.arm == "central" else settings.federation.names
    if wanted is None and len(clients) == 1:
        return clients[0]
    if wanted in clients:
        return str(wanted)
    listed = ", ".join(clients[:20]) + ", ..." * (len(clients) > 20)
    if wanted is None:
        raise ConfigError(
            f"The run has {len(clients)} clients, each with labels of its own. Name one: --client {listed}."
        )
    raise ConfigError(f"--client {wanted}: the run has no such client. It has {listed}.")


def _export(path: Path, out: Path) -> None:
    from fedrlvr.labels.ledger import LabelLedger
    from fedrlvr.labels.spreadsheet import write_csv

    entries = LabelLedger(path).entries()
    try:
        with open(private_file(out), "w", encoding="utf-8", newline="") as file:
            write_csv(entries, file)
    except FileExistsError:
        raise ConfigError(f"{out} exists already; give a new file.") from None
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}.") from error
    echo(f"wrote {len(entries)} problems to {out}")


def _import(path: Path, source: Path, expert: str) -> None:
    from fedrlvr.labels.ledger import LabelLedger
    from fedrlvr.labels.spreadsheet import MOST_BYTES, read_csv

    try:
        with source.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}.") from error
    stored = read_csv(text, LabelLedger(path), expert, time.time())
    echo(f"stored {stored} new answers of {expert}")


def _serve_approvals(site: Path, port: int, token: str | None, address: Address) -> None:
    from fedrlvr.deployment.site.config import load_site
    from fedrlvr.labels.desk.approval_app import make_approval_desk
    from fedrlvr.privacy.approvals import Approvals

    org = load_site(site)
    approvals, approve = Approvals(org.state), org.config.egress.approve
    if approve == "none" and org.config.egress.rule is None:
        echo(f"note: nothing waits for a person with egress.approve = 'none' in {org.path}", err=True)
    what = f"The approval desk of {org.name} is open; its decisions go to {approvals.directory}", "approve"
    _serve(
        lambda token, names: make_approval_desk(approvals, token, org.name, approve, names=names),
        what,
        port,
        token,
        address,
    )
    echo("The approval desk is closed.")


def _serve_labels(path: Path, client: str, port: int, token: str | None, address: Address) -> None:
    from fedrlvr.labels.desk.app import make_desk
    from fedrlvr.labels.ledger import LabelLedger

    store = LabelLedger(path)
    what = f"The desk of {client} is open; its answers go to {path}", "answer"
    try:
        _serve(lambda token, names: make_desk(store, token, client, names=names), what, port, token, address)
    finally:
        store.close()
    echo("The desk is closed; every answer is stored.")


def _serve(
    make: Callable[[str, list[str]], FastAPI], what: tuple[str, str], port: int, token: str | None, address: Address
) -> None:
    """Serve a page until interrupted. make: of token and names. what: the first line, and what who enters can do."""
    import secrets

    from fedrlvr.pages.server import serve

    token = token or secrets.token_urlsafe(24)

    def ready(bound: int) -> None:
        echo(what[0])
        echo(f"  {address.link(bound, token)}")
        echo(f"Anybody with this address can read and {what[1]}. Ctrl-C closes the desk.")
        address.warn("desk", "problems, answers")
        sys.stdout.flush()

    serve(
        make(token, address.all_names),
        address.host,
        port,
        certificate=address.certificate,
        key=address.key,
        ready=ready,
        page="desk",
    )
