"""Which text of a completion counts as its answer."""

from __future__ import annotations

import time

import pytest

from fedrlvr.tasks import KINDS, extract, instruction, wrap
from fedrlvr.tasks.extraction import LONGEST_ANSWER, LOOKED_AT, balanced, behind_answer, last_box
from fedrlvr.tasks.problem import Kind

MARKED = [kind for kind in KINDS if kind != "whole"]
"""Kinds whose answer stands in a mark."""


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so <answer> 42 </answer> it is", "42"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "1"),
        (r"<answer>\boxed{42}</answer>", "42"),
        (r"\boxed{41} <answer>42</answer> #### 42", "42"),
        (r"<answer>$\boxed{42}$</answer>", "42"),
        (r"\boxed{1}, \boxed{2} and \boxed{3}", "1, 2, 3"),
        (r"first \boxed{1}, then $\boxed{2}$.", "2"),
        (r"\boxed{\frac{1}{2}} as \{ is no brace", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and an open \boxed{4", "3"),
        ("a #### 1\nb\n#### 72\n", "72"),
        ("12+30=42 #### 42", "42"),
        ("#### 1 234 \nthat was it", "1 234"),
        (r"\boxed{1} #### 1.0", "1"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"it began before: \boxed{1}</think> #### 5", "5"),
    ],
)
def test_markers(completion: str, answer: str) -> None:
    assert extract(completion, "math") == answer


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "the answer is 42",
        "42",
        "<answer></answer>",
        r"\boxed{1} <answer> </answer>",  # an empty marker does not fall back
        r"\boxed{}",
        "#### ",
        "##### 42",
        "####",
        r"\boxed{42",
        r"\boxed{\boxed{42}}",
        r"<answer>\boxed{1} \boxed{2}</answer>",
        r"<answer>1</answer> #### 2",
        r"\boxed{1} #### 2",
        r"<think>\boxed{42}</think> done",
        r"<think>\boxed{42}",
        "\\boxed{4\x002}",
        "<answer>" + "1" * (LONGEST_ANSWER + 1) + "</answer>",
        r"\boxed{1}" + "." * LOOKED_AT,
    ],
)
def test_no_answer(completion: str) -> None:
    assert extract(completion, "math") is None


@pytest.mark.parametrize(
    ("last", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("Answer: B", "B"),
        ("**Final answer:** (C).", "C"),
        ("The answer is D", "D"),
        ("Therefore, the correct answer is A.", "A"),
        ("b", None),
        ("AB", None),
        ("A, B", None),
        ("A. Warfarin", "A"),
        ("B. Heparin\nA. Warfarin", None),
        ("I think that it is B", None),
        ("B" + " " * 100 + "B", None),
    ],
)
def test_final_letter(last: str, letter: str | None) -> None:
    assert extract(f"Some reasoning about A.\n{last}\n", "choice") == letter
    assert extract(f"Some reasoning about A.\n{last}\n", "math") is None
    assert extract(f"{last}\nand more words", "choice") is None


@pytest.mark.parametrize(
    ("last", "word"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("Answer: maybe", "maybe"),
        ("yes and no", None),
        ("not", None),
        ("yes no maybe", None),
    ],
)
def test_final_word(last: str, word: str | None) -> None:
    assert extract(f"Because.\n{last}", "yes_no_maybe") == word


def test_own_wrapping_is_extracted_and_an_instruction_repeated_is_no_answer() -> None:
    for kind in MARKED:
        assert extract("Thus " + wrap("B", kind), kind) == "B"  # type: ignore[arg-type]
        assert extract(instruction(kind), kind) is None  # type: ignore[arg-type]


def test_boxes_and_balance() -> None:
    assert last_box(r"\boxed{a{b}c}") == "a{b}c"
    assert last_box(r"}}{ \boxed{1}") == "1"
    assert last_box("none") is None
    assert balanced(r"\{ {a} \boxed{b}")
    assert not balanced("{")
    assert not balanced("}{")


LONG = {
    "boxes": r"\boxed{" * 150_000,
    "closed boxes": r"\boxed{a}" * 100_000 + r"\boxed{",
    "braces": "{" * 1_000_000,
    "backslashes": "\\" * 1_000_000,
    "tags": "<answer>" * 100_000,
    "hashes": "####" * 250_000,
    "spaces": " " * 1_000_000,
    "leads": "answer is " * 100_000,
    "thoughts": "<think>" * 100_000,
    "a box and spaces": r"\boxed" + " " * 1_000_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_of_anything_costs_bounded_time(name: str) -> None:
    start = time.perf_counter()
    answers = [extract(LONG[name], kind) for kind in MARKED]  # type: ignore[arg-type]
    assert time.perf_counter() - start < 2.0
    assert answers == [None] * 4 if name != "closed boxes" else ["a"] * 4


@pytest.mark.parametrize(
    ("completion", "kind", "behind"),
    [
        (r"\boxed{4}", "math", 0),
        (r"so \boxed{4}. Yes", "math", 5),
        (r"\boxed 4", "math", 0),
        (r"\boxed{1}, \boxed{2}!", "math", 1),
        ("#### 4\nmore", "math", 5),
        ("<answer>x</answer>\n\n", "exact", 2),
        (r"<answer>4</answer> or \boxed{4}", "math", 13),
        (r"<think>\boxed{9} long</think>\boxed{4} ab", "math", 3),
        (r"<think>a</think>\boxed{4}<think>abc", "math", 10),
        ("reason\nB", "choice", 0),
        ("reason\n(B)   \n", "choice", 4),
        ("reason\nB<think>abc", "choice", 10),
        (r"\boxed{B} abc", "choice", 4),
    ],
)
def test_the_characters_behind_an_answer_are_counted_to_the_end_of_the_completion(
    completion: str, kind: Kind, behind: int
) -> None:
    assert behind_answer(completion, kind) == behind
    assert behind_answer("x" * 30_000 + "\n" + completion, kind) == behind


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("64\n", "64"),
        (" 64 ", "64"),
        ("<think>48 and 16</think>64", "64"),
        ("64\n3+4=7", "64\n3+4=7"),
        (r"\boxed{64}", r"\boxed{64}"),
        ("", None),
        (" \n", None),
        ("64\x00", None),
        ("6" * (LONGEST_ANSWER + 1), None),
    ],
)
def test_a_whole_response_is_the_answer(completion: str, answer: str | None) -> None:
    assert extract(completion, "whole") == answer


def test_behind_a_whole_response_is_white_space_alone() -> None:
    assert behind_answer("64 \n", "whole") == 2
    assert instruction("whole") == ""
