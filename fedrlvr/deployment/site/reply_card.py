"""The card of a computed reply, and the check of its responses to public problems against private text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedrlvr.client.state import Memory
from fedrlvr.coordination import Sent
from fedrlvr.deployment.site.config import EgressConfig, Organisation
from fedrlvr.deployment.site.counts import PrivacyLoss
from fedrlvr.deployment.terms import Terms
from fedrlvr.policy.base import Base
from fedrlvr.privacy.card import Card, Kind, PublicResponse, digest_of
from fedrlvr.privacy.private_text import PrivateText
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    PROBES,
    UNCHANGED,
    EvaluateRequest,
    RespondRequest,
    StretchRequest,
    record_in,
)
from fedrlvr.wire.public_messages import EXCHANGE, RESPONSES, read_responses, responses_record


@dataclass(frozen=True)
class ComputedReply:
    """A reply that was computed, with what is known of it here.

    memory: of the round that it is about; None for an evaluation. client: its data. public: the message's public
    problems. base: the model, which turns token ids into text.
    """

    content: RecordDict
    terms: Terms
    request: StretchRequest | EvaluateRequest
    message_type: str
    memory: Memory | None
    client: ClientData
    public: Sequence[Problem]
    base: Base

    @property
    def kind(self) -> Kind:
        """Kind of the reply, by what it holds."""
        if isinstance(self.request, EvaluateRequest):
            return "scores"
        if RESPONSES in self.content:
            return "responses"
        return "adapter" if {ARRAYS, UNCHANGED, PROBES} & set(self.content) else "numbers"

    def responses(self) -> list[Sent]:
        """The responses to public problems that the reply holds."""
        if not isinstance(self.request, RespondRequest) or RESPONSES not in self.content:
            return []
        record = self.content[RESPONSES]
        assert isinstance(record, ArrayRecord)
        return read_responses(
            record,
            most=self.request.sampling.group_size * len(self.public),
            max_tokens=self.request.sampling.max_new_tokens,
            logps="logps" in record,
        )

    def checked(self, settings: EgressConfig) -> tuple[int, bool]:
        """Take responses with private text out of the reply; their number, and whether the reply has to stay here.

        A policy that has taken no local steps in the round is the server's own, whose responses hold nothing private.
        """
        sent = self.responses()
        if not settings.check_responses or not sent or self.memory is None or not self.memory.influence:
            return 0, False
        private = PrivateText(
            private_texts(self.client),
            words=settings.words,
            digits=settings.digits,
            canaries=settings.canaries,
        )
        public = [text for problem in self.public for text in (problem.prompt, problem.answer)]
        matches = private.matches((self.base.plain(list(response.token_ids)) for response in sent), public)
        kept = [response for response, match in zip(sent, matches, strict=True) if match is None]
        dropped = len(sent) - len(kept)
        if dropped > settings.dropped_responses:
            return dropped, True
        if dropped:
            self.content[RESPONSES] = responses_record(kept, self.base.vocabulary)
        return dropped, False

    @property
    def is_noised(self) -> bool:
        """Whether noise was added to the adapter."""
        return isinstance(self.request, StretchRequest) and self.request.privacy is not None

    def card(self, org: Organisation, data: bytes, dropped: int, loss: PrivacyLoss | None = None) -> Card:
        """The reply's card. data: its bytes. dropped: responses that were taken out. loss: of all adapters with noise,
        where this is one."""
        memory, request = self.memory, self.request
        problems = len(self.client.split(request.evaluate.split)) if isinstance(request, EvaluateRequest) else 0
        behind: dict[str, Any] = {"problems": problems}
        if memory is not None:
            behind = {
                "problems": len(memory.influence),
                "learned": sum(part > 0 for part in memory.influence.values()),
                "groups": memory.metrics.means.weights.get("zero_variance_groups", 0),
                "tokens": memory.tokens,
            }
        numbers: dict[str, Any] = {}
        for prefix, name in (("", METRICS), ("exchange ", EXCHANGE)):
            record = record_in(self.content, name, MetricRecord) or MetricRecord()
            numbers |= {f"{prefix}{key}": value for key, value in record.items()}
        numbers |= dict(record_in(self.content, CONFIG, ConfigRecord) or ConfigRecord())
        return Card(
            kind=self.kind,
            size=len(data),
            digest=digest_of(data),
            parts=parts_of(self.content),
            server=org.config.superlink,
            run=self.terms.run,
            round=request.round,
            message_type=self.message_type,
            task=self.terms.task,
            model=self.terms.model,
            **behind,
            numbers=numbers,
            responses=[
                PublicResponse(
                    problem=self.public[response.problem].prompt,
                    text=self.base.plain(list(response.token_ids), special=True),
                )
                for response in self.responses()
            ],
            dropped=dropped,
            epsilon=None if loss is None else loss.epsilon,
            epsilon_left=None if loss is None else loss.left,
        )


def private_texts(client: ClientData) -> Iterator[str]:
    """Texts of all problems that a site holds for a run: prompts, answers, and what else stands in their rows."""
    for problem in (*client.answers.everything(), *client.validation, *client.test):
        yield from (problem.prompt, problem.answer, problem.response)
        yield from (value for value in (*problem.columns.values(), *problem.info.values()) if isinstance(value, str))


def parts_of(content: RecordDict) -> str:
    """Contents of a reply, by kinds and sizes."""
    parts = []
    for name, what in ((ARRAYS, "adapter"), (PROBES, "probes")):
        if (arrays := record_in(content, name, ArrayRecord)) is not None:
            parts.append(f"{what} {arrays.count_bytes():,} bytes")
    if UNCHANGED in content:
        parts.append("a note that the adapter is unchanged")
    if (numbers := record_in(content, METRICS, MetricRecord)) is not None:
        parts.append(f"{len(numbers)} numbers")
    if (responses := record_in(content, RESPONSES, ArrayRecord)) is not None:
        parts.append(f"{responses['length'].shape[0]} responses to public problems")
    return ", ".join(parts)
