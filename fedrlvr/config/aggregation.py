"""The section of the third seam: how the server filters, weights and aggregates the clients' adapters.

Tables of methods, and lists of options, stand beside the algorithms and are taken from there.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fedrlvr.aggregation.client_weights import Baseline, Gain, Shape, Weights
from fedrlvr.aggregation.lora_rule import RULES, LoraRule, lora_rule
from fedrlvr.aggregation.robust import HOSTILE, ROBUST_MEANS, TRIM, check_enough
from fedrlvr.aggregation.server_step import MOST_COSINES, SERVER_OPTIMIZERS, Agreement, ServerStep
from fedrlvr.config.sections import OnlyWith, Section

RuleName = Annotated[
    str, AfterValidator(lambda name: lora_rule(name).name), Field(json_schema_extra={"enum": list(RULES)})
]
"""Name of a LoRA aggregation rule in the table `RULES`."""
NumberFormat = Literal["float32", "float16", "int8"]
"""Number format in which clients send adapters."""
SMALL = 1_000_000
"""Bytes of an adapter in float32 below which `precision = "auto"` sends it in float32."""
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
    precision: Literal["auto", NumberFormat] = "auto"
    """Number format in which clients send adapters. Below float32 a client sends its rounded change in the round, and
    adds the rounding error to its next one. `auto` is float32 for an adapter of less than 1 MB in float32 (of the
    largest rank), with federation.arm other than `federated`, with personal.type `fedalt`, and with a strategy around
    ours; for larger adapters it is int8, a quarter of the bytes, which cost the embedded reasoner no measurable
    accuracy. A run's config.json holds what `auto` chose."""
    precision_down: Literal["float32", "bfloat16", "int8"] = "float32"
    """Number format in which the server sends the adapter: `float32`, or rounded to `bfloat16` or `int8`. The server
    keeps its adapter in float32 and adds the clients' changes from what they received; held-out scores are of the
    rounded adapter. It needs a rule that sends whole adapters (`fedit`, `hetlora`, `flexlora`)."""
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
    clients in a round, no robust mean, no noise, and no part of the adapter that stays at the clients; 1 elsewhere, and
    with a strategy around ours."""
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
    keep_adapters: bool = False
    """Whether the server keeps the adapter of every client and round on its disk, so that `fedrlvr withdraw` can
    subtract a client from the global adapter. It takes the size of an adapter for each client and round, and needs
    type = "fedit" with the weighted mean itself: no robust mean, no largest_change, and the server optimizer `sgd`."""
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
        measured = measured and config.privacy.unit == "none"  # averaging shortens noise, which no step makes up for
        return "auto" if measured and 2 <= config.federation.clients_per_round <= MOST_COSINES else 1.0

    def settled(self, config: Any, adapter_bytes: int) -> AggregationConfig:
        """These settings with the number format that `precision = "auto"` chooses in the experiment `config`.

        adapter_bytes: of the largest adapter, in float32.
        """
        # Where no adapter is averaged, settings of aggregation are refused, also those of a finished run.
        if self.precision != "auto" or config.federation.arm != "federated" or config.personal.method.beside_others:
            return self
        return self.model_copy(update={"precision": "float32" if adapter_bytes < SMALL else "int8"})

    @property
    def number_format(self) -> NumberFormat:
        """Number format in which clients send adapters; float32 where `auto` has not chosen."""
        return "float32" if self.precision == "auto" else self.precision

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

    def _check_precision(self, config: Any) -> None:
        """
        Raises:
            ValueError: no whole adapter is sent down, which could be rounded.
        """
        if self.precision_down == "float32":
            return
        stated = f"aggregation.precision_down = {self.precision_down!r} rounds whole adapters, which"
        if not self.rule.sends_whole_adapter:
            able = ", ".join(rule.name for rule in RULES.values() if rule.sends_whole_adapter)
            raise ValueError(f"{stated} aggregation.type = {self.type!r} does not send; {able} do")
        if config.personal.method.keeps is not None:
            raise ValueError(f"{stated} personal.type = {config.personal.type!r} does not send")

    def _check_fgrpo(self, config: Any) -> None:
        """Gains are of rewards that are there, and that can be compared where they are compared."""
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

    def _check_kept(self, config: Any) -> None:
        """
        Raises:
            ValueError: a client's part of the global adapter is no sum that its adapter can be taken out of.
        """
        if not self.keep_adapters:
            return
        sums = self.rule.is_linear and self.rule.sends_whole_adapter and config.personal.method.keeps is None
        if not sums or self.robust != "none" or self.largest_change is not None or self.server_optimizer != "sgd":
            raise ValueError(
                "aggregation.keep_adapters keeps what can be subtracted from a weighted mean of whole adapters: it "
                "needs type = 'fedit', robust = 'none', server_optimizer = 'sgd', no largest_change, and no part of "
                "the adapter that stays at the clients (personal.type)"
            )

    def check(self, config: Any) -> None:
        """Server step, number formats, weights and robust means suit rule, supervision and number of clients."""
        self._check_server_step(config)
        self._check_precision(config)
        self._check_fgrpo(config)
        self._check_kept(config)
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
