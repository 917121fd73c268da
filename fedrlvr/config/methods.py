"""The sections of the first two seams, supervision and coordination. Each has a `type`.

Tables of methods, and lists of options, stand beside the algorithms and are taken from there.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedrlvr.config.sections import FEDERATED, OnlyWith, Section
from fedrlvr.coordination.ratio import RATIO_RULES, RatioRule
from fedrlvr.coordination.swapping import SWAP_RULES, SwapRule
from fedrlvr.supervision.acquisition import Rest
from fedrlvr.supervision.selection import SELECTIONS


class SupervisionSection(Section):
    """Base of the supervision sections, with the questions that code asks of all of them."""

    verified: ClassVar[bool] = True
    """Whether some rewards come from true labels."""
    largest_group: ClassVar[float] = math.inf
    """Largest number of responses to a problem that the method supports."""
    type: str

    @property
    def audits(self) -> bool:
        """Whether accuracies are measured that only all answers together give."""
        return bool(getattr(self, "audit", False))

    @property
    def unlabelled(self) -> bool:
        """Whether training problems may come without an answer: people give it, or nobody needs it."""
        return False

    @property
    def counts_labels(self) -> bool:
        """Whether a client reports numbers about labels, since not every problem has one at hand."""
        return True

    @property
    def shares_probes(self) -> bool:
        """Whether clients send the weights of their probes."""
        return bool(getattr(self, "share_probes", False))

    def check_group(self, size: int) -> None:
        """Check that the method supports groups of `size` responses.

        Raises:
            ValueError: groups of `size` responses are too large.
        """
        if size > self.largest_group:
            raise ValueError(
                f"supervision.type = {self.type!r} takes sampling.group_size up to {self.largest_group}, not {size}"
            )

    def check(self, config: Any) -> None:
        """Check that the method supports groups of the size that is sampled."""
        self.check_group(config.sampling.group_size)


class LabelsSupervision(SupervisionSection):
    """Every problem's own answer decides its rewards (RLVR)."""

    type: Literal["labels"] = "labels"

    @property
    def counts_labels(self) -> bool:
        """No, since every label is at hand."""
        return False


DemonstrationSource = Literal["data", "own"]
"""Sources of the responses that supervised training imitates."""


class DemonstrationsSupervision(SupervisionSection):
    """Correct responses are imitated, with the loss `cross_entropy`; `fedrlvr sft` sets this type (docs/sft.md)."""

    type: Literal["demonstrations"] = "demonstrations"
    responses: DemonstrationSource
    """Source of the responses to imitate, as for `sft.responses`."""

    @property
    def counts_labels(self) -> bool:
        """No, since nobody is asked for a label."""
        return False

    def check(self, config: Any) -> None:
        """Demonstrations go without settings that need rewards or samples of the policy."""
        super().check(config)
        for setting, value, wanted in (
            ("train.loss", config.train.loss, "cross_entropy"),
            ("train.kl_beta", config.train.kl_beta, 0.0),
            ("train.updates_per_batch", config.train.updates_per_batch, 1),
            ("coordination.type", config.coordination.type, "none"),
            ("personal.type", config.personal.type, "none"),
        ):
            if value != wanted:
                raise ValueError(
                    f"{setting} = {value!r} has no place beside supervision.type = 'demonstrations'; set it to "
                    f"{wanted!r}, as `fedrlvr sft` does"
                )
        if config.aggregation.weights == "fgrpo":
            raise ValueError(
                "aggregation.weights = 'fgrpo' weighs clients by their rewards, which supervision.type = "
                "'demonstrations' has none of; set it to 'examples'"
            )


class Audited(SupervisionSection):
    """Base of the supervisions that do not know every answer."""

    audit: Annotated[bool, OnlyWith("labels_from", ("dataset",))] = False
    """Whether accuracies that need every answer are measured too, in experiments whose data has all answers. It never
    changes what is trained."""


class MajoritySupervision(Audited):
    """The most frequent answer of a group counts as correct (TTRL, arXiv 2504.16084). No label is needed."""

    verified: ClassVar[bool] = False
    type: Literal["majority"] = "majority"

    @property
    def unlabelled(self) -> bool:
        """Nobody needs an answer, except for an audit."""
        return not self.audit


LabelSource = Literal["dataset", "desk"]
SPARING = ["care", *(name for name, by in SELECTIONS.items() if not by.peeks)]
"""Supervisions that can do without the answers they do not ask for."""


class Asking(Audited):
    """Base of the supervisions that ask for some of the labels; each label is paid for once (docs/labels.md)."""

    budget: float = Field(0.2, gt=0, le=1)
    """Share of each local step's problems whose label is asked for, rounded up to whole problems."""
    budget_total: int | None = Field(None, ge=1)
    """Maximum number of labels that a client asks for in the whole run. Unset: no limit."""
    budget_per_day: int | None = Field(None, ge=1)
    """Maximum number of labels that a client asks for within 24 hours. Unset: no limit."""
    labels_from: Annotated[LabelSource, OnlyWith("type", SPARING)] = "dataset"
    """Source of the labels: `dataset` takes the data's own answers; `desk` asks people at each client (`fedrlvr desk`),
    and training does not wait for them."""

    @property
    def unlabelled(self) -> bool:
        """Whether people give the answers, so that training problems may lack them."""
        return self.labels_from == "desk"


class CareSupervision(Asking):
    """Two probes choose the majority votes to trust and the labels to ask for (CARE, arXiv 2605.25864).

    docs/methods.md, section 3.
    """

    largest_group: ClassVar[float] = 64
    type: Literal["care"] = "care"
    trusted: float = Field(0.25, ge=0, le=1)
    """Share of each local step's problems, rounded up, that are trained on by majority vote; those with the most
    reliable votes are taken."""
    vote_free_steps: int = Field(20, ge=0)
    """Local steps at the start of a run during which no majority vote is trusted, while the probes learn."""
    min_reliability: float = Field(0.0, ge=0, le=1)
    """Minimum estimated reliability for a majority vote to be trusted. 0 is the authors' rule; try 0.5 for clients
    whose majority votes are seldom correct."""
    probe_learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of the AdamW optimizer that trains the probes."""
    probe_steps: int = Field(3, ge=1, le=64)
    """Optimizer steps of the probes after each update of the policy."""
    share_probes: Annotated[bool, FEDERATED] = False
    """Whether the clients' probes are averaged each round, as the adapters are. The data that the probes learn from
    stays with each client."""

    def check(self, config: Any) -> None:
        """The probes take groups of this size, and are shared with somebody."""
        super().check(config)
        if self.share_probes and len(config.federation.names) == 1:
            raise ValueError("supervision.share_probes has no effect with one client")


class SelectionSupervision(Asking):
    """One number for each problem, or chance, chooses the labels to ask for; a comparison for CARE."""

    type: Literal[tuple(SELECTIONS)]  # type: ignore[valid-type]  # here and below: of a table, which mypy does not evaluate
    """Selection of the problems to ask about: `random` by chance, drawn by seed; `entropy` by the largest entropy of
    the votes; `probability` by the lowest mean probability of the responses' tokens; `oracle` by the largest true
    corrective advantage gap, which takes all answers to know."""
    rest: Rest = "masked"
    """Treatment of the problems without a label: `masked` does not train on them; `pseudo` trains on them by majority
    vote."""


SupervisionType = Literal["labels", "majority", "care", *SELECTIONS]  # type: ignore[valid-type]
Supervision = Annotated[
    LabelsSupervision | MajoritySupervision | CareSupervision | SelectionSupervision | DemonstrationsSupervision,
    Field(discriminator="type"),
]


class NoCoordination(Section):
    """Clients exchange nothing except their adapters."""

    type: Literal["none"] = "none"


TRADING = [name for name, rule in SWAP_RULES.items() if rule.trades]


class PubSwapCoordination(Section):
    """Clients exchange responses to public problems: others' correct ones replace a client's incorrect ones (PubSwap,
    arXiv 2604.12160).

    docs/methods.md, section 4. Needs data.public_size.
    """

    type: Literal["pubswap"] = "pubswap"
    swap: Literal[tuple(SWAP_RULES)] = "balanced"  # type: ignore[valid-type]
    """Responses that are replaced: `balanced` replaces incorrect ones up to half of the group; `random` replaces as
    many, at random positions; `full` replaces all incorrect ones; `none` replaces nothing, so that clients only take
    steps on public problems."""
    ratio: Annotated[Literal[tuple(RATIO_RULES)], OnlyWith("swap", TRADING)] = "local_old"  # type: ignore[valid-type]
    """Policy ratio of the tokens of another client's response: against the receiver's policy before the step
    (`local_old`), against the sender's (`behaviour`), or weighted (`truncated`, `shaped`). The formulas are in
    docs/methods.md, section 4."""
    cap: Annotated[float | None, OnlyWith("ratio", ("truncated",))] = Field(None, gt=0)
    """Largest weight of a token with ratio = 'truncated'. Unset: 2."""
    gamma: Annotated[float | None, OnlyWith("ratio", ("shaped",))] = Field(None, gt=0)
    """Constant gamma of the ratio p / (p + gamma) with ratio = 'shaped'. Unset: 0.1."""
    exchanges: int = Field(1, ge=1)
    """Number of exchanges in a round; they divide its local steps into equal parts."""
    public_problems: int = Field(8, ge=1, le=4096)
    """Number of public problems in an exchange, the same for all clients; each gets sampling.group_size responses."""
    public_steps: int = Field(1, ge=1, le=64)
    """Number of optimizer steps on the groups of one exchange."""
    pool_size: int = Field(64, ge=1, le=65536)
    """Largest number of correct responses that the pool of an exchange keeps for each public problem."""
    pool_tail: int = Field(200, ge=0, le=2000)
    """Largest number of characters behind the answer of a response that enters the pool. Raise it if honest responses
    end later (`dropped_tail` in metrics.jsonl). It has no effect with a reward function of your own."""
    pool_length: float = Field(4.0, ge=1, le=16)
    """Largest number of tokens of a response that enters the pool, as a multiple of the usual number: the median over
    the other clients of each client's median in the exchange. Raise it if honest responses are left out
    (`dropped_unusual` in metrics.jsonl)."""

    @property
    def swap_rule(self) -> SwapRule:
        """Swap rule that the setting `swap` names."""
        return SWAP_RULES[self.swap]

    @property
    def ratio_rule(self) -> RatioRule:
        """Rule for the policy ratios of foreign tokens, by the setting `ratio`."""
        return RATIO_RULES[self.ratio]

    def check(self, config: Any) -> None:
        """The exchanges fit into a round, and their problems into the public set."""
        for name, most in (("exchanges", "train.local_steps"), ("public_problems", "data.public_size")):
            section, setting = most.split(".")
            wanted, room = getattr(self, name), getattr(getattr(config, section), setting)
            if wanted > room:
                raise ValueError(f"coordination.{name} = {wanted} is more than {most} = {room}; change one of them")


Coordination = Annotated[NoCoordination | PubSwapCoordination, Field(discriminator="type")]
