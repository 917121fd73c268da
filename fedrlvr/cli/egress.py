"""`fedrlvr site approve`, `site log`, `site withdraw`: people's decisions about what leaves, and the decision log."""

from __future__ import annotations

import getpass
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fedrlvr.cli.options import Directory
from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.errors import ConfigError
from fedrlvr.output import echo, echo_lines
from fedrlvr.privacy.card import Card, numbers_text, spent_text

_WIDTH = 12
_COLUMNS = ("n", "at", "decision", "kind", "bytes", "digest", "by")


def approve(
    directory: Directory,
    yes: Annotated[str | None, typer.Option(metavar="ID", help="Let the reply of this card leave.")] = None,
    no: Annotated[str | None, typer.Option(metavar="ID", help="Keep the reply of this card here.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the person who decides, for the log; by default the login name.")
    ] = None,
) -> None:
    """Show the replies that wait for approval, or decide about one.

    `fedrlvr desk --site DIR` shows them in a browser.
    """
    org = load_site(directory)
    from fedrlvr.privacy.approvals import Approvals

    approvals = Approvals(org.state)
    if yes is not None and no is not None:
        raise ConfigError("--yes and --no are two decisions; give one of them.")
    if (id_ := yes or no) is not None:
        card = approvals.decide(id_, allow=yes is not None, by=name or getpass.getuser())
        echo(f"{card.id}: {'may leave' if yes else 'stays here'}; the worker writes it to the decision log")
        return
    waiting = approvals.waiting()
    for card in waiting:
        _show(card)
        left = max(0, round(card.expires_at - time.time()))
        echo(f"It stays here unless somebody decides within {left} s:")
        echo(f"  fedrlvr site approve {directory} --yes {card.id}")
        echo(f"  fedrlvr site approve {directory} --no {card.id}")
    if not waiting:
        echo(f"{org.name}: no reply waits for approval (egress.approve = {org.config.egress.approve})")


def log(
    directory: Directory,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain of digests; the exit code is 1 if it is broken.")
    ] = False,
    noted: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="A head that was noted elsewhere; --verify fails on a log without it."),
    ] = None,
    most: Annotated[int, typer.Option("--lines", min=1, help="Number of newest lines that are shown.")] = 20,
) -> None:
    """Show the decisions about what left this site and what stayed, or verify that nobody has changed them."""
    org = load_site(directory)
    from fedrlvr.privacy.decision_log import DecisionLog

    decisions = DecisionLog(org.state)
    if noted is not None and not verify:
        raise ConfigError("--noted requires --verify.")
    if not verify:
        lines = [[str(entry.get(column, "")) for column in _COLUMNS] for entry in decisions.entries()][-most:]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)] if lines else []
        for line in lines:
            echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        if not lines:
            echo(f"{decisions.path} is empty: nothing has left yet")
        return
    result = decisions.verify(noted or "")
    if result.cut:
        echo(f"note: the last line was not finished ({result.cut} bytes); the next decision names and repairs it")
    if result.fault:
        echo(f"changed: {result.fault}", err=True)
        echo(f"The lines up to line {result.head.lines} are in order.", err=True)
        raise typer.Exit(1)
    echo(f"in order: {result.head.lines} lines in {decisions.path}")
    echo(f"head: {result.head.digest}")
    echo("Note this head elsewhere: only --noted shows that somebody wrote both files anew.")


def withdraw(
    directory: Directory,
    run: Annotated[str, typer.Option(metavar="ID", help="The run's id, as `fedrlvr site status` shows it.")],
    statement: Annotated[
        Path | None,
        typer.Option(help="The server's withdrawal-NAME.json, which says what was taken out; the log gets its digest."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the person who decides, for the log; by default the login name.")
    ] = None,
) -> None:
    """Withdraw from a run: refuse its messages from now on, and write that to the decision log.

    Ask the server's operator for `fedrlvr withdraw`, which takes this site's part out of the global adapter.
    """
    org = load_site(directory)
    from fedrlvr.deployment.site.withdrawals import withdraw_from
    from fedrlvr.labels.ledger import expert_name
    from fedrlvr.server.withdrawal import read_statement

    text = None
    if statement is not None:
        text, said = read_statement(statement, org.config.name, run)
        for heading, sentences in (("done", said.done), ("remains", said.remains)):
            for sentence in sentences:
                echo(f"  the server says, {heading}: {sentence}")
    head = withdraw_from(org.state, run, expert_name(name or getpass.getuser()), text)
    echo(f"{org.name}: messages of the run {run} are refused from now on")
    echo(f"head of the decision log: {head}")


def egress_lines(org: Organisation) -> Iterator[str]:
    """Lines of `site status` on what left, what stayed and what waits."""
    from fedrlvr.deployment.site.counts import AnsweredCounts
    from fedrlvr.privacy.approvals import Approvals
    from fedrlvr.privacy.decision_log import DecisionLog

    counts: Counter[str] = Counter()
    for entry in DecisionLog(org.state).entries():
        counts[str(entry.get("decision"))] += entry.get("kind") != "text"
        counts["dropped responses"] += int(entry.get("dropped", 0))
    if counts:
        stayed = f"{counts['deny']} denied, {counts['expired']} not decided in time"
        private = f"{counts['dropped responses']} responses held back for private text"
        yield f"replies: {counts['left']} left, {stayed}; {private}"
    loss = AnsweredCounts(org.state).privacy_loss(org.config.limits)
    if loss.rounds or loss.left is not None:
        yield f"epsilon: {spent_text(loss.epsilon, loss.left)}, {loss.rounds} adapters with noise"
    for card in Approvals(org.state).waiting():
        yield f"waits for approval: {card.kind} {card.id}, {card.parts} (fedrlvr site approve {org.directory})"


def _show(card: Card) -> None:
    echo(f"{card.id}")
    for heading, text in card.rows():
        echo(f"  {heading:<{_WIDTH}} {text}")
    echo(f"  {'numbers':<{_WIDTH}} {numbers_text(card.numbers) or 'none'}")
    for number, response in enumerate(card.responses, start=1):
        echo(f"  response {number} of {len(card.responses)} to: {response.problem}")
        echo_lines("    " + response.text.replace("\n", "\n    "))
