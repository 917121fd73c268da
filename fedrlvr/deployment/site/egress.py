"""The one place by which a site's replies leave, and the decision before it.

    worker:      computed reply -> card -> `Egress.decide`: a rule, a person or egress.approve decides about its bytes
    client app:  `Egress.leave`: these very bytes must have been allowed; a line is written; then Flower has them

Texts of refusals and failures pass `leave` too. They are written to the log and need no approval. Where the log cannot
be written, nothing leaves but a code without a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flwr.app import Error, Message

from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import CheckpointError
from fedrlvr.privacy.card import Card, digest_of
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.wire.codes import FAILED, WITHHELD
from fedrlvr.wire.serialization import pack

if TYPE_CHECKING:
    from fedrlvr.privacy.rule import SiteRule

NOT_APPROVED = "not approved"
"""The reason that a server is given for a reply that stays here, whoever decided it, or if nobody did in time."""
HELLO = "query.hello"
"""Type of the message that is answered with the organisation's name alone."""


class Egress:
    """Decisions about the replies of one site, and their way out.

    tell: takes a line for the site's log. clock: unix seconds. sleep: waits so many seconds.
    """

    def __init__(
        self,
        org: Organisation,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.org, self.tell, self._clock, self._sleep = org, tell, clock, sleep
        self.log = DecisionLog(org.state, clock)
        self._rule: SiteRule | None = None

    def decide(self, card: Card, message_id: str, *, keep_back: bool = False) -> bool:
        """Decide whether a computed reply may leave, and write the decision to the log. It may wait for a person.

        keep_back: private text was found in its responses, so that it stays in any case.

        Raises:
            CheckpointError: the decision log, or the card of a reply that waits, cannot be written.
        """
        now = self._clock()
        card = card.model_copy(update={"asked_at": now, "expires_at": now + self.org.config.egress.wait})
        decision, by = ("deny", "egress.check_responses") if keep_back else self._decision(card)
        fields = {"run": card.run, "round": card.round, **({"dropped": card.dropped} if card.dropped else {})}
        if card.epsilon is not None:
            fields["epsilon"] = card.epsilon
        self.log.append(
            decision,
            kind=card.kind,
            digest=card.digest,
            bytes=card.size,
            by=by,
            message=message_mark(message_id),
            **fields,
        )
        if not by.startswith("egress.approve"):
            self.tell(f"run {card.run}, round {card.round}: {card.kind} {card.id}: {decision} by {by}")
        return decision == "allow"

    def _decision(self, card: Card) -> tuple[str, str]:
        """The decision about a card, and who or what has made it."""
        settings = self.org.config.egress
        if settings.rule is not None:
            allow, reason = self._ruled(settings.rule, card)
            if reason:
                self.tell(f"run {card.run}, round {card.round}: the rule {settings.rule} says: {reason}")
            if allow is not None:
                return "allow" if allow else "deny", f"rule {settings.rule}"
        if not card.needs_person(settings.approve):
            return "allow", f"egress.approve = {settings.approve}"
        from fedrlvr.privacy.approvals import Approvals

        self.tell(
            f"run {card.run}, round {card.round}: {card.kind} {card.id} waits {settings.wait:.0f} s for a person "
            f"(fedrlvr site approve {self.org.directory})"
        )
        decision = Approvals(self.org.state, self._clock).wait(card, self._sleep)
        if decision is None:
            return "expired", f"egress.wait = {settings.wait:g}"
        return "allow" if decision.allow else "deny", f"person {decision.by}"

    def _ruled(self, path: str, card: Card) -> tuple[bool | None, str]:
        if self._rule is None:
            from fedrlvr.privacy.rule import SiteRule

            self._rule = SiteRule(path, self.org.directory, self.org.config.egress.rule_seconds)
        return self._rule.decide(card)

    def repeat(self, data: bytes, message_id: str) -> None:
        """Let bytes that were allowed before leave again as the reply to the same request in another message.

        Raises:
            CheckpointError: the decision log cannot be written.
        """
        mark, allowed = message_mark(message_id), self.log.last("allow", digest=digest_of(data))
        if allowed is None or allowed["message"] == mark:
            return
        names = ("kind", "digest", "bytes", "run", "round")
        fields = {name: allowed[name] for name in names if name in allowed}
        self.log.append("allow", by="the same request again", message=mark, **fields)

    def close(self) -> None:
        """End the process of the site's rule, if one was started."""
        if self._rule is not None:
            self._rule.close()
            self._rule = None

    def drop_waiting(self) -> None:
        """Take away the cards of a worker that ended as it waited; their replies are computed and shown again.

        Raises:
            CheckpointError: the decision log cannot be written.
        """
        from fedrlvr.privacy.approvals import Approvals

        approvals = Approvals(self.org.state, self._clock)
        for card in approvals.cards():
            self.log.append("dropped", kind=card.kind, digest=card.digest, bytes=card.size, by="end of the worker")
            approvals.remove(card)

    def leave(self, message: Message, reply: Message) -> Message:
        """The reply to a message as it leaves. One that nobody has allowed, or that no line can be written about, is
        replaced by an error without a text."""
        fields: dict[str, Any] = {"message": message_mark(message.metadata.message_id)}
        try:
            if reply.has_error():
                text = (reply.error.reason or "").encode()
                self.log.append("left", kind="text", digest=digest_of(text), bytes=len(text), **fields)
                return reply
            data = pack(reply.content)
            kind, digest = "name", digest_of(data)
            if message.metadata.message_type != HELLO:
                allowed = self.log.last("allow", digest=digest, **fields)
                if allowed is None:
                    self.log.append(
                        "deny", digest=digest, bytes=len(data), by="no decision about these bytes", **fields
                    )
                    self.tell(f"a reply of {len(data):,} bytes stays here: no line of {self.log.path.name} allows it")
                    return Message(Error(WITHHELD, NOT_APPROVED), reply_to=message)
                kind = allowed["kind"]
                fields |= {name: allowed[name] for name in ("run", "round") if name in allowed}
            self.log.append("left", kind=kind, digest=digest, bytes=len(data), **fields)
            return reply
        except CheckpointError as error:
            self.tell(f"nothing leaves: {error}")
            return Message(Error(FAILED), reply_to=message)


def message_mark(message_id: str) -> str:
    """Digest by which the log names a message, since its id is the server's text."""
    return digest_of(message_id.encode("utf-8", "backslashreplace"))[:16]
