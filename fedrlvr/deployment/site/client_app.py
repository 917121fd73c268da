"""The Flower app of an organisation: hands each message to the worker of its site, and the answer back.

Flower starts a process for each message, so this imports neither torch nor a model. Which organisation it is of says
the SuperNode's own configuration, never the message.
"""

from __future__ import annotations

import time
from typing import get_args

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrlvr.deployment.site.config import MessageType, Organisation, load_site
from fedrlvr.deployment.site.egress import HELLO, Egress
from fedrlvr.deployment.site.socket import ask, state_directory
from fedrlvr.deployment.site.worker import SiteLog
from fedrlvr.errors import CheckpointError, ConfigError, OverdueError, printable
from fedrlvr.output import echo
from fedrlvr.version import __version__
from fedrlvr.wire.codes import FAILED, REFUSED, WITHHELD
from fedrlvr.wire.serialization import pack, unpack

ANSWERED = (*get_args(MessageType), HELLO)


class SiteApp(ClientApp):
    """Flower's ClientApp, which refuses messages without a handler in the same way as others."""

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply to a message, as it leaves the site: everything that Flower is given passes `Egress.leave`."""
        kind = message.metadata.message_type
        if kind in ANSWERED:
            reply = super().__call__(message, context)
        else:
            _say(f"{kind} refused: no such message is answered")
            reply = _error(message, REFUSED, f"messages of type {kind} are not answered")
        try:
            org = _organisation(context)
            state_directory(org)
        except (ConfigError, CheckpointError) as error:  # no site, no log: no more leaves than this
            _say(f"{kind} failed: {error}")
            return _error(
                message, FAILED, f"failed at the organisation ({type(error).__name__}); the log there says why"
            )
        return Egress(org, SiteLog(org.log)).leave(message, reply)


app = SiteApp()


@app.train()
@app.evaluate()
@app.query("respond")
def answer(message: Message, context: Context) -> Message:
    """Pass a message to the worker, and return its answer."""
    kind, name, began = message.metadata.message_type, "the organisation", time.perf_counter()
    try:
        org = _organisation(context)
        name = org.name
        header = {
            "type": "message",
            "message_type": kind,
            "run_id": message.metadata.run_id,
            "node_id": message.metadata.dst_node_id,
            "group_id": message.metadata.group_id,
            "message_id": message.metadata.message_id,
        }
        answer_header, data = ask(org, header, pack(message.content))
        content = unpack(data) if answer_header.get("ok") is True else None
    except OverdueError as error:
        reason = f"round {message.metadata.group_id}: {kind} failed: {error}"
        SiteLog(org.log)(reason)
        _say(f"{name}: {reason}")
        return _error(message, FAILED, f"failed at {name}: it took longer than its site allows (message_minutes)")
    except Exception as error:  # its text may name what is nobody else's business
        _say(f"{name}: {kind} of round {message.metadata.group_id} failed: {error}")
        return _error(message, FAILED, f"failed at {name} ({type(error).__name__}); the log there says why")
    if content is None:
        why, reason = str(answer_header.get("kind")), str(answer_header.get("reason", ""))
        _say(f"{name}: {kind} of round {message.metadata.group_id}: {'' if why == 'failed' else f'{why}: '}{reason}")
        return _error(message, {"refused": REFUSED, "withheld": WITHHELD}.get(why, FAILED), reason)
    seconds = time.perf_counter() - began
    _say(f"{name}: {kind} of round {message.metadata.group_id} answered after {seconds:.1f} s")
    return Message(content, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell the organisation's name to a server whose SuperLink has no registered names."""
    try:
        name = _organisation(context).name
    except ConfigError as error:
        _say(f"query.hello failed: {error}")
        return _error(message, FAILED, "failed at the organisation (ConfigError); the log there says why")
    record = ConfigRecord({"name": name, "version": __version__})
    return Message(RecordDict({"hello": record}), reply_to=message)


def _organisation(context: Context) -> Organisation:
    site = context.node_config.get("site")
    if not isinstance(site, str):
        raise ConfigError("the SuperNode was started without --node-config 'site=\"...\"'. Use `fedrlvr site run`.")
    return load_site(site)


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, printable(reason)), reply_to=message)


def _say(line: str) -> None:
    echo(line, err=True)
