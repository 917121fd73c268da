"""The typed problem, and the reward of several parts: what `tasks` hands to every other package."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["math", "choice", "yes_no_maybe", "exact", "whole"]
KINDS: tuple[str, ...] = get_args(Kind)
GRADER = "grader"
"""Stands for the grader of each problem's kind where a reward is named."""


class Turn(NamedTuple):
    """One message of a conversation with the model."""

    role: Literal["system", "user", "assistant"]
    content: str


Column = str | int | float | bool | None
"""A value of a problem's public column."""


def conversation_text(messages: Sequence[Turn]) -> str:
    """A conversation as plain text: its turns, with an empty line between them."""
    return "\n\n".join(turn.content for turn in messages)


@dataclass(frozen=True, slots=True)
class Question:
    """A problem as training sees it: without its answer, and without `info`, in which an answer may lie too."""

    prompt: str
    id: str
    source: str
    kind: Kind
    messages: tuple[Turn, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict, hash=False)

    @property
    def question(self) -> Question:
        """The question itself, which holds nothing that needs a label."""
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, with a checkable answer unless none was given yet.

    prompt: what the model reads, before any chat template or instruction.
    answer: the gold answer in the form its `kind` expects (a LaTeX or plain number, a letter, yes/no/maybe, text). ""
        is not known: only training problems of a run whose labels come from people may be so, and no grader takes it.
    id: unique within its data set.
    source: where it comes from within its data set (MATH type, MedMCQA subject, problem family); partitions and
        tables go by it.
    kind: which grader decides.
    info: passed on to a user's own reward as keyword arguments.
    response: a response to imitate, as the model is to write it (`fedrlvr sft`); "" is none.
    messages: the conversation that `prompt` is the text of, the user's question last; empty for a question alone.
    columns: what a prompt's template may use, as whoever holds the data has declared it; never an answer.
    """

    prompt: str
    answer: str
    id: str
    source: str
    kind: Kind
    info: Mapping[str, Any] = field(default_factory=dict)
    response: str = ""
    messages: tuple[Turn, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)

    @property
    def question(self) -> Question:
        """The problem without its answer, as training may see it."""
        return Question(self.prompt, self.id, self.source, self.kind, self.messages, self.columns)

    @property
    def content_key(self) -> str:
        """Hex digest of the prompt, blind to case, width and white space: two problems with one key are one problem."""
        text = " ".join(unicodedata.normalize("NFKC", self.prompt).casefold().split())
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class WeightedReward(float):
    """A reward that is the weighted sum of several.

    parts: the rewards that it is made of, in the configuration's order. names: of their means in metrics. verified: the
    one that decides whether the response is correct.
    """

    parts: tuple[float, ...]
    names: tuple[str, ...]
    verified: float

    @classmethod
    def of(
        cls, parts: Sequence[float], weights: Sequence[float], verifier: int, names: Sequence[str] = ()
    ) -> WeightedReward:
        """The sum of rewards by their weights. verifier: place of the reward that decides. names: () is by place."""
        reward = cls(math.fsum(weight * part for weight, part in zip(weights, parts, strict=True)))
        reward.parts, reward.verified = tuple(parts), parts[verifier]
        reward.names = tuple(names) or tuple(f"reward_{place + 1}" for place in range(len(parts)))
        return reward
