"""Right is 1.0 and wrong is 0.0, by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedrlvr.errors import GradingError
from fedrlvr.tasks import canonical, grade, same_answer
from fedrlvr.tasks.symbolic import explosive


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "42.0"),
        ("42", " 42. "),
        ("42", "$42$"),
        ("42", "+42"),
        ("-7", "−7"),
        ("10000", "10,000"),
        ("10000", "10{,}000"),
        ("10000", r"10\,000"),
        ("50", r"50\%"),
        ("5", r"\$5"),
        ("0.5", r"\frac{1}{2}"),
        ("0.5", r"\dfrac12"),
        ("1/2", "2/4"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"5\text{ cm}", "5"),
        ("5", r"5 \text{ cm}^2"),
        (r"5\text{ cm}^2", r"5\,\mathrm{cm}^{2}"),
        ("90", r"90^\circ"),
        (r"\text{Evelyn}", "evelyn"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    ],
)
def test_math_without_asking_the_child(gold: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrlvr.tasks.grading.symbolically_equal", lambda *_: pytest.fail("asked"))
    assert same_answer(gold, answer, "math")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "1421"),
        ("42", "4.2"),
        ("42", "-42"),
        ("42", "42,43"),
        ("42", ", ".join(str(n) for n in range(100))),
        ("0.333", "1/3"),
        ("1", "9" * 1000 + "9"),
        (r"5\text{ cm}", r"5\text{ m}"),
        (r"7\text{ a.m.}", r"7\text{ p.m.}"),
        (r"\text{CBAD}", "ABCD"),  # math-verify reads words as products, so anagrams as equal
        (r"\text{even}", "odd"),
        ("LQSX", "XSQL"),
        ("42", ""),
    ],
)
def test_math_wrong_without_asking_the_child(gold: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrlvr.tasks.grading.symbolically_equal", lambda *_: pytest.fail("asked"))
    assert not same_answer(gold, answer, "math")


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("x^2+2x+1", "(x+1)^2", True),
        (r"\frac{\pi}{2}", r"\pi/2", True),
        ("2^{2}3^{2}", "36", True),
        (r"1\frac12", "3/2", True),
        ("42", "x=42", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("11/2", "1 1/2", False),
        ("42", "4 2", False),
        ("42", r"41 \text{ or } 42", False),
        ("(1,2)", "(2,1)", False),
        ("[1,2]", "(1,2)", False),
        ("x+1", "x+2", False),
        ("42", r"\frac{0}{0}", False),
        ("42", r"\text{True}", False),
        ("1", "1/0", False),
        ("42", "\ud800", False),
        ("x", "}{", False),
    ],
)
def test_math_by_the_child(gold: str, answer: str, equal: bool) -> None:
    assert same_answer(gold, answer, "math") is equal


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
    "given", [r"\boxed{A}", r"\boxed{AB}", r"\boxed{A, B}", r"\boxed{B or C}", r"\boxed{B. Iron}", "ABCD", "B!"]
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


@pytest.mark.parametrize(
    "text", ["9^{9^{9^9}}", "9^9^9", "2**2**2**2**2", "10^{1000000}", "x^{ (100000 )}", "9999!", "3!!"]
)
def test_explosive(text: str) -> None:
    assert explosive(text)


@pytest.mark.parametrize(
    "text", ["x^2y^2", "2^{2}3^{2}", "2^2 3^2", "2^{2^3}", "e^{x^2}", "10^{100}", "x^{99}", "5!", "1^{1^1}"]
)
def test_not_explosive(text: str) -> None:
    assert not explosive(text)


def test_importing_tasks_is_light() -> None:
    heavy = {"torch", "transformers", "sympy", "math_verify", "datasets", "numpy", "reasoning_gym"}
    code = f"import sys, fedrlvr.tasks; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0] or None
    )
    assert done.stdout.strip() == "[]"
