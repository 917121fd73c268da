"""The sections of the seam supervision, one for each kind of `type`: where the reward comes from.

Tables of methods, and lists of options, stand beside the algorithms and are taken from there.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedrlvr.config.sections import FEDERATED, OnlyWith, Section
from fedrlvr.supervision.acquisition import WORTHS, Pace, QuerySelection, Rest, Worth
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
SPARING = ["care", "trapo", "geomin", *(name for name, by in SELECTIONS.items() if not by.peeks)]
"""Supervisions that can do without the answers they do not ask for."""


class Asking(Audited):
    """Base of the supervisions that ask for some of the labels; each label is paid for once (docs/labels.md)."""

    budget: float = Field(0.2, gt=0, le=1)
    """Share of the distinct training problems that a client draws in the run whose label is asked for, rounded up. A
    problem that is drawn again keeps its label, which costs nothing more."""
    spend: Pace = "early"
    """Time at which the budget is spent: `early` asks for the share `budget` of each local step's problems, rounded up,
    until the budget is used, which is within the first pass over the problems; `even` spreads the labels evenly over
    the run's local steps."""
    budget_total: int | None = Field(None, ge=1)
    """Maximum number of labels that a client asks for in the whole run. Unset: no limit beyond `budget`."""
    budget_per_day: int | None = Field(None, ge=1)
    """Maximum number of labels that a client asks for within 24 hours. Unset: no limit."""
    labels_from: Annotated[LabelSource, OnlyWith("type", SPARING)] = "dataset"
    """Source of the labels: `dataset` takes the data's own answers; `desk` asks people at each client (`fedrlvr desk`),
    and training does not wait for them."""

    @property
    def unlabelled(self) -> bool:
        """Whether people give the answers, so that training problems may lack them."""
        return self.labels_from == "desk"


class Trusting(Asking):
    """Base of the supervisions that train on some of the majority votes."""

    default_trusted: ClassVar[float]
    default_vote_free_share: ClassVar[float]

    trusted: float | None = Field(None, ge=0, le=1)
    """Share of each local step's problems, rounded up, that are trained on by majority vote; those with the most
    reliable votes are taken. Unset: 0.25 with `care` and 0.1 with `trapo`, as their authors have it; 1 with `geomin`,
    which trusts every vote that it finds reliable."""
    vote_free_share: float | None = Field(None, ge=0, le=1)
    """Share of the run's local steps, rounded up, at the start of the run during which no majority vote is trusted.
    Unset: 0.04 with `care` and 0.5 with `trapo`, about what their authors have; 0.04 with `geomin`."""

    @property
    def trust(self) -> float:
        """Share of each step's problems that may be trained on by majority vote."""
        return self.default_trusted if self.trusted is None else self.trusted

    @property
    def vote_free(self) -> float:
        """Share of the run's local steps during which no majority vote is trusted."""
        return self.default_vote_free_share if self.vote_free_share is None else self.vote_free_share


class Scoring(Asking):
    """Base of the supervisions that can rank problems by the value of a label."""

    score: Annotated[Worth | None, OnlyWith("type", ("care", "oracle"))] = None
    """Value of a label by which problems are ranked, with `care` by the probes' estimate and with `oracle` by all
    answers: `mixed` is sqrt(G) where some but not all of the G responses are correct and 0 elsewhere, which is the
    value where problems without a label are masked; `gap` is the corrective advantage gap to the majority vote, which
    is the value where they are trained on by majority vote. Unset: the one that suits the treatment of the rest."""

    @property
    def worth(self) -> Worth:
        """Value of a label by which problems are ranked."""
        return self.score or WORTHS[getattr(self, "rest", "masked")]


class CareSupervision(Trusting, Scoring):
    """Two probes choose the majority votes to trust and the labels to ask for (CARE, arXiv 2605.25864).

    docs/methods.md, section 3.
    """

    largest_group: ClassVar[float] = 64
    default_trusted: ClassVar[float] = 0.25
    default_vote_free_share: ClassVar[float] = 0.04
    type: Literal["care"] = "care"
    selection: QuerySelection = "probes"
    """Choice of the problems to ask about: `probes` takes those with the highest score; `random` draws them by seed, as
    a control that keeps the trusted votes."""
    min_auc: Annotated[float, OnlyWith("selection", ("probes",))] = Field(0.6, ge=0, le=1)
    """Minimum held-out AUC of the probes for them to choose the problems to ask about; below it, and while it is
    unknown, problems are drawn by seed. The AUC says how well P1 tells correct majority votes from wrong ones among the
    last 64 labels, each judged before the probes learned from it. 0: the probes choose from the first step."""
    min_reliability: float = Field(0.0, ge=0, le=1)
    """Minimum estimated reliability for a majority vote to be trusted. 0 is the authors' rule; try 0.5 for clients
    whose majority votes are seldom correct."""
    probe_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the AdamW optimizer that trains the probes. Unset: 0.128 divided by the width of the model's
    hidden states, but from 0.0001 to 0.001: 0.001 up to width 128, and the authors' 0.0001 from width 1,280."""
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


class TrapoSupervision(Trusting):
    """Labels are asked for by chance, and majority votes are trusted where a problem's pass rates have developed as
    those of labelled problems have (TraPO, arXiv 2512.13106).

    docs/methods.md, section 3.
    """

    default_trusted: ClassVar[float] = 0.1
    default_vote_free_share: ClassVar[float] = 0.5
    type: Literal["trapo"] = "trapo"
    min_similarity: float = Field(0.4, gt=0, le=1)
    """Mean correlation of a problem's pass rates with those of the labelled problems from which on its majority vote is
    trusted, besides the share `trusted` with the highest."""


class GeominSupervision(Trusting):
    """Labels are asked for by chance, and majority votes are trusted where their responses' hidden states look like
    those of correct ones; our reading of an abstract (GeoMin, arXiv 2606.04516).

    docs/methods.md, section 3.
    """

    default_trusted: ClassVar[float] = 1.0
    default_vote_free_share: ClassVar[float] = 0.04
    type: Literal["geomin"] = "geomin"


class SelectionSupervision(Scoring):
    """One number for each problem, or chance, chooses the labels to ask for; a comparison for CARE."""

    type: Literal[tuple(SELECTIONS)]  # type: ignore[valid-type]  # here and below: of a table, which mypy does not evaluate
    """Selection of the problems to ask about: `random` by chance, drawn by seed; `entropy` by the largest entropy of
    the votes; `probability` by the lowest mean probability of the responses' tokens; `oracle` by the largest true
    value of a label (`score`), which takes all answers to know."""
    rest: Rest = "masked"
    """Treatment of the problems without a label: `masked` does not train on them; `pseudo` trains on them by majority
    vote."""


SupervisionType = Literal["labels", "majority", "care", "trapo", "geomin", *SELECTIONS]  # type: ignore[valid-type]
Supervision = Annotated[
    LabelsSupervision
    | MajoritySupervision
    | CareSupervision
    | TrapoSupervision
    | GeominSupervision
    | SelectionSupervision
    | DemonstrationsSupervision,
    Field(discriminator="type"),
]
