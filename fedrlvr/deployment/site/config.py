"""An organisation's own configuration, `site.toml`: its name, its problems and models, and its limits.

Only this file decides what a server may ask for; no message changes it. Relative paths in it mean relative to it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from fedrlvr.config.engine import EngineConfig
from fedrlvr.config.problems import DataConfig
from fedrlvr.config.prompt import Wording, with_template
from fedrlvr.config.reference import type_of
from fedrlvr.config.sections import MOST_RESPONSES, Dtype, ModelConfig, Name, Section
from fedrlvr.config.supervision import LabelSource, SupervisionType
from fedrlvr.errors import ConfigError, printable, suggestion
from fedrlvr.hosts import LOOPBACK, is_loopback, split_address
from fedrlvr.privacy.card import Approve
from fedrlvr.privacy.private_text import LEAST_CANARY, letters_of

MessageType = Literal["train", "query.respond", "evaluate"]


class TaskConfig(DataConfig):
    """Problems that a server may ask this organisation to train on; they never leave it. The settings are those of
    [data].

    prompt: what is stated here takes the place of the server's own settings of [prompt].
    """

    prompt: Wording = Wording()

    @model_validator(mode="after")
    def _no_public_problems(self) -> TaskConfig:
        for name in ("public_size", "train_on_public"):
            if getattr(self, name):
                raise ValueError(f"{name} has no place here: public problems come from the server")
        return self


def _recognisable(canary: str) -> str:
    if len(letters_of(canary)) < LEAST_CANARY:
        raise ValueError(f"{canary!r} has fewer than {LEAST_CANARY} letters and digits")
    return canary


Canary = Annotated[str, AfterValidator(_recognisable)]
"""A text that is long enough to stand in no response by chance."""


class MachineConfig(Section):
    """The hardware on which this organisation runs the model."""

    device: str = "auto"
    """Device that computes: `auto`, `cpu`, `cuda`, or one GPU, such as `cuda:1`. `auto` takes a GPU where there is one.
    """
    dtype: Dtype = "auto"
    """Number format of the base weights; adapters are always float32. `auto` is bfloat16 on a GPU that supports it,
    else float32."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass: less memory, about a third more time. Turn it on if
    training runs out of GPU memory."""


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the least value, {value[0]:g}, is above the largest, {value[1]:g}")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""The least and the largest value that are accepted."""


class Limits(Section):
    """Limits of what a server may ask for, and floors below which nothing leaves. A request beyond a limit is refused
    with the reason before anything is computed. A reply that misses a floor after training stays here."""

    message_types: tuple[MessageType, ...] = get_args(MessageType)
    """Types of messages that are answered. Without "query.respond" no response to a public problem leaves; without
    "evaluate" no score leaves."""
    messages_per_day: int = Field(500, ge=1)
    """Largest number of messages answered in a day (UTC), over all runs and all servers."""
    evaluations_per_day: int = Field(50, ge=1)
    """Largest number of evaluations of a task in a day (UTC), over all runs and all servers. Every score of chosen
    responses reveals something about the held-out answers."""
    rounds: int = Field(1000, ge=1)
    """Largest number of rounds in a run, and of adapters that a task gives in 30 days over all runs and all servers. A
    new run does not reset the count, and the personal steps after the last round (personal.type) count as a round."""
    local_steps: int = Field(100, ge=1)
    """Largest number of local steps in a round, and of personal steps after the last one."""
    problems_per_step: int = Field(256, ge=1)
    """Largest number of problems in a local step."""
    group_size: int = Field(64, ge=2)
    """Largest number of responses to a problem."""
    max_new_tokens: int = Field(4096, ge=1)
    """Largest accepted length of a response, in tokens."""
    dynamic_sampling: int = Field(4, ge=0)
    """Largest number of further draws in a local step (train.dynamic_sampling). The time that a message takes, and the
    number of problems that were drawn again, say how many problems had the same reward for all responses. 0 refuses
    such a run."""
    tokens_per_message: int = Field(100_000_000, ge=1)
    """Largest number of tokens sampled for one message: steps x problems x responses x longest response, with
    the public problems, and each step 1 + train.dynamic_sampling times."""
    public_problems: int = Field(256, ge=0)
    """Largest number of public problems in an exchange."""
    public_steps: int = Field(16, ge=1)
    """Largest number of optimizer steps on the groups of an exchange."""
    updates_per_batch: int = Field(8, ge=1)
    """Largest number of optimizer steps on a sampled batch."""
    evaluate_samples: int = Field(64, ge=1)
    """Largest number of responses to each held-out problem."""
    lora_rank: int = Field(64, ge=1)
    """Largest LoRA rank of an adapter in a run: this organisation's, and those of the other clients."""
    change_rank: int = Field(1024, ge=0)
    """Largest rank of a change of the base weights that the server sends, as the aggregation rules flora and fedex do.
    0 refuses every change."""
    supervision: tuple[SupervisionType, ...] = (
        *("labels", "majority", "care", "trapo", "geomin", "random", "entropy", "probability"),
    )
    """Accepted sources of rewards. "oracle", which reads every answer to choose, is for experiments."""
    labels_from: tuple[LabelSource, ...] = get_args(LabelSource)
    """Sources of labels that a server may choose: the data set's own answers, or people at the desk."""
    label_share: float = Field(1.0, ge=0, le=1)
    """Largest share of the training problems of a run whose label may be asked for (supervision.budget)."""
    labels: int | None = Field(None, ge=1)
    """Largest number of labels that all runs of a task may ask for together. A server must then state a
    supervision.budget_total, which is reserved for its run. Unset: no limit."""
    audit: bool = False
    """Whether a server may measure the accuracy of majority votes with all answers, also those that were not asked for.
    This is for experiments."""
    share_probes: bool = True
    """Whether the weights of CARE's probes may leave this organisation."""
    own_adapter: bool = False
    """Whether a server may train an adapter that stays here between rounds, as the arm `local` of an experiment does. A
    run across organisations never needs it."""
    personal: bool = True
    """Whether a server may have this site make a personal adapter, which stays here (personal.type). Numbers of its
    training and its scores leave as those of any other adapter do."""
    prompt_filter: bool = False
    """Whether a server's data.max_prompt_tokens may leave out some of this site's problems. If false, such a run is
    refused: numbers over two sets of problems that differ by one problem would describe that problem. Set the task's
    own max_prompt_tokens instead."""
    learning_rate: Range = (0.0, 0.01)
    """Least and largest learning rate that is accepted."""
    probe_learning_rate: Range = (0.0, 0.01)
    """Least and largest learning rate of CARE's probes."""
    beta1: Range = (0.5, 0.999)
    """Least and largest decay rate of AdamW's first moment, the running mean of gradients. With 0 a reply would
    show the last gradient alone."""
    beta2: Range = (0.5, 0.9999)
    """Least and largest decay rate of AdamW's second moment, the running mean of squared gradients. With 0 a reply
    would give the last gradient away."""
    weight_decay: Range = (0.0, 0.1)
    """Least and largest weight decay that is accepted."""
    max_grad_norm: Range = (0.01, 100.0)
    """Least and largest norm that a gradient is clipped to. With a tiny norm AdamW returns the exact gradient."""
    clip_low: Range = (0.01, 1.0)
    """Least and largest train.clip_low that is accepted. The lower bound of the policy ratio is 1 minus it."""
    clip_high: Range = (0.01, 10.0)
    """Smallest and largest train.clip_high that a server may set. The upper bound of the policy ratio is 1 plus it."""
    scale_free: bool = True
    """Whether AdamW runs without its epsilon, so that a first step reveals only the signs of gradients. If false, a
    server could obtain gradients instead of steps, by sending factors so small that their gradients are far below
    epsilon."""
    kl_beta: Range = (0.0, 0.2)
    """Least and largest weight of the KL term. A large weight outweighs the rewards, so that a reply describes the
    prompts."""
    proximal_mu: Range = (0.0, 1.0)
    """Least and largest weight of FedProx. With a large weight only the first step of a round counts."""
    temperature: Range = (0.1, 2.0)
    """Least and largest sampling temperature in training."""
    top_p: Range = (0.1, 1.0)
    """Least and largest share of the probability that nucleus sampling keeps in training."""
    chat: tuple[Literal["auto", "on", "off"], ...] = ("auto", "on", "off")
    """Accepted values of a server's prompt.chat."""
    template_args: tuple[str, ...] = ("enable_thinking", "thinking", "reasoning_effort")
    """Arguments of a tokenizer's chat template that a server may set (prompt.template_args)."""
    instruction: int = Field(2000, ge=0)
    """Largest number of characters of an instruction that a server sends. Limits of a prompt's parts do not concern
    the parts that a task states itself, in [tasks.NAME.prompt]."""
    system: int = Field(2000, ge=0)
    """Largest number of characters of a system message that a server sends."""
    template: int = Field(2000, ge=0)
    """Largest number of characters of a template that a server sends. One with a condition is always refused: numbers
    of a run in which certain prompts are worded in another way would tell about these prompts. 0 refuses all."""
    examples: int = Field(0, ge=0)
    """Largest number of this organisation's training problems that a server may have put before every problem as
    examples. They have a part in every gradient, which limits.problem_share does not count. 0 refuses them."""
    shots: int = Field(16, ge=0)
    """Largest number of questions with answers that a server sends to stand before every problem."""
    prefill: int = Field(200, ge=0)
    """Largest number of characters of the beginning of every response that a server sends."""
    stop: int = Field(8, ge=0)
    """Largest number of strings that a server sends to end a response, each of at most 64 characters."""
    lora_scale: Range = (0.0, 16.0)
    """Least and largest scale alpha / rank of an adapter's update."""
    factor_value: float = Field(10.0, gt=0)
    """Largest absolute value of a number in an adapter, or in a change of the base weights, that the server sends."""
    update_norm: float = Field(1000.0, gt=0)
    """Largest size of one layer's update that the server sends: scale x norm of A x norm of B, where the norms are
    Euclidean."""
    least_clients: int = Field(2, ge=1)
    """Privacy floor: least number of organisations that train in a run, because an average of few describes each of
    them. The server states the number, and this machine cannot verify it."""
    least_problems: int = Field(8, ge=1)
    """Privacy floor: least number of different private problems behind an adapter, behind CARE's probes, and behind any
    response that leaves after local steps. A task with fewer is not trained on."""
    least_group_size: int = Field(4, ge=2)
    """Privacy floor: least number of responses to a problem."""
    least_new_tokens: int = Field(8, ge=1)
    """Privacy floor: least accepted value of sampling.max_new_tokens."""
    least_learned: int = Field(4, ge=0)
    """Privacy floor: least number of different private problems with a gradient behind an adapter, and behind any
    response that leaves after local steps. A problem has no gradient where all its responses get the same reward."""
    least_tokens: int = Field(256, ge=0)
    """Privacy floor: least number of tokens of responses to private problems that were trained on behind an adapter,
    and behind any response that leaves after local steps."""
    least_positions: float = Field(1.0, ge=0)
    """Privacy floor: least number of different token positions with a part in the update behind an adapter, and behind
    any response that leaves after local steps, as a multiple of the widest input of an adapted layer. With fewer
    positions the change of a layer spans only the inputs that it was made from, and prompts can be read from it."""
    largest_ratio: float = Field(20.0, gt=1)
    """Privacy floor: largest policy ratio of a trained token. With a larger one a single token may be the whole update.
    """
    problem_share: float = Field(0.5, gt=0, le=1)
    """Privacy floor: largest share that a single private problem may have in a round's update, estimated from learning
    rates, advantages and tokens."""
    least_scored: int = Field(8, ge=1)
    """Privacy floor: least number of private problems behind a number that leaves. Sources of held-out problems with
    fewer are pooled; other numbers over fewer are left out."""
    source_names: bool = True
    """Whether scores may leave under the names of their sources. If false, all scores are summed under the name of the
    task."""
    epsilon: float | None = Field(None, ge=1e-3, le=1e6)
    """Budget of differential privacy: largest epsilon that all adapters of this organisation together may cost, over
    all tasks, runs and servers. A server must then ask for noise (privacy.unit), and the round that would exceed the
    budget is refused before anything is computed. Numbers and scores stay here. Unset: there is no budget, and a server
    decides whether noise is added."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability with which the bound by limits.epsilon may fail."""
    unnoised_scores: bool = False
    """Whether scores of held-out problems leave although limits.epsilon is set. The budget does not count them."""
    round_numbers: bool = True
    """Whether numbers are rounded before they leave: rewards, shares and scores at random, up or down, to the precision
    that their number of problems supports; others to two significant digits."""


class EgressConfig(Section):
    """Approval of what leaves. Every reply passes one place, which writes the decision log `state/decisions.jsonl`."""

    approve: Approve = "none"
    """Replies that leave only once a person has approved them, by `fedrlvr site approve` or on the page of
    `fedrlvr desk --site DIR`: those with an adapter, those with responses to public problems, or all that are no
    refusals."""
    wait: float = Field(3600.0, gt=0, le=7 * 86400.0)
    """Seconds that a reply waits for a person; afterwards it stays here. Choose fewer than the server's
    federation.deadline, after which a reply is of no use."""
    rule: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """Function of this site's own, as `package.module:function`, that decides about each reply by its card: True (it
    leaves), False (it stays) or None (a person decides, as egress.approve says)."""
    rule_seconds: float = Field(10.0, gt=0)
    """Seconds that one call of egress.rule may take; afterwards its process is killed and the reply stays here."""
    check_responses: bool = True
    """Whether responses to public problems stay here if they hold text of this site's own problems and answers: words
    in a row (egress.words), a long number (egress.digits) or a canary, that the public problems do not hold."""
    words: int = Field(8, ge=3)
    """Number of words in a row that a response and a private text must have in common for the response to stay here.
    Raise it if phrases that all problems share keep responses back."""
    digits: int = Field(8, ge=4)
    """Number of digits from which on a number that a response and a private text have in common keeps the response
    here."""
    canaries: tuple[Canary, ...] = ()
    """Texts of at least six letters or digits that no response may hold, such as invented names that were planted in
    private problems."""
    dropped_responses: int = Field(0, ge=0)
    """Largest number of responses with private text that are taken out of a reply; with more the whole reply stays.
    A server sees which are missing, and may so test texts of its choice against the private problems; with 0 each
    message tells it one bit at most."""


class SiteConfig(Section):
    """One organisation: its name, its server, its data and its models."""

    name: Name
    """Name of this organisation, as the SuperLink's operator registers it."""
    superlink: str
    """Address of the SuperLink, the federation's server, as host:port."""
    root_certificates: Path | None = Path("ca.crt")
    """PEM file of the authority that signed the SuperLink's certificate. The operator sends it."""
    key: Path | None = None
    """File of this organisation's private key, whose public key is registered with the SuperLink. Unset: the file
    `<name>.key` beside this one."""
    insecure: bool = False
    """Whether the connection has no TLS and no keys. It is allowed only with a SuperLink on this machine, for trials.
    """
    port: int = Field(9094, ge=1, le=65535)
    """Port of the SuperNode's own interface, which listens on 127.0.0.1 only. Each SuperNode on a machine needs its
    own."""
    idle_minutes: float = Field(10.0, gt=0)
    """Minutes without a message after which the worker ends and frees the model's memory. The next message starts
    another worker."""
    message_minutes: float = Field(120.0, gt=0)
    """Minutes in which the worker has to answer one message, besides egress.wait where a person approves replies.
    Afterwards the worker is killed, the server is told that the message failed, and the next message finds another
    worker. It bounds what a reward function that hangs costs: set it a little above what a round takes here."""
    changed_data: Literal["refuse", "take"] = "refuse"
    """Answer to messages of a run in whose middle the files of a task have changed: "refuse" leaves this organisation
    out of the run until the files are as they were, and tells the server so; "take" goes on with the new problems, and
    only site.log tells of it."""
    keep_runs: int = Field(5, ge=1)
    """Number of newest runs whose state stays on disk. Labels that people gave are never deleted."""
    responses: int = Field(0, ge=0, le=MOST_RESPONSES)
    """Number of responses to private problems that each round of a run writes to `responses.jsonl` in its directory
    under `state/runs`, with prompt and answer, for this site's people to read with `fedrlvr site responses`. They never
    leave the machine. 0 writes none; set a few while rewards are to be understood."""
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    """Problems that a server may ask to train on, by the name of their task."""
    models: dict[str, str] = Field(min_length=1)
    """Base models that a server may ask for, and the place of each: a directory, a hub id, or `embedded`."""
    machine: MachineConfig = MachineConfig()
    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()
    egress: EgressConfig = EgressConfig()

    @field_validator("superlink")
    @classmethod
    def _address(cls, value: str) -> str:
        split_address(value)
        return value

    @model_validator(mode="after")
    def _insecure_on_this_machine_only(self) -> SiteConfig:
        host, _ = split_address(self.superlink)
        if self.insecure and not is_loopback(host):
            raise ValueError(f"insecure is for a SuperLink on this machine ({LOOPBACK[0]}), not on {host}")
        return self


@dataclass(frozen=True)
class Organisation:
    """An organisation's configuration, and the places of its files.

    path: of its site.toml, absolute.
    """

    config: SiteConfig
    path: Path

    @property
    def name(self) -> str:
        """Name of the organisation, as it is registered."""
        return self.config.name

    @property
    def directory(self) -> Path:
        """Directory of site.toml, to which the paths in it are relative."""
        return self.path.parent

    @property
    def state(self) -> Path:
        """Directory of the organisation's memory, its logs and its worker's socket; private to its user."""
        return self.directory / "state"

    @property
    def log(self) -> Path:
        """Log with one line for each request and each answer."""
        return self.state / "site.log"

    def resolve(self, path: Path) -> Path:
        """Path of the configuration, relative to site.toml."""
        return path if path.is_absolute() else self.directory / path

    @cached_property
    def key(self) -> Path:
        """Path of the organisation's private key."""
        return self.resolve(self.config.key or Path(f"{self.name}.key"))

    @cached_property
    def root_certificates(self) -> Path | None:
        """Path of the authority's certificate, if there is one."""
        return None if self.config.root_certificates is None else self.resolve(self.config.root_certificates)

    @cached_property
    def engine(self) -> EngineConfig:
        """Settings of the computation on this machine, with their paths resolved."""
        return self.config.engine.in_directory(self.directory)

    @property
    def seconds(self) -> float:
        """Seconds in which the worker has to answer a message."""
        waits = self.config.egress.wait if self.config.egress.approve != "none" else 0.0
        return 60.0 * self.config.message_minutes + waits

    def task(self, name: str) -> TaskConfig:
        """A task of this name, with its paths resolved.

        Raises:
            KeyError: there is none of this name.
        """
        task = self.config.tasks[name]
        return task if task.path is None else task.model_copy(update={"path": self.resolve(task.path)})

    def model(self, name: str) -> ModelConfig:
        """A model as it is loaded on this machine; a relative path that exists is one beside site.toml.

        Raises:
            KeyError: there is none of this name.
        """
        place = self.config.models[name]
        if place != "embedded" and self.resolve(Path(place)).exists():
            place = str(self.resolve(Path(place)))
        return ModelConfig(name=place, **self.config.machine.model_dump())


def load_site(path: Path | str) -> Organisation:
    """Read a site.toml, or the one in a directory.

    Raises:
        ConfigError: the file is missing, not TOML, or a key or value does not fit; the text names file and key.
    """
    file = Path(path).expanduser().absolute()
    file = file / "site.toml" if file.is_dir() else file
    try:
        tree = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file. `fedrlvr site init` makes one.") from None
    except (OSError, ValueError, RecursionError) as error:  # UTF-8, TOML, or a number of thousands of digits
        raise ConfigError(f"{file} cannot be read as TOML: {error}.") from None
    for name, task in tasks.items() if isinstance(tasks := tree.get("tasks"), dict) else ():
        if isinstance(task, dict) and isinstance(task.get("prompt"), dict):
            task["prompt"] = with_template(task["prompt"], file.parent, name=f"{file}: tasks.{name}.prompt")
    try:
        return Organisation(SiteConfig.model_validate(tree), file)
    except ValidationError as error:
        raise ConfigError(f"{file}: {'; '.join(explanations(error))}.") from None


def explanations(error: ValidationError) -> list[str]:
    """The errors in the settings of a site file as texts, each with the setting's name first."""
    texts = []
    for item in error.errors(include_url=False):
        *sections, name = location = [str(part) for part in item["loc"] if part != "[key]"] or [""]
        section = _SECTIONS.get(location[0], SiteConfig) if sections else SiteConfig
        section = Wording if section is TaskConfig and "prompt" in location[2:-1] else section
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden" and sections[:1] == ["tasks"] and name == "instruction":
            text = f"this setting is now called {'.'.join(sections)}.prompt.instruction"
        elif item["type"] == "extra_forbidden":
            known = sorted(section.model_fields)
            text = f"unknown setting, {suggestion(name, known, ''.join(f'{part}.' for part in sections))}"
        elif item["type"] == "missing" and len(location) == 1:
            text = "this setting is required"
        elif item["type"] == "string_pattern_mismatch":
            text = "letters, digits, - and _ only, at most 64"
        elif name in section.model_fields or (sections and sections[-1] in section.model_fields):
            setting = name if name in section.model_fields else sections.pop()
            location = [*sections, setting]
            if not item["type"].startswith("value_error"):
                text = f"allowed: {type_of(section, setting)}"
        texts.append(f"{'.'.join(location)}: {text[0].lower()}{text[1:]}" if item["loc"] else text)
    return list(dict.fromkeys(map(printable, texts)))


_SECTIONS: dict[str, type[Section]] = {
    "tasks": TaskConfig,
    "machine": MachineConfig,
    "engine": EngineConfig,
    "limits": Limits,
    "egress": EgressConfig,
}
