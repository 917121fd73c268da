"""The sections of the three seams: supervision, coordination, aggregation. Each has a `type`.

Tables of methods, and lists of options, stand beside the algorithms and are taken from there.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from fedrlvr.aggregation.client_weights import Baseline, Gain, Shape, Weights
from fedrlvr.aggregation.lora_rule import RULES, LoraRule, lora_rule
from fedrlvr.aggregation.robust import HOSTILE, ROBUST_MEANS, TRIM, check_enough
from fedrlvr.config.sections import FEDERATED, OnlyWith, Section
from fedrlvr.coordination.ratio import RATIO_RULES, RatioRule
from fedrlvr.coordination.swapping import SWAP_RULES, SwapRule
from fedrlvr.supervision.acquisition import Rest
from fedrlvr.supervision.selection import SELECTIONS


class SupervisionSection(Section):
    """What code that serves every supervision may ask of its section."""

    verified: ClassVar[bool] = True
    """Some rewards come from labels."""
    largest_group: ClassVar[float] = math.inf
    """Responses to a problem that it takes at most."""
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
    def shares_probes(self) -> bool:
        """Whether probes travel."""
        return bool(getattr(self, "share_probes", False))

    def check_group(self, size: int) -> None:
        """
        Raises:
            ValueError: groups of `size` responses are too large.
        """
        if size > self.largest_group:
            raise ValueError(
                f"supervision.type = {self.type!r} takes sampling.group_size up to {self.largest_group}, not {size}"
            )

    def check(self, config: Any) -> None:
        """It takes groups of the size that is sampled."""
        self.check_group(config.sampling.group_size)


class LabelsSupervision(SupervisionSection):
    """Every problem's own answer decides."""

    type: Literal["labels"] = "labels"


class Audited(SupervisionSection):
    """What all supervisions have that do not know every answer."""

    audit: Annotated[bool, OnlyWith("labels_from", ("dataset",))] = False
    """In experiments, where all answers are known: also measure what a client could not. Never changes what is
    trained."""


class MajoritySupervision(Audited):
    """The answer that most of a group's responses give counts as right (TTRL, arXiv 2504.16084). Needs no label."""

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
    """What all supervisions have that ask for some of the labels. Each label is paid for once (docs/care.md)."""

    budget: float = Field(0.2, gt=0, le=1)
    """Share of a step's problems whose label is asked for, rounded up."""
    budget_total: int | None = Field(None, ge=1)
    """Most labels a client asks for in all; None: no limit."""
    budget_per_day: int | None = Field(None, ge=1)
    """Most labels a client asks for within 24 hours; None: no limit."""
    labels_from: Annotated[LabelSource, OnlyWith("type", SPARING)] = "dataset"
    """The data's own answers, or people at each client (`fedrlvr desk`), for whom training does not wait."""

    @property
    def unlabelled(self) -> bool:
        """Whether people give the answers."""
        return self.labels_from == "desk"


class CareSupervision(Asking):
    """Two probes say which majorities to trust and which labels to ask for (CARE, arXiv 2605.25864).

    docs/methods.md, section 3.
    """

    largest_group: ClassVar[float] = 64
    type: Literal["care"] = "care"
    trusted: float = Field(0.25, ge=0, le=1)
    """Share of a step's problems, rounded up, that are trained on as voted, the likeliest to be right first."""
    warm_up: int = Field(20, ge=0)
    """Local steps at the start of a run during which no majority vote is trusted."""
    trust_above: float = Field(0.0, ge=0, le=1)
    """Minimum estimated reliability for a majority vote to be trusted. 0 is the authors' rule; 0.5 is for clients whose
    majorities are seldom right."""
    probe_learning_rate: float = Field(1e-4, gt=0)
    """Of the probes' AdamW."""
    probe_steps: int = Field(3, ge=1, le=64)
    """Their optimizer steps after each update of the policy."""
    share_probes: Annotated[bool, FEDERATED] = False
    """Average the clients' probes each round, as the adapters are; what they learnt from stays with each client."""

    def check(self, config: Any) -> None:
        """The probes take groups of this size, and are shared with somebody."""
        super().check(config)
        if self.share_probes and len(config.federation.names) == 1:
            raise ValueError("supervision.share_probes has no effect with one client")


class SelectionSupervision(Asking):
    """Which labels to ask for is decided by one number, or by chance; what CARE is compared with."""

    type: Literal[tuple(SELECTIONS)]  # type: ignore[valid-type]  # here and below: of a table, which mypy does not evaluate
    """Drawn by seed; the largest entropy of the votes; the lowest mean probability of the responses' tokens; the
    largest true corrective advantage gap, which takes all answers to know."""
    rest: Rest = "masked"
    """Other problems are not trained on, or as voted."""


SupervisionType = Literal["labels", "majority", "care", *SELECTIONS]  # type: ignore[valid-type]
Supervision = Annotated[
    LabelsSupervision | MajoritySupervision | CareSupervision | SelectionSupervision, Field(discriminator="type")
]


class NoCoordination(Section):
    """Clients exchange nothing but adapters."""

    type: Literal["none"] = "none"


TRADING = [name for name, rule in SWAP_RULES.items() if rule.trades]


class PubSwapCoordination(Section):
    """On public problems, a client's incorrect responses are replaced by others' correct ones (arXiv 2604.12160).

    docs/methods.md, section 4. Needs data.public_size.
    """

    type: Literal["pubswap"] = "pubswap"
    swap: Literal[tuple(SWAP_RULES)] = "balanced"  # type: ignore[valid-type]
    """Which responses are replaced: incorrect ones up to half of the group, as many random ones, all incorrect ones,
    or none at all, which leaves steps on public problems without any exchange."""
    ratio: Annotated[Literal[tuple(RATIO_RULES)], OnlyWith("swap", TRADING)] = "local_old"  # type: ignore[valid-type]
    """What the policy ratio of others' tokens is taken against (docs/methods.md)."""
    cap: Annotated[float | None, OnlyWith("ratio", ("truncated",))] = Field(None, gt=0)
    """Largest weight of a token with ratio = 'truncated'; None: 2."""
    gamma: Annotated[float | None, OnlyWith("ratio", ("shaped",))] = Field(None, gt=0)
    """Of p / (p + gamma) with ratio = 'shaped'; None: 0.1."""
    exchanges: int = Field(1, ge=1)
    """Exchanges a round, at equal stretches of its local steps."""
    public_problems: int = Field(8, ge=1, le=4096)
    """Public problems of an exchange, the same for all clients; each gets group_size responses."""
    public_steps: int = Field(1, ge=1, le=64)
    """Optimizer steps on an exchange's groups."""
    pool_size: int = Field(64, ge=1, le=65536)
    """Correct responses kept of each public problem of an exchange."""
    pool_tail: int = Field(200, ge=0, le=2000)
    """Most characters behind the answer of a response that enters the pool. Raise it if the model honestly writes more
    (`dropped_tail` in metrics.jsonl); it has no effect with a reward function of your own."""
    pool_length: float = Field(4.0, ge=1, le=16)
    """Most tokens of a response that enters the pool, as a multiple of the usual number: the median over the other
    clients of each one's median in the exchange. Raise it if honest responses are left out (`dropped_unusual`)."""

    @property
    def swap_rule(self) -> SwapRule:
        """The swap rule."""
        return SWAP_RULES[self.swap]

    @property
    def ratio_rule(self) -> RatioRule:
        """The rule of foreign tokens' policy ratios."""
        return RATIO_RULES[self.ratio]

    def check(self, config: Any) -> None:
        """The exchanges fit into a round, and their problems into the public set."""
        for name, most in (("exchanges", "train.local_steps"), ("public_problems", "data.public_size")):
            section, setting = most.split(".")
            wanted, room = getattr(self, name), getattr(getattr(config, section), setting)
            if wanted > room:
                raise ValueError(f"coordination.{name} = {wanted} is more than {most} = {room}")


Coordination = Annotated[NoCoordination | PubSwapCoordination, Field(discriminator="type")]


RuleName = Annotated[str, AfterValidator(lambda name: lora_rule(name).name)]
"""The name of a LoRA rule."""
Precision = Literal["float32", "float16", "int8"]
"""What clients send adapters in."""
FGRPO = OnlyWith("weights", ("fgrpo",))


class AggregationConfig(Section):
    """How many adapters become one (docs/aggregation.md says which to take when)."""

    type: RuleName = "fedit"
    """The LoRA rule (docs/methods.md, section 5)."""
    weights: Annotated[Weights, OnlyWith("robust", ("none", "clip"))] = "examples"
    """`examples`: by each client's number of training problems. `fgrpo`: these times its gain over its own history
    (FGRPO, arXiv 2606.03094; docs/methods.md, section 5)."""
    precision: Precision = "float32"
    """What clients send adapters in. Below float32 it is their change in the round, rounded, and what rounding loses is
    added to their next one. What the server sends is always float32."""
    largest_change: float | None = Field(None, gt=1)
    """Leave out a client whose adapter changed in the round by more than this multiple of the median; None: never."""
    change_bound: float = Field(100.0, gt=0)
    """Largest change of an adapter in one round that the server accepts, as the root mean square over its numbers: this
    value itself until a round has changed something, afterwards this multiple of the largest median of earlier rounds.
    The default refuses only what is absurd; raise it if an honest client is left out."""
    robust: Literal["none", "clip", *ROBUST_MEANS] = "none"  # type: ignore[valid-type]
    """Against clients that are broken or hostile. `clip`: each change to a multiple of the median length. The others
    take the place of the mean and know no client weights: coordinate-wise median, the mean without the extremes, or
    the one adapter that is closest to the others."""
    robust_clip: Annotated[float | None, OnlyWith("robust", ("clip",))] = Field(None, gt=0)
    """Clipping threshold of `clip`, as a multiple of the median length of the changes. None: 1."""
    robust_trim: Annotated[float | None, OnlyWith("robust", ("trimmed_mean",))] = Field(None, gt=0, lt=0.5)
    """Share of the clients that `trimmed_mean` drops at either end. None: 0.2."""
    robust_hostile: Annotated[int | None, OnlyWith("robust", ("krum",))] = Field(None, ge=1)
    """Hostile clients that `krum` expects; it needs at least 2 x this + 3 clients in a round. None: 1."""
    fgrpo_gain: Annotated[Gain | None, FGRPO] = None
    """What a gain is measured by: the baseline itself, or the spread of earlier rewards. None: relative."""
    fgrpo_baseline: Annotated[Baseline | None, FGRPO] = None
    """Of a client's earlier mean rewards. None: ema."""
    fgrpo_shape: Annotated[Shape | None, FGRPO] = None
    """exp(gain / temperature), or the positive part of the gain plus a floor. None: softmax."""
    fgrpo_temperature: Annotated[float | None, FGRPO, OnlyWith("fgrpo_shape", (None, "softmax"))] = Field(None, ge=0.01)
    """Of `softmax`; the larger, the closer to `examples`. None: 1."""
    fgrpo_beta: Annotated[float | None, FGRPO, OnlyWith("fgrpo_baseline", (None, "ema"))] = Field(None, gt=0, le=1)
    """Share of the newest reward in an `ema`. None: 0.5."""
    fgrpo_window: Annotated[int | None, FGRPO, OnlyWith("fgrpo_baseline", ("window",))] = Field(None, ge=1, le=1000)
    """Rounds of a `window`. None: 5."""
    fgrpo_floor: Annotated[float | None, FGRPO, OnlyWith("fgrpo_shape", ("positive",))] = Field(None, gt=0)
    """What a client without a gain counts under `positive`. None: 0.1."""

    @property
    def rule(self) -> LoraRule:
        """The LoRA rule."""
        return RULES[self.type]

    @property
    def fgrpo(self) -> dict[str, Any]:
        """The options of `FGRPOWeights` that are set."""
        options = {name.removeprefix("fgrpo_"): value for name, value in self if name.startswith("fgrpo_")}
        return {name: value for name, value in options.items() if value is not None}

    def check(self, config: Any) -> None:
        """Client weights and robust means suit the rule, the supervision and the number of clients."""
        if self.weights == "fgrpo" and not config.supervision.verified:
            raise ValueError(
                f"aggregation.weights = 'fgrpo' weighs by verified rewards, of which supervision.type = "
                f"{config.supervision.type!r} has none"
            )
        if self.robust not in ROBUST_MEANS:
            return
        if not self.rule.is_linear:
            linear = ", ".join(sorted(rule.name for rule in RULES.values() if rule.is_linear))
            raise ValueError(
                f"aggregation.robust = {self.robust!r} stands in for a mean of adapters, as type = {linear} take it"
            )
        clients = config.federation.clients_per_round
        check_enough(self.robust, clients, self.robust_trim or TRIM, self.robust_hostile or HOSTILE)
