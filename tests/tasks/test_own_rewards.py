"""Reward functions of the user's make: their forms, their process, and their weighted sum with numbers by hand."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedrlvr.config.problems import DataConfig, RewardConfig
from fedrlvr.errors import GradingError
from fedrlvr.rl import Group, Response, is_correct
from fedrlvr.tasks import Problem, Reward, grader_for, rewards_for
from fedrlvr.tasks import rewards as rewards_module
from fedrlvr.tasks.rewards import OwnReward, score
from fedrlvr.tasks.sandbox import KillableChild

PROBLEM = Problem("6 x 7?", "42", "p1", "s", "math", {"level": 3})
MODULE = """
import os, subprocess, sys, time
calls = 0
def response(completion, answer, *, level):
    return len(completion) + level
def asks(completion, answer, prompt, finished, **info):
    return (prompt == "6 x 7?") + 2 * finished
def batch(completions, answers, infos):
    global calls
    calls += 1
    return [len(c) + i["level"] + 10 * (a == "42") + 100 * calls for c, a, i in zip(completions, answers, infos)]
def batch_asks(completions, answers, prompts, finished):
    return [len(p) + f for p, f in zip(prompts, finished)]
def trl(completions, solution, level, **columns):
    assert sorted(columns) == ["answer", "finished", "prompts"]
    return [float(c == s) + l for c, s, l in zip(completions, solution, level)]
def trl_bare(completions):
    return tuple(len(c) for c in completions)
def short(completions, **columns):
    return [1.0]
def hangs(completion, answer):
    time.sleep(3600 if completion == "hang" else 0)
    return 1
def with_helper(completion, answer):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    open(completion, "w").write(str(helper.pid))
    time.sleep(3600)
def large(completion, answer):
    return len(bytearray((64 << 30) if completion == "large" else 1))
def dies(completion, answer):
    if completion == "die":
        os._exit(3)
    return 1
def raises(completion, answer, prompt):
    raise KeyError(completion + answer + prompt)
def prints(completion, answer):
    print('{"values": [7]}')
    return 1
def missing(completions, label):
    return [0 for _ in completions]
def unclear(text, gold):
    return 0
def both(completion, completions):
    return 0
def by_place(completion, /, answer):
    return 0
def batch_more(completions, answers, shadow):
    return 0
async def later(completion, answer):
    return 0
class Holder:
    def __call__(self, completion, answer):
        return 5
held = Holder()
"""

Make = Callable[..., Reward]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A reward of the module by name."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    made: list[OwnReward] = []

    def loaded(name: str, **limits: float) -> Reward:
        reward = grader_for(f"mine:{name}", **limits)  # type: ignore[arg-type]
        assert isinstance(reward, OwnReward)
        made.append(reward)
        return reward

    yield loaded
    for reward in made:
        reward.child.close()


def test_one_response_at_a_time(make: Make) -> None:
    assert score(make("response"), PROBLEM, ["", "abc"]) == [3.0, 6.0]


def test_prompt_and_finished_come_where_they_are_named(make: Make) -> None:
    assert score(make("asks"), PROBLEM, ["a", "b"], [True, False]) == [3.0, 1.0]
    assert score(make("batch_asks"), PROBLEM, ["a", "b"], [False, True]) == [6.0, 7.0]


def test_all_responses_of_a_problem_in_one_call(make: Make) -> None:
    reward = make("batch")
    assert score(reward, PROBLEM, ["", "abc"]) == [113.0, 116.0]
    assert score(reward, PROBLEM, [""]) == [213.0]


def test_the_form_of_trl(make: Make) -> None:
    assert score(make("trl"), PROBLEM, ["42", "4"]) == [4.0, 3.0]
    assert score(make("trl_bare"), PROBLEM, ["42", "4"]) == [2.0, 1.0]


def test_an_object_that_can_be_called(make: Make) -> None:
    assert make("held")("x", PROBLEM) == 5.0


def test_its_module_is_not_imported_here(make: Make) -> None:
    make("response")
    assert "mine" not in sys.modules


@pytest.mark.parametrize("name", ["unclear", "both", "by_place", "batch_more", "later"])
def test_an_unclear_signature_is_an_error_at_start(make: Make, name: str) -> None:
    with pytest.raises(GradingError, match=rf"mine:{name}.*reward\(completion, answer"):
        make(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raises", r"mine:raises raised KeyError on problem 'p1' \(mine.py, line \d+\)"),
        ("missing", "mine:missing raised TypeError"),
        ("short", "mine:short returned 1 numbers for 2"),
    ],
)
def test_an_error_names_the_function_and_no_content(make: Make, name: str, text: str) -> None:
    with pytest.raises(GradingError, match=text) as error:
        score(make(name), PROBLEM, ["secret", "else"])
    assert not any(word in str(error.value) for word in ("secret", "42", "6 x 7"))


def test_what_it_prints_is_no_reply(make: Make) -> None:
    assert make("prints")("x", PROBLEM) == 1.0


def test_a_hanging_function_is_killed_and_the_next_call_works(make: Make) -> None:
    reward = make("hangs", time_limit=1.0)
    assert reward("x", PROBLEM) == 1.0
    with pytest.raises(GradingError, match=r"mine:hangs took longer than 1 s.*time_limit"):
        reward("hang", PROBLEM)
    assert reward("x", PROBLEM) == 1.0


def test_an_interrupted_call_leaves_no_reply_for_the_next(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = make("response")
    assert reward("abc", PROBLEM) == 6.0

    def interrupted(self: object, timeout: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KillableChild, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reward("", PROBLEM)
    assert reward("abcd", PROBLEM) == 7.0


def test_processes_that_it_started_are_killed_with_it(make: Make, tmp_path: Path) -> None:
    with pytest.raises(GradingError, match="mine:with_helper took longer"):
        make("with_helper", time_limit=2.0)(str(tmp_path / "pid"), PROBLEM)
    helper = int((tmp_path / "pid").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(helper).wait(timeout=10) != 0


def test_a_function_that_wants_all_memory_fails_alone(make: Make) -> None:
    reward = make("large")
    with pytest.raises(GradingError, match=r"mine:large raised MemoryError.*memory"):
        reward("large", PROBLEM)
    assert reward("x", PROBLEM) == 1.0


def test_a_function_that_ends_its_process_is_started_again(make: Make) -> None:
    reward = make("dies")
    with pytest.raises(GradingError, match="mine:dies ended its process twice"):
        reward("die", PROBLEM)
    assert reward("x", PROBLEM) == 1.0


@pytest.mark.parametrize(("name", "key"), [("asks", "prompt"), ("trl", "answer"), ("response", "completion")])
def test_info_may_not_have_the_name_of_an_argument(make: Make, name: str, key: str) -> None:
    with pytest.raises(GradingError, match=f"'p2': info has the key '{key}'"):
        make(name)("x", Problem("q", "1", "p2", "s", "math", {key: "2", "level": 1}))


def entries(*stated: dict[str, Any]) -> list[RewardConfig]:
    return DataConfig.model_validate({"rewards": list(stated)}).rewards


def test_a_weighted_sum_by_hand(make: Make) -> None:
    stated = entries(
        {"use": "mine:response", "weight": 0.5}, {"use": "grader", "weight": 2.0}, {"use": "mine:asks", "weight": 0.0}
    )
    both = rewards_for(stated)
    right, wrong = r"\boxed{42}", "ab"  # 10 + 3 and 2 + 3 characters
    rewards = score(both.training, PROBLEM, [right, wrong], [True, False])
    assert rewards == [0.5 * 13 + 2.0, 0.5 * 5]
    assert [r.parts for r in rewards] == [(13.0, 1.0, 3.0), (5.0, 0.0, 1.0)]  # type: ignore[attr-defined]
    # The grader decides whether a response is correct, wherever it stands and however the sum turns out.
    assert [is_correct(reward) for reward in rewards] == [True, False]
    assert score(both.verifier, PROBLEM, [right, wrong]) == [1.0, 0.0]


def test_without_the_grader_the_first_decides(make: Make) -> None:
    both = rewards_for(entries({"use": "mine:asks", "weight": 0.1}, {"use": "mine:response"}))
    assert both.verifier("x", PROBLEM) == 3.0
    assert is_correct(both.training("x", PROBLEM))


def test_one_reward_of_weight_1_is_both() -> None:
    for stated in ([], [{}], [{"use": "grader"}]):
        both = rewards_for(entries(*stated))
        assert both.training is both.verifier
        assert both.training(r"\boxed{42}", PROBLEM) == 1.0


def test_rewards_are_computed_in_parallel(make: Make) -> None:
    """Two functions of which each waits for the other."""
    (Path.cwd() / "mine.py").write_text(
        "import pathlib, time\n"
        "def meet(name, other):\n"
        "    pathlib.Path(name).touch()\n"
        "    while not pathlib.Path(other).exists():\n"
        "        time.sleep(0.01)\n"
        "    return 1\n"
        "def a(completion, answer):\n    return meet('a', 'b')\n"
        "def b(completion, answer):\n    return meet('b', 'a')\n"
    )
    both = rewards_for(entries({"use": "mine:a"}, {"use": "mine:b"}))
    assert both.training("x", PROBLEM) == 2.0


def test_few_processes_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_module, "MOST_CHILDREN", 2)
    made = [make(name) for name in ("response", "held", "asks")]
    pids = [reward.child.pid for reward in made]  # type: ignore[attr-defined]
    assert pids[0] is None
    assert None not in pids[1:]
    assert make("asks").child is made[2].child, "one process serves everybody"  # type: ignore[attr-defined]
    assert made[0]("abc", PROBLEM) == 6.0


def test_of_several_errors_the_first_reward_s_is_raised(make: Make) -> None:
    stated = entries({"use": "mine:hangs", "time_limit": 0.5}, {"use": "mine:raises"})
    with pytest.raises(GradingError, match="mine:hangs"):
        rewards_for(stated).training("hang", PROBLEM)


def test_a_response_that_is_not_graded_has_0_of_every_reward(make: Make) -> None:
    from fedrlvr.client.metrics import StepMetrics

    stated = entries({"use": "grader"}, {"use": "mine:response", "weight": 0.1})
    responses = [Response([1], [-1.0], text, finished) for text, finished in (("", False), (r"\boxed{42}", True))]
    responses[0].treatment = "zero"
    for response, reward in zip(
        responses, score(rewards_for(stated).training, PROBLEM, [r.text for r in responses]), strict=True
    ):
        response.reward = reward
    metrics = StepMetrics()
    metrics.sampled([Group(PROBLEM.question, [1], responses)])
    numbers = metrics.summary()
    # Of the second alone: grader 1, characters 10 + 3; halved, as there are two responses.
    assert (numbers["reward_1"], numbers["reward_2"]) == (0.5, 6.5)
    assert numbers["reward"] == pytest.approx(0.5 + 0.1 * 6.5)
    assert numbers["pass@1"] == 0.5
