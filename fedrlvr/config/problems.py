"""The sections about the problems: where they come from, and how they are divided among the clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedrlvr.config.sections import Section, UserPath


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
    reward: str | None = None
    """Import path `module:function` of your own `reward(completion, answer, **info) -> float`. Unset: the package's
    grader for the problem's kind."""
    arithmetic: bool = False
    """Whether unevaluated arithmetic (`9+9`) counts as correct where the gold answer is its value (18). Off by default,
    because a policy could otherwise earn the reward by copying an expression from the prompt."""

    def check(self, config: Any) -> None:
        """There are public problems where they are to be trained on."""
        if self.train_on_public and not self.public_size:
            raise ValueError("data.train_on_public has no effect with data.public_size = 0")


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
