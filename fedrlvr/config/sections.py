"""The sections of a configuration: small pydantic models, one per question, a docstring per setting.

The sections about the problems are in problems.py, that of their prompts in prompt.py, the one about personal adapters
in personal.py, those of the three seams in methods.py. A default is stated in these five files and nowhere else.
Unknown keys are errors. So is a setting that has no effect, which is stated at the setting (`OnlyWith`); what else does
not go together with other sections is refused by a section's `check`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedrlvr.aggregation.lora_rule import RULES
from fedrlvr.coordination.ratio import CAP
from fedrlvr.rl.loss import LOSSES
from fedrlvr.rl.samples import Unfinished


@dataclass(frozen=True)
class OnlyWith:
    """Marks a setting that has an effect only where another setting has one of these values.

    setting: its name within the section, or `section.setting`.
    """

    setting: str
    values: Collection[Any]


NO_EFFECT = "no_effect"
"""The type of pydantic's error about a setting that has no effect; its context holds both settings."""
FEDERATED = OnlyWith("federation.arm", ("federated",))
"""Marks a setting of what passes between clients."""

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The smallest normal and the largest number of float32."""


class Section(BaseModel):
    """Base of every section: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, tree: Any) -> Any:
        for name in cls.model_fields.keys() & (tree if isinstance(tree, dict) else ()):  # Python counts True as 1
            kind, value = str(cls.model_fields[name].annotation), tree[name]
            items = value.values() if isinstance(value, dict) and "dict[str, int]" in kind else [value]
            if "bool" not in kind and bool in map(type, items):
                raise ValueError(f"{name} should not be true or false")
        return tree

    @field_validator("*")
    @classmethod
    def _held_by_float32(cls, value: Any) -> Any:
        """Tensors are float32: another number would become infinite, or zero, in the middle of a run."""
        if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(f"{value:g} is not within {SMALLEST:.3g} to {LARGEST:.3g}, the numbers that float32 holds")
        return value

    @model_validator(mode="after")
    def _settings_without_effect(self) -> Self:
        self.check_effects(self)
        return self

    def check_effects(self, root: Section, prefix: str = "") -> None:
        """Refuse settings whose marks (`OnlyWith`) name a setting of `root` that leaves them without an effect.

        By value, not by what was given: the config.json of a run directory states every setting.

        Raises:
            ValueError: a setting that is not at its default has no effect.
        """
        for name, info in type(self).model_fields.items():
            value, default = getattr(self, name), info.get_default(call_default_factory=True)
            for mark in info.metadata if value != default else ():
                if not isinstance(mark, OnlyWith):
                    continue
                first, *path = mark.setting.split(".")
                if first not in type(root).model_fields:
                    continue  # checked where the whole configuration is at hand
                other: Any = getattr(root, first)
                for part in path:
                    other = getattr(other, part, None)
                if other not in mark.values:
                    word, needed = ("with", other) if other is not None else ("without", next(iter(mark.values)))
                    names = {"setting": f"{prefix}{name}{_first_difference(value, default)}", "word": word}
                    raise PydanticCustomError(
                        NO_EFFECT,
                        "{setting} has no effect {word} {other}",
                        {**names, "other": f"{mark.setting} = {needed!r}"},
                    )

    def check(self, config: Any) -> None:
        """Refuse what does not go together with the other sections of `config`, a `Config`.

        Raises:
            ValueError: settings that contradict each other; the text names them.
        """


def _first_difference(value: Any, default: Any) -> str:
    """`.setting = value` for the first setting of a section that differs from the default section; else nothing."""
    if not isinstance(value, Section):
        return ""
    names = (name for name in type(value).model_fields if getattr(value, name) != getattr(default, name, None))
    name = next(names)
    return f".{name} = {getattr(value, name)!r}"


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise ValueError(str(error)) from None


MOST_RESPONSES = 64
"""Largest number of responses that a client writes down in a round."""
UserPath = Annotated[Path, AfterValidator(_expanded)]
"""A path in which ~ stands for the home directory."""


TrackerName = Literal["tensorboard", "mlflow", "trackio", "wandb"]


class RunConfig(Section):
    """The name, random seed and directory of one run."""

    name: str = "fedrlvr"
    """Name of the run, shown in the report and part of the default directory's name."""
    seed: int = Field(0, ge=0)
    """Root of every random stream. The same seed with the same settings on the same machine gives the same run; change
    it to repeat an experiment."""
    directory: UserPath | None = None
    """Directory that the run writes to. Unset: a new directory `runs/<name>-<date>-<time>`."""
    started_in: UserPath | None = None
    """Directory in which the modules of data.rewards are searched, after the import path. Unset: the working directory.
    A run writes it into its config.json, so that the run can be resumed from anywhere."""
    ledgers: Annotated[UserPath | None, OnlyWith("supervision.labels_from", ("desk",))] = None
    """Directory of the clients' label ledgers (`<client>.sqlite`), which never leave the machine. Unset: each ledger
    lies in the run directory, as `clients/<client>/ledger.sqlite`. Set it to use people's labels in more than one
    run."""
    secrets: UserPath | None = None
    """Directory of the clients' sampling secrets (`<client>.secret`), copies of the organisations' own files
    state/sampling.secret, to repeat on one machine what organisations computed. AdamW then has no epsilon, as at
    the organisations. Unset: no secret is mixed into the random streams. The secrets never leave the machine."""
    responses: int = Field(4, ge=0, le=MOST_RESPONSES)
    """Number of responses of each client that each round of a simulation writes to `clients/<client>/responses.jsonl`
    in the run's directory, for `fedrlvr responses` and the report. 0 writes none, and the report shows no prompt. It
    has no effect on organisations' own machines, where site.toml decides."""
    verdict: Annotated[bool, FEDERATED] = False
    """Whether the run also trains every client alone, in `alone` in its directory, and then compares both on each
    client's held-out problems, as `fedrlvr verdict` does. It about doubles the time of training, and changes neither
    rounds nor adapters of the run. The default compares nothing."""
    alone_rates: Annotated[list[Annotated[float, Field(gt=0, le=100)]], FEDERATED] = Field(
        [1.0], min_length=1, max_length=8
    )
    """Multiples of train.learning_rate at which each client is trained alone for a verdict. With several, each client's
    adapter is the one with the highest pass@1 on its own validation problems, which data.validation_size sets aside.
    The default trains at the federation's own rate, once. Try `[0.25, 0.5, 1]` before you decide anything on a verdict:
    training alone often needs a smaller rate. Each multiple costs another training of all clients."""
    keep_checkpoints: int = Field(3, ge=2)
    """Number of newest rounds whose checkpoints stay on disk; older checkpoints are deleted."""
    trackers: list[TrackerName] = []
    """Experiment trackers that get the numbers of metrics.jsonl as well. Each needs the extra of its name, and writes
    on this machine alone unless run.mlflow_uri is set. The default is none; metrics.jsonl is always written."""
    mlflow_uri: str | None = None
    """Address of an MLflow tracking server that gets the numbers, such as `http://mlflow.example.org:5000`; credentials
    go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never into this setting. Unset: MLflow writes to the
    database `mlflow/mlflow.db` in the run's directory."""

    @field_validator("trackers")
    @classmethod
    def _each_tracker_once(cls, trackers: list[TrackerName]) -> list[TrackerName]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("a tracker is named twice")
        return trackers

    @field_validator("mlflow_uri")
    @classmethod
    def _without_credentials(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError("write no credentials into the address: set MLFLOW_TRACKING_USERNAME and ..._PASSWORD")
        return uri

    def check(self, config: Any) -> None:
        """A verdict needs labels, a choice of rates validation problems, and an address its tracker."""
        if len(set(self.alone_rates)) < len(self.alone_rates):
            raise ValueError(f"run.alone_rates: {self.alone_rates} names a multiple twice")
        if len(self.alone_rates) > 1 and not config.data.validation_size:
            raise ValueError(
                "run.alone_rates: the choice between several learning rates needs validation problems; set "
                "data.validation_size"
            )
        if self.mlflow_uri is not None and "mlflow" not in self.trackers:
            raise ValueError("run.mlflow_uri has no effect without 'mlflow' in run.trackers")
        if self.verdict and getattr(config.supervision, "labels_from", "dataset") == "desk":
            raise ValueError(
                "run.verdict: with supervision.labels_from = 'desk' people would be asked for the labels of both runs. "
                "Leave it out, train the arm 'local' with the same run.ledgers, and give it to `fedrlvr verdict "
                "--alone`"
            )


Dtype = Literal["auto", "float32", "bfloat16"]


class ModelConfig(Section):
    """The frozen base model, the same for every client."""

    name: str = "embedded"
    """Base model: `embedded` (the small reasoner inside the package), a local directory, or a Hugging Face hub id."""
    adapter: UserPath | None = None
    """Directory of the adapter that the run starts from: PEFT's, a run's, or a checkpoint's; its rank may be up to
    lora.rank. Unset: the run starts from the model as it is. The reference policy of train.kl_beta is the model without
    this adapter."""
    dtype: Dtype = "auto"
    """Number format of the base weights; adapters are always float32. `auto` is bfloat16 on a GPU that supports it,
    else float32."""
    device: str = "auto"
    """Device that computes: `auto`, `cpu`, `cuda`, or one GPU, such as `cuda:1`. `auto` takes a GPU where there is one.
    """
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass: less memory, about a third more time. Turn it on if
    training runs out of GPU memory."""

    @property
    def local(self) -> Path | None:
        """The model's directory; None for the embedded model and a hub id."""
        path = Path(self.name).expanduser()
        written_as_path = self.name.startswith((".", "/", "~"))
        try:
            exists = path.exists()
        except OSError:  # it is there, and may not be looked into: loading it says so
            exists = True
        return path if self.name != "embedded" and (written_as_path or exists) else None


NAME = r"^[A-Za-z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME)]
"""Name of an organisation or a task in messages: letters, digits, - and _."""
MAX_RANK = 1024
Targets = Literal["all-linear"] | list[str]


class LoraConfig(Section):
    """The LoRA adapter that each client trains."""

    rank: int | dict[str, int] = Field(
        8, json_schema_extra={"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_RANK}, {"type": "object"}]}
    )
    """LoRA rank r, the inner dimension of B [d, r] A [r, k], up to 1024: one number for all clients, or a table by
    client, such as {clinic-a = 16, clinic-b = 4}. Different ranks need an aggregation.type that can mix them."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the adapter: it changes a weight matrix by (alpha / rank) B A. Change it together with the rank to keep
    the size of the update."""
    targets: Targets = "all-linear"
    """Layers that get an adapter: `all-linear` is every linear layer except the output head; a list gives the last part
    of layers' names, such as ["q_proj", "v_proj"]."""

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one layer, or say 'all-linear'")
        return value

    @field_validator("rank", mode="plain")
    @classmethod
    def _ranks(cls, value: Any) -> int | dict[str, int]:
        ranks = value if isinstance(value, dict) else {"": value}
        if not ranks or any(type(r) is not int or not 1 <= r <= MAX_RANK for r in ranks.values()):
            raise ValueError(f"give a whole number from 1 to {MAX_RANK}, or one for each client by name")
        return dict(ranks) if isinstance(value, dict) else ranks[""]

    @property
    def largest(self) -> int:
        """Largest LoRA rank of all the clients."""
        return max(self.rank.values()) if isinstance(self.rank, dict) else self.rank

    def rank_of(self, client: str) -> int:
        """LoRA rank of a client; defaults to the largest configured rank."""
        return self.rank.get(client, self.largest) if isinstance(self.rank, dict) else self.rank

    def check(self, config: Any) -> None:
        """The ranks are those of this run's clients, and its rule can mix them."""
        if not isinstance(self.rank, dict):
            return
        names, rule, arm = config.federation.names, config.aggregation.rule, config.federation.arm
        if strange := sorted(set(names) ^ set(self.rank)):
            name = strange[0]
            what = f"no rank for the client {name!r}" if name in names else f"{name!r}, which is no client"
            raise ValueError(f"lora.rank has {what}: the clients are {', '.join(names)}")
        if len(set(self.rank.values())) == 1:
            return
        if arm == "central":
            raise ValueError("lora.rank: the arm 'central' has one client, and so one rank")
        if arm == "federated" and not rule.mixes_ranks:
            able = ", ".join(sorted(rule.name for rule in RULES.values() if rule.mixes_ranks))
            raise ValueError(f"aggregation.type = {rule.name!r} cannot mix the ranks of lora.rank; {able} can")


class SamplingConfig(Section):
    """Sampling of responses from the policy."""

    group_size: int = Field(8, ge=2, le=1024)
    """Number of responses to each problem, G, whose rewards are compared with each other. More responses give a better
    estimate and take more time."""
    max_new_tokens: int = Field(256, ge=1, le=131072)
    """Length limit of a response in tokens. `train.unfinished` says what becomes of a response that reaches it."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Sampling temperature in training; the loss takes its log-probs at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: tokens are drawn from the smallest set of tokens with this total probability. 1 turns it off.
    """
    top_k: int = Field(0, ge=0)
    """Number of most likely tokens from which the next token is drawn. 0 turns it off."""


COMPONENTS_STAY = [rule.name for rule in RULES.values() if not rule.new_components]
"""Rules after which the moments of an adapter's components still apply."""


class TrainConfig(Section):
    """The local objective and its optimizer (docs/methods.md, section 1)."""

    rounds: int = Field(10, ge=1)
    """Number of rounds in the run; each ends with one synchronisation of the clients' adapters."""
    local_steps: int = Field(5, ge=1)
    """Local steps of each client in a round, tau. More steps save bytes for the same amount of training, but the
    clients' adapters drift further apart."""
    problems_per_step: int = Field(8, ge=1)
    """Number of problems in a local step of one client; each gets sampling.group_size responses."""
    dynamic_sampling: int = Field(
        0, ge=0, le=16, exclude_if=lambda value: not value
    )  # so that messages stay as they were
    """Largest number of further draws in a local step (DAPO's dynamic sampling). After each draw, problems whose
    responses all have the same reward, and so no gradient, are replaced by as many of the client's next problems. A
    step samples up to 1 + this number times the tokens. 0: every drawn problem stays."""
    loss: Literal[tuple(LOSSES)] = "dapo"  # type: ignore[valid-type]  # of a table, which mypy does not evaluate
    """Policy-gradient loss. `grpo`, `dr_grpo` and `dapo` clip the policy ratio; they average token losses over each
    response, by the longest allowed response, or over all tokens. `cispo` averages over all tokens, and a token whose
    ratio is clipped keeps its gradient. `cross_entropy` is the loss of given responses, which `fedrlvr sft` sets."""
    scale_by_std: bool = True
    """Whether advantages are divided by the standard deviation of their group's rewards. Dr. GRPO turns it off."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clipping bound of the policy ratio, as a distance from 1. With `cispo`, a value close to 1 removes the
    lower bound, as its authors do."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clipping bound of the policy ratio, as a distance from 1. Raise it to let unlikely tokens of good responses
    gain more in one update."""
    ratio_cap: float = Field(CAP, gt=0, exclude_if=lambda value: value == CAP)  # so that messages stay as they were
    """Largest importance weight of a token (truncated importance sampling), where the response was drawn by something
    else than the policy that is trained: by another client with coordination.ratio = 'truncated', or by another
    program with engine.sampler = 'vllm', whose rounding differs."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || base) in the loss, which keeps the policy close to the base model. 0
    turns it off."""
    updates_per_batch: int = Field(1, ge=1, le=64)
    """Optimizer steps on each sampled batch. More than 1 reuses the samples; the ratio then differs from 1 and is
    clipped."""
    proximal_mu: Annotated[float, OnlyWith("federation.arm", ("federated", "central"))] = Field(0.0, ge=0)
    """Weight mu of FedProx's term (mu / 2) ||adapter - adapter at the start of the round||^2, which limits the drift
    between clients. 0 turns it off (FedAvg)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW. Tune it first, and for each method that is compared."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule over all local steps of the run, after the warm-up: `constant`, or a fall to 0 that is
    `linear` or follows a `cosine`."""
    warmup_steps: int = Field(0, ge=0)
    """Local steps at the start of a run during which the learning rate rises linearly to its peak. 0: there is no
    warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW, decoupled from the gradient. 0 turns it off."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of AdamW's first moment, the running mean of gradients."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay rate of AdamW's second moment, the running mean of squared gradients. Short runs need a value below the
    usual 0.999."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which each client's gradient is clipped before every optimizer step."""
    unfinished: Unfinished = "grade"
    """Treatment of a response that was cut at sampling.max_new_tokens. `grade` grades its text like any other. `zero`
    gives it reward 0. `mask` gives it reward 0, which counts in its group's mean, and no gradient. With `zero` and
    `mask` it casts no vote and enters no pool."""
    optimizer_state: Annotated[Literal["reset", "keep"], OnlyWith("aggregation.type", COMPONENTS_STAY)] = "reset"
    """Optimizer moments at the start of a round: `reset` starts from zero; `keep` continues with the client's own
    moments, which never travel."""

    def check(self, config: Any) -> None:
        """The warm-up ends before the run does, the loss suits what is trained on, and no problem is drawn again where
        that would cost a label."""
        if self.loss == "cross_entropy" and config.supervision.type != "demonstrations":
            raise ValueError(
                "train.loss = 'cross_entropy' is the loss of given responses (supervision.type = 'demonstrations', "
                "which `fedrlvr sft` sets); choose another loss for sampled ones"
            )
        if self.warmup_steps >= self.rounds * self.local_steps > 1:
            raise ValueError("train.warmup_steps must be fewer than rounds x local_steps")
        if self.dynamic_sampling and hasattr(config.supervision, "labels_from"):
            raise ValueError(
                f"train.dynamic_sampling = {self.dynamic_sampling}: with supervision.type = "
                f"{config.supervision.type!r} each problem that is drawn again could cost a label; set it to 0, or "
                "use 'labels' or 'majority'"
            )


class ComputeConfig(Section):
    """The part of [engine] about the computation in this process. It changes cost and memory, never the result.

    Each saving is a switch of its own, so that it can be measured and tested alone (docs/measurements/performance.md).
    """

    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens in one forward and backward pass, padding included; at least one problem. Unset: 16,384 on a GPU; 1,024 on
    a CPU, and down to 256 for a large model. Lower it if training runs out of memory."""
    decode_rows: int = Field(1024, ge=1)
    """Responses decoded side by side, all clients together; at least one problem per client. Lower it if sampling runs
    out of memory."""
    logits_at_once: int = Field(1 << 24, ge=1)
    """Logits (tokens x vocabulary) held in memory at once in training, 4 bytes each; at least those of one token."""
    threads: int | None = Field(None, ge=1)
    """Number of Torch threads. Unset: OMP_NUM_THREADS if it is set, else one thread per core, and only one for a small
    model."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """Number format of matrix products. `auto` is bfloat16 on a GPU that supports it, else that of the weights (`off`).
    """
    decode_cache: Literal["auto", "growing", "static"] = "auto"
    """Memory layout of the decode loop. `static` computes every step at the full length, so that a GPU can replay it as
    one CUDA graph; `growing` follows the length so far. `auto` is static on a GPU, else growing."""
    cohort: bool = True
    """Whether all clients of this machine are computed as one batch. Off: one client after another."""
    skip_zero_advantage: bool = True
    """Whether responses with zero advantage, which have no gradient, are left out of the training pass. The normaliser
    of the loss still counts them."""
    prefill_once: bool = True
    """Whether sampling computes a problem's prompt once for all of its responses."""
    shared_cache: bool = True
    """Whether sampling stores a prompt's keys and values once for all of its responses; needs `prefill_once`."""
    shared_prefix: bool = True
    """Whether the training pass computes a problem's prompt once for all of its responses."""
    compact: bool = True
    """Whether finished responses leave the decode batch, so that the others are computed faster."""
    sampled_logps: bool = True
    """Whether behaviour log-probs are taken while sampling. Off: a separate forward pass computes them."""
    response_logits: bool = True
    """Whether training computes logits in chunks and at response positions only. Off: at all positions at once, which
    needs more memory."""
    by_length: bool = True
    """Whether micro-batches are cut from responses sorted by length. Off: from responses in the order they were drawn.
    """


Split = Literal["test", "validation"]
"""Problems of a client that an evaluation measures."""


class EvaluateConfig(Section):
    """Sampled pass@1 on held-out problems, which each client measures on its own."""

    every: int = Field(0, ge=0)
    """Rounds between two evaluations. 0 evaluates before the first round and after the last one only."""
    split: Split = "test"
    """Problems that are measured: `test` is the held-out problems; `validation` is those that data.validation_size sets
    aside, for choosing settings while the held-out problems stay unseen."""
    samples: int = Field(1, ge=1, le=256)
    """Number of responses to each held-out problem; pass@1 is the mean over them."""
    temperature: float = Field(1.0, ge=0, le=10)
    """Sampling temperature in evaluation; 0 is greedy decoding."""
