"""An in-process Flower grid that hands all messages of a push to the client code at once.

Flower's own simulation runs one client after another; ours gives the whole cohort its messages together, so that they
can be computed as one batch. Contents are copied record by record in both directions, as if they had crossed a wire.
This is the one module that touches Flower's private paths: without a SuperLink nobody else sets the task identity, the
run and the message ids.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable, Sequence

from flwr.app import (
    DEFAULT_TTL,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Handler = Callable[[Sequence[Message], Sequence[Context]], Sequence[Message]]
"""Client code for a cohort: messages and the receivers' contexts in, one reply each out, in order."""

RUN_ID = 1


class LocalGrid(Grid):
    """A grid whose nodes live in this process.

    contexts: node id -> Flower context; its `state` is the client's own memory and never passes through the grid.
    """

    def __init__(self, handler: Handler, contexts: dict[int, Context]) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 0, 1
        self._run = Run.create_empty(run_id=RUN_ID)
        self._handler = handler
        self.contexts = contexts
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that all messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The current run of this grid, as `set_run` was given it."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message to one node, without sending it."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes, in the clients' order."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages and compute their replies; returns the ids by which to pull these."""
        delivered = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            delivered.append(_copy(message))
        contexts = [self.contexts[message.metadata.dst_node_id] for message in delivered]
        for message, reply in zip(delivered, self._handler(delivered, contexts), strict=True):
            self._replies[message.metadata.message_id] = _copy(reply)
        return [message.metadata.message_id for message in delivered]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies by the ids of the messages they answer."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull; replies are there at once, so there is nothing to time out."""
        return self.pull_messages(self.push_messages(messages))


def delivered(
    content: RecordDict, *, run_id: int, node_id: int, message_type: str, group_id: str, message_id: str
) -> Message:
    """The message as a node receives it, for a process that got its content from another process.

    Raises:
        ValueError: Flower knows no such type of message.
    """
    now = datetime.datetime.now(datetime.UTC).timestamp()
    metadata = Metadata(run_id, message_id, 0, node_id, "", group_id, now, DEFAULT_TTL, message_type)
    return Message(content, metadata=metadata)  # type: ignore[call-overload]  # Flower's own, undeclared


def _copy(message: Message) -> Message:
    """The same message with a content of its own. Strategies put one content into all clients' messages."""
    if not message.has_content():
        return message
    content = RecordDict()
    for name, record in message.content.items():
        twin: ArrayRecord | MetricRecord | ConfigRecord
        if isinstance(record, ArrayRecord):
            twin = ArrayRecord(dict(record))
        else:
            twin = MetricRecord() if isinstance(record, MetricRecord) else ConfigRecord()
            # Past the type checks of each entry: the record at hand has made them, and they are what a copy costs.
            entries = record.__dict__["_data"].items()
            twin.__dict__["_data"].update({k: list(v) if isinstance(v, list) else v for k, v in entries})
        content[name] = twin
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload]  # Flower's own, undeclared
