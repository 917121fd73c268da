"""Private answers read off numbers that a server asks for by legal messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from answers import Scored, on_the_edge, one_answer, replay, replayed_score
from prompts import CHOICES
from victim import OPEN, Victim, wide_model

from fedrlvr.deployment.site import handler

ATTACKS: dict[str, Callable[[Victim, str, str], str]] = {
    "replay of a step": replay,
    "replay of a score": replayed_score,
    "reward of one answer": lambda victim, task, prompt: one_answer(victim, task, lambda numbers: numbers["reward"]),
    "tokens trained": lambda victim, task, prompt: one_answer(victim, task, lambda numbers: numbers["tokens_trained"]),
    "groups without a gradient": lambda victim, task, prompt: one_answer(
        victim, task, lambda numbers: -numbers["zero_variance_groups"]
    ),
    "gradient norm": lambda victim, task, prompt: one_answer(victim, task, lambda numbers: numbers["grad_norm"]),
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
    """How many of the first `count` answers the server concludes rightly."""
    letters = [ATTACKS[name](victim, f"task-{i}", CHOICES[i]["prompt"]) for i in range(count)]
    return sum(letter == row["answer"] for letter, row in zip(letters, CHOICES, strict=False))


def one_by_one(directory: Path, model: Path, held_out: bool, limits: dict[str, object]) -> Victim:
    """A site with a task for each problem, which is trained on or held out."""
    rows = {f"task-{i}": [row] for i, row in enumerate(CHOICES)}
    other = {task: [{"prompt": "9 mod 5?", "answer": "B", "kind": "choice"}] for task in rows}
    tasks, tests = (other, rows) if held_out else (rows, other)
    return Victim(directory, tasks, tests=tests, limits=limits, model=model)


@pytest.mark.usefixtures("no_secret")
@pytest.mark.parametrize("name", ["replay of a step", "replay of a score", "gradient norm"])
def test_four_answers_are_read_with_floors_off(name: str, wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, name == "replay of a score", OPEN)
    assert concluded(name, victim, 4) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("no_secret")
@pytest.mark.parametrize("name", ATTACKS)
def test_twenty_answers_are_read_with_floors_off(name: str, wide: Path, tmp_path: Path) -> None:
    victim = one_by_one(tmp_path, wide, name == "replay of a score", OPEN)
    assert concluded(name, victim, 20) == 20


@pytest.mark.slow
def test_held_out_answers_are_read_off_scores_of_chosen_sets_with_floors_off(wide: Path, tmp_path: Path) -> None:
    train = [{"prompt": "9 mod 5?", "answer": "B", "kind": "choice"}]
    victim = Victim(tmp_path, {"main": train}, tests={"main": CHOICES}, limits=OPEN, model=wide)
    right = on_the_edge(Scored(victim, "main", [row["prompt"] for row in CHOICES], "A"), len(CHOICES))
    assert right == [row["answer"] == "A" for row in CHOICES]
