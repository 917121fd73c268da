"""What an organisation refuses: each of its limits at its edge, and all that is beyond them in one text."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from factories import make_request, make_terms

from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.site.limits import check, check_evaluation, check_problems
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import LimitError
from fedrlvr.wire.messages import EvaluateRequest, RespondRequest, TrainRequest
from fedrlvr.wire.model_delta import ModelDelta

CARE = {"type": "care", "budget": 0.25, "share_probes": True}
ASKS = {"type": "random", "budget": 0.25}


terms = partial(make_terms, "clinic-a", rank=4, largest=8)
TERMS = terms()


def train(**changes: Any) -> TrainRequest:
    told: dict[str, Any] = {
        "round": 2,
        "seed": 1,
        "sampling": {"group_size": 4, "max_new_tokens": 16},
        "steps": 3,
        "train": {"local_steps": 3, "problems_per_step": 5, "updates_per_batch": 2},
        "supervision": {"type": "labels"},
    }
    for key, value in changes.items():
        old = told.get(key)
        told[key] = {**old, **value} if isinstance(old, dict) and key != "supervision" else value
    return make_request(**told)


def respond(**exchange: Any) -> RespondRequest:
    told = train().model_dump()
    told |= {"coordination": {"type": "pubswap", "public_problems": 6, "public_steps": 2, **exchange}, "exchange": 1}
    return RespondRequest(**told)


def evaluate(**changes: Any) -> EvaluateRequest:
    told = {"round": 2, "seed": 1, "sampling": {"max_new_tokens": 16}, "evaluate": {"samples": 3}}
    return EvaluateRequest(**{**told, **changes})


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
]


@pytest.mark.parametrize(("changes", "said", "request_", "public", "words"), BEYOND)
def test_one_beyond_its_limit_is_refused_by_name(
    changes: dict[str, Any], said: Terms, request_: Any, public: int, words: tuple[str, ...]
) -> None:
    kind = {"TrainRequest": "train", "RespondRequest": "query.respond", "EvaluateRequest": "evaluate"}
    request_, delta = request_ if isinstance(request_, tuple) else (request_, None)
    with pytest.raises(LimitError) as error:
        check(limits(**changes), kind[type(request_).__name__], said, request_, public, delta)
    told = str(error.value)
    assert told.startswith("clinic-a ")
    assert all(word in told for word in words), told
    assert ";" not in told, "nothing else is in the way"


def test_every_limit_is_enforced_somewhere_here() -> None:
    tried = {name for changes, *_ in BEYOND for name in changes} | {"audit"}
    assert set(Limits.model_fields) - tried == {
        "message_types",  # below
        "least_problems",
        "source_names",  # nothing is refused for it: test_answering.py
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


def test_all_that_is_beyond_is_said_at_once() -> None:
    with pytest.raises(LimitError) as error:
        check(limits(local_steps=1, group_size=2, least_clients=9), "train", TERMS, train(), 0)
    assert str(error.value) == (
        "clinic-a allows no run of fewer than 9 organisations (limits.least_clients), this has 3; at most 1 local "
        "steps (limits.local_steps), asked for 3; at most 2 responses to a problem (limits.group_size), asked for 4"
    )


def test_too_few_problems_to_train_on() -> None:
    check_problems(Limits(least_problems=50), 50)
    with pytest.raises(LimitError, match=r"^clinic-a .* 50 .*limits\.least_problems"):
        check_problems(Limits(least_problems=50), 49, name="clinic-a")


def test_an_evaluation_samples_for_every_held_out_problem() -> None:
    check_evaluation(Limits(tokens_per_message=10 * 3 * 16), "clinic-a", evaluate(), 10)
    with pytest.raises(LimitError, match=r"^clinic-a .* 479 .*tokens_per_message.* 480$"):
        check_evaluation(Limits(tokens_per_message=479), "clinic-a", evaluate(), 10)
