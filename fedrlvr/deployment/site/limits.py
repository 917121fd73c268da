"""Whether an organisation lets be done what a server asks: every setting of its [limits], before anything is computed.

All that is beyond them is said at once, so that a server's operator need not find out one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedrlvr.config import Asking
from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import LimitError
from fedrlvr.wire.messages import EvaluateRequest, StretchRequest

if TYPE_CHECKING:
    from fedrlvr.wire.model_delta import ModelDelta


def check(
    limits: Limits,
    kind: str,
    terms: Terms,
    request: StretchRequest | EvaluateRequest,
    public_problems: int,
    delta: ModelDelta | None = None,
) -> None:
    """Whether a message asks for no more than is allowed.

    kind: of the message. public_problems: how many it brings. delta: its notes on the model that it brings.

    Raises:
        LimitError: it asks for more; the text names every limit that is in the way.
    """
    if kind not in limits.message_types:
        raise LimitError(f"{terms.client} answers no {kind} messages (limits.message_types)")
    _refuse(terms.client, [*_of_the_run(limits, terms, request, delta), *_of(limits, request, public_problems)])


def check_problems(limits: Limits, problems: int, *, name: str = "this organisation") -> None:
    """Whether there are enough training problems to let an adapter be trained on them.

    Raises:
        LimitError: there are not.
    """
    if problems < limits.least_problems:
        raise LimitError(
            f"{name} trains on no fewer than {limits.least_problems} problems (limits.least_problems), and this task "
            "has fewer"
        )


def check_evaluation(limits: Limits, name: str, request: EvaluateRequest, problems: int) -> None:
    """Whether evaluating on so many held-out problems samples no more than is allowed.

    Raises:
        LimitError: it does.
    """
    tokens = problems * request.evaluate.samples * request.sampling.max_new_tokens
    _refuse(name, _most(limits, "tokens_per_message", tokens, "tokens sampled for one message"))


def _refuse(name: str, beyond: Sequence[str] | Iterator[str]) -> None:
    if reasons := list(beyond):
        raise LimitError(f"{name} allows {'; '.join(reasons)}")


def _most(limits: Limits, setting: str, asked: int | float, what: str) -> Iterator[str]:
    most = getattr(limits, setting)
    if asked > most:
        yield f"at most {most} {what} (limits.{setting}), asked for {asked}"


def _of_the_run(
    limits: Limits, terms: Terms, request: StretchRequest | EvaluateRequest, delta: ModelDelta | None
) -> Iterator[str]:
    yield from _most(limits, "rounds", max(terms.rounds, request.round), "rounds")
    if request.round > terms.rounds:
        yield f"no round beyond the run's own {terms.rounds}, asked for round {request.round}"
    yield from _most(limits, "lora_rank", max(terms.rank, terms.largest), "as the rank of an adapter")
    least = limits.least_clients
    if terms.clients < least:
        yield f"no run of fewer than {least} organisations (limits.least_clients), this has {terms.clients}"
    if (
        delta is not None
        and not limits.change_rank
        and (delta.change_rank or (delta.keep == "change" and delta.since is not None))
    ):
        yield "no change of the base weights (limits.change_rank = 0)"
    elif delta is not None:
        yield from _most(limits, "change_rank", delta.change_rank, "as the rank of a change of the base weights")
    yield from _most(limits, "max_new_tokens", request.sampling.max_new_tokens, "tokens in a response")


def _of(limits: Limits, request: StretchRequest | EvaluateRequest, public_problems: int) -> Iterator[str]:
    if isinstance(request, EvaluateRequest):
        yield from _most(limits, "evaluate_samples", request.evaluate.samples, "responses to each held-out problem")
        return
    train, sampling, exchange = request.train, request.sampling, request.coordination
    yield from _most(limits, "local_steps", max(request.steps, train.local_steps), "local steps")
    yield from _most(limits, "problems_per_step", train.problems_per_step, "problems in a local step")
    yield from _most(limits, "group_size", sampling.group_size, "responses to a problem")
    yield from _most(limits, "updates_per_batch", train.updates_per_batch, "optimizer steps on a sampled batch")
    announced = exchange.public_problems if exchange else 0
    yield from _most(limits, "public_problems", max(public_problems, announced), "public problems in an exchange")
    if exchange is not None:
        yield from _most(limits, "public_steps", exchange.public_steps, "optimizer steps on an exchange's groups")
    problems = request.steps * train.problems_per_step + public_problems
    tokens = problems * sampling.group_size * sampling.max_new_tokens
    yield from _most(limits, "tokens_per_message", tokens, "tokens sampled for one message")
    yield from _of_supervision(limits, request)


def _of_supervision(limits: Limits, request: StretchRequest) -> Iterator[str]:
    section = request.supervision
    if section.type not in limits.supervision:
        yield f"no rewards from {section.type!r} (limits.supervision)"
    if section.audits and not limits.audit:
        yield "no audit (limits.audit)"
    if section.shares_probes and not limits.share_probes:
        yield "no probes to leave (limits.share_probes)"
    if not isinstance(section, Asking):
        return
    if section.labels_from not in limits.labels_from:
        yield f"no labels to be asked of the {section.labels_from} (limits.labels_from)"
    yield from _most(limits, "label_share", section.budget, "as the share of a step's problems to ask labels for")
    total = section.budget_total
    if limits.labels is not None and (total is None or total > limits.labels):
        asked = "no supervision.budget_total is given" if total is None else f"asked for {total}"
        yield f"at most {limits.labels} labels in a run (limits.labels), {asked}"
