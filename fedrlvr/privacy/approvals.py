"""Replies that wait for a person, on the site's own disk: a card for each, and beside it what the person decided.

    state/egress/ID.json       the card, written by the worker that waits
    state/egress/ID.decision   a person's decision, written by the desk or by `fedrlvr site approve`

The decision names the digest that the person was shown, and the first one counts. The worker removes both once it has
acted. What a worker that was killed leaves is dropped by the next one.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fedrlvr.errors import CheckpointError, EgressError
from fedrlvr.files import atomic_text, new_file, private_directory, read_json
from fedrlvr.labels.ledger import expert_name
from fedrlvr.privacy.card import Card

POLL_S = 0.2


@dataclass(frozen=True)
class PersonDecision:
    """A person's decision about a reply. by: the name given. digest: of the bytes that were shown."""

    allow: bool
    by: str
    digest: str
    at: float


class Approvals:
    """The replies of one site that wait for a person.

    state: its state directory. clock: unix seconds.
    """

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self.directory, self._clock = state / "egress", clock

    def waiting(self) -> list[Card]:
        """Cards of the replies that wait and are not decided, the oldest first."""
        cards = [card for card in self.cards() if not self._decision_path(card.id).exists()]
        return sorted((card for card in cards if card.expires_at > self._clock()), key=lambda card: card.asked_at)

    def cards(self) -> list[Card]:
        """All cards on disk that can be read, also of replies that nobody waits with any more."""
        return [card for path in sorted(self.directory.glob("*.json")) if (card := _read(path)) is not None]

    def decide(self, id_: str, *, allow: bool, by: str, digest: str | None = None) -> Card:
        """Store a person's decision about a reply that waits.

        by: name of the person. digest: of the bytes that were shown; None: the id names them.

        Raises:
            EgressError: no such reply waits, another was shown, or it is decided already.
            LedgerError: the name cannot be used.
            CheckpointError: the decision cannot be written.
        """
        by = expert_name(by)
        card = next((card for card in self.waiting() if card.id == id_), None)
        if card is None:
            raise EgressError(
                f"No reply {id_[:20]!r} waits for approval: it has left, was decided, or its time is over."
            )
        if digest not in (None, card.digest):
            raise EgressError(f"The reply {card.id} is not the one that was shown. Look at it again.")
        decision = PersonDecision(allow, by, card.digest, self._clock())
        try:
            new_file(self._decision_path(card.id), json.dumps(asdict(decision)).encode())
        except FileExistsError:
            raise EgressError(f"The reply {card.id} is decided already.") from None
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be written ({error.strerror}).") from error
        return card

    def wait(self, card: Card, sleep: Callable[[float], None] = time.sleep) -> PersonDecision | None:
        """Show a card, and wait for a person's decision about these very bytes; None if its time is over first.

        Raises:
            CheckpointError: the card cannot be written.
        """
        try:
            private_directory(self.directory)
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be made ({error.strerror}).") from error
        path = self.directory / f"{card.id}.json"
        self._decision_path(card.id).unlink(missing_ok=True)
        atomic_text(path, card.model_dump_json())
        path.chmod(0o600)
        try:
            while (decision := self._decision(card)) is None and self._clock() < card.expires_at:
                sleep(POLL_S)
            return decision
        finally:
            self.remove(card)

    def remove(self, card: Card) -> None:
        """Take a card away, with the decision about it."""
        for path in (self.directory / f"{card.id}.json", self._decision_path(card.id)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _decision(self, card: Card) -> PersonDecision | None:
        try:
            decision = PersonDecision(**read_json(self._decision_path(card.id)))
        except (OSError, ValueError, TypeError):
            return None
        return decision if decision.digest == card.digest else None

    def _decision_path(self, id_: str) -> Path:
        assert re.fullmatch("[0-9a-f]{16}", id_)
        return self.directory / f"{id_}.decision"


def _read(path: Path) -> Card | None:
    try:
        card = Card.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return card if card.id == path.stem else None
