"""MATH's and GSM8K's own golds: wrong forms earn nothing, true spellings earn the reward; figures are printed (-s)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from fedrlvr.tasks import grade, load
from fedrlvr.tasks.answers import option_letter, parse
from fedrlvr.tasks.answers.forms import Based, Compound, Expression, Number, Quantity

Find = Callable[[str], Path]

WRONG = [
    r"\neq {}", r"\geq {}", "> {}", r"\approx {}", "1={}", "7={}", "x^2={}", "x+y={}", "2x={}", "{}+0", "0+{}",
    r"{}\times 1", "{}_7", r"{} \text{{ or }} 7", r"\pm {}", "{},0", "{}x", r"\sqrt{{{}^2}}", "|{}|", "{}!", "-{}",
    r"\text{{not }} {}", r"{} \text{{ is wrong}}",
]  # fmt: skip


def boxed(answer: str, gold: str) -> float:
    return grade(rf"\boxed{{{answer}}}", gold, "math")


@pytest.fixture
def golds(real_data: Find) -> list[str]:
    return sorted({p.answer for split in ("train", "test") for p in load("math", real_data("math"), split)})


@pytest.mark.parametrize("form", WRONG)
def test_a_wrong_form_of_an_integer_earns_nothing(form: str, golds: list[str]) -> None:
    integers = [gold for gold in golds if re.fullmatch(r"[1-9][0-9]*", gold)]
    sample = random.Random(0).sample(integers, 126)
    paid = [n for n in sample if boxed(form.format(n), n)]
    print(f"{form}: {len(paid)} of {len(sample)}")
    assert paid == []


def test_wrong_bases_and_points_as_sets_earn_nothing(golds: list[str]) -> None:
    based = [(gold, form) for gold in golds if isinstance(form := parse(gold), Based)]
    points = [gold for gold in golds if isinstance(form := parse(gold), Compound) and form.shape == "tuple"]
    print(len(based), "bases,", len(points), "points")
    for gold, form in based:
        digits = gold.split("_")[0]
        for base in {10, 11, 16, 36} - {form.base}:
            assert boxed(f"{digits}_{{{base}}}", gold) == 0.0
        assert boxed(digits, gold) == 0.0
    for gold in points:
        inside = gold.replace(r"\left", "").replace(r"\right", "").strip()[1:-1]
        assert boxed(rf"\{{{inside}\}}", gold) == 0.0
        assert boxed(f"-({inside})", gold) == 0.0
        assert boxed(inside, gold) == 0.0


@pytest.mark.slow
def test_a_calculation_copied_from_the_prompt_earns_nothing(real_data: Find) -> None:
    copied = paid = 0
    for problem in load("math", real_data("math"), "train"):
        if not isinstance(parse(problem.answer), Number):
            continue
        for formula in re.findall(r"\$([^$]+)\$", problem.prompt):
            form = parse(formula) if len(formula) <= 1_000 else None
            if isinstance(form, Expression) and form.constant:
                copied += 1
                paid += boxed(formula, problem.answer) > 0
    print(f"calculations copied: {paid} of {copied}")
    assert copied > 500
    assert paid == 0


def test_another_number_before_gsm8ks_earns_nothing(real_data: Find) -> None:
    for problem in random.Random(0).sample(load("gsm8k", real_data("gsm8k"), "test"), 60):
        gold = problem.answer
        other = str(int(float(gold.replace(",", ""))) + 11)
        for answer in (
            f"{other}={gold}",
            f"{other}-11",
            f"{other} = {gold} = {gold}",
            rf"{gold} \text{{ or }} {other}",
        ):
            assert boxed(answer, gold) == 0.0
        for answer in (gold, f"{gold} eggs", rf"\${gold}", rf"x = {gold}", f"{gold}.", rf"{gold}\text{{ dollars}}"):
            assert boxed(answer, gold) == 1.0


def spellings(gold: str) -> Iterator[str]:
    """True spellings of a gold answer: spaced, with a full stop, with units, in other forms of fraction."""
    form = parse(gold)
    yield gold
    yield f" {gold} " if "," in gold else re.sub(r"(?<=[\w})])([-+=])", r" \1 ", f" {gold} ")
    yield f"{gold}."
    yield re.sub(r"\\[dt]frac", r"\\frac", gold)
    yield re.sub(r"\\frac(?![a-zA-Z])", r"\\dfrac", gold)
    yield rf"\text{{The answer is }} {gold}"
    if isinstance(form, Number) and "=" not in gold and "_" not in gold:
        yield rf"{gold.rstrip('.')}\text{{ units}}"
        yield f"{gold.rstrip('.')} apples"
        value = form.value
        if value.denominator == 1:
            yield f"{int(value):,}"
            yield f"{int(value):,}".replace(",", "{,}")
        yield rf"\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"
        yield f"{value.numerator}/{value.denominator}"
    elif isinstance(form, Quantity | Expression):
        yield f"y = {gold}"


def test_true_spellings_earn_the_reward(golds: list[str]) -> None:
    tried = [(gold, spelling) for gold in golds for spelling in spellings(gold)]
    missed = [(gold, spelling) for gold, spelling in tried if not boxed(spelling, gold)]
    whole = {gold for gold, _ in missed}
    print(
        f"{len(golds) - len(whole)} of {len(golds)} golds accepted in all of {len(tried)} spellings; missed: {missed}"
    )
    assert len(whole) <= 0.005 * len(golds)


@pytest.mark.parametrize("name", ["medqa", "medmcqa"])
def test_an_option_with_its_text_is_its_letter(name: str, real_data: Find) -> None:
    tried = missed = 0
    for split in ("train", "test"):
        for problem in load(name, real_data(name), split):
            for letter, text in re.findall(r"^([A-J])\. (.*)$", problem.prompt, re.MULTILINE):
                for span in (f"{letter}. {text}", f"({letter}) {text}", f"The correct answer is {letter}: {text}"):
                    tried += 1
                    read = option_letter(span)
                    assert read in (letter, None)
                    missed += read is None
    print(f"{missed} of {tried} options with their text are not read")
    assert missed <= 0.005 * tried  # "A. B", where an option is called by another's letter


def test_sampled_solutions_of_other_problems_earn_nothing(real_data: Find) -> None:
    lines = (real_data("math") / "math500_test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    paid = sum(grade(a["solution"], b["answer"], "math") for a, b in pairwise(rows))
    assert paid <= 0.02 * len(rows)
