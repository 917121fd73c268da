"""Private answers read off numbers that a server asks for by legal messages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from answers import Scored, by_difference, on_the_edge, one_answer, replay, replayed_score, saying
from prompts import CHOICES
from traps import all_answers, pointed
from victim import OPEN, Refused, Victim, wide_model

from fedrlvr.audit.attack_scores import auc
from fedrlvr.deployment.site import handler
from fedrlvr.privacy.accountant import noise_for

OTHER = [{"prompt": "9 mod 5?", "answer": "B", "kind": "choice"}]
"""A problem that nobody asks about."""
ATTACKS: dict[str, Callable[[Victim, str, str], str]] = {
    "replay of a step": replay,
    "replay of a score": replayed_score,
    "one answer": lambda victim, task, prompt: one_answer(victim, task),
}
"""What the server concludes of a task of one problem, trained on and held out, whose prompt it guesses."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model(tmp_path_factory.mktemp("wide"), 256)


@pytest.fixture
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are named by the server's seed alone."""
    monkeypatch.setattr(handler, "secret", lambda *_: b"")


def concluded(name: str, victim: Victim, count: int) -> int:
    """The number of the first `count` answers that the server concludes rightly."""
    letters = [ATTACKS[name](victim, f"task-{i}", CHOICES[i]["prompt"]) for i in range(count)]
    return sum(letter == row["answer"] for letter, row in zip(letters, CHOICES, strict=False))


def one_by_one(directory: Path, model: Path, held_out: bool, limits: dict[str, object]) -> Victim:
    """A site with a task for each problem, which is trained on or held out."""
    rows = {f"task-{i}": [row] for i, row in enumerate(CHOICES)}
    other = dict.fromkeys(rows, OTHER)
    tasks, tests = (other, rows) if held_out else (rows, other)
    return Victim(directory, tasks, tests=tests, limits=limits, model=model)


@pytest.mark.usefixtures("no_secret")
@pytest.mark.parametrize("name", ["replay of a step", "replay of a score", "one answer"])
def test_three_answers_are_read_with_floors_off(name: str, wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, name == "replay of a score", OPEN)
    assert concluded(name, victim, 3) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_secret")
@pytest.mark.parametrize("name", ATTACKS)
def test_twenty_answers_are_read_with_floors_off(name: str, wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, name == "replay of a score", OPEN)
    right = concluded(name, victim, 20)
    assert right == 20


@pytest.mark.slow
def test_held_out_answers_are_read_off_scores_of_chosen_sets_with_floors_off(wide: Path, tmp_path: Path) -> None:
    victim = Victim(tmp_path, {"main": OTHER}, tests={"main": CHOICES}, limits=OPEN, model=wide)
    right = on_the_edge(Scored(victim, "main", [row["prompt"] for row in CHOICES], "A"), len(CHOICES))
    assert right == [row["answer"] == "A" for row in CHOICES]


# The defaults.


@pytest.mark.parametrize("name", ["replay of a step", "one answer"])
def test_a_step_of_one_problem_is_refused_by_default(name: str, wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, False, {})
    with pytest.raises(Refused, match=r"limits\.least_problems"):
        concluded(name, victim, 1)


def test_the_score_of_a_single_held_out_problem_stays_by_default(wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, True, {})
    assert [ATTACKS["replay of a score"](victim, f"task-{i}", CHOICES[i]["prompt"]) for i in range(4)] == ["?"] * 4


def test_scores_of_sources_with_a_problem_each_are_pooled_by_default(wide: Path, tmp_path: Path) -> None:
    rows = [{**row, "source": f"source-{i}"} for i, row in enumerate(CHOICES)]
    victim = Victim(tmp_path, {"main": OTHER}, tests={"main": rows}, model=wide)
    reply = victim.evaluate("main", saying(victim, "A"), evaluate={"samples": 64}, sampling={"max_new_tokens": 8})
    assert (len(reply.sources), reply.numbers["n"]) == (1, [20])


def test_a_replay_is_a_guess_where_the_secret_is_the_only_defence(wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, False, OPEN)  # with a secret, which nothing in this test takes away
    assert concluded("replay of a step", victim, 4) <= 1


@pytest.mark.slow
def test_scores_of_chosen_sets_tell_little_by_default(wide: Path, tmp_path: Path) -> None:
    victim = Victim(tmp_path, {"main": OTHER}, tests={"main": CHOICES}, model=wide)
    prompts = [row["prompt"] for row in CHOICES]
    hits = []
    for letter in "AB":
        right = on_the_edge(Scored(victim, "main", prompts, letter), len(CHOICES))
        truth = [row["answer"] == letter for row in CHOICES]
        hits += [guess == actual for guess, actual in zip(right, truth, strict=True)]
    # Without floors all are right. Who always says no is right 30 times; chance decides about a few more.
    assert sum(hits) <= 37
    more = iter(lambda: Scored(victim, "main", prompts, "C")([False] * len(CHOICES)), None)
    with pytest.raises(Refused, match=r"limits\.evaluations_per_day"):
        list(islice(more, 51 - victim.sent))


@pytest.mark.slow
def test_scores_of_sets_that_differ_in_one_problem_tell_its_answer_by_default(wide: Path, tmp_path: Path) -> None:
    """No floor and no rounding bounds this; only the count per day does. The documentation says so."""
    victim = Victim(tmp_path, {"main": OTHER}, tests={"main": CHOICES}, model=wide)
    letters = [row["answer"] for row in CHOICES]
    *known, last = [place for place, letter in enumerate(letters) if letter == "A"]
    targets = [last, *(letters.index(letter) for letter in "BCD")]
    scored = Scored(victim, "main", [row["prompt"] for row in CHOICES], "A")
    right = [place in known for place in range(len(CHOICES))]
    assert [by_difference(scored, right, target, 12) for target in targets] == [True, False, False, False]
    assert victim.sent <= 48, "within one day's evaluations_per_day"


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "each", "least"), [(1, 20, 20), (3, 8, 9)])
def test_one_reply_tells_training_answers_by_default_to_who_guesses_the_prompts(
    steps: int, each: int, least: int, wide: Path, tmp_path: Path
) -> None:
    """No floor bounds this: each reply has 20 problems behind it. The documentation says so.

    In the reply of several steps each component also holds steps without its problem. A guess is right 5 times.
    """
    victim = Victim(tmp_path, {"main": CHOICES}, model=wide)
    prompts, answers = [row["prompt"] for row in CHOICES], [row["answer"] for row in CHOICES]
    letters = all_answers(victim, "main", prompts, local_steps=steps, problems_per_step=each)
    right = sum(letter == answer for letter, answer in zip(letters, answers, strict=True))
    assert right >= least
    assert victim.sent == 1


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "least", "most"), [(8.0, 0, 14), (1e8, 17, 20)])
def test_noise_of_a_usual_epsilon_hides_the_answers_that_one_reply_tells(
    epsilon: float, least: int, most: int, wide: Path, tmp_path: Path
) -> None:
    """Chance has 15 or more of 20 right four times in a million. With hardly any noise the attack succeeds as above."""
    victim = Victim(tmp_path, {"main": CHOICES}, model=wide)
    prompts, answers = [row["prompt"] for row in CHOICES], [row["answer"] for row in CHOICES]
    privacy = {"clip": 1.0, "noise": noise_for(epsilon, 1e-5, 1)}
    letters = all_answers(victim, "main", prompts, privacy, local_steps=1, problems_per_step=20)
    right = sum(letter == answer for letter, answer in zip(letters, answers, strict=True))
    assert least <= right <= most


@pytest.mark.slow
@pytest.mark.parametrize("there", [range(10), range(0, 20, 2)], ids=["first", "even"])
def test_few_legal_messages_tell_which_guessed_prompts_are_trained_on_by_default(
    there: range, wide: Path, tmp_path: Path
) -> None:
    """No floor bounds this either: 10 problems are behind each reply. The documentation says so.

    Ten of twenty guessed prompts are training problems. Over three messages with seeds of their own the components of
    these ten have moved towards a letter further than all others.
    """
    victim = Victim(tmp_path, {"main": [CHOICES[place] for place in there]}, model=wide)
    prompts = [row["prompt"] for row in CHOICES]
    replies = [pointed(victim, "main", prompts, seed, problems_per_step=len(there)) for seed in range(3)]
    sums = [sum(values) for values in zip(*replies, strict=True)]
    absent = [place for place in range(len(CHOICES)) if place not in there]
    assert auc([sums[place] for place in there], [sums[place] for place in absent]).value == 1.0
    assert victim.sent == 3
