"""The sections of a configuration: small pydantic models, one per question, a docstring per setting.

The sections of the three seams are in methods.py. A default is stated in these two files and nowhere else. Unknown
keys are errors. So is a setting that has no effect, which is stated at the setting (`OnlyWith`); what else does not go
together with other sections is refused by a section's `check`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedrlvr.aggregation.lora_rule import RULES
from fedrlvr.config.client_names import MOST_CLIENTS, check_client_names
from fedrlvr.rl.loss import LOSSES
from fedrlvr.rl.samples import Unfinished


@dataclass(frozen=True)
class OnlyWith:
    """Marks a setting that has an effect only where another setting has one of these values.

    setting: its name within the section, or `section.setting`.
    """

    setting: str
    values: Collection[Any]


FEDERATED = OnlyWith("federation.arm", ("federated",))
"""Marks a setting of what passes between clients."""


class Section(BaseModel):
    """Base of every section: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

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
                    stated = f"{prefix}{name}" + _first_difference(value, default)
                    how = f"without {mark.setting} = {next(iter(mark.values))!r}"
                    how = how if other is None else f"with {mark.setting} = {other!r}"
                    raise ValueError(f"{stated} has no effect {how}")

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


class RunConfig(Section):
    """One run and where it lies."""

    name: str = "fedrlvr"
    """Shown in the report."""
    seed: int = Field(0, ge=0)
    """Root of every random stream of the run."""
    directory: Path | None = None
    """Run directory; None makes runs/<name>-<date>-<time>."""
    ledgers: Annotated[Path | None, OnlyWith("supervision.labels_from", ("desk",))] = None
    """Directory of the clients' label ledgers, <ledgers>/<client>.sqlite, with supervision.labels_from = 'desk', whose
    labels serve more than one run. None: clients/<client>/ledger.sqlite in the run directory. Never sent."""
    secrets: Path | None = None
    """Directory of the clients' sampling secrets, <secrets>/<client>.secret, to repeat on one machine what
    organisations computed: copies of their files state/sampling.secret. AdamW then has no epsilon, as theirs
    has none. None: no secret is mixed into the random streams. Never sent.
    """
    keep_checkpoints: int = Field(3, ge=2)
    """How many of the newest rounds stay on disk."""
    tracker: Literal["none", "tensorboard"] = "none"
    """Besides metrics.jsonl, which is always written. `tensorboard` needs the extra `trackers`."""


Dtype = Literal["auto", "float32", "bfloat16"]


class ModelConfig(Section):
    """The frozen base model, the same for every client."""

    name: str = "embedded"
    """`embedded` (the reasoner inside the package), a local directory, or a hub id."""
    dtype: Dtype = "auto"
    """Of the base weights; adapters are always float32. `auto` is bfloat16 on a GPU that has it, else float32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    chat_template: bool = True
    """Wrap each prompt in the tokenizer's chat template where it has one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @property
    def local(self) -> Path | None:
        """The model's directory; None for the embedded model and a hub id."""
        path = Path(self.name).expanduser()
        written_as_path = self.name.startswith((".", "/", "~"))
        return path if self.name != "embedded" and (written_as_path or path.exists()) else None


NAME = r"^[A-Za-z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME)]
"""What organisations and tasks are called in messages."""
MAX_RANK = 1024
Targets = Literal["all-linear"] | list[str]


class LoraConfig(Section):
    """The adapter each client trains."""

    rank: int | dict[str, int] = 8
    """Inner dimension r of B [d, r] A [r, k], up to 1024: everybody's, or by client, {clinic-a = 16, clinic-b = 4}.
    Different ranks need an aggregation.type that can mix them."""
    alpha: float = Field(16.0, gt=0)
    """The update is (alpha / rank) B A."""
    targets: Targets = "all-linear"
    """`all-linear` (every linear layer but the output head) or the last names of layers, e.g. ["q_proj", "v_proj"]."""

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
        """The largest client's rank."""
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


class DataConfig(Section):
    """The problems, before they are dealt to clients."""

    name: str = "embedded"
    """embedded | gsm8k | math | svamp | medqa | medmcqa | pubmedqa | jsonl | reasoning_gym:<family>."""
    path: Path | None = None
    """File or directory; None takes the hub (extra `hub`) where the data set has one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the loader, e.g. {hub = "..."} or {families = ["sum"], levels = ["easy"]} for the embedded problems."""
    train_size: int | None = Field(None, ge=1)
    """Problems kept for training, drawn by seed; None keeps all."""
    public_size: int = Field(0, ge=0)
    """Problems set aside as the public set: in no client's hands, used by coordination only. With coordination.type =
    'none' they are used by nobody, so that arms with and without exchanges train on the same private problems."""
    test_size: int | None = Field(None, ge=1)
    """Held-out problems, drawn by seed and spread evenly over sources; None keeps all."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Problems with longer prompts are left out, and counted; None takes all, and one too long for the model is an
    error."""
    instruction: str | None = None
    """Appended to each prompt; None takes the task's own ("" for the embedded problems)."""
    unreachable_golds: float = Field(0.05, ge=0, le=1)
    """Largest accepted share of gold answers that no short marked answer can meet (a sentence, an option's text,
    Markdown); a run with more of them is refused before it trains. 1 accepts all."""
    reward: str | None = None
    """Import path `module:function` of your own reward(completion, answer, **info) -> float; None grades by kind."""
    arithmetic: bool = False
    """Whether arithmetic that is still to be done (`9+9`) counts as right where the gold answer is its value (18). The
    default is false: a policy could otherwise earn the reward by copying an expression from the prompt."""


class IidPartition(Section):
    """Every client gets the same mix."""

    type: Literal["iid"] = "iid"


class SourcePartition(Section):
    """Whole sources (subjects, families) go to clients."""

    type: Literal["source"] = "source"


class DirichletPartition(Section):
    """Each source is split among clients by shares drawn from Dirichlet(alpha)."""

    type: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(0.5, gt=0)
    """Small: each source sits with few clients. Large: close to iid."""


Partition = Annotated[IidPartition | SourcePartition | DirichletPartition, Field(discriminator="type")]


class FederationConfig(Section):
    """Who takes part."""

    clients: int | list[str] = 4
    """A number (client-1, client-2, ...) or names, all in one script (Latin, Cyrillic, ...). Names that differ only in
    case, accents or characters that look alike (0 and O, 1 and l) are refused."""
    fraction: Annotated[float, OnlyWith("arm", ("federated",))] = Field(1.0, gt=0, le=1)
    """Share of the clients that train in a round, at least one, drawn by seed."""
    quorum: float = Field(1.0, gt=0, le=1)
    """Share of those asked that must answer with something usable. Others are left out of the round, by name and with a
    reason. 1: a client that fails ends the run, which --resume goes on with."""
    deadline: float = Field(3600.0, gt=0, le=604800)
    """Seconds a client has to answer a message; who has not by then is left out of the round, or ends the run, as
    `quorum` says. On one machine nobody is late."""
    task: Name = "main"
    """What organisations on their own machines are asked to train on, by its name in their own configurations
    (docs/deployment.md). On one machine [data] says it."""
    arm: Literal["federated", "local", "central"] = "federated"
    """`local`: each client alone, nothing travels. `central`: all problems pooled with one client. References, both."""

    @field_validator("clients")
    @classmethod
    def _clients(cls, value: int | list[str]) -> int | list[str]:
        if isinstance(value, list):
            check_client_names(value)
        elif not 1 <= value <= MOST_CLIENTS:
            raise ValueError(f"between 1 and {MOST_CLIENTS} clients")
        return value

    @property
    def names(self) -> list[str]:
        """The clients' names, in order."""
        return _client_names(self.clients)

    @property
    def clients_per_round(self) -> int:
        """How many clients train in a round."""
        return max(1, math.floor(self.fraction * len(self.names) + 0.5))


def _client_names(clients: int | list[str]) -> list[str]:
    return [f"client-{i + 1}" for i in range(clients)] if isinstance(clients, int) else list(clients)


class SamplingConfig(Section):
    """How responses are drawn from the policy."""

    group_size: int = Field(8, ge=2, le=1024)
    """Responses per problem, G. One response has no group to be compared with."""
    max_new_tokens: int = Field(256, ge=1, le=131072)
    """Longest response in tokens."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Of sampling, and of the log-probs the loss is made of."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: int = Field(0, ge=0)
    """Only the k likeliest tokens; 0 is off."""


COMPONENTS_STAY = [rule.name for rule in RULES.values() if not rule.new_components]
"""Rules after which the moments of an adapter's components still apply."""


class TrainConfig(Section):
    """The local objective and its optimizer (docs/methods.md, section 1)."""

    rounds: int = Field(10, ge=1)
    """Synchronisations."""
    local_steps: int = Field(5, ge=1)
    """Local steps of each client between two synchronisations, tau."""
    problems_per_step: int = Field(8, ge=1)
    """Problems of each client in a local step; each gets group_size responses."""
    loss: Literal[tuple(LOSSES)] = "dapo"  # type: ignore[valid-type]  # of a table, which mypy does not evaluate
    """The policy-gradient loss. `grpo`, `dr_grpo` and `dapo` clip the policy ratio and average token losses over each
    response, by the longest allowed response, or over all tokens. `cispo` averages over all tokens, and a token whose
    ratio is clipped keeps its gradient."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation (Dr. GRPO does not)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clipping bound of the policy ratio, as a distance from 1. With `cispo`, values close to 1 leave it out, as
    its authors do."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clipping bound of the policy ratio, as a distance from 1."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the k3 estimate of KL(policy || base)."""
    updates_per_batch: int = Field(1, ge=1, le=64)
    """Optimizer steps on each sampled batch."""
    proximal_mu: Annotated[float, OnlyWith("federation.arm", ("federated", "central"))] = Field(0.0, ge=0)
    """FedProx: (mu / 2) || adapter - the round's adapter ||^2. 0 is FedAvg."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Over all local steps of the run, after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Local steps with a linearly rising rate, once per run."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled, as in AdamW."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """AdamW's second moment; short runs want it below the usual 0.999."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Each client's gradient is clipped to this norm."""
    unfinished: Unfinished = "grade"
    """How a response that was cut at sampling.max_new_tokens is treated in training. `grade` grades its text like any
    other. `zero` gives it reward 0. `mask` gives it reward 0, which counts in its group's mean, and no gradient. With
    `zero` and `mask` it casts no vote and enters no pool."""
    optimizer_state: Annotated[Literal["reset", "keep"], OnlyWith("aggregation.type", COMPONENTS_STAY)] = "reset"
    """At a synchronisation: start afresh, or keep the moments (they stay with the client)."""

    def check(self, config: Any) -> None:
        """The warm-up ends before the run does."""
        if self.warmup_steps >= self.rounds * self.local_steps > 1:
            raise ValueError("train.warmup_steps must be fewer than rounds x local_steps")


class EngineConfig(Section):
    """How a machine computes; changes cost and memory, never the result. Stays on the machine.

    Each saving is a switch of its own, so that it can be measured and tested alone (docs/performance.md).
    """

    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens, padding included, in one forward and backward; at least one problem. None: 16,384 on a GPU; on a
    CPU 1,024, for its cache, and down to 256 for large models, for memory."""
    decode_rows: int = Field(1024, ge=1)
    """Responses decoded side by side, all clients together; at least one problem per client."""
    logits_at_once: int = Field(1 << 24, ge=1)
    """Logits (tokens x vocabulary) held at once in training, at least one token's; 4 bytes each."""
    threads: int | None = Field(None, ge=1)
    """Torch threads; None takes OMP_NUM_THREADS if it is set, else one per core, for a small model just one."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """Matrix products in bfloat16; `auto` is bfloat16 on a GPU that has it, else off."""
    decode_cache: Literal["auto", "growing", "static"] = "auto"
    """`static` computes every decode step at the full length, so that a GPU can replay it as one CUDA graph; `auto` is
    static on a GPU, else growing."""
    cohort: bool = True
    """All clients of this machine in one batch; off: one after another."""
    skip_zero_advantage: bool = True
    """No forward and backward for responses without a gradient; the normaliser still counts them."""
    prefill_once: bool = True
    """In sampling, a problem's prompt is computed once for its G responses."""
    shared_cache: bool = True
    """In sampling, a prompt's keys and values are kept once for its G responses; needs prefill_once."""
    shared_prefix: bool = True
    """In training, a problem's prompt is computed once for its G responses."""
    compact: bool = True
    """Responses that ended leave the decode batch."""
    sampled_logps: bool = True
    """Behaviour log-probs are those taken at sampling; off: a forward pass of their own."""
    response_logits: bool = True
    """Logits at response positions only and in chunks, never [tokens x vocabulary] at once."""
    by_length: bool = True
    """Micro-batches are cut by tokens from rows sorted by length; off: in the order drawn."""


class EvaluateConfig(Section):
    """Sampled pass@1 on held-out problems, each client on its own."""

    every: int = Field(0, ge=0)
    """Rounds between evaluations; 0 evaluates before the first round and after the last."""
    samples: int = Field(1, ge=1, le=256)
    """Responses per problem; pass@1 is the mean over them."""
    temperature: float = Field(1.0, ge=0, le=10)
    """0 is greedy."""
