"""The user's own reward, and a validation that catches rewards which pay for nonsense or for nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedrlvr.errors import ConfigError, GradingError
from fedrlvr.tasks import Problem, grader_for, gym, load, validate, wrap
from fedrlvr.tasks.sandbox import GraderChild

PROBLEM = Problem("6 x 7?", "42", "p1", "s", "math", {"weight": 2.0})
MODULE = """
def half(completion, answer, *, weight):
    return weight / 4 if answer in completion else 0
def fails(completion, answer, **info):
    raise KeyError("secret content")
def text(completion, answer, **info):
    return "1.0"
def nan(completion, answer, **info):
    return float("nan")
def true(completion, answer, **info):
    return answer in completion
def always(completion, answer, **info):
    return 1.0
def never(completion, answer, **info):
    return 0.0
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_reward.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_reward", raising=False)
    return "own_reward"


def test_by_kind_without_a_path() -> None:
    assert grader_for(None)(r"\boxed{42}", PROBLEM) == 1.0
    assert grader_for(None)(r"\boxed{43}", PROBLEM) == 0.0


def test_arithmetic_counts_only_if_it_is_asked_for() -> None:
    assert grader_for(None)(r"\boxed{40+2}", PROBLEM) == 0.0
    assert grader_for(None, arithmetic=True)(r"\boxed{40+2}", PROBLEM) == 1.0


def test_own_reward_from_the_working_directory_gets_info(module: str) -> None:
    assert grader_for(f"{module}:half")("it is 42", PROBLEM) == 0.5
    assert grader_for(f"{module}:true")("it is 42", PROBLEM) == 1.0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_reward", "'own_reward' is no import path. Write it as package.module:function"),
        (":half", "is no import path"),
        ("no_such_module:f", "module 'no_such_module' cannot be imported (ModuleNotFoundError"),
        ("own_reward:missing", "has no function 'missing'"),
        ("own_reward:number", "has no function 'number'"),
    ],
)
def test_a_path_that_cannot_be_used(path: str, message: str, module: str) -> None:
    with pytest.raises(GradingError) as error:
        grader_for(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "own_reward:fails raised KeyError on problem 'p1'"),
        ("text", "own_reward:text returned str on problem 'p1'"),
        ("nan", "own_reward:nan returned float on problem 'p1'. It must return a finite number"),
    ],
)
def test_a_reward_that_misbehaves_is_named_without_content(name: str, message: str, module: str) -> None:
    reward = grader_for(f"{module}:{name}")
    with pytest.raises(GradingError) as error:
        reward("it is 42", PROBLEM)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_info_may_not_shadow_the_arguments(module: str) -> None:
    clash = Problem("q", "1", "p2", "s", "math", {"answer": "2"})
    with pytest.raises(GradingError, match="'p2': info has the key 'answer'"):
        grader_for(f"{module}:always")("x", clash)


def test_validation_catches_a_reward_that_pays_for_nonsense_or_nothing(module: str) -> None:
    problems = [PROBLEM, Problem("7 x 7?", "49", "p2", "s", "math")]
    generous = validate(problems, grader_for(f"{module}:always"), attacked=1)
    assert (generous.checked, generous.attacked, generous.ok) == (2, 1, False)
    assert {failure.id for failure in generous.failures} == {"p1"}
    assert any("'empty' scores 1 instead of 0" in failure.reason for failure in generous.failures)
    stingy = validate(problems, grader_for(f"{module}:never"))
    assert [f.reason for f in stingy.failures] == ["the gold answer scores 0 instead of 1"] * 2
    broken = validate(problems, grader_for(f"{module}:fails"), attacked=0)
    assert "cannot be scored: The reward own_reward:fails raised KeyError" in broken.failures[0].reason


GYM = '''
"""Stands in for reasoning-gym: its interface, with a scorer that gives partial credit and raises on non-numbers."""
class Family:
    def __init__(self, size, seed, top=9):
        if top < 1:
            raise ValueError("top")
        self.seed, self.top = seed, top
    def __getitem__(self, i):
        n = (self.seed + i) % self.top
        return {"question": f"What follows {n}?", "answer": str(n + 1), "metadata": {}}
    def score_answer(self, answer, entry):
        return 1.0 if int(answer) == int(entry["answer"]) else 0.5
class Order(Family):
    def __getitem__(self, i):
        return {"question": " ".join({"a", "b", "c", "d", "e", "f", "g", "h"}), "answer": "1", "metadata": {}}
def create_dataset(name, **config):
    return {"next": Family, "order": Order}[name](**config)
'''


def test_a_gym_scorer_counts_in_full_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym.py").write_text(GYM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the child
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(gym, "_child", GraderChild())
    train = load("reasoning_gym:next", None, "train", size=5, seed=1, top=7)
    assert [p.answer for p in train] == ["2", "3", "4", "5", "6"]
    assert (train[0].source, train[0].id, train[0].kind) == ("next", "next-train-0", "exact")
    reward = grader_for(None)
    assert [reward(wrap(answer, "exact"), train[0]) for answer in ("2", "02", "3", "two")] == [1.0, 1.0, 0.0, 0.0]
    assert reward("2", train[0]) == 0.0
    assert (
        load("reasoning_gym:next", None, "test", size=5, seed=1)[0].info["reasoning_gym"]["config"]["seed"] == 10**9 + 1
    )
    for options in ({"top": 0}, {"bottom": 1}):
        with pytest.raises(ConfigError, match=r"reasoning_gym:next cannot be made with"):
            load("reasoning_gym:next", None, "train", size=1, **options)
    # A family that walks through a set of strings gives the same problem in every process all the same.
    code = "print(' '.join({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}))"
    fixed = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True)
    assert load("reasoning_gym:order", None, "train", size=1)[0].prompt == fixed.stdout.strip()
    gym._child.close()


def test_the_real_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    problems = load("reasoning_gym:chain_sum", None, "train", size=20, seed=0)
    assert validate(problems, grader_for(None), attacked=5).failures == []
