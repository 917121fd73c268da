"""The sections of the three seams: supervision, coordination, aggregation. Each has a `type`.

Which settings go together within a section is checked here; across sections, in experiment.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedrlvr.aggregation.fgrpo import Baseline, Gain, Shape
from fedrlvr.aggregation.lora_rule import RULES, LoraRule, lora_rule
from fedrlvr.config.sections import Section


class LabelsSupervision(Section):
    """Every problem's own answer decides."""

    type: Literal["labels"] = "labels"


class MajoritySupervision(Section):
    """The answer that most of a group's responses give counts as right (TTRL, arXiv 2504.16084). Needs no label."""

    type: Literal["majority"] = "majority"
    audit: bool = False
    """In experiments, where all answers are known: also measure what a client could not. Never changes what is
    trained."""


class Asking(Section):
    """What all supervisions have that ask for some of the labels. Each label is paid for once (docs/care.md)."""

    budget: float = Field(0.2, ge=0, le=1)
    """Share of a step's problems whose label is asked for, rounded up."""
    budget_total: int | None = Field(None, ge=1)
    """Most labels a client asks for in all; None: no limit."""
    budget_per_day: int | None = Field(None, ge=1)
    """Most labels a client asks for within 24 hours; None: no limit."""
    labels_from: Literal["dataset", "desk"] = "dataset"
    """The data's own answers, or people at each client (`fedrlvr desk`), for whom training does not wait."""
    audit: bool = False
    """In experiments, where all answers are known: also measure what a client could not. Never changes what is
    trained."""

    @model_validator(mode="after")
    def _labels_that_nobody_gives(self) -> Asking:
        if self.audit and self.labels_from == "desk":
            raise ValueError("audit needs every answer, which labels_from = 'desk' does not have")
        for name in ("budget_total", "budget_per_day"):
            if not self.budget and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with budget = 0, which asks for no label")
        return self


LARGEST_GROUP = 64
"""Responses to a problem that CARE's probes take at most."""


class CareSupervision(Asking):
    """Two probes say which majorities to trust and which labels to ask for (CARE, arXiv 2605.25864).

    docs/methods.md, section 3.
    """

    type: Literal["care"] = "care"
    trusted: float = Field(0.25, ge=0, le=1)
    """Share of a step's problems, rounded up, that are trained on as voted, the likeliest to be right first."""
    warm_up: int = Field(20, ge=0)
    """Steps, once per run, in which none is."""
    trust_above: float = Field(0.0, ge=0, le=1)
    """Nor is a majority that is right with a smaller probability than this, by the probes. 0 is the authors' rule; 0.5
    is for clients whose majorities are seldom right."""
    probe_learning_rate: float = Field(1e-4, gt=0)
    """Of the probes' AdamW."""
    probe_steps: int = Field(3, ge=1, le=64)
    """Their optimizer steps after each update of the policy."""
    share_probes: bool = False
    """Average the clients' probes each round, as the adapters are; what they learnt from stays with each client."""

    @model_validator(mode="after")
    def _probes_without_a_label(self) -> CareSupervision:
        if not self.budget:
            raise ValueError("budget must be above 0 with type = 'care', whose probes learn from labels")
        return self


class SelectionSupervision(Asking):
    """Which labels to ask for is decided by one number, or by chance; what CARE is compared with."""

    type: Literal["random", "entropy", "probability", "oracle"]
    """Drawn by seed; the largest entropy of the votes; the lowest mean probability of the responses' tokens; the
    largest true corrective advantage gap, which takes all answers to know."""
    rest: Literal["masked", "pseudo"] = "masked"
    """Other problems are not trained on, or as voted."""

    @model_validator(mode="after")
    def _one_that_cannot_be(self) -> SelectionSupervision:
        if self.type == "oracle" and self.labels_from == "desk":
            raise ValueError("type = 'oracle' needs every answer, which labels_from = 'desk' does not have")
        if not self.budget:
            what = "nothing would be trained on" if self.rest == "masked" else "that is type = 'majority'"
            raise ValueError(f"budget must be above 0 with rest = {self.rest!r}: without a label {what}")
        return self


Supervision = Annotated[
    LabelsSupervision | MajoritySupervision | CareSupervision | SelectionSupervision, Field(discriminator="type")
]


class NoCoordination(Section):
    """Clients exchange nothing but adapters."""

    type: Literal["none"] = "none"


class PubSwapCoordination(Section):
    """On public problems, a client's incorrect responses are replaced by others' correct ones (arXiv 2604.12160).

    docs/methods.md, section 4. Needs data.public_size.
    """

    type: Literal["pubswap"] = "pubswap"
    swap: Literal["balanced", "random", "full", "none"] = "balanced"
    """Which responses are replaced: incorrect ones up to half of the group, as many random ones, all incorrect ones,
    or none at all, which leaves steps on public problems without any exchange."""
    ratio: Literal["local_old", "behaviour", "truncated", "shaped"] = "local_old"
    """What the policy ratio of others' tokens is taken against (docs/methods.md)."""
    cap: float | None = Field(None, gt=0)
    """Largest weight of a token with ratio = 'truncated'; None: 2."""
    gamma: float | None = Field(None, gt=0)
    """Of p / (p + gamma) with ratio = 'shaped'; None: 0.1."""
    exchanges: int = Field(1, ge=1)
    """Exchanges a round, at equal stretches of its local steps."""
    public_problems: int = Field(8, ge=1, le=4096)
    """Public problems of an exchange, the same for all clients; each gets group_size responses."""
    public_steps: int = Field(1, ge=1, le=64)
    """Optimizer steps on an exchange's groups."""
    pool_size: int = Field(64, ge=1, le=65536)
    """Correct responses kept of each public problem of an exchange."""

    @model_validator(mode="after")
    def _settings_that_would_do_nothing(self) -> PubSwapCoordination:
        if self.cap is not None and self.ratio != "truncated":
            raise ValueError(f"cap has no effect with ratio = {self.ratio!r}")
        if self.gamma is not None and self.ratio != "shaped":
            raise ValueError(f"gamma has no effect with ratio = {self.ratio!r}")
        if self.swap == "none" and self.ratio != "local_old":
            raise ValueError("ratio has no effect with swap = 'none', where no foreign response is trained on")
        return self


Coordination = Annotated[NoCoordination | PubSwapCoordination, Field(discriminator="type")]


RuleName = Annotated[str, AfterValidator(lambda name: lora_rule(name).name)]
"""The name of a LoRA rule."""


class AggregationConfig(Section):
    """How many adapters become one (docs/aggregation.md says which to take when)."""

    type: RuleName = "fedit"
    """The LoRA rule (docs/methods.md, section 5)."""
    weights: Literal["examples", "equal", "fgrpo"] = "examples"
    """`examples`: by each client's number of training problems. `fgrpo`: these times its gain over its own history
    (FGRPO, arXiv 2606.03094; docs/methods.md, section 5)."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """What clients send adapters in. Below float32 it is their change in the round, rounded, and what rounding loses is
    added to their next one. What the server sends is always float32."""
    largest_change: float | None = Field(None, gt=1)
    """Leave out a client whose adapter changed in the round by more than this multiple of the median; None: never."""
    robust: Literal["none", "clip", "median", "trimmed_mean", "krum"] = "none"
    """Against clients that are broken or hostile. `clip`: each change to a multiple of the median length. The others
    take the place of the mean and know no client weights: coordinate-wise median, the mean without the extremes, or
    the one adapter that is closest to the others."""
    robust_clip: float | None = Field(None, gt=0)
    """That multiple. None: 1."""
    robust_trim: float | None = Field(None, gt=0, lt=0.5)
    """Share of the clients that `trimmed_mean` drops at either end. None: 0.2."""
    robust_hostile: int | None = Field(None, ge=1)
    """Hostile clients that `krum` expects; it needs at least 2 x this + 3 clients in a round. None: 1."""
    fgrpo_gain: Gain | None = None
    """What a gain is measured by: the baseline itself, or the spread of earlier rewards. None: relative."""
    fgrpo_baseline: Baseline | None = None
    """Of a client's earlier mean rewards. None: ema."""
    fgrpo_shape: Shape | None = None
    """exp(gain / temperature), or the positive part of the gain plus a floor. None: softmax."""
    fgrpo_temperature: float | None = Field(None, ge=0.01)
    """Of `softmax`; the larger, the closer to `examples`. None: 1."""
    fgrpo_beta: float | None = Field(None, gt=0, le=1)
    """Share of the newest reward in an `ema`. None: 0.5."""
    fgrpo_window: int | None = Field(None, ge=1, le=1000)
    """Rounds of a `window`. None: 5."""
    fgrpo_floor: float | None = Field(None, gt=0)
    """What a client without a gain counts under `positive`. None: 0.1."""

    @property
    def rule(self) -> LoraRule:
        """The LoRA rule."""
        return RULES[self.type]

    @property
    def fgrpo(self) -> dict[str, Any]:
        """The options of `FGRPOWeights` that are set."""
        given = {name: getattr(self, f"fgrpo_{name}") for name in _FGRPO}
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _settings_that_would_do_nothing(self) -> AggregationConfig:
        if self.weights != "fgrpo" and self.fgrpo:
            raise ValueError(f"fgrpo_{next(iter(self.fgrpo))} has no effect with weights = {self.weights!r}")
        baseline, shape = self.fgrpo_baseline or "ema", self.fgrpo_shape or "softmax"
        for name, needs, has in (
            ("temperature", "softmax", shape),
            ("floor", "positive", shape),
            ("beta", "ema", baseline),
            ("window", "window", baseline),
        ):
            if name in self.fgrpo and needs != has:
                raise ValueError(f"fgrpo_{name} has no effect with {has!r}; it is of {needs!r}")
        for name, needs in (("clip", "clip"), ("trim", "trimmed_mean"), ("hostile", "krum")):
            if getattr(self, f"robust_{name}") is not None and self.robust != needs:
                raise ValueError(f"robust_{name} has no effect with robust = {self.robust!r}; it is of {needs!r}")
        if self.robust in ROBUST_MEANS:
            if not self.rule.is_linear:
                linear = ", ".join(sorted(rule.name for rule in RULES.values() if rule.is_linear))
                raise ValueError(
                    f"robust = {self.robust!r} stands in for a mean of adapters, as type = {linear} take it"
                )
            if self.weights == "fgrpo":
                raise ValueError(
                    f"weights = 'fgrpo' have no effect with robust = {self.robust!r}, which knows no weights"
                )
        return self


_FGRPO = ("gain", "baseline", "shape", "temperature", "beta", "window", "floor")
CLIP, TRIM, HOSTILE = 1.0, 0.2, 1
"""What robust_clip, robust_trim and robust_hostile are where the config does not say."""
ROBUST_MEANS = ("median", "trimmed_mean", "krum")
"""Values of `robust` that take the place of the mean."""
