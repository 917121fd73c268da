"""Prompts read letter for letter out of the change of an adapter, which a server asks for by legal messages.

With floors off every prompt is read, with optimizers, ranks and numbers of steps, problems and messages of many kinds.
Under the defaults such a request is refused, its reply is withheld, or nothing can be read from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from inversion import Exchanged, Prefixes, lever, read, without_A
from policies import END, answering
from prompts import CHOICES, PRIVATE
from victim import OPEN, Refused, Victim, wide_model

from fedrlvr.adapter import Adapter
from fedrlvr.policy.cohort import Cohort

SHOWN = {"kl_beta": 1.0, "learning_rate": 1e-3}
"""Default optimizer. The penalty gives every response a gradient, whatever it earns."""
EXACT = {"beta1": 0.0, "beta2": 0.0, "max_grad_norm": 1e-10, "kl_beta": 1.0, "learning_rate": 100.0}
"""An optimizer whose step is its gradient, in a known unit."""


def levers(cohort: Cohort, message: int) -> Adapter:
    """The same policy in every message, with another A in all layers but the last."""
    adapter, first = lever(cohort, 3 + message), lever(cohort, 3)
    last = list(adapter.layers)[-1]
    return adapter.alike({**adapter.layers, last: first.layers[last]})


def shown(size: float) -> Callable[[Cohort, int], Adapter]:
    """The same policy in every message, with A = 0 and another B of this size in all layers but the last."""
    return lambda cohort, message: without_A(lever(cohort, 3), message, size)


@dataclass(frozen=True)
class Scenario:
    """A server's requests to a client, and its settings for reading the replies.

    half: of the adapter, whose change is read. problems: in the message. reading: settings of `read`.
    """

    train: Mapping[str, Any]
    rank: int = 64
    half: Literal["A", "B"] = "B"
    adapter: Callable[[Cohort, int], Adapter] = levers
    messages: int = 1
    problems: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)


SCENARIOS = {
    "the step is the gradient": Scenario(EXACT),
    "rank 48": Scenario(EXACT, rank=48),
    "weight decay and FedProx": Scenario({**EXACT, "weight_decay": 1e-3, "proximal_mu": 10.0}),
    "eight longer responses": Scenario(EXACT, sampling={"group_size": 8, "max_new_tokens": 8}, reading={"beam": 4}),
    "default optimizer": Scenario(SHOWN, half="A", adapter=shown(1e-6)),
    "default optimizer, rank 8, two messages": Scenario(SHOWN, rank=8, half="A", adapter=shown(1e-6), messages=2),
    "default optimizer, steps near the sign": Scenario(
        SHOWN, half="A", adapter=shown(1e-4), reading={"noises": [1e-5], "beam": 4}
    ),
    "three local steps": Scenario(
        {**SHOWN, "local_steps": 3, "learning_rate": 1e-5}, half="A", adapter=shown(1e-11), request={"trains": "A"}
    ),
    "two updates per batch": Scenario(
        {**SHOWN, "updates_per_batch": 2, "learning_rate": 1e-5},
        half="A",
        adapter=shown(1e-11),
        request={"trains": "A"},
    ),
    "two problems": Scenario(
        {**SHOWN, "problems_per_step": 2},
        half="A",
        adapter=shown(1e-6),
        problems=2,
        reading={"beam": 16, "outside": 0.02},
    ),
}
"""Requests of one problem, or two, of which every one describes the prompts."""
MISSED = {
    "rank 48": 2,
    "eight longer responses": 2,
    "default optimizer, rank 8, two messages": 1,
    "default optimizer, steps near the sign": 2,
    "two problems": 3,
}
"""Prompts of twenty that a scenario may miss, where rounding differs from machine to machine."""


def texts_read(victim: Victim, prefixes: Prefixes, scenario: Scenario, task: str) -> list[str]:
    """The texts that the server reads after the scenario's messages."""
    cohort = victim.cohort(scenario.rank)
    train = {"problems_per_step": scenario.problems, **scenario.train}
    exchanged = []
    for message in range(scenario.messages):
        sent = scenario.adapter(cohort, message)
        reply = victim.train(task, sent, train=train, sampling=scenario.sampling, **scenario.request)
        assert reply.adapter is not None
        decay = train.get("weight_decay", 0.0)
        exchanged.append(Exchanged(sent, reply.adapter, train["learning_rate"], decay))
    return read(prefixes, exchanged, scenario.half, **scenario.reading)


def whole(texts: Sequence[str], prompts: Sequence[str]) -> int:
    """The number of prompts with which some text begins; a text goes on with the beginning of a response."""
    return sum(any(text.startswith(prompt) for text in texts) for prompt in prompts)


def groups(size: int, count: int) -> list[list[Mapping[str, Any]]]:
    """`count` tasks of `size` problems each, in turn of all private ones."""
    return [[PRIVATE[(size * i + k) % len(PRIVATE)] for k in range(size)] for i in range(count)]


def recovered(name: str, count: int, directory: Path) -> tuple[int, int]:
    """(prompts read, prompts asked about) of the first `count` tasks, with floors off."""
    scenario = SCENARIOS[name]
    tasks = {f"task-{i}": rows for i, rows in enumerate(groups(scenario.problems, count))}
    victim = Victim(directory, tasks, limits=OPEN)
    prefixes = Prefixes(victim.home)
    texts = {task: texts_read(victim, prefixes, scenario, task) for task in tasks}
    return sum(whole(texts[t], [row["prompt"] for row in rows]) for t, rows in tasks.items()), count * scenario.problems


@pytest.mark.parametrize("name", ["the step is the gradient", "default optimizer"])
def test_four_prompts_are_read_letter_for_letter_with_floors_off(name: str, tmp_path: Path) -> None:
    assert recovered(name, 4, tmp_path) == (4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_twenty_prompts_are_read_letter_for_letter_with_floors_off(name: str, tmp_path: Path) -> None:
    right, asked = recovered(name, 20 // SCENARIOS[name].problems, tmp_path)
    assert right >= asked - MISSED.get(name, 0)


# Batches, and a model that is wider than the prompts have tokens, as models in use are.

BATCH = {"learning_rate": 0.01, "problems_per_step": 8}
"""Eight problems with the default optimizer."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("wide"), 512)


def batch_read(victim: Victim, task: str, ends: float, messages: int, **settings: Any) -> list[str]:
    """The texts read of steps of several problems, under a policy that gives short answers.

    ends: logit of the end of a response, as a multiple of that of a letter; the larger, the shorter.
    """
    policy = answering(victim.cohort(64), victim.home, {END: ends, **dict.fromkeys("ABCD", 1.0)}, 300)
    exchanged = []
    for message in range(messages):
        sent = without_A(policy, message, 1e-6)
        reply = victim.train(task, sent, **settings)
        assert reply.adapter is not None
        exchanged.append(Exchanged(sent, reply.adapter, settings["train"]["learning_rate"]))
    return read(Prefixes(victim.home), exchanged, "A", noises=[1e-6], outside=0.02, beam=100, longest=40)


def batches_read(directory: Path, model: Path, count: int, **limits: Any) -> int:
    """The number of prompts read of `count` batches of four, with no floors but those given."""
    tasks = {f"task-{i}": CHOICES[4 * i : 4 * i + 4] for i in range(count)}
    victim = Victim(directory, tasks, limits={**OPEN, **limits}, model=model)
    train = {**BATCH, "problems_per_step": 4, "kl_beta": 0.2}
    sampling = {"group_size": 8, "max_new_tokens": 8}
    texts = {task: batch_read(victim, task, 1.1, 2, train=train, sampling=sampling) for task in tasks}
    return sum(whole(texts[task], [str(row["prompt"]) for row in rows]) for task, rows in tasks.items())


def test_a_batch_of_four_prompts_is_read_letter_for_letter_with_floors_off(wide: Path, tmp_path: Path) -> None:
    assert batches_read(tmp_path, wide, 1) == 4


@pytest.mark.slow
def test_five_batches_of_four_prompts_are_read_letter_for_letter_with_floors_off(wide: Path, tmp_path: Path) -> None:
    assert batches_read(tmp_path, wide, 5) == 20


# The defaults.

NAMED = {
    "the step is the gradient": {"learning_rate", "beta1", "beta2", "max_grad_norm", "kl_beta"},
    "default optimizer": {"kl_beta", "least_group_size", "least_new_tokens"},
    "three local steps": {"kl_beta"},
    "two updates per batch": {"kl_beta"},
}
"""Limits that a scenario's request is refused by; the others by those of the first two."""


def named(refusal: pytest.ExceptionInfo[Refused]) -> set[str]:
    """The limits that a refusal names."""
    return set(re.findall(r"limits\.(\w+)", str(refusal.value)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_requests_that_read_single_prompts_are_refused_by_default(name: str, tmp_path: Path) -> None:
    victim = Victim(tmp_path, {"main": PRIVATE})
    exact = SCENARIOS[name].train["learning_rate"] == EXACT["learning_rate"]
    with pytest.raises(Refused) as refusal:
        texts_read(victim, Prefixes(victim.home), SCENARIOS[name], "main")
    expected = NAMED["the step is the gradient" if exact else "default optimizer"]
    assert NAMED.get(name, expected) <= named(refusal)


def test_one_problem_is_too_few_by_default_whatever_the_optimizer(tmp_path: Path) -> None:
    victim = Victim(tmp_path, {"main": PRIVATE})
    inside = {"learning_rate": 0.01, "kl_beta": 0.2, "problems_per_step": 7}
    with pytest.raises(Refused) as refusal:
        victim.train(
            "main",
            shown(1e-6)(victim.cohort(64), 0),
            train=inside,
            sampling={"group_size": 64, "max_new_tokens": 8},
        )
    assert named(refusal) == {"least_problems"}


def default_batches(directory: Path, model: Path, ends: float, seeds: int) -> list[list[str] | set[str]]:
    """Texts read of a batch of eight of twenty problems, or the limits that withhold it, for each seed.

    ends: as for `batch_read`.
    """
    victim = Victim(directory, {"main": CHOICES}, model=model)
    sampling = {"group_size": 64, "max_new_tokens": 8}
    outcomes: list[list[str] | set[str]] = []
    for seed in range(seeds):
        try:
            outcomes.append(batch_read(victim, "main", ends, 2, train=BATCH, sampling=sampling, seed=seed))
        except Refused as refusal:
            outcomes.append(set(re.findall(r"limits\.(\w+)", str(refusal))))
    return outcomes


@pytest.mark.parametrize(
    "ends", [1.1, pytest.param(1.05, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_no_prompt_is_read_by_default_however_short_the_answers_are(ends: float, wide: Path, tmp_path: Path) -> None:
    for outcome in default_batches(tmp_path, wide, ends, seeds=2):
        if isinstance(outcome, set):
            assert outcome <= {"least_positions", "least_tokens", "least_learned", "problem_share"}
        else:
            assert whole(outcome, [str(row["prompt"]) for row in CHOICES]) == 0


@pytest.mark.slow
def test_steps_without_a_scale_alone_keep_batches_of_four_unread(wide: Path, tmp_path: Path) -> None:
    assert batches_read(tmp_path, wide, 2, scale_free=True) == 0
