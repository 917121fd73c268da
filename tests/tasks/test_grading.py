"""Right is 1.0 and wrong is 0.0: the cases that were found, more of their kinds, and what must hold for all of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrlvr.errors import GradingError
from fedrlvr.tasks import KINDS, canonical, extract, grade
from fedrlvr.tasks.answers import equal, matches, parse
from fedrlvr.tasks.answers.evaluation import values

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / name).read_text("utf-8").splitlines()]


CASES = rows("grading_cases.jsonl")
VARIANTS = [  # many completions to a gold
    {**row, "completion": completion, "expected": expected}
    for row in rows("grading_variants.jsonl")
    for verdict, expected in (("right", 1.0), ("wrong", 0.0))
    for completion in row.get(verdict, ())
]
GOLDS = sorted({row["gold"] for row in CASES + VARIANTS if row["kind"] == "math"})
SPELLINGS = sorted(
    {*GOLDS, *(a for row in CASES + VARIANTS if row["kind"] == "math" and (a := extract(row["completion"], "math")))}
)


def score(row: dict[str, Any]) -> float:
    return grade(row["completion"], row["gold"], row["kind"], in_thought=row.get("in_thought", False))


@pytest.mark.parametrize("group", sorted({row["group"] for row in CASES + VARIANTS}))
def test_cases_and_more_of_their_kind(group: str) -> None:
    assert [row for row in CASES + VARIANTS if row["group"] == group and score(row) != row["expected"]] == []


def test_keys_are_an_equivalence_that_right_answers_respect() -> None:
    """Two spellings with one key are right and wrong to the same golds."""
    by_key: dict[str, list[str]] = {}
    for text in SPELLINGS:
        by_key.setdefault(canonical(text, "math") or "", []).append(text)
    for key, texts in by_key.items():
        if not key:
            continue
        for first, second in pairwise(texts):
            assert matches(first, second, arithmetic=True), (first, second)
            assert matches(second, first, arithmetic=True), (first, second)


@pytest.mark.slow
def test_matching_is_symmetric_on_golds() -> None:
    forms = [form for gold in GOLDS if (form := parse(gold)) is not None]
    assert [(a, b) for a in forms for b in forms if equal(a, b) != equal(b, a)] == []


ALPHABET = [
    *(r"\{}()[]$^_,.;:=<>+-*/!|'0123456789xyABCei %°½²₈"),
    r"\frac", r"\sqrt", r"\text{", r"\boxed{", "}", r"\cup", r"\infty", r"\le", r"\pm", r"\begin{pmatrix}",
    r"\end{pmatrix}", " or ", " cm", r"\sin", r"\log_", "^{9^{9", "10^", "<answer>", "</answer>", "</think>", "####",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ALPHABET), max_size=40).map("".join), st.sampled_from(GOLDS))
def test_nonsense_never_raises(text: str, gold: str) -> None:
    for kind, answer in zip(KINDS, (gold, "B", "yes", "x", "x"), strict=True):
        assert grade(text, answer, kind) in (0.0, 1.0)  # type: ignore[arg-type]
        assert grade(rf"\boxed{{{text}}}", answer, kind) in (0.0, 1.0)  # type: ignore[arg-type]
    canonical(text, "math")


def nonsense(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    texts = ["".join(rng.choices(ALPHABET, k=rng.randrange(60))) for _ in range(count)]
    return [(rf"\boxed{{{text}}}" if rng.random() < 0.7 else text, rng.choice(GOLDS)) for text in texts]


@pytest.mark.parametrize("count", [300, 10_000])
def test_random_answers_are_bounded_in_time_and_the_same_in_any_order(count: int) -> None:
    asked = nonsense(count)
    slowest, verdicts = 0.0, []
    for completion, gold in asked:
        start = time.process_time()
        verdicts.append(grade(completion, gold, "math"))
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 1.0
    clear()
    backwards = [grade(completion, gold, "math") for completion, gold in reversed(asked)]
    assert backwards[::-1] == verdicts


def clear() -> None:
    for cached in (matches, parse, values):
        cached.cache_clear()


SLOW = [
    "9^{9^{9^9}}", "9^9^9", "10^{1000000}", "9999!", "3!!!", "2**2**2**2**2", "1e999999999", r"\binom{9999}{5000}",
    "9" * 999, "+".join([r"\sin(x)"] * 90), "(" * 400 + "x" + ")" * 400, "x^" * 400 + "2",
    r"\sqrt{" * 140 + "2" + "}" * 140,
    ",".join(str(n) for n in range(250)), "(x+1)^{99999}", r"\frac" * 190, "-" * 900 + "1", r"\{" * 400,
    "1:" * 400 + "1",
    r"\sin " * 190 + "x", "(x+y+z)^{300}" * 60, r"\cup".join(["(1,2)"] * 90), "10^{3999}" * 90, "e^{e^{e^{e^{e^e}}}}",
    r"\pm" * 300, "|" * 800, r"\text{" * 140 + "a" + "}" * 140, r"\tan 90^\circ", "x_" + "{" * 400 + "}" * 400,
    "x" + "!" * 900, "+".join("x" * 450), "18 " + "eggs " * 190, "x" + "^2" * 450, "-(" * 330 + "x" + ")" * 330,
]  # fmt: skip


def test_boxes_with_anything_between_them_cost_bounded_time() -> None:
    start = time.process_time()
    for gap in (" ", "$", r"\quad ", ",", " and ", "{", "or "):
        extract(r"\boxed{1}" + gap * 4_000 + r"\boxed{2}", "math")
        extract((r"\boxed{1}" + gap) * 1_000, "math")
    assert time.process_time() - start < 5.0


def test_a_message_of_explosive_answers_costs_seconds_not_minutes() -> None:
    """Eight responses to each of eight problems; a check has no clock of its own, and so none that order could stop."""
    clear()
    start = time.process_time()
    scores = [grade(rf"\boxed{{{text}}}", gold, "math") for text in SLOW for gold in ("5", "x+1", "(1,3)")]
    assert set(scores) == {0.0}
    assert time.process_time() - start < 10.0


def test_threads_do_not_disturb_one_another() -> None:
    """The precision of mpmath belongs to a context, which threads share."""
    texts = [rf"\frac{{\sqrt{{{n}}}+1}}{{{n}}}" for n in range(2, 60)]
    clear()
    alone = [canonical(text, "math") for text in texts]
    clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: canonical(text, "math"), texts)) == alone


def test_arithmetic_counts_where_it_is_asked_for() -> None:
    for answer, gold in [
        ("9+9", "18"),
        ("6!", "720"),
        (r"\sin 30^\circ", "0.5"),
        (r"\sin 60^\circ", r"\frac{\sqrt3}{2}"),
    ]:
        assert grade(rf"\boxed{{{answer}}}", gold, "math") == 0.0
        assert grade(rf"\boxed{{{answer}}}", gold, "math", arithmetic=True) == 1.0
    assert grade(r"\boxed{9+8}", "18", "math", arithmetic=True) == 0.0
    assert grade(r"\boxed{7=18}", "18", "math", arithmetic=True) == 0.0


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\frac{\pi}{2}", r"\pi/2", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\frac{10}{\sqrt3}", r"\frac{10\sqrt{3}}{3}", True),
        (r"10x\sqrt{21x}", r"10\sqrt{21x^3}", True),
        (r"\sqrt{x^2}", "x", False),
        (r"\sqrt[3]{-8}x", "-2x", True),
        (r"\cot x", r"\frac{\cos x}{\sin x}", True),
        (r"\tan 15^\circ", r"2-\sqrt{3}", True),
        (r"\log\left(\frac{2007}{2006}\right)", r"\ln 2007 - \ln 2006", True),
        ("e^{2x}", "(e^x)^2", True),
        ("f(4-x)", "f(-x+4)", True),
        ("f(4-x)", "f(x-4)", False),
        ("1+2i", "2i+1", True),
        ("1+2i", "1-2i", False),
        (r"\pi", "3.141593", True),
        (r"\pi", "3.14", False),
        ("x+1", "x+2", False),
        ("2^{100}-2", "1267650600228229401496703205374", True),
        ("2^{100}-2", "1267650600228229401496703205375", False),
        (r"\frac{0}{0}", "0", False),
        ("x", "}{", False),
        ("42", "\ud800", False),
        (r"s^2 \le 8r^2", r"8r^2 \ge s^2", True),
        (r"s^2 \le 8r^2", r"s^2 \ge 8r^2", False),
        ("x+y+z=0", "2x+2y+2z=0", True),
        ("x+y+z=0", "x+y=z", False),
        ("0.30000000000000004", "0.3", True),
        ("12345678901234567", "12345678901234568", False),
    ],
)
def test_formulas(gold: str, answer: str, equal: bool) -> None:
    assert matches(gold, answer) is equal


def test_grade_extracts_first() -> None:
    assert grade(r"So \boxed{\frac{2}{4}}.", "0.5", "math") == 1.0
    assert grade("So 0.5.", "0.5", "math") == 0.0
    assert grade("#### 1,234", "1234", "math") == 1.0


@pytest.mark.parametrize(
    "given", [r"\boxed{B}", r"\boxed{(b)}", r"\boxed{\text{B}}", "<answer>B.</answer>", "#### B", "Answer: B"]
)
def test_choice_right(given: str) -> None:
    assert grade(given, "B", "choice") == 1.0


@pytest.mark.parametrize(
    "given", [r"\boxed{A}", r"\boxed{AB}", r"\boxed{A, B}", r"\boxed{B or C}", "ABCD", "A. Zinc\nB. Iron"]
)
def test_choice_wrong(given: str) -> None:
    assert grade(given, "B", "choice") == 0.0


def test_yes_no_maybe_and_exact() -> None:
    assert grade(r"\boxed{\text{Yes}}", "yes", "yes_no_maybe") == 1.0
    assert grade(r"\boxed{yes/no/maybe}", "yes", "yes_no_maybe") == 0.0
    assert grade(r"\boxed{no}", "maybe", "yes_no_maybe") == 0.0
    assert grade("<answer>  New\n york </answer>", "New York", "exact") == 1.0
    assert grade("<answer>York</answer>", "New York", "exact") == 0.0


def test_canonical_clusters_plainly_equal_answers() -> None:
    assert canonical("0.50", "math") == canonical(r"\frac{2}{4}", "math") == "1/2"
    assert canonical("b.", "choice") == "B"
    assert canonical("A B", "choice") is None
    assert canonical("MAYBE", "yes_no_maybe") == "maybe"
    assert canonical(" ", "math") is None
    assert canonical("９ Ü", "exact") == "9 ü"


@pytest.mark.parametrize(
    ("answer", "kind"), [("", "math"), ("BC", "choice"), ("perhaps", "yes_no_maybe"), (" ", "exact")]
)
def test_an_impossible_gold_answer_is_an_error_not_a_zero(answer: str, kind: str) -> None:
    with pytest.raises(GradingError, match=f"not of kind '{kind}'"):
        grade(r"\boxed{1}", answer, kind)  # type: ignore[arg-type]


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(GradingError, match=r"'number'.*math, choice, yes_no_maybe, exact"):
        grade("1", "1", "number")  # type: ignore[arg-type]


def test_importing_tasks_is_light() -> None:
    heavy = {"torch", "transformers", "sympy", "mpmath", "datasets", "numpy", "reasoning_gym"}
    code = f"import sys, fedrlvr.tasks; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0] or None
    )
    assert done.stdout.strip() == "[]"


def test_a_whole_response_is_right_up_to_case_width_and_white_space() -> None:
    assert grade("64\n", "64", "whole") == 1.0
    assert grade("A  Noun", "a noun", "whole") == 1.0
    for wrong in ("64.", r"\boxed{64}", "64\n3+4=7", "#### 64", ""):
        assert grade(wrong, "64", "whole") == 0.0
