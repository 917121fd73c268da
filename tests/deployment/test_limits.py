"""What an organisation refuses: each of its limits at its edge, and all that is beyond them in one text."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from factories import make_request, make_terms
from pydantic import BaseModel

from fedrlvr.config import DataConfig
from fedrlvr.config.prompt import Wording
from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.site.limits import (
    BOUNDS,
    TRAINING_BOUNDS,
    check,
    check_choice,
    check_evaluation,
    check_examples,
    check_problems,
    check_rewards,
)
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import LimitError
from fedrlvr.wire.messages import EvaluateRequest, RespondRequest, TrainRequest
from fedrlvr.wire.model_delta import ModelDelta

CARE = {"type": "care", "budget": 0.25, "share_probes": True}
ASKS = {"type": "random", "budget": 0.25}


terms = partial(make_terms, "clinic-a", rank=4, largest=8)
TERMS = terms()


def train(**changes: Any) -> TrainRequest:
    fields: dict[str, Any] = {
        "round": 2,
        "seed": 1,
        "sampling": {"group_size": 4, "max_new_tokens": 16},
        "steps": 3,
        "train": {"local_steps": 3, "problems_per_step": 5, "updates_per_batch": 2},
        "supervision": {"type": "labels"},
    }
    for key, value in changes.items():
        old = fields.get(key)
        fields[key] = {**old, **value} if isinstance(old, dict) and key != "supervision" else value
    return make_request(**fields)


def respond(**exchange: Any) -> RespondRequest:
    fields = train().model_dump()
    fields |= {"coordination": {"type": "pubswap", "public_problems": 6, "public_steps": 2, **exchange}, "exchange": 1}
    return RespondRequest(**fields)


def evaluate(**changes: Any) -> EvaluateRequest:
    fields = {"round": 2, "seed": 1, "sampling": {"max_new_tokens": 16}, "evaluate": {"samples": 3}}
    return EvaluateRequest(**{**fields, **changes})


AT_THE_EDGE = Limits(
    rounds=5,
    local_steps=3,
    problems_per_step=5,
    group_size=4,
    max_new_tokens=16,
    # 3 steps x 5 problems and 6 public ones, x 4 responses x 16 tokens
    tokens_per_message=(3 * 5 + 6) * 4 * 16,
    public_problems=6,
    public_steps=2,
    updates_per_batch=2,
    evaluate_samples=3,
    lora_rank=8,
    change_rank=7,
    supervision=("labels", "care", "random"),
    labels_from=("dataset",),
    label_share=0.25,
    labels=None,
    audit=False,
    share_probes=True,
    least_clients=3,
    message_types=("train", "query.respond", "evaluate"),
)


def test_all_that_is_at_its_limit_is_answered() -> None:
    check(AT_THE_EDGE, "train", TERMS, train(), 0)
    for delta in (ModelDelta(version=1), ModelDelta(version=2, since=1, change_rank=7, keep="change")):
        check(AT_THE_EDGE, "train", TERMS, train(), 0, delta)
    check(AT_THE_EDGE, "train", TERMS, train(supervision=CARE), 0)
    check(AT_THE_EDGE, "train", TERMS, train(supervision=ASKS), 0)
    check(AT_THE_EDGE, "query.respond", TERMS, respond(), 6)
    check(AT_THE_EDGE, "evaluate", TERMS, evaluate(), 0)
    check(AT_THE_EDGE, "train", TERMS, train(personal=True, round=6, choose={"samples": 3}), 0)
    check(AT_THE_EDGE, "evaluate", TERMS, evaluate(personal=True, round=6), 0)


def test_an_exchange_is_no_way_to_a_round_beyond_the_runs_own() -> None:
    """Personal adapters count as one round more, and only a train message makes them."""
    with pytest.raises(ValueError, match="personal"):
        RespondRequest(**{**respond().model_dump(), "personal": True, "round": 6})


def limits(**changes: Any) -> Limits:
    return AT_THE_EDGE.model_copy(update=changes)


BEYOND: list[tuple[dict[str, Any], Any, Any, int, str]] = [
    ({"rounds": 4}, TERMS, train(), 0, ("limits.rounds", "5")),
    ({"rounds": 5}, terms(rounds=6), train(), 0, ("limits.rounds", "6")),
    ({"rounds": 6}, TERMS, train(round=6), 0, ("round 6",)),
    ({"local_steps": 2}, TERMS, train(), 0, ("limits.local_steps", "3")),
    ({"local_steps": 2}, TERMS, train(train={"local_steps": 1}), 0, ("limits.local_steps", "3")),
    ({"local_steps": 2}, TERMS, train(steps=1), 0, ("limits.local_steps", "3")),
    ({"problems_per_step": 4}, TERMS, train(), 0, ("limits.problems_per_step", "4")),
    ({"group_size": 3}, TERMS, train(), 0, ("limits.group_size", "4")),
    ({"max_new_tokens": 15}, TERMS, train(), 0, ("limits.max_new_tokens", "15")),
    ({"max_new_tokens": 15}, TERMS, evaluate(), 0, ("limits.max_new_tokens", "15")),
    ({"tokens_per_message": 1343}, TERMS, respond(), 6, ("limits.tokens_per_message", "1343")),
    ({"tokens_per_message": 959}, TERMS, train(), 0, ("limits.tokens_per_message", "960")),
    ({"public_problems": 5}, TERMS, respond(), 1, ("limits.public_problems", "5")),
    (
        {"tokens_per_message": 2879},
        TERMS,
        train(train={"dynamic_sampling": 2}),
        0,
        ("limits.tokens_per_message", "2880"),
    ),
    (
        {"dynamic_sampling": 1, "tokens_per_message": 2880},
        TERMS,
        train(train={"dynamic_sampling": 2}),
        0,
        ("limits.dynamic_sampling", "2"),
    ),
    ({"public_problems": 6, "tokens_per_message": 1408}, TERMS, respond(), 7, ("limits.public_problems", "7")),
    ({"public_steps": 1}, TERMS, respond(), 6, ("limits.public_steps", "1")),
    ({"updates_per_batch": 1}, TERMS, train(), 0, ("limits.updates_per_batch", "1")),
    ({"evaluate_samples": 2}, TERMS, evaluate(), 0, ("limits.evaluate_samples", "2")),
    ({"lora_rank": 7}, TERMS, train(), 0, ("limits.lora_rank", "8")),
    ({"lora_rank": 7}, TERMS, evaluate(), 0, ("limits.lora_rank", "8")),
    ({"lora_rank": 8}, terms(rank=9), train(), 0, ("limits.lora_rank", "9")),
    (
        {"change_rank": 6},
        TERMS,
        (train(), ModelDelta(version=1, change_rank=7, keep="change")),
        0,
        ("limits.change_rank", "7"),
    ),
    (
        {"change_rank": 0},
        TERMS,
        (evaluate(), ModelDelta(version=1, since=1, keep="change")),
        0,
        ("limits.change_rank", "0"),
    ),
    ({"supervision": ("labels",)}, TERMS, train(supervision=ASKS), 0, ("limits.supervision",)),
    ({}, TERMS, train(supervision={"type": "oracle"}), 0, ("limits.supervision",)),
    (
        {"supervision": ("majority",)},
        TERMS,
        train(supervision={"type": "majority", "audit": True}),
        0,
        ("limits.audit",),
    ),
    ({}, TERMS, train(supervision={**ASKS, "audit": True}), 0, ("limits.audit",)),
    ({"share_probes": False}, TERMS, train(supervision=CARE), 0, ("limits.share_probes",)),
    (
        {"labels_from": ("dataset",)},
        TERMS,
        train(supervision={**ASKS, "labels_from": "desk"}),
        0,
        ("limits.labels_from",),
    ),
    ({"label_share": 0.2}, TERMS, train(supervision=ASKS), 0, ("limits.label_share", "0.25")),
    ({"labels": 10}, TERMS, train(supervision=ASKS), 0, ("limits.labels", "supervision.budget_total")),
    ({"labels": 10}, TERMS, train(supervision={**ASKS, "budget_total": 11}), 0, ("limits.labels", "11")),
    ({"least_clients": 4}, TERMS, evaluate(), 0, ("limits.least_clients", "3")),
    ({"least_group_size": 5}, TERMS, train(), 0, ("limits.least_group_size", "4")),
    ({"least_group_size": 5}, TERMS, respond(), 6, ("limits.least_group_size", "4")),
    ({"least_new_tokens": 17}, TERMS, train(), 0, ("limits.least_new_tokens", "16")),
    ({"least_new_tokens": 17}, TERMS, evaluate(), 0, ("limits.least_new_tokens", "16")),
    ({}, TERMS, train(own_adapter=True), 0, ("limits.own_adapter",)),
    ({"personal": False}, TERMS, train(personal=True, round=6), 0, ("limits.personal",)),
    ({"personal": False}, TERMS, train(keeps="B", sends="A"), 0, ("limits.personal",)),
    ({"personal": False}, TERMS, evaluate(personal=True, round=6), 0, ("limits.personal",)),
    ({"rounds": 6}, TERMS, train(personal=True, round=7), 0, ("round 6",)),
    ({"rounds": 6}, TERMS, evaluate(personal=True, round=7), 0, ("round 6",)),
    ({"local_steps": 2}, TERMS, train(personal=True), 0, ("limits.local_steps", "3")),
    (
        {"evaluate_samples": 3},
        TERMS,
        train(personal=True, choose={"samples": 4}),
        0,
        ("limits.evaluate_samples", "4"),
    ),
    ({}, TERMS, evaluate(own_adapter=True), 0, ("limits.own_adapter",)),
    ({"lora_scale": (0, 1.9)}, TERMS, evaluate(), 0, ("limits.lora_scale", "2.0")),
    (
        {"probe_learning_rate": (0, 1e-4)},
        TERMS,
        train(supervision={**CARE, "probe_learning_rate": 2e-4}),
        0,
        ("limits.probe_learning_rate", "0.0002"),
    ),
    # A server that states no rate leaves it to the model's width: both ends of what that gives must be allowed.
    ({"probe_learning_rate": (0, 5e-4)}, TERMS, train(supervision=CARE), 0, ("limits.probe_learning_rate", "0.001")),
    ({"probe_learning_rate": (2e-4, 1)}, TERMS, train(supervision=CARE), 0, ("limits.probe_learning_rate", "0.0001")),
    ({"epsilon": 8.0}, TERMS, train(), 0, ("limits.epsilon", "privacy.unit")),
    *[
        ({name: range_}, TERMS, train(**{section: {name: value}}), 0, (f"limits.{name}", str(value)))
        for section, name, range_, value in (
            ("train", "learning_rate", (0.0, 1e-2), 100.0),
            ("train", "learning_rate", (1e-4, 1e-2), 1e-5),
            ("train", "beta1", (0.5, 0.999), 0.0),
            ("train", "beta2", (0.5, 0.999), 0.0),
            ("train", "weight_decay", (0.0, 0.1), 0.2),
            ("train", "max_grad_norm", (0.01, 100.0), 1e-10),
            ("train", "max_grad_norm", (0.01, 100.0), 1e10),
            ("train", "clip_low", (0.01, 1.0), 0.001),
            ("train", "clip_high", (0.01, 10.0), 11.0),
            ("train", "kl_beta", (0.0, 0.2), 1.0),
            ("train", "proximal_mu", (0.0, 1.0), 1e9),
            ("sampling", "temperature", (0.1, 2.0), 0.01),
            ("sampling", "top_p", (0.1, 1.0), 0.05),
        )
    ],
]


@pytest.mark.parametrize(("changes", "said", "request_", "public", "words"), BEYOND)
def test_one_beyond_its_limit_is_refused_by_name(
    changes: dict[str, Any], said: Terms, request_: Any, public: int, words: tuple[str, ...]
) -> None:
    kind = {"TrainRequest": "train", "RespondRequest": "query.respond", "EvaluateRequest": "evaluate"}
    request_, delta = request_ if isinstance(request_, tuple) else (request_, None)
    with pytest.raises(LimitError) as error:
        check(limits(**changes), kind[type(request_).__name__], said, request_, public, delta)
    reason = str(error.value)
    assert reason.startswith("clinic-a ")
    assert all(word in reason for word in words), reason
    assert ";" not in reason, "nothing else is in the way"


def test_every_limit_is_enforced_somewhere_here() -> None:
    tried = {name for changes, *_ in BEYOND for name in changes} | {"audit", "own_adapter"}
    assert set(Limits.model_fields) - tried == {
        "message_types",  # below
        "least_problems",
        "scale_free",  # test_optimizer.py
        *("messages_per_day", "evaluations_per_day"),  # test_counts.py
        *("delta", "unnoised_scores"),  # test_counts.py, test_release.py
        "prompt_filter",  # needs problems: test_answering.py
        *(
            "chat",
            "template_args",
            "instruction",
            "system",
            "template",
            "examples",
            "shots",
            "prefill",
            "stop",
        ),  # below
        *("factor_value", "update_norm"),  # here and below: test_release.py
        *("least_learned", "least_tokens", "least_positions", "largest_ratio", "problem_share"),
        *("source_names", "least_scored", "round_numbers"),  # nothing is refused for them
    }


def test_labels_up_to_the_limit_may_be_asked_for_and_with_all_of_them_there_is_none() -> None:
    check(limits(labels=10), "train", TERMS, train(supervision={**ASKS, "budget_total": 10}), 0)
    check(limits(labels=10), "train", TERMS, train(), 0)


def test_audit_may_be_allowed() -> None:
    check(limits(audit=True), "train", TERMS, train(supervision={**ASKS, "audit": True}), 0)


@pytest.mark.parametrize("kind", ["train", "query.respond", "evaluate"])
def test_a_kind_of_message_that_is_not_answered(kind: str) -> None:
    asked: dict[str, Any] = {"train": train(), "query.respond": respond(), "evaluate": evaluate()}
    others = tuple(name for name in AT_THE_EDGE.message_types if name != kind)
    with pytest.raises(LimitError) as error:
        check(limits(message_types=others), kind, TERMS, asked[kind], 0)
    assert all(word in str(error.value) for word in ("clinic-a", kind, "limits.message_types"))


@pytest.mark.parametrize(
    ("name", "allowed", "at_most", "beyond"),
    [
        ("chat", ("off",), "off", "auto"),
        ("template_args", ("thinking",), {"thinking": True}, {"enable_thinking": True}),
        ("instruction", 3, "abc", "abcd"),
        ("system", 3, "abc", "abcd"),
        ("prefill", 3, "abc", "abcd"),
        ("template", 12, "{{ prompt }}", "{{ prompt }}!"),
        ("template", 99, "Q: {{ prompt | trim }} {{ instruction }}", "{% if 'x' in prompt %}y{% endif %}{{ prompt }}"),
        ("template", 99, "{{ kind }} {{ prompt }}", "{{ prompt or 'x' }}"),
        ("template", 99, "{{ prompt }}", "{{ prompt | length }}{{ prompt }}"),
        ("examples", 2, 2, 3),
        ("stop", 1, ["a"], ["a", "b"]),
        ("shots", 1, [{"prompt": "1", "answer": "2"}], [{"prompt": "1", "answer": "2"}] * 2),
    ],
)
def test_a_servers_prompts_are_bounded_part_by_part(name: str, allowed: Any, at_most: Any, beyond: Any) -> None:
    check(limits(**{name: allowed}), "train", terms(prompt={name: at_most}), train(), 0)
    with pytest.raises(LimitError, match=rf"^clinic-a .*limits\.{name}[^;]*$"):
        check(limits(**{name: allowed}), "evaluate", terms(prompt={name: beyond}), evaluate(), 0)


def test_examples_are_shown_neither_without_their_labels_nor_before_public_problems() -> None:
    check_examples("clinic-a", train(), Wording(examples=2))
    check_examples("clinic-a", evaluate(), Wording(examples=2))
    check_examples("clinic-a", train(supervision=ASKS), Wording())
    for request, setting in ((train(supervision=ASKS), "supervision.type"), (respond(), "coordination.type")):
        with pytest.raises(LimitError, match=rf"^clinic-a .*prompt\.examples.*{setting}"):
            check_examples("clinic-a", request, Wording(examples=2))


def test_all_that_is_beyond_is_said_at_once() -> None:
    with pytest.raises(LimitError) as error:
        check(limits(local_steps=1, group_size=2, least_clients=9), "train", TERMS, train(), 0)
    assert str(error.value) == (
        "clinic-a allows at least 9 organisations that train in a run (limits.least_clients), asked for 3; at most 1 "
        "local steps (limits.local_steps), asked for 3; at most 2 responses to a problem (limits.group_size), asked "
        "for 4"
    )


def test_too_few_problems_to_train_on() -> None:
    asked = train(train={"problems_per_step": 20})  # 3 steps
    check_problems(Limits(least_problems=50), asked, 50)
    for request, problems in ((asked, 49), (train(train={"problems_per_step": 16}), 1000)):
        with pytest.raises(LimitError, match=r"^clinic-a .* 50 .*limits\.least_problems"):
            check_problems(Limits(least_problems=50), request, problems, name="clinic-a")


def test_the_problems_of_a_round_with_exchanges_are_those_of_all_its_steps() -> None:
    check_problems(Limits(least_problems=15), respond(), 100)  # 3 steps x 5 problems, whatever this message takes
    check_problems(Limits(least_problems=15), respond().model_copy(update={"steps": 1}), 100)


@pytest.mark.parametrize("name", ["learning_rate", "beta1", "kl_beta"])
def test_a_range_that_is_upside_down_is_no_range(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits.model_validate({name: (2.0, 1.0)})


HARMLESS = {
    *("seed", "exchange", "send", "trains", "precision", "feedback", "own_adapter", "personal"),
    *("sends", "keeps"),
    *("held_out_loss", "supervision.responses"),  # of supervised training, which every organisation refuses
    *("sampling.top_k", "evaluate.every", "evaluate.temperature", "evaluate.split"),
    *("choose.every", "choose.temperature", "choose.split"),
    *("train.rounds", "train.loss", "train.scale_by_std", "train.schedule", "train.warmup_steps"),
    *("train.unfinished", "train.optimizer_state", "train.ratio_cap"),
    *("supervision.type", "supervision.audit", "supervision.share_probes", "supervision.labels_from"),
    *("supervision.budget_total", "supervision.budget_per_day", "supervision.rest", "supervision.trusted"),
    *("supervision.vote_free_share", "supervision.min_reliability", "supervision.probe_steps", "supervision.spend"),
    *("supervision.selection", "supervision.min_auc", "supervision.score", "supervision.min_similarity"),
    *("coordination.type", "coordination.swap", "coordination.ratio", "coordination.gamma"),
    *("coordination.exchanges", "coordination.pool_size", "coordination.pool_tail", "coordination.pool_length"),
    *("terms.protocol", "terms.version", "terms.run", "terms.client", "terms.task", "terms.model"),
    *("terms.model_id", "terms.weights_id", "terms.tokenizer_id", "terms.alpha"),
    *("terms.targets", "terms.max_prompt_tokens"),
    *("terms.prompt.chat", "terms.prompt.template_args", "terms.prompt.instruction", "terms.prompt.system"),
    *("terms.prompt.template", "terms.prompt.examples", "terms.prompt.prefill", "terms.prompt.stop"),
    *("terms.prompt.shots.prompt", "terms.prompt.shots.answer"),
    *("privacy.clip", "privacy.noise"),
    *("delta.version", "delta.since", "delta.halves", "delta.seeded", "delta.keep", "delta.own_halves"),
}
"""Fields that no table of limits.py bounds: each is checked in another way, or has a reason in docs/privacy.md."""


def fields_of(model: Any, prefix: str = "") -> set[str]:
    """Every field of a model and of the models in it, by its dotted name."""
    names = set()
    for name, info in model.model_fields.items():
        parts = [info.annotation, *get_args(info.annotation)]
        sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        for section in sections:
            names |= fields_of(section, f"{prefix}{name}.")
        if not sections:
            names.add(prefix + name)
    return names


def test_every_field_that_a_server_may_fill_is_bounded_or_known_to_be_harmless() -> None:
    asked = set().union(*(fields_of(kind) for kind in (TrainRequest, RespondRequest, EvaluateRequest)))
    asked |= fields_of(Terms, "terms.") | fields_of(ModelDelta, "delta.")
    bounded = {field for limit in (*BOUNDS, *TRAINING_BOUNDS) for field in limit.fields} - {"public", "terms.scale"}
    bounded = {"round" if field == "run_round" else field for field in bounded}
    assert asked == bounded | HARMLESS
    assert not bounded & HARMLESS


def test_an_evaluation_samples_for_every_held_out_problem() -> None:
    check_evaluation(Limits(tokens_per_message=10 * 3 * 16), "clinic-a", evaluate(), 10)
    with pytest.raises(LimitError, match=r"^clinic-a .* 479 .*tokens_per_message.* 480$"):
        check_evaluation(Limits(tokens_per_message=479), "clinic-a", evaluate(), 10)


def test_a_personal_adapter_is_chosen_by_validation_problems_within_the_tokens_of_a_message() -> None:
    asked = train(personal=True, choose={"samples": 3})
    check_choice(Limits(tokens_per_message=5 * 10 * 3 * 16), "clinic-a", asked, 10)
    check_choice(Limits(tokens_per_message=1), "clinic-a", train(personal=True), 0)
    with pytest.raises(LimitError, match=r"^clinic-a .* 2399 .*tokens_per_message.* 2400$"):
        check_choice(Limits(tokens_per_message=2399), "clinic-a", asked, 10)
    with pytest.raises(LimitError, match=r"^clinic-a .*validation_size"):
        check_choice(Limits(), "clinic-a", asked, 0)


def test_the_page_on_privacy_names_every_limit_and_every_field_without_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_.]+)`", row)}
    assert set(Limits.model_fields) | HARMLESS <= named


def test_a_weighted_sum_of_the_site_s_own_needs_labels() -> None:
    both = DataConfig.model_validate({"rewards": ["grader", "mine:short"]}).rewards
    check_rewards("clinic-a", "main", both, train())
    check_rewards("clinic-a", "main", both[:1], train(supervision={"type": "majority"}))
    with pytest.raises(LimitError, match=r"tasks.main.rewards of clinic-a.*supervision.type"):
        check_rewards("clinic-a", "main", both, train(supervision={"type": "majority"}))
