"""The card of a reply: what a person or a rule reads before the reply may leave.

It stays on the site's own machine. A reply's numbers, and its responses to public problems, stand on it in full; of
private problems only their number does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["adapter", "responses", "scores", "numbers"]
"""Kinds of replies: with an adapter or CARE's probes, with responses to public problems, with scores of an evaluation,
or with the numbers of a personal adapter alone."""
Approve = Literal["none", "adapter", "responses", "all"]
"""Kinds of replies that a person has to approve."""


class PublicResponse(BaseModel):
    """A response to a public problem, as text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str
    text: str


class Card(BaseModel):
    """Description of a reply that is about to leave.

    kind, size, digest: kind of reply, bytes, and their SHA-256. parts: what it holds, in words.
    server, run, round, message_type: who asks, for which run, in which message. task, model: what was trained on.
    problems: different private problems behind the reply; learned: those of them with a gradient; groups: groups of
    responses to private problems; tokens: tokens of responses with a gradient.
    numbers: all that the reply reports, as they leave.
    responses: to public problems. dropped: responses that were taken out because they hold private text.
    epsilon: privacy loss of all adapters of the site so far, this one included; None: no noise is added. epsilon_left:
    of the site's budget; None without one.
    asked_at, expires_at: unix seconds; afterwards nobody is waited for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    size: int
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    parts: str
    server: str
    run: str
    round: int
    message_type: str
    task: str
    model: str
    problems: int
    learned: int | None = None
    groups: int | None = None
    tokens: int | None = None
    numbers: dict[str, float | int | list[float] | list[int] | list[str]] = {}
    responses: list[PublicResponse] = []
    dropped: int = 0
    epsilon: float | None = None
    epsilon_left: float | None = None
    asked_at: float = 0.0
    expires_at: float = 0.0

    @property
    def id(self) -> str:
        """Name of the reply in commands: the first 16 digits of its digest."""
        return self.digest[:16]

    def needs_person(self, approve: Approve) -> bool:
        """Whether a person has to approve the reply, by the site's setting egress.approve."""
        return approve == "all" or approve == self.kind

    def rows(self) -> Iterator[tuple[str, str]]:
        """The card's lines, each with its heading; without numbers and responses."""
        behind = [f"{self.problems:,} private problems"]
        behind += [] if self.learned is None else [f"{self.learned:,} with a gradient"]
        behind += [] if self.groups is None else [f"{self.groups:,} groups of responses"]
        behind += [] if self.tokens is None else [f"{self.tokens:,} tokens with a gradient"]
        yield "what leaves", f"{self.kind}: {self.parts}"
        yield "size", f"{self.size:,} bytes"
        yield "SHA-256", self.digest
        yield "behind it", ", ".join(behind)
        yield "who asks", f"{self.server}, run {self.run}, round {self.round}, {self.message_type}"
        yield "task, model", f"{self.task}, {self.model}"
        yield (
            "epsilon",
            "none: no noise is added" if self.epsilon is None else spent_text(self.epsilon, self.epsilon_left),
        )
        if self.dropped:
            yield "dropped", f"{self.dropped:,} responses that hold private text"


def digest_of(data: bytes) -> str:
    """The SHA-256 of bytes, as cards and the decision log state it."""
    return hashlib.sha256(data).hexdigest()


def spent_text(epsilon: float, left: float | None) -> str:
    """The epsilon that is spent, and what is left of the budget; None: there is no budget."""
    return f"{epsilon:.3g} spent, " + ("without a budget" if left is None else f"{left:.3g} left")


def numbers_text(numbers: Mapping[str, object]) -> str:
    """The numbers of a card on one line."""
    return ", ".join(f"{name} {value}" for name, value in sorted(numbers.items()))
