"""The section [federation]: the clients of a run, and those that deviate from the others in an experiment.

Each docstring is the text of a setting in docs/settings.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fedrlvr.config.client_names import MOST_CLIENTS, check_client_names
from fedrlvr.config.problems import RewardList, check_weighted
from fedrlvr.config.prompt_template import prompt_template
from fedrlvr.config.sections import Name, OnlyWith, Section

TRAINS = OnlyWith("free_rider", (False,))
"""Marks a deviation in training, which a free rider does not do."""


class Deviation(Section):
    """Differences of one client from the others, as real federations have them."""

    wrong_labels: Annotated[float, TRAINS] = Field(0.0, ge=0, le=1)
    """Share of the client's training problems that get a wrong answer, which is that of another of its training
    problems. The problems are drawn by seed; held-out problems keep their answers. 0: every answer stays as it is."""
    free_rider: bool = False
    """Whether the client returns the adapter that it was sent, without training, as if it had trained on all of its
    problems. It reports a mean reward of 1 and gives no response in an exchange."""
    template: str | None = None
    """Jinja template of this client's problems in training and evaluation, such as "Q: {{ prompt }}", as
    `prompt.template` is for all clients. Unset: the problems stay as they are."""
    rewards: Annotated[RewardList, TRAINS] = Field(default_factory=list)
    """The client's own rewards for its training problems, as `data.rewards` is for all. Held-out and public problems
    keep the rewards of the run; [{use = "grader", weight = 0.1}] gives rewards of another scale, which matters with
    train.scale_by_std = false and train.kl_beta. Unset: data.rewards."""
    unsolvable: Annotated[float, TRAINS] = Field(0.0, ge=0, le=1)
    """Share of the client's training problems on which every response gets a reward of 0, as if no response could be
    correct; the problems are drawn by seed. With 1 the client trains on nothing, and reports a mean reward of 0. 0:
    every problem can be solved."""
    flipped_rewards: Annotated[float, TRAINS] = Field(0.0, ge=0, le=1)
    """Share of the rewards of the client's training responses that its grader gets wrong: a reward r becomes 1 - r. The
    responses are drawn at random, by seed, client, problem and text, so that a response that is given again to the same
    problem is graded as before. 0: no reward is flipped."""
    contradicts: Annotated[str | None, TRAINS] = None
    """Name of a client whose training problems this client holds in place of its own, with answers that contradict that
    client's: a whole number becomes the next one, yes and no change places, and so do the letters A and B (any other
    letter becomes A). Held-out problems keep their answers. Unset: the client holds its own problems."""

    @property
    def deviates_in_rewards(self) -> bool:
        """Whether rewards of training responses are other than the graders give them."""
        return self.unsolvable > 0 or self.flipped_rewards > 0

    @field_validator("template")
    @classmethod
    def _words_the_problem(cls, value: str | None) -> str | None:
        if value is not None and "instruction" in prompt_template(value).names:
            raise ValueError("the instruction comes after this template, so that it has no place in it")
        return value


class FederationConfig(Section):
    """The clients of a run, and the rules for clients that fail."""

    clients: int | list[str] = 4
    """Number of clients (client-1, client-2, ...) or a list of their names, all in one script (Latin, Cyrillic, ...).
    Names that differ only in case, accents or similar characters (0 and O, 1 and l) are refused."""
    excluded: list[str] = Field(default_factory=list)
    """Clients that hold problems and are evaluated, and never train, so that runs with and without them have the same
    partition and held-out problems. Unset: every client trains. `fedrlvr contribution` sets it."""
    withdrawn: Annotated[list[str], OnlyWith("arm", ("federated",))] = Field(default_factory=list)
    """Clients that have withdrawn from the run: they get no message any more, and are neither trained nor evaluated.
    Unset: no client has. `fedrlvr withdraw` sets it (docs/withdraw.md)."""
    fraction: Annotated[float, OnlyWith("arm", ("federated",))] = Field(1.0, gt=0, le=1)
    """Share of the clients that train in a round, drawn by seed among those that are not excluded; at least one client
    trains."""
    quorum: float = Field(1.0, gt=0, le=1)
    """Smallest share of the asked clients that must give a usable answer. The other clients are left out of the round,
    by name and with a reason. With 1, a client that fails ends the run, which --resume continues."""
    deadline: float = Field(3600.0, gt=0, le=604800)
    """Seconds that a client has to answer a message. A late client is left out of the round or ends the run, as
    `quorum` says. It has no effect in a simulation."""
    task: Name = "main"
    """Name of the task that organisations train on, as it stands in their own site.toml (docs/organisations.md). In a
    simulation the problems come from [data]."""
    deviations: dict[str, Deviation] = Field(default_factory=dict)
    """Clients that deviate from the others in a simulated federation, a table by client name, such as
    {clinic-c = {wrong_labels = 0.5}, clinic-d = {free_rider = true}}. Unset: no client does. It is refused where
    organisations run on their own machines."""
    arm: Literal["federated", "local", "central"] = "federated"
    """Arm of an experiment: `federated`, or one of two references. `local` trains each client alone, and nothing
    travels; `central` pools all problems at one client."""

    @field_validator("clients")
    @classmethod
    def _clients(cls, value: int | list[str]) -> int | list[str]:
        if isinstance(value, list):
            check_client_names(value)
        elif not 1 <= value <= MOST_CLIENTS:
            raise ValueError(f"between 1 and {MOST_CLIENTS} clients")
        return value

    def check(self, config: Any) -> None:
        """The named clients exist, and each deviation has an effect with the arm and the supervision."""
        for client in self.excluded:
            if client not in self.names or self.excluded.count(client) > 1:
                reason = "there is no such client" if client not in self.names else "the client is named twice"
                raise ValueError(f"federation.excluded = {client!r}: {reason}; the clients are {', '.join(self.names)}")
        if strange := [client for client in self.withdrawn if client not in self.names]:
            raise ValueError(f"federation.withdrawn = {strange[0]!r}: there is no such client")
        if not self.training:
            raise ValueError(
                "federation.excluded and federation.withdrawn name every client; at least one client must train"
            )
        for client, deviation in self.deviations.items():
            place = f"federation.deviations.{client}"
            if client not in self.names:
                raise ValueError(f"{place}: there is no such client; the clients are {', '.join(self.names)}")
            for name in ("free_rider", "rewards", "unsolvable", "flipped_rewards", "contradicts"):
                if self.arm == "central" and getattr(deviation, name):
                    raise ValueError(
                        f"{place}.{name} has no effect with federation.arm = 'central', which has one client"
                    )
            if deviation.template is not None and config.prompt.template is not None:
                raise ValueError(f"{place}.template has no effect beside prompt.template. Leave one of them out")
            supervision = config.supervision
            unlabelled = supervision.unlabelled or not supervision.verified
            of_labels = dict.fromkeys(("wrong_labels", "contradicts"), unlabelled)
            of_rewards = dict.fromkeys(("rewards", "unsolvable", "flipped_rewards"), not supervision.verified)
            for name, useless in {**of_labels, **of_rewards}.items():
                if useless and getattr(deviation, name):
                    raise ValueError(
                        f"{place}.{name} has no effect with supervision.type = {supervision.type!r}, whose rewards do "
                        "not come from the labels of the data set"
                    )
            check_weighted(f"{place}.rewards", deviation.rewards, supervision)
            self._check_contradiction(place, client, deviation)
            entries = deviation.rewards or config.data.rewards
            if deviation.deviates_in_rewards and [entry.weight for entry in entries] not in ([], [1.0]):
                raise ValueError(
                    f"{place}: unsolvable and flipped_rewards change one reward of weight 1, and there are several, or "
                    "another weight. Leave one of them out"
                )

    def _check_contradiction(self, place: str, client: str, deviation: Deviation) -> None:
        other = deviation.contradicts
        if other is None:
            return
        if other == client or other not in self.names or self.deviations.get(other, Deviation()).contradicts:
            raise ValueError(
                f"{place}.contradicts = {other!r}: name another client that holds problems of its own; the clients are "
                f"{', '.join(self.names)}"
            )
        for name in ("wrong_labels", "template"):
            if getattr(deviation, name):
                raise ValueError(f"{place}.{name} has no effect beside contradicts, which replaces the problems")

    @property
    def names(self) -> list[str]:
        """Names of the clients, in the order of the file."""
        return _client_names(self.clients)

    @property
    def training(self) -> list[str]:
        """Names of the clients that train, in the order of the file."""
        return [name for name in self.present if name not in self.excluded]

    @property
    def present(self) -> list[str]:
        """Names of the clients that have not withdrawn, in the order of the file."""
        return [name for name in self.names if name not in self.withdrawn]

    @property
    def clients_per_round(self) -> int:
        """Number of clients that train in a round."""
        return share_of(self.fraction, len(self.training))


def share_of(fraction: float, clients: int) -> int:
    """Number of clients that a round draws from so many, at least one."""
    return max(1, math.floor(fraction * clients + 0.5))


def _client_names(clients: int | list[str]) -> list[str]:
    return [f"client-{i + 1}" for i in range(clients)] if isinstance(clients, int) else list(clients)
