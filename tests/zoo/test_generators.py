"""The embedded problems: right, short, distinct, and in the split their prompt says."""

from __future__ import annotations

import hashlib
import re
from itertools import islice
from math import prod
from random import Random

import pytest

from fedrlvr.errors import DataError
from fedrlvr.zoo import FAMILIES, LEVELS, problems
from fedrlvr.zoo.clinical import DOSE, DRIP, SCORE, UNIT
from fedrlvr.zoo.family import Pen, with_wrong_digit
from fedrlvr.zoo.generators import ALL, problem_of, split_of
from scripts.reasoner.demonstrations import MAX_RESPONSE, NOISE, Demonstration, demonstrations, wrong_solution

CELLS = [(family, level) for family in ALL for level in LEVELS]


def _answer_from_prompt(prompt: str) -> int:
    """Solve a prompt from its text alone, the way its words ask."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    match re.sub(r"[\d+ ,.?]", "", prompt):
        case "plus":
            return numbers[0] + numbers[1]
        case "minus":
            return numbers[0] - numbers[1]
        case "times":
            return prod(numbers)
        case "mod":
            return numbers[0] % numbers[1]
        case "kgmg/kg/dayindoses":
            return round(numbers[0] * numbers[1] / numbers[2])
        case "mlinmingtt/ml":
            return round(numbers[0] / numbers[1] * numbers[2])
        case "gmginmg":
            return numbers[0] * 1000 + numbers[1]
        case "xgxmginmg":
            return numbers[0] * numbers[1] * 1000 + numbers[2] * numbers[3]
        case "Scoremgapointfrom":
            *items, rate, threshold = numbers
            return rate * len(range(threshold, sum(items) + 1))
    raise AssertionError(prompt)


@pytest.mark.parametrize(("family", "level"), CELLS, ids=lambda value: getattr(value, "name", value))
def test_answers_agree_with_the_prompt_and_the_worked_solution(family, level):
    rng = Random(5)
    for _ in range(200):
        operands = family.draw(rng, level)
        problem = problem_of(family, level, operands)
        assert int(problem.answer) == _answer_from_prompt(problem.prompt)
        assert family.solution(operands, Pen()).endswith(f" #### {problem.answer}")
        wrong = wrong_solution(family, operands, 0.9, rng)
        assert not wrong.endswith(f" #### {problem.answer}")
        assert len(wrong) <= MAX_RESPONSE
        assert len(problem.prompt) <= 40


@pytest.mark.parametrize(
    ("name", "operands", "right", "misconceived"),
    [
        ("sum", (47, 85), "12 13 #### 132", None),
        ("difference", (325, 47), "15-7=8 11-4=7 2 #### 278", "7-5=2 4-2=2 3 #### 322"),
        ("difference", (1003, 908), "13-8=5 9-0=9 9-9=0 #### 95", "8-3=5 0-0=0 10-9=1 #### 105"),
        ("product", (347, 6), "42 28 20 #### 2082", None),
        ("remainder", (347, 6), "0r3 5r4 7r5 r #### 5", "0r3 5r4 7r5 q #### 57"),
        ("dose", (34, 12, 3), "4 16 13 #### 136", None),
        ("drip", (240, 40, 15), "6*15 #### 90", None),
        ("drip", (552, 46, 15), "92 2 12*15 #### 180", None),
        ("unit", (2, 350), "2000+350 #### 2350", "2+350 #### 352"),
        ("unit", (4, 2, 3, 85), "8000 15 25 #### 8255", "8 15 25 #### 263"),
        ("score", (7, 5, 3, 2, 4), "5 9-6=3 #### 15", "5 9-7=2 #### 10"),
    ],
)
def test_worked_solutions_by_hand(name, operands, right, misconceived):
    family = next(family for family in ALL if family.name == name)
    assert family.solution(operands, Pen()) == right
    if misconceived is not None:
        assert family.solution(operands, Pen(misconceived=True)) == misconceived


def test_prompts_by_hand():
    assert DOSE.ask((34, 12, 3)) == "34 kg, 12 mg/kg/day in 3 doses?"
    assert DRIP.ask((240, 40, 15)) == "240 ml in 40 min, 15 gtt/ml?"
    assert UNIT.ask((4, 2, 3, 85)) == "4 x 2 g + 3 x 85 mg in mg?"
    assert SCORE.ask((7, 5, 3, 2, 4)) == "Score 3+2+4, 5 mg a point from 7?"


def test_a_slip_is_carried_on():
    family = next(family for family in ALL if family.name == "sum")
    for seed in range(20):
        units, tens, _, answer = family.solution((47, 85), Pen(Random(seed), slip_rate=1.0)).split()
        assert units[0] == "1" or units[1] == "2"
        assert units != "12"
        # The tens slip too, from what the units' carry makes of them; so does the answer.
        assert sum(digit != right for digit, right in zip(f"{4 + 8 + int(units[0]):2}", f"{tens:>2}", strict=True)) == 1
        assert sum(digit != right for digit, right in zip(tens + units[1], answer, strict=True)) == 1


def test_slips_come_at_their_rate():
    family = next(family for family in ALL if family.name == "product")
    rng = Random(0)
    unharmed = sum(family.solution((3471, 6), Pen(rng, 0.2)) == family.solution((3471, 6), Pen()) for _ in range(2000))
    assert unharmed / 2000 == pytest.approx(0.8**5, abs=4 * (0.25 / 2000) ** 0.5)


def test_a_wrong_digit_is_one_digit_anywhere_and_never_a_leading_zero():
    seen = {with_wrong_digit(10, Random(seed)) for seed in range(500)}
    assert seen == {11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 30, 40, 50, 60, 70, 80, 90}
    assert {with_wrong_digit(0, Random(seed)) for seed in range(200)} == set(range(1, 10))


def test_half_of_each_domain_has_each_error():
    for domain in ("arithmetic", "clinical"):
        assert sorted(family.error for family in ALL if family.domain == domain) == ["diffuse"] * 2 + ["systematic"] * 2


def test_noise_covers_every_cell_and_is_respected():
    assert set(NOISE) == {(family, level) for family in FAMILIES for level in LEVELS}
    drawn: dict[tuple[str, str], list[Demonstration]] = {}
    for example in islice(demonstrations(seed=3), 16 * 600):
        drawn.setdefault((example.family, example.level), []).append(example)
    for cell, shown in drawn.items():
        wrong = [
            example
            for example in shown
            if int(example.response.rsplit(" ", 1)[1]) != _answer_from_prompt(example.prompt)
        ]
        assert wrong == [example for example in shown if not example.correct]
        # Four standard errors of a share of 600.
        assert len(wrong) / len(shown) == pytest.approx(NOISE[cell], abs=4 * (0.25 / 600) ** 0.5)
        assert max(len(example.response) for example in shown) <= MAX_RESPONSE


def test_without_noise_every_demonstration_is_right():
    for example in islice(demonstrations(seed=3, noise={}), 320):
        assert example.correct
        assert int(example.response.rsplit(" ", 1)[1]) == _answer_from_prompt(example.prompt)


def test_demonstrations_are_of_train_problems_only():
    held_out = {problem.prompt for split in ("public", "test") for problem in problems(split=split, size=100, seed=0)}
    assert not held_out & {example.prompt for example in islice(demonstrations(seed=0), 8000)}


def test_splits_are_disjoint_and_ids_unique():
    result = {split: problems(split=split, size=150, seed=1) for split in ("train", "public", "test")}
    for split, chosen in result.items():
        assert {split_of(problem) for problem in chosen} == {split}
    every = [problem for chosen in result.values() for problem in chosen]
    assert len(every) == 3 * 16 * 150
    assert len({problem.content_key for problem in every}) == len(every)
    assert len({problem.id for problem in every}) == len(every)


@pytest.mark.parametrize(("split", "size"), [("train", 1000), ("test", 300)])
def test_every_cell_is_large_enough(split, size):
    assert len(problems(split=split, size=size, seed=0)) == 16 * size


def test_problems_are_reproducible():
    """The card was measured on these very problems: where they change, weights and card must be made anew."""
    chosen = problems(split="test", size=4, seed=0)
    digest = hashlib.sha256(
        "\n".join(f"{problem.id} {problem.prompt} {problem.answer}" for problem in chosen).encode()
    ).hexdigest()
    assert digest[:16] == "de7cb6fd8199fd63"
    assert chosen == problems(split="test", size=4, seed=0)
    assert chosen != problems(split="test", size=4, seed=1)


def test_families_and_levels_can_be_chosen():
    chosen = problems(split="train", size=3, seed=0, families=["dose", "sum"], levels=["hard"])
    assert [problem.source for problem in chosen] == ["dose"] * 3 + ["sum"] * 3
    assert {problem.info["level"] for problem in chosen} == {"hard"}
    assert dict(chosen[0].info) == {"level": "hard", "domain": "clinical", "error": "diffuse"}
    assert chosen[0].kind == "math"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"split": "dev"}, "'dev'.*train, public, test"),
        ({"families": ["sums"]}, "'sums'.*sum, difference"),
        ({"levels": ["medium"]}, "'medium'.*easy, hard"),
        ({"families": ["dose"], "levels": ["easy"], "size": 3000}, "dose, level easy, split test.*3000"),
    ],
)
def test_bad_requests_name_what_is_wrong(wrong, said):
    with pytest.raises(DataError, match=said):
        problems(**({"split": "test", "size": 2, "seed": 0} | wrong))
