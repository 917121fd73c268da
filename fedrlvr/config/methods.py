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
from fedrlvr.aggregation.server_step import MOST_COSINES, SERVER_OPTIMIZERS, Agreement, ServerStep
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


RuleName = Annotated[
    str, AfterValidator(lambda name: lora_rule(name).name), Field(json_schema_extra={"enum": list(RULES)})
]
"""Name of a LoRA aggregation rule in the table `RULES`."""
Precision = Literal["float32", "float16", "int8"]
"""Number format in which clients send adapters."""
FGRPO = OnlyWith("weights", ("fgrpo",))
GainSource = Literal["reported", "public"]
"""Rewards that FGRPO's gains are measured in."""


WITH_MOMENTUM = [name for name, optimizer in SERVER_OPTIMIZERS.items() if optimizer.has_momentum]
ADAPTIVE = [name for name, optimizer in SERVER_OPTIMIZERS.items() if optimizer.adaptive]


class AggregationConfig(Section):
    """Aggregation of the clients' adapters into one (docs/choosing.md says which method to choose)."""

    type: RuleName = "fedit"
    """LoRA rule that aggregates the adapters. `fedit` averages the factors A and B; the other rules are in
    docs/methods.md, section 5."""
    weights: Annotated[Weights, OnlyWith("robust", ("none", "clip"))] = "examples"
    """Weight of each client: `examples` is its number of training problems; `equal` is the same for all; `fgrpo`
    multiplies the number of problems by a function of the client's gain over its own history, or over the other
    clients (`fgrpo_gain_from`; FGRPO, arXiv 2606.03094; docs/methods.md, section 5)."""
    precision: Precision = "float32"
    """Number format in which clients send adapters. Below float32 a client sends its rounded change in the round, and
    adds the rounding error to its next one. The server always sends float32."""
    largest_change: float | None = Field(None, gt=1)
    """Multiple of the median change above which a client's adapter is left out of the round. Unset: no adapter is left
    out for this reason."""
    change_bound: float = Field(100.0, gt=0)
    """Largest change of an adapter in one round that the server accepts, as the root mean square over its numbers: this
    value itself until a round has changed something, afterwards this multiple of the largest median of earlier rounds.
    The default refuses only absurd changes; raise it if an honest client is left out."""
    robust: Literal["none", "clip", *ROBUST_MEANS] = "none"  # type: ignore[valid-type]
    """Protection against broken or hostile clients. `clip` shortens large changes. The others replace the weighted mean
    and ignore client weights: `median` of each number, `trimmed_mean` without the extremes, or the adapter closest to
    the others (`krum`)."""
    robust_clip: Annotated[float | None, OnlyWith("robust", ("clip",))] = Field(None, gt=0)
    """Clipping threshold of `clip`, as a multiple of the median length of the clients' changes. Unset: 1."""
    robust_trim: Annotated[float | None, OnlyWith("robust", ("trimmed_mean",))] = Field(None, gt=0, lt=0.5)
    """Share of the clients that `trimmed_mean` drops at each end, for every number. Unset: 0.2."""
    robust_hostile: Annotated[int | None, OnlyWith("robust", ("krum",))] = Field(None, ge=1)
    """Number of hostile clients that `krum` withstands; it needs at least 2 x this + 3 clients in a round. Unset: 1."""
    server_learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """Length of the server's step, as a multiple of the clients' mean change in a round (with the server optimizers
    `adam` and `yogi`, the size of a number's change). 1 makes the mean of the clients the global model. `auto` chooses
    between 1 and the square root of the number of clients in each round, by how much averaging shortens the changes and
    by how far their directions agree with the last round's (docs/methods.md, section 5). Unset: `auto` where it was
    measured to end as high as the best fixed step, which is for `fedit` with the server optimizer `sgd`, 2 to 32
    clients in a round, no robust mean, and no part of the adapter that stays at the clients; 1 elsewhere, and with a
    strategy around ours."""
    server_optimizer: Literal[tuple(SERVER_OPTIMIZERS)] = "sgd"  # type: ignore[valid-type]
    """Optimizer that applies the clients' mean change to the global model. The default `sgd` remembers nothing.
    `momentum` is FedAvgM, `nesterov` is DiLoCo's outer step, `adam` and `yogi` are FedAdam and FedYogi, which need a
    small server_learning_rate. The others need many rounds, and a learning rate chosen on validation problems."""
    server_momentum: Annotated[float | None, OnlyWith("server_optimizer", WITH_MOMENTUM)] = Field(None, gt=0, lt=1)
    """Share of the last round's velocity that the server optimizers `momentum` and `nesterov` keep. Unset: 0.9."""
    server_beta1: Annotated[float | None, OnlyWith("server_optimizer", ADAPTIVE)] = Field(None, ge=0, lt=1)
    """Decay of the first moment, the running mean of changes, in the server optimizers `adam` and `yogi`. Unset: 0.9.
    """
    server_beta2: Annotated[float | None, OnlyWith("server_optimizer", ADAPTIVE)] = Field(None, ge=0, lt=1)
    """Decay of the second moment, the running mean of squared changes, in the server optimizers `adam` and `yogi`.
    Unset: 0.99."""
    server_epsilon: Annotated[float | None, OnlyWith("server_optimizer", ADAPTIVE)] = Field(None, gt=0)
    """Number added to the square root of the second moment by the server optimizers `adam` and `yogi`: numbers that
    change by less than this in a round move less than server_learning_rate. Unset: 0.001."""
    server_agreement: Annotated[Agreement | None, OnlyWith("server_learning_rate", (None, "auto"))] = None
    """Comparison with the last round that `server_learning_rate = "auto"` makes: of the mean change (`mean`), or of
    each client's own change (`clients`), for which the server's checkpoint keeps the last change of every client. With
    `none` no comparison is made, and the step always makes up for all of the shortening. Unset: mean."""
    fgrpo_gain: Annotated[Gain | None, FGRPO] = None
    """Unit of a client's gain: `relative` divides by the baseline, `zscore` by the standard deviation of its earlier
    rewards. Unset: relative."""
    fgrpo_gain_from: Annotated[GainSource | None, FGRPO] = None
    """Rewards that a client's gain is measured in. `reported` takes the mean reward that the client states for its own
    problems. `public` takes the share of the client's responses to the exchanges' public problems that the server's own
    grader calls correct; it needs coordination.type = 'pubswap', with any `swap` (with `none` the responses travel to
    the server alone). Unset: reported."""
    fgrpo_baseline: Annotated[Baseline | None, FGRPO] = None
    """Baseline of a client's reward: `ema` is the moving average of its earlier mean rewards, `window` the mean of the
    last few, `peers` the mean over the clients of the same round, which needs fgrpo_gain_from = 'public'. Unset: ema;
    peers with fgrpo_gain_from = 'public'."""
    fgrpo_shape: Annotated[Shape | None, FGRPO] = None
    """Factor that a gain becomes: `softmax` is exp(gain / temperature); `positive` is the positive part of the gain
    plus a floor. Unset: softmax."""
    fgrpo_temperature: Annotated[float | None, FGRPO, OnlyWith("fgrpo_shape", (None, "softmax"))] = Field(None, ge=0.01)
    """Temperature of the `softmax` shape. A larger value comes closer to weights by `examples`. Unset: 1."""
    fgrpo_beta: Annotated[float | None, FGRPO, OnlyWith("fgrpo_baseline", (None, "ema"))] = Field(None, gt=0, le=1)
    """Share of the newest reward in the moving average (`ema`). Unset: 0.5."""
    fgrpo_window: Annotated[int | None, FGRPO, OnlyWith("fgrpo_baseline", ("window",))] = Field(None, ge=1, le=1000)
    """Number of rounds in the baseline `window`. Unset: 5."""
    fgrpo_floor: Annotated[float | None, FGRPO, OnlyWith("fgrpo_shape", ("positive",))] = Field(None, gt=0)
    """Factor of a client without a gain in the `positive` shape; a full relative gain adds 1. Unset: 0.1."""
    fgrpo_shrink: Annotated[bool, FGRPO] = False
    """Whether gains are multiplied by 1 / (1 + noise / signal), so that gains that chance can explain do not change the
    weights, and clients with few problems have smaller gains. It needs mean rewards from 0 to 1. Turn it on where a
    round's rewards come from few problems (docs/methods.md, section 5)."""

    @property
    def rule(self) -> LoraRule:
        """LoRA rule that the setting `type` names."""
        return RULES[self.type]

    @property
    def fgrpo(self) -> dict[str, Any]:
        """The options of `FGRPOWeights` that are set."""
        options = {name.removeprefix("fgrpo_"): value for name, value in self if name.startswith("fgrpo_")}
        options.pop("gain_from")
        if self.gains_are_public:
            options["baseline"] = self.fgrpo_baseline or "peers"
        return {name: value for name, value in options.items() if value is not None}

    @property
    def gains_are_public(self) -> bool:
        """Whether client weights go by the server's own grades of responses to public problems."""
        return self.fgrpo_gain_from == "public"

    def server_rate(self, config: Any) -> float | Literal["auto"]:
        """Length of the server's step in the experiment `config`: the setting, or what stands for an unset one."""
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        measured = self.type == "fedit" and self.server_optimizer == "sgd" and self.robust not in ROBUST_MEANS
        measured = measured and config.federation.arm == "federated" and config.personal.method.keeps is None
        return "auto" if measured and 2 <= config.federation.clients_per_round <= MOST_COSINES else 1.0

    def server_step(self, config: Any) -> ServerStep | None:
        """A new server step for one run of `config`; None where the global model is the mean itself."""
        rate = self.server_rate(config)
        if (rate == 1 and self.server_optimizer == "sgd") or self.rule.server_step is None:
            return None
        options = {name.removeprefix("server_"): value for name, value in self if name.startswith("server_")}
        options = {name: value for name, value in options.items() if value is not None}
        return ServerStep(self.rule.server_step, **{**options, "learning_rate": rate})

    def _check_server_step(self, config: Any) -> None:
        """
        Raises:
            ValueError: the rule, the optimizer, the robust mean or the clients of a round have no such server step.
        """
        rate, optimizer, clients = self.server_rate(config), self.server_optimizer, config.federation.clients_per_round
        if self.server_agreement is not None and rate != "auto":
            raise ValueError(
                f"aggregation.server_agreement = {self.server_agreement!r} has no effect here without "
                "aggregation.server_learning_rate = 'auto'; set both"
            )
        if self.server_learning_rate is None and optimizer == "sgd":
            return
        stated = f"aggregation.server_learning_rate = {rate!r}"
        if optimizer != "sgd":
            stated = f"aggregation.server_optimizer = {optimizer!r}"
        elif rate == 1:
            return
        if self.rule.server_step is None:
            able = ", ".join(sorted(rule.name for rule in RULES.values() if rule.server_step))
            raise ValueError(
                f"{stated} needs a common step of all clients, which aggregation.type = {self.type!r} does not have; "
                f"{able} have one"
            )
        if rate == "auto" and (self.robust == "krum" or clients == 1):
            reason = "robust = 'krum', which takes one client" if clients > 1 else "one client a round (federation)"
            raise ValueError(f"aggregation.server_learning_rate = 'auto' has no effect with {reason}")
        if optimizer not in ADAPTIVE:
            return
        if self.rule.server_step == "products":
            able = ", ".join(sorted(rule.name for rule in RULES.values() if rule.server_step == "factors"))
            raise ValueError(
                f"{stated} scales each number of the adapter by itself, which aggregation.type = {self.type!r} cannot "
                f"do with products; {able} can"
            )
        if isinstance(rate, str) or rate >= 1:
            raise ValueError(
                f"{stated} moves each number by up to about aggregation.server_learning_rate in a round, which is "
                f"{rate!r}: set a number below 1 that is of the size of a number's change, such as 0.001"
            )

    def check(self, config: Any) -> None:
        """Server step, client weights and robust means suit the rule, the supervision and the number of clients."""
        self._check_server_step(config)
        if self.gains_are_public and config.coordination.type == "none":
            raise ValueError(
                "aggregation.fgrpo_gain_from = 'public' grades the responses of exchanges, which coordination.type = "
                "'none' has none of; set coordination.type = 'pubswap' (with coordination.swap = 'none' no client gets "
                "others' responses)"
            )
        if self.fgrpo_baseline == "peers" and not self.gains_are_public:
            raise ValueError(
                "aggregation.fgrpo_baseline = 'peers' compares rewards of different clients, which needs problems that "
                "all of them answer; set aggregation.fgrpo_gain_from = 'public' too"
            )
        if self.fgrpo_beta is not None and self.fgrpo.get("baseline") == "peers":
            raise ValueError("aggregation.fgrpo_beta has no effect with the baseline peers; set fgrpo_baseline = 'ema'")
        if self.weights == "fgrpo" and not config.supervision.verified and not self.gains_are_public:
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
        clients, quorum = config.federation.clients_per_round, config.federation.quorum
        trim, hostile = self.robust_trim or TRIM, self.robust_hostile or HOSTILE
        check_enough(self.robust, clients, trim, hostile)
        try:
            check_enough(self.robust, needed := math.ceil(quorum * clients), trim, hostile)
        except ValueError as error:
            raise ValueError(
                f"aggregation.{error}; federation.quorum = {quorum:g} lets a round go on with {needed}"
            ) from None
