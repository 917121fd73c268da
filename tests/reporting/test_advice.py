"""Advice: every rule on records made up to call for it, and on near misses that do not."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_samples import numbers, run_records, score

from fedrlvr.config import Config
from fedrlvr.config.reference import SINCE
from fedrlvr.reporting.advice import RULES, Adviser, advise, round_means, trained_nothing
from fedrlvr.reporting.observer import Advised, Event, Listeners, Observer, RoundSaved, RunStarted
from fedrlvr.reporting.report import render

Records = list[dict[str, Any]]
SETTING = re.compile(r"\b(?:sampling|data|model|train|supervision|aggregation|prompt)\.[a-z_]+")


def records(*rounds: dict[str, Any], held_out: dict[int, int] | None = None) -> Records:
    """A round 0, and for each of these numbers a round in which two clients report it. held_out: of 400, by round."""
    lines: Records = [{"round": 0, "clients": {}, "seconds": {}}]
    for number, changes in enumerate(rounds, start=1):
        # 100 tokens in responses of 2 are 50 responses of each client.
        reported = {
            "num-examples": 8,
            "tokens_sampled": 100,
            "response_length": 2.0,
            "unreadable": 0.1,
            "unfinished": 0.1,
        }
        clients = {name: numbers(**{**reported, **changes}) for name in ("alpha", "beta")}
        lines.append({"round": number, "clients": clients, "seconds": {}})
    for number, right in (held_out or {}).items():
        lines[number]["evaluate"] = {"alpha": {"sum": score(400, right)}}
    return lines


def advice(lines: Records) -> dict[str, str]:
    return advise([round_means(line) for line in lines])


ZERO = {"reward": 0.0, "zero_variance_groups": 1.0, "grad_norm": 0.0, "tokens_trained": 0}
ALIKE = {"zero_variance_groups": 0.97}
HELD = {"grad_norm": 0.0, "tokens_trained": 0}

CALLED_FOR: dict[str, list[tuple[Records, str]]] = {
    "no reward": [
        (records({**ZERO, "unfinished": 0.7, "unreadable": 0.9}), "raise sampling.max_new_tokens"),
        (records({**ZERO, "unfinished": 0.7, "unreadable": 0.9}), "`fedrlvr prompts`"),
        (records({**ZERO, "unreadable": 0.9}, {**ZERO, "unreadable": 0.9}), "prompt.instruction"),
        (records(ZERO), "larger model (model.name)"),
        (records(ZERO), "`fedrlvr prompts`"),
        (records({**ZERO, "unreadable": None}), "data.rewards"),
        (records({"reward": 0.3}, {"reward": 0.2}, ZERO, ZERO), "lower train.learning_rate"),
    ],
    "no variance": [
        (records({**ALIKE, "reward": 0.99}), "too easy"),
        (records({**ALIKE, "reward": 0.02}), "too hard"),
        (records({**ALIKE, "reward": 0.02}), "`fedrlvr prompts`"),
        (records({**ALIKE, "reward": 0.5}), "raise sampling.temperature"),
        (records({"reward": 0.5}, {**ALIKE, "reward": 0.95}, {**ALIKE, "reward": 0.97}), "too easy"),
    ],
    "answers unreadable": [
        (records({"reward": 0.01, "zero_variance_groups": 0.9, "unreadable": 0.97}), "`fedrlvr prompts`"),
        (records(*[{"reward": 0.01, "zero_variance_groups": 0.9, "unreadable": 0.9, "unfinished": 0.9}] * 2), "cut"),
    ],
    "responses cut": [(records({"unfinished": 0.85}), "sampling.max_new_tokens")],
    "no gradient": [
        (records(HELD, HELD), "train.unfinished"),
        (records({**HELD, "share_masked": 0.9}, {**HELD, "share_masked": 0.9}), "supervision.budget"),
    ],
    "no reply used": [
        (
            [{"round": n, "clients": {"alpha": {"bytes_up": 1}}, "left_out": {"alpha": "a floor"}} for n in (0, 1, 2)],
            "train.local_steps",
        )
    ],
    "adapter still": [(records(*[{"kl_to_base": 2e-8}] * 5), "train.learning_rate")],
    "KL runs away": [(records(*[{"kl_to_base": kl} for kl in (0.5, 0.7, 0.9, 1.1)]), "train.kl_beta")],
    "length runs away": [
        (
            records(*[{"response_length": n, "tokens_sampled": 50 * n} for n in (20, 25, 30, 31)]),
            "train.unfinished",
        )
    ],
    "held-out pass@1 falls": [
        # 0.45 +- 0.05 to 0.30 +- 0.04
        (records({"reward": 0.3}, {"reward": 0.4}, {"reward": 0.5}, held_out={0: 160, 1: 180, 3: 120}), "round 1"),
        (records({"reward": 0.3}, {"reward": 0.4}, held_out={0: 180, 2: 120}), "supervision.type"),
    ],
}
NEAR_MISSES: dict[str, list[Records]] = {
    "no reward": [
        records({**ZERO, "reward": 0.01}),
        records({**ZERO, "tokens_sampled": 60}),  # 60 responses
        records({"reward": 0.1}, ZERO),
        records({"reward": None, "grad_norm": None, "tokens_trained": None}),
    ],
    "no variance": [
        records({"zero_variance_groups": 0.94}),
        records({**ALIKE, "tokens_sampled": 60}),
        records({"zero_variance_groups": 0.9}, {"zero_variance_groups": 0.99}),
        records(ZERO),  # which the first rule says
    ],
    "answers unreadable": [
        records({"reward": 0.06, "unreadable": 0.97}),
        records({"reward": 0.01, "unreadable": 0.79}),
        records({**ZERO, "unreadable": 0.97}),  # which other rules say
        records({**ALIKE, "reward": 0.01, "unreadable": 0.97}),
        records({"reward": 0.01, "unreadable": 0.97, "tokens_sampled": 60}),
    ],
    "responses cut": [
        records({"unfinished": 0.79}),
        records({**ZERO, "unfinished": 1.0}),
        records({"reward": 0.01, "unreadable": 0.97, "unfinished": 0.9}),
    ],
    "no gradient": [records(HELD), records(HELD, {}), records(HELD, {"grad_norm": None}), records(ZERO, ZERO)],
    "no reply used": [records({}, {}), [{"round": 0, "clients": {}}, {"round": 1, "clients": {}}]],
    "adapter still": [
        records(*[{"kl_to_base": 2e-8}] * 4),
        records(*[{"kl_to_base": 2e-8}] * 4, {"kl_to_base": 2e-6}),
        records(*[{"kl_to_base": None}] * 5),
        records(*[{**HELD, "kl_to_base": 0.0}] * 5),
    ],
    "KL runs away": [
        records(*[{"kl_to_base": kl, "reward": 0.1 * kl} for kl in (0.5, 0.7, 0.9, 1.1)]),  # and the reward with it
        records(*[{"kl_to_base": kl} for kl in (0.5, 0.7, 0.6, 1.1)]),
        records(*[{"kl_to_base": kl} for kl in (0.1, 0.3, 0.5, 0.9)]),
        records(*[{"kl_to_base": kl} for kl in (0.6, 0.7, 0.9, 1.1)]),
        records(*[{"kl_to_base": kl} for kl in (0.5, 0.9, 1.1)]),
    ],
    "length runs away": [
        records(*[{"response_length": n, "tokens_sampled": 50 * n, "reward": n / 100} for n in (20, 25, 30, 31)]),
        records(*[{"response_length": n, "tokens_sampled": 50 * n} for n in (20, 25, 28, 29)]),
        records(*[{"response_length": n, "tokens_sampled": 50 * n} for n in (5, 6, 9, 11)]),
    ],
    "held-out pass@1 falls": [
        records({"reward": 0.3}, {"reward": 0.4}, held_out={0: 180, 2: 165}),  # within the interval
        records({"reward": 0.4}, {"reward": 0.3}, held_out={0: 180, 2: 120}),  # all of it falls
        records({"reward": 0.3}, {"reward": 0.4}, held_out={2: 120}),
        records(held_out={0: 180}),
    ],
}


def cases(table: dict[str, list[Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("rule", "case"), [(rule, case) for rule, cases in table.items() for case in cases])


@cases(CALLED_FOR)
def test_a_rule_holds_and_its_sentence_names_a_setting(rule: str, case: tuple[Records, str]) -> None:
    lines, words = case
    given = advice(lines)
    assert words in given[rule]
    named = SETTING.findall(given[rule])
    assert named
    assert not [name for name in named if name not in SINCE], "a setting that there is not"
    assert given[rule].endswith(".")


@cases(NEAR_MISSES)
def test_a_near_miss_calls_for_nothing_of_the_rule(rule: str, case: Records) -> None:
    assert rule not in advice(case)


def test_every_rule_is_tested_on_both_sides() -> None:
    assert list(CALLED_FOR) == list(NEAR_MISSES) == [rule.name for rule in RULES]


def test_a_run_that_learns_gets_no_advice() -> None:
    assert advice(run_records()) == {}
    assert advice([]) == {}


def test_the_numbers_of_a_sentence() -> None:
    sentence = advice(records({**ZERO, "unfinished": 0.75, "unreadable": 0.9}))["no reward"]
    assert sentence.startswith(
        "Every reward of round 1 is 0, so nothing is learnt (responses: 75.0 % cut at the length limit, 90.0 % without "
        "a readable answer)."
    )
    sentence = advice(records({"reward": 0.3}, {"reward": 0.4}, held_out={0: 180, 2: 120}))["held-out pass@1 falls"]
    assert (
        "fell from 45.0 % in round 0 to 30.0 % in round 2, while the training reward rose from 0.30 to 0.40" in sentence
    )


@pytest.mark.parametrize(
    ("lines", "nothing"),
    [
        (records(ZERO, ZERO), True),
        (records(ZERO, {}), False),
        (records({**ZERO, "public_tokens_trained": 12}), False),
        (records({**ZERO, "grad_norm": None}), False),  # not told
        ([{"round": n, "clients": {"alpha": {"bytes_up": 9}}} for n in (0, 1)], True),  # left out in every round
    ],
)
def test_a_run_has_trained_nothing_if_no_step_had_a_gradient(lines: Records, nothing: bool) -> None:
    assert trained_nothing(lines) == nothing


class Heard(Observer):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        self.events.append(event)


def tell(adviser: Observer, lines: Records, first_round: int = 0) -> None:
    adviser.notify(RunStarted("runs/x", ["alpha", "beta"], rounds=9, local_steps=1, first_round=first_round))
    for line in lines:
        adviser.notify(RoundSaved(line["round"], line))


def test_advice_is_given_once_a_run_also_if_it_is_resumed() -> None:
    heard = Heard()
    lines = records(ZERO, ZERO, {"unfinished": 0.9}, {"unfinished": 0.9})
    tell(Listeners([Adviser(heard, lambda _: [])]), lines)
    assert [(event.round, event.rule) for event in heard.events if isinstance(event, Advised)] == [
        (1, "no reward"),
        (4, "responses cut"),
    ]
    heard = Heard()
    tell(Adviser(heard, lambda directory: lines[:3] if directory == Path("runs/x") else []), lines[3:], first_round=3)
    assert [event.rule for event in heard.events if isinstance(event, Advised)] == ["responses cut"]


@pytest.mark.parametrize(("make", "level"), [(Observer, logging.WARNING), (Heard, logging.INFO)])
def test_the_log_has_the_advice_and_warns_where_nobody_shows_it(
    make: Callable[[], Observer], level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fedrlvr.reporting"):
        tell(Adviser(make(), lambda _: []), records(ZERO))
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith("advice: Every reward of round 1 is 0")


def test_the_report_begins_with_the_advice() -> None:
    page = render(Config(), records(ZERO))
    assert page.index("What is wrong") < page.index("<h3>")
    assert "Every reward of round 1 is 0" in page
    assert "What is wrong" not in render(Config(), run_records())
