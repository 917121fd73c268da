"""Clients that deviate: which answers become wrong, and that nothing else of the data changes."""

from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import pytest

from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks import Problem
from fedrlvr.tasks.deal import Dealt, deal
from fedrlvr.tasks.deviations import DeviantReward, contradicting, reworded, with_wrong_labels
from fedrlvr.tasks.grading import is_right
from fedrlvr.tasks.problem import Kind, Turn

# Three answers of one source, two of them equal in value though not in letters, and one problem of another source.
HELD = [
    Problem("1?", "1", "a", "s", "math"),
    Problem("1.0?", "1.0", "b", "s", "math"),
    Problem("2?", "2", "c", "s", "math"),
    Problem("9?", "9", "d", "t", "math"),
]


def test_all_labels_wrong_are_those_of_other_problems_of_the_source_with_another_answer() -> None:
    wrong = with_wrong_labels("x", HELD, 1.0, seed=0)
    a, b, c, d = (problem.answer for problem in wrong)
    assert (a, b) == ("2", "2"), "1 and 1.0 are one answer, so neither is wrong for the other"
    assert c in ("1", "1.0")
    assert d in ("1", "1.0", "2"), "no other problem of its source: any source"
    assert [(p.prompt, p.id, p.source) for p in wrong] == [(p.prompt, p.id, p.source) for p in HELD]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_two_answers_are_told_apart_as_their_grader_does(kind: Kind) -> None:
    """Also whole numbers, which are compared without it: 1 and 01 are two texts and one number."""
    answers = {"math": ("1", "01", "1.0", "2", "20"), "exact": ("1", "01", "1.0", "2")}
    for truth, other in permutations(answers.get(kind, ("yes", "no") if kind == "yes_no_maybe" else ("A", "B")), 2):
        pair = [Problem("p?", truth, "a", "s", kind), Problem("q?", other, "b", "s", kind)]
        if is_right(other, truth, kind, arithmetic=True):
            with pytest.raises(DataError, match="wrong_labels"):
                with_wrong_labels("x", pair, 1.0, seed=0)
        else:
            assert [problem.answer for problem in with_wrong_labels("x", pair, 1.0, seed=0)] == [other, truth]


def test_a_share_is_a_whole_number_of_problems_drawn_by_seed_and_client() -> None:
    many = [Problem(f"{i}?", str(i), str(i), "s", "math") for i in range(10)]

    def changed(share: float, seed: int = 0, client: str = "x") -> dict[str, str]:
        wrong = with_wrong_labels(client, many, share, seed)
        return {new.id: new.answer for new, old in zip(wrong, many, strict=True) if new != old}

    assert changed(0.0) == {}
    assert [len(changed(share)) for share in (0.04, 0.05, 0.3, 1.0)] == [0, 1, 3, 10]
    assert changed(0.3) == changed(0.3)
    assert changed(0.3).items() <= changed(0.7).items(), "a larger share keeps the wrong answers of a smaller one"
    assert changed(0.5) != changed(0.5, seed=1)
    assert changed(0.5) != changed(0.5, client="y")


def test_a_client_with_one_answer_cannot_have_wrong_labels() -> None:
    with pytest.raises(DataError, match=r"federation\.deviations\.x\.wrong_labels"):
        with_wrong_labels("x", HELD[:2], 0.5, seed=0)


def test_a_template_takes_the_prompt_as_it_is() -> None:
    problem = Problem("{x} {{ prompt }}?", "1", "a", "s", "math")
    assert reworded(problem, "Q: {{ prompt }}").prompt == "Q: {x} {{ prompt }}?"
    turns = (Turn("system", "Be brief."), Turn("user", "1+1="))
    talk = reworded(Problem("Be brief.\n\n1+1=", "2", "b", "s", "math", messages=turns), "Q: {{ prompt }}")
    assert talk.messages == (turns[0], Turn("user", "Q: 1+1="))
    assert talk.prompt == "Be brief.\n\nQ: 1+1="
    assert reworded(problem, None) is problem


@pytest.mark.parametrize(
    ("kind", "answer", "opposite"),
    [
        ("math", "41", "42"),
        ("math", "-1", "0"),
        ("choice", "A", "B"),
        ("choice", "C", "A"),
        ("yes_no_maybe", "yes", "no"),
        ("yes_no_maybe", "no", "yes"),
    ],
)
def test_an_answer_that_contradicts(kind: Kind, answer: str, opposite: str) -> None:
    (changed,) = contradicting("x", [Problem("p?", answer, "a", "s", kind)])
    assert (changed.prompt, changed.answer) == ("p?", opposite)
    assert changed.id != "a"
    assert not is_right(opposite, answer, kind, arithmetic=True)


@pytest.mark.parametrize(("kind", "answer"), [("math", "1/2"), ("yes_no_maybe", "maybe"), ("exact", "text")])
def test_an_answer_without_an_opposite_is_refused(kind: Kind, answer: str) -> None:
    with pytest.raises(DataError, match=r"federation\.deviations\.x\.contradicts"):
        contradicting("x", [Problem("p?", answer, "a", "s", kind)])


def even(completion: str, problem: Problem) -> float:
    return float(int(completion) % 2 == 0)


def test_rewards_that_are_zero_or_flipped_are_drawn_by_seed_client_problem_and_text() -> None:
    problems = [Problem(f"{i}?", str(i), str(i), "s", "math") for i in range(50)]
    texts = [str(i % 8) for i in range(40)]

    def given(unsolvable: float = 0.0, flipped: float = 0.0, client: str = "x", seed: int = 0) -> list[list[float]]:
        reward = DeviantReward(even, client, problems, unsolvable=unsolvable, flipped=flipped, seed=seed)
        return [reward.score(problem, texts, [True] * 40) for problem in problems]

    plain = [1.0, 0.0] * 20
    assert given() == [plain] * 50
    assert sum(rewards == [0.0] * 40 for rewards in given(unsolvable=0.3)) == 15
    assert given(unsolvable=1.0) == [[0.0] * 40] * 50
    assert given(flipped=1.0) == [[0.0, 1.0] * 20] * 50
    some = given(flipped=0.1)
    flips = sum(a != b for rewards in some for a, b in zip(rewards, plain, strict=True))
    assert 150 < flips < 250, "200 of 2,000 in the mean, with a deviation of 13"
    assert some == given(flipped=0.1)
    assert some not in (given(flipped=0.1, client="y"), given(flipped=0.1, seed=1))
    once = DeviantReward(even, "x", problems, unsolvable=0.0, flipped=0.5, seed=0).score(problems[0], ["2"] * 40, [])
    assert 5 < sum(once) < 35, "equal responses are drawn each for itself"


def test_a_client_that_contradicts_another_holds_its_prompts() -> None:
    plain, against = dealt(), dealt(b={"contradicts": "a"})
    (a, b), (a_then, b_then) = plain.clients, against.clients
    assert a_then.answers.everything() == a.answers.everything()
    pairs = list(zip(a.answers.everything(), b_then.answers.everything(), strict=True))
    assert all(old.prompt == new.prompt and int(new.answer) == int(old.answer) + 1 for old, new in pairs)
    assert (b_then.test, a_then.test) == (b.test, a.test)


def test_rewards_of_a_client_that_deviates_are_for_its_training_alone() -> None:
    a, b = dealt(b={"unsolvable": 1.0}).clients
    problem = b.answers.everything()[0]
    right = f"#### {problem.answer}"
    assert b.answers.grade(problem.question, problem.answer, [right]) == [0.0]
    assert b.grade(problem, [right]) == [1.0]
    assert a.answers.grade(a.train[0], "2", ["#### 2"]) == [1.0]


def dealt(arm: str = "federated", **deviations: dict[str, Any]) -> Dealt:
    federation = {"clients": ["a", "b"], "arm": arm, "deviations": deviations}
    tree: dict[str, Any] = {
        "data": {"train_size": 64, "test_size": 32},
        "partition": {"type": "iid"},
        "federation": federation,
    }
    return deal(parse_config(tree))


def test_deviations_change_their_own_client_s_problems_and_the_digest() -> None:
    plain, wrong = dealt(), dealt(b={"wrong_labels": 0.5})
    assert plain.digest != wrong.digest
    (a, b), (a_wrong, b_wrong) = plain.clients, wrong.clients
    assert a.answers.everything() == a_wrong.answers.everything()
    pairs = list(zip(b.answers.everything(), b_wrong.answers.everything(), strict=True))
    assert sum(old.answer != new.answer for old, new in pairs) == 16
    assert (a.test, b.test) == (a_wrong.test, b_wrong.test), "held-out problems keep their answers"

    other = dealt(b={"template": "Q: {{ prompt }}"})
    assert other.digest != plain.digest
    assert [q.prompt for q in other.clients[1].train] == [f"Q: {q.prompt}" for q in b.train]
    assert [p.prompt for p in other.clients[1].test] == [f"Q: {p.prompt}" for p in b.test]
    assert other.clients[0].train == a.train


def test_the_arm_central_pools_the_problems_as_the_clients_hold_them() -> None:
    template = {"template": "Q: {{ prompt }}", "wrong_labels": 1.0}
    (pooled,) = dealt("central", b=template).clients
    apart = dealt(b=template).clients
    train = [problem for client in apart for problem in client.answers.everything()]
    test = [problem for client in apart for problem in client.test]
    assert sorted(pooled.answers.everything(), key=lambda p: p.id) == sorted(train, key=lambda p: p.id)
    assert sorted(pooled.test, key=lambda p: p.id) == sorted(test, key=lambda p: p.id)
    assert sum(p.prompt.startswith("Q: ") for p in pooled.test) == len(apart[1].test) > 0


def test_a_client_s_own_reward_is_for_its_training_alone() -> None:
    both = dealt(b={"rewards": "small_runs:parity"}).clients
    problem = both[1].answers.everything()[0]
    assert both[1].answers.grade(problem.question, problem.answer, ["b", "a"]) == [1.0, 0.0], "98 is even, 97 is not"
    assert both[1].grade(problem, ["b", f"#### {problem.answer}"]) == [0.0, 1.0]
    assert both[0].answers.grade(problem := both[0].train[0], "2", ["b", "#### 2"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("deviation", "others", "named"),
    [
        ({"c": {"free_rider": True}}, {}, "federation.deviations.c: there is no such client"),
        ({"a": {"wrong_label": 0.5}}, {}, "wrong_labels"),
        ({"a": {"wrong_labels": 1.5}}, {}, "federation.deviations.a.wrong_labels"),
        ({"a": {"template": "Q:"}}, {}, "federation.deviations.a.template"),
        ({"a": {"free_rider": True, "wrong_labels": 0.5}}, {}, "free_rider = true"),
        (
            {"a": {"wrong_labels": 0.5}},
            {"supervision": {"type": "majority"}},
            "deviations.a.wrong_labels has no effect",
        ),
        ({"a": {"free_rider": True}}, {"federation": {"arm": "central"}}, "deviations.a.free_rider has no effect"),
        ({"a": {"contradicts": "b"}}, {"federation": {"arm": "central"}}, "deviations.a.contradicts has no effect"),
        ({"a": {"contradicts": "a"}}, {}, "deviations.a.contradicts"),
        ({"a": {"contradicts": "b"}, "b": {"contradicts": "a"}}, {}, "deviations.a.contradicts"),
        ({"a": {"contradicts": "b", "template": "{{ prompt }}!"}}, {}, "deviations.a.template"),
        ({"a": {"unsolvable": 1.0}}, {"supervision": {"type": "majority"}}, "deviations.a.unsolvable"),
        ({"a": {"free_rider": True, "flipped_rewards": 0.1}}, {}, "free_rider = true"),
        (
            {"a": {"flipped_rewards": 0.1, "rewards": [{"use": "grader", "weight": 0.1}]}},
            {},
            "unsolvable and flipped_rewards",
        ),
    ],
)
def test_a_deviation_that_cannot_be_or_has_no_effect_is_refused(
    deviation: dict[str, Any], others: dict[str, dict[str, Any]], named: str
) -> None:
    federation = {"clients": ["a", "b"], "deviations": deviation, **others.get("federation", {})}
    with pytest.raises(ConfigError) as refused:
        parse_config({**others, "federation": federation})
    assert named.casefold() in str(refused.value).casefold()
