"""The sections about the problems: where they come from, and how they are divided among the clients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedrlvr.config.sections import Section, UserPath
from fedrlvr.tasks.problem import GRADER

MOST_REWARDS = 8
"""Largest number of rewards of a response."""
_REWARD_MEAN = re.compile(rf"reward_([1-{MOST_REWARDS}]|[a-z][a-z0-9_]{{0,31}})")
"""Names of the means of several rewards: by place in the list, or by the public name that a reward was given."""


def is_reward_mean(name: str) -> bool:
    """Whether a metric is the mean of one of several rewards."""
    return _REWARD_MEAN.fullmatch(name) is not None


class RewardConfig(Section):
    """One of the rewards whose weighted sum a response is trained on."""

    use: str = GRADER
    """Import path `module:function` of your own reward (docs/data.md), or `grader`, the package's grader for the
    problem's kind."""
    name: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]{0,31}$")
    """Public name of the reward: reports, metrics and messages to the server call its mean `reward_NAME`. Organisations
    whose rewards measure the same give them one name. Unset: its place in the list, as in `reward_1`."""
    weight: float = 1.0
    """Weight of the reward in the sum. A negative weight makes it a penalty; with 0 its mean is only reported."""
    time_limit: float = Field(10.0, gt=0, le=86400)
    """Seconds that one call of the function may take: one response, or all responses to a problem where the function
    takes them together. A call that takes longer ends the round of this client with an error."""
    memory: float = Field(4.0, ge=0, le=1048576)
    """Memory in GiB of address space that the function may take besides its imports. 0: no limit, which a function that
    computes on a GPU needs."""

    @model_validator(mode="after")
    def _limits_of_a_function(self) -> RewardConfig:
        for name in ("time_limit", "memory"):
            if self.use == GRADER and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with use = {GRADER!r}")
        return self


def _entries(value: Any) -> Any:
    """Entries that may be written as the text of their `use`, and one such text alone."""
    entries = [value] if isinstance(value, str) else value
    return [{"use": e} if isinstance(e, str) else e for e in entries] if isinstance(entries, list) else entries


def _different_rewards(value: list[RewardConfig]) -> list[RewardConfig]:
    if len(value) > MOST_REWARDS:
        raise ValueError(f"at most {MOST_REWARDS} rewards")
    uses = [entry.use for entry in value]
    if twice := [use for use in uses if uses.count(use) > 1]:
        raise ValueError(f"{twice[0]!r} is there twice; give it once, with the sum of the weights")
    names = [entry.name for entry in value if entry.name is not None]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the name {twice[0]!r} is there twice; give each reward a name of its own")
    if names and len(value) == 1 and value[0].weight == 1.0:
        raise ValueError(f"the name {names[0]!r} has no effect with one reward of weight 1, whose mean is `reward`")
    if value and not any(entry.weight for entry in value):
        raise ValueError("every weight is 0, so nothing would be trained on")
    return value


RewardList = Annotated[list[RewardConfig], BeforeValidator(_entries), AfterValidator(_different_rewards)]


class DataConfig(Section):
    """The problems, before they are divided among clients."""

    name: str = "embedded"
    """Data set: embedded, sums, gsm8k, math, svamp, medqa, medmcqa, pubmedqa, jsonl (your own files), or
    `reasoning_gym:<family>`."""
    path: UserPath | None = None
    """File or directory with the problems. Unset: the data set is downloaded from the Hugging Face hub (extra `hub`),
    if it is there."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the data set's loader, such as {hub = "..."}, or {families = ["sum"], levels = ["easy"]} for the
    embedded problems."""
    train_size: int | None = Field(None, ge=1)
    """Number of training problems to keep, drawn by seed. Unset: all are kept."""
    public_size: int = Field(0, ge=0)
    """Number of problems set aside as the public set, which no client holds and only coordination uses. With
    coordination.type = 'none' nobody uses them, so that runs with and without exchanges train on the same private
    problems."""
    train_on_public: bool = False
    """Whether every client also trains on the public problems, as if it held them. It is the simplest use of public
    problems, with which exchanges of responses are compared, and exists in simulations only. Needs data.public_size.
    """
    validation_size: int = Field(0, ge=0)
    """Number of training problems set aside as validation problems, drawn by seed, spread evenly over sources and
    divided among the clients like the held-out ones. Nobody trains on them; `evaluate.split = "validation"` measures
    them, so that settings are chosen without the held-out problems. The default sets none aside."""
    test_size: int | None = Field(None, ge=1)
    """Number of held-out problems to keep, drawn by seed and spread evenly over sources. Unset: all of them."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt in tokens; problems with a longer prompt are dropped and counted. Unset: no problem is dropped,
    and a prompt that is too long for the model is an error."""
    unreachable_golds: float = Field(0.05, ge=0, le=1)
    """Largest accepted share of gold answers that no short marked answer can match, such as a sentence or Markdown. A
    run above it is refused before training; 1 accepts all."""
    rewards: RewardList = Field(default_factory=list)
    """Rewards of a training response, whose weighted sum is trained on: a list of tables, such as [{use = "grader"},
    {use = "mine:short", weight = 0.2}], or one import path as text. `grader`, or the first where it is missing, decides
    whether a response is correct. Unset: the package's grader for the problem's kind, alone."""
    arithmetic: bool = False
    """Whether unevaluated arithmetic (`9+9`) counts as correct where the gold answer is its value (18). Off by default,
    because a policy could otherwise earn the reward by copying an expression from the prompt."""

    def check(self, config: Any) -> None:
        """There are public problems where they are to be trained on."""
        if self.train_on_public and not self.public_size:
            raise ValueError("data.train_on_public has no effect with data.public_size = 0")
        check_weighted("data.rewards", self.rewards, config.supervision)

    @property
    def graded_by_kind(self) -> bool:
        """Whether the package's grader decides whether a response is correct."""
        return not self.rewards or any(entry.use == GRADER for entry in self.rewards)


def check_weighted(place: str, rewards: Sequence[RewardConfig], supervision: Any) -> None:
    """Refuse rewards that are a weighted sum with a supervision that compares rewards with right and wrong.

    Raises:
        ValueError: they are; the text begins with `place`.
    """
    if [entry.weight for entry in rewards] not in ([], [1.0]) and supervision.type != "labels":
        raise ValueError(
            f"{place}: several rewards, or a weight other than 1, need supervision.type = 'labels'; with "
            f"{supervision.type!r} rewards tell right from wrong, so give one reward"
        )


class IidPartition(Section):
    """Problems are divided at random, so that every client gets the same mix of sources."""

    type: Literal["iid"] = "iid"


class SourcePartition(Section):
    """Whole sources (subjects, families) go to clients, so that clients hold different kinds of problems."""

    type: Literal["source"] = "source"


class DirichletPartition(Section):
    """Each source is split among clients by shares drawn from Dirichlet(alpha)."""

    type: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.5, gt=0)
    """Concentration of the Dirichlet distribution. A small value gives each source to few clients; a large value comes
    close to `iid`."""


Partition = Annotated[IidPartition | SourcePartition | DirichletPartition, Field(discriminator="type")]
