"""Checks a request against the site's [limits] before any work is done.

Every limit that a request exceeds is named at once, so that a server's operator need not find out one by one. Floors
after training, and the precision of what leaves, are in release.py; what is counted over runs is in counts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedrlvr.aggregation.personal import SHARES
from fedrlvr.config import Asking, CareSupervision
from fedrlvr.config.problems import RewardConfig, check_weighted
from fedrlvr.config.prompt import PromptConfig, Wording
from fedrlvr.config.prompt_template import prompt_template
from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import LimitError
from fedrlvr.supervision.judge import AUTHORS_RATE, LARGEST_RATE
from fedrlvr.wire.messages import EvaluateRequest, StretchRequest, TrainRequest

if TYPE_CHECKING:
    from fedrlvr.wire.model_delta import ModelDelta

Compare = Callable[[Any, Any], str]
"""(limit, value) -> how an allowed value relates to the limit; "" if this one is allowed."""


def most(limit: float, value: float) -> str:
    """Values up to the limit are allowed."""
    return "" if value <= limit else f"at most {limit}"


def least(limit: float, value: float) -> str:
    """Values from the limit on are allowed."""
    return "" if value >= limit else f"at least {limit}"


def within(limit: tuple[float, float], value: float) -> str:
    """Values between the two are allowed."""
    return "" if limit[0] <= value <= limit[1] else f"{limit[0]:g} to {limit[1]:g}"


@dataclass(frozen=True)
class FieldLimit:
    """A setting of [limits], with the fields that it bounds, their comparison, and its words in an error.

    fields: of the request, or of what else `Asked` has. A field that a request does not have is not checked.
    """

    setting: str
    compare: Compare
    fields: tuple[str, ...]
    words: str


BOUNDS = (
    FieldLimit("rounds", most, ("run_round", "terms.rounds"), "rounds"),
    FieldLimit("lora_rank", most, ("terms.rank", "terms.largest"), "as the rank of an adapter"),
    FieldLimit("lora_scale", within, ("terms.scale",), "as the scale alpha / rank of an adapter"),
    FieldLimit("least_clients", least, ("terms.clients",), "organisations that train in a run"),
    FieldLimit("change_rank", most, ("delta.change_rank",), "as the rank of a change of the base weights"),
    FieldLimit("max_new_tokens", most, ("sampling.max_new_tokens",), "tokens in a response"),
    FieldLimit("least_new_tokens", least, ("sampling.max_new_tokens",), "tokens as the longest response"),
    FieldLimit("evaluate_samples", most, ("evaluate.samples", "choose.samples"), "responses to each held-out problem"),
    FieldLimit("local_steps", most, ("steps", "train.local_steps"), "local steps"),
    FieldLimit("problems_per_step", most, ("train.problems_per_step",), "problems in a local step"),
    FieldLimit("dynamic_sampling", most, ("train.dynamic_sampling",), "further draws in a local step"),
    FieldLimit("updates_per_batch", most, ("train.updates_per_batch",), "optimizer steps on a sampled batch"),
    FieldLimit("public_problems", most, ("public", "coordination.public_problems"), "public problems in an exchange"),
    FieldLimit("public_steps", most, ("coordination.public_steps",), "optimizer steps on an exchange's groups"),
    FieldLimit("label_share", most, ("supervision.budget",), "as the share of the problems to ask labels for"),
    FieldLimit("learning_rate", within, ("train.learning_rate",), "as the learning rate"),
    FieldLimit("probe_learning_rate", within, ("supervision.probe_learning_rate",), "as the probes' learning rate"),
    FieldLimit("beta1", within, ("train.beta1",), "as beta1"),
    FieldLimit("beta2", within, ("train.beta2",), "as beta2"),
    FieldLimit("weight_decay", within, ("train.weight_decay",), "as the weight decay"),
    FieldLimit("max_grad_norm", within, ("train.max_grad_norm",), "as the norm that gradients are clipped to"),
    FieldLimit("clip_low", within, ("train.clip_low",), "as the lower clipping bound"),
    FieldLimit("clip_high", within, ("train.clip_high",), "as the upper clipping bound"),
    FieldLimit("kl_beta", within, ("train.kl_beta",), "as the weight of the KL term"),
    FieldLimit("proximal_mu", within, ("train.proximal_mu",), "as the weight of FedProx"),
)
"""Limits that hold for every message, with the values they bound."""
TRAINING_BOUNDS = (
    FieldLimit("group_size", most, ("sampling.group_size",), "responses to a problem"),
    FieldLimit("least_group_size", least, ("sampling.group_size",), "responses to a problem"),
    FieldLimit("temperature", within, ("sampling.temperature",), "as the sampling temperature"),
    FieldLimit("top_p", within, ("sampling.top_p",), "as top_p"),
)
"""Limits of training, whose fields an evaluation has too but does not use."""


@dataclass(frozen=True)
class Asked:
    """The request in a message. public: problems that it brings. delta: its metadata on the model that it brings."""

    terms: Terms
    request: StretchRequest | EvaluateRequest
    public: int
    delta: ModelDelta | None

    def values(self, field: str) -> Iterator[float]:
        """The value of a field; none where there is no such field."""
        first, _, rest = field.partition(".")
        value: Any = getattr(self if first in ("terms", "delta", "public") else self.request, first, None)
        if rest:
            value = getattr(value, rest, None)
        if value is not None:
            yield value


def check(
    limits: Limits,
    kind: str,
    terms: Terms,
    request: StretchRequest | EvaluateRequest,
    public_problems: int,
    delta: ModelDelta | None = None,
) -> None:
    """Check a message against the limits.

    kind: type of the message. public_problems: how many it brings. delta: its notes on the model that it brings.

    Raises:
        LimitError: the request exceeds a limit; the text names every limit that is in the way.
    """
    if kind not in limits.message_types:
        raise LimitError(f"{terms.client} answers no {kind} messages (limits.message_types)")
    asked = Asked(terms, request, public_problems, delta)
    reasons = list(_beyond(limits, BOUNDS, asked))
    if isinstance(request, StretchRequest):
        reasons += [*_beyond(limits, TRAINING_BOUNDS, asked), *_of_training(limits, asked, request)]
    reasons += _of_every_message(limits, asked)
    if reasons:
        raise LimitError(f"{terms.client} allows {'; '.join(reasons)}")


def check_problems(limits: Limits, request: StretchRequest, problems: int, *, name: str = "this organisation") -> None:
    """Check that there are enough training problems for training to be allowed.

    Raises:
        LimitError: they do not.
    """
    steps = request.steps if request.coordination is None else request.train.local_steps
    touched = min(problems, steps * request.train.problems_per_step)
    if touched < limits.least_problems:
        why = "this task has fewer" if problems < limits.least_problems else f"the round's steps draw {touched}"
        raise LimitError(
            f"{name} trains on no fewer than {limits.least_problems} problems (limits.least_problems), and {why}"
        )


def check_evaluation(limits: Limits, name: str, request: EvaluateRequest, problems: int) -> None:
    """Check that an evaluation has problems, and samples no more tokens than is allowed.

    Raises:
        LimitError: it has none, or samples more.
    """
    if not problems:
        raise LimitError(f"{name} has no {request.evaluate.split} problems to evaluate (evaluate.split)")
    tokens = problems * request.evaluate.samples * request.sampling.max_new_tokens
    if reason := _reason(limits, "tokens_per_message", most, tokens, "tokens sampled for one message"):
        raise LimitError(f"{name} allows {reason}")


def check_rewards(
    name: str, task: str, rewards: Sequence[RewardConfig], request: StretchRequest | EvaluateRequest
) -> None:
    """Check that the rewards of a task go with the supervision that is asked for.

    Raises:
        LimitError: they are a weighted sum, and the supervision tells right from wrong.
    """
    if not isinstance(request, StretchRequest):
        return
    try:
        check_weighted(f"tasks.{task}.rewards of {name}", rewards, request.supervision)
    except ValueError as error:
        raise LimitError(str(error)) from None


def check_choice(limits: Limits, name: str, request: StretchRequest, problems: int) -> None:
    """Check that a mixed personal adapter can be chosen by validation problems, within the tokens that are allowed.

    Raises:
        LimitError: there are none, or too many tokens would be sampled.
    """
    if not isinstance(request, TrainRequest) or (choose := request.choose) is None:
        return
    if not problems:
        raise LimitError(
            f"{name} has no validation problems, by which personal.type = 'mix' chooses: set validation_size of its "
            "task in site.toml (data.validation_size)"
        )
    tokens = len(SHARES) * problems * choose.samples * request.sampling.max_new_tokens
    if reason := _reason(limits, "tokens_per_message", most, tokens, "tokens sampled to choose a personal adapter"):
        raise LimitError(f"{name} allows {reason}")


def _beyond(limits: Limits, bounds: tuple[FieldLimit, ...], asked: Asked) -> Iterator[str]:
    """A reason for each bound that is exceeded, with the first value that exceeds it."""
    for bound in bounds:
        values = (value for field in bound.fields for value in asked.values(field))
        reasons = (_reason(limits, bound.setting, bound.compare, value, bound.words) for value in values)
        yield from [reason for reason in reasons if reason][:1]


def _reason(limits: Limits, setting: str, compare: Compare, value: float, words: str) -> str:
    allowed = compare(getattr(limits, setting), value)
    return allowed and f"{allowed} {words} (limits.{setting}), asked for {value}"


def _of_every_message(limits: Limits, asked: Asked) -> Iterator[str]:
    terms, request, delta = asked.terms, asked.request, asked.delta
    yield from _of_prompts(limits, terms.prompt)
    if request.run_round > terms.rounds:
        yield f"no round beyond the run's own {terms.rounds}, asked for round {request.run_round}"
    if (request.personal or getattr(request, "keeps", None)) and not limits.personal:
        yield "no personal adapter that stays here (limits.personal)"
    if getattr(request, "held_out_loss", False):
        yield "no loss on given responses, which exists in simulations only"
    if request.own_adapter and not limits.own_adapter:
        yield "no adapter that stays here (limits.own_adapter)"
    if delta is not None and not limits.change_rank and delta.keep == "change" and delta.since is not None:
        yield "no change of the base weights (limits.change_rank = 0)"


def _of_prompts(limits: Limits, prompt: PromptConfig) -> Iterator[str]:
    if prompt.chat not in limits.chat:
        yield f"no prompt.chat = {prompt.chat!r} (limits.chat)"
    if strange := sorted(set(prompt.template_args) - set(limits.template_args)):
        yield f"no argument {strange[0]!r} of a chat template (limits.template_args)"
    texts = {"instruction": "an instruction", "system": "a system message", "template": "a template"}
    sizes = [
        *((name, len(getattr(prompt, name) or ""), f"characters of {words}") for name, words in texts.items()),
        ("prefill", len(prompt.prefill), "characters of a prefill"),
        ("shots", len(prompt.shots), "examples that a server sends"),
        ("stop", len(prompt.stop), "stop strings"),
        ("examples", prompt.examples, "training problems as examples"),
    ]
    yield from filter(None, (_reason(limits, name, most, size, words) for name, size, words in sizes))
    if prompt.template is not None and not prompt_template(prompt.template).is_plain:
        yield "no template with conditions, constants or filters that choose (limits.template)"


def check_examples(name: str, request: StretchRequest | EvaluateRequest, wording: Wording) -> None:
    """Check that a run may show training problems with their answers in prompts, where they are to be shown.

    wording: as the task and the server state it together.

    Raises:
        LimitError: the answers are not all paid for, or responses to public problems would leave.
    """
    if not wording.examples or not isinstance(request, StretchRequest):
        return
    shows = f"{name} shows no training problems as examples (prompt.examples = {wording.examples})"
    if (kind := request.supervision.type) != "labels":
        raise LimitError(f"{shows} with supervision.type = {kind!r}, which has not paid for their answers")
    if request.coordination is not None:
        raise LimitError(f"{shows} with coordination.type = {request.coordination.type!r}, by which responses leave")


def _of_training(limits: Limits, asked: Asked, request: StretchRequest) -> Iterator[str]:
    sampling, section = request.sampling, request.supervision
    draws = 1 + request.train.dynamic_sampling
    problems = request.steps * request.train.problems_per_step * draws + asked.public
    tokens = problems * sampling.group_size * sampling.max_new_tokens
    yield from filter(None, [_reason(limits, "tokens_per_message", most, tokens, "tokens sampled for one message")])
    if section.type not in limits.supervision:
        yield f"no rewards from {section.type!r} (limits.supervision)"
    if limits.epsilon is not None and request.privacy is None:
        yield "no adapter, number or response without noise (limits.epsilon), and none is asked for (privacy.unit)"
    if section.audits and not limits.audit:
        yield "no audit (limits.audit)"
    if section.shares_probes and not limits.share_probes:
        yield "no probes to leave (limits.share_probes)"
    if not isinstance(section, Asking):
        return
    if section.labels_from not in limits.labels_from:
        yield f"no labels to be asked of the {section.labels_from} (limits.labels_from)"
    if isinstance(section, CareSupervision) and section.probe_learning_rate is None:
        words = "as the probes' learning rate, which a site takes from the model's width if the server states none"
        rates = (_reason(limits, "probe_learning_rate", within, rate, words) for rate in (AUTHORS_RATE, LARGEST_RATE))
        yield from [reason for reason in rates if reason][:1]
    total = section.budget_total
    if limits.labels is not None and (total is None or total > limits.labels):
        stated = "no supervision.budget_total is given" if total is None else f"asked for {total}"
        yield f"at most {limits.labels} labels (limits.labels), {stated}"
