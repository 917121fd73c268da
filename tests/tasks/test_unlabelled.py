"""Own rows whose answers are left to people: trained on, never held out, never public, never graded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedrlvr.errors import DataError, GradingError
from fedrlvr.tasks import Problem, check_disjoint, drop_overlap, grade, grader_for, load, set_aside, validate
from fedrlvr.tasks.problem import Kind
from fedrlvr.tasks.splits import sample

DESK = "Or let people give the answers: set supervision.labels_from = 'desk'."
# Hash buckets of the prompts below, which decide a single file's split: 0 to 79 train, 80 to 99 test.
TRAIN_PROMPT, TEST_PROMPT = "What is 4 x 13?", "What is 6 x 6?"  # 0, 82


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def problem(prompt: str, answer: str, source: str = "s") -> Problem:
    return Problem(prompt, answer, f"{prompt}/{answer}", source, "math")


def test_a_row_without_an_answer_is_a_problem_with_an_empty_one(fixtures: Path) -> None:
    train = load("jsonl", fixtures / "own" / "unlabelled", "train", unlabelled=True)
    # given; missing; null; blank; empty and nested; a number; an empty one before a second that is not
    assert [p.answer for p in train] == ["52", "", "", "", "", "36", "6"]
    assert [p.kind for p in train] == ["math", "math", "yes_no_maybe", "math", "exact", "math", "math"]
    assert [train[0].id, train[2].id] == ["known", "salt"]
    assert train[1].id == train[1].content_key[:16]
    assert [p.source for p in train[3:5]] == ["jsonl", "lungs"]
    by_option = load("jsonl", fixtures / "own" / "unlabelled", "train", unlabelled=True, kind="exact")
    assert [p.kind for p in by_option[:3]] == ["exact", "exact", "yes_no_maybe"]
    assert [p.answer for p in load("jsonl", fixtures / "own" / "unlabelled", "test", unlabelled=True)] == ["5", "14"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "line 2 has no answer. Add 'answer'"),
        ({"answer": None}, "line 2 has no answer. Add 'answer'"),
        ({"answer": "", "solution": "4"}, "line 2: 'answer' is empty. Fill it in or remove the row."),
        ({"solution": " "}, "line 2: 'solution' is empty. Fill it in or remove the row."),
        ({"reward_model": {"ground_truth": ""}}, "line 2: 'reward_model.ground_truth' is empty."),
    ],
)
def test_without_leave_it_is_an_error_that_names_the_setting(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", {"prompt": "1+1?", "answer": 2}, {"prompt": "2+2?", **row})
    for path in (tmp_path, file):
        with pytest.raises(DataError) as error:
            load("jsonl", path, "train")
        assert str(error.value).startswith(f"{file}, {message}")
        assert str(error.value).endswith(f"remove the row. {DESK}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": [4]}, "'answer' is a list"),
        ({"answer": False}, "'answer' is true or false"),
        ({"answer": {}, "solution": "4"}, "'answer' is an object"),
        ({"answer": "four", "kind": "choice"}, "the answer is not of kind 'choice'"),
        ({"kind": "number"}, "kind 'number' is unknown"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"info": 3}, "'info' is not an object"),
    ],
)
def test_leave_to_lack_an_answer_is_no_leave_for_anything_else(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "train.jsonl", {"prompt": "2+2?", **row})
    with pytest.raises(DataError) as error:
        load("jsonl", tmp_path, "train", unlabelled=True)
    assert str(error.value).startswith(f"{file}, line 1: {message}")


def test_rows_of_one_prompt_are_one_problem_which_takes_the_answer_that_there_is(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"prompt": " 2+2?"}, {"prompt": "2+2?", "answer": 4}, {"prompt": "2 + 3?"})
    assert [p.answer for p in load("jsonl", tmp_path, "train", unlabelled=True)] == ["4", ""]


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_test_file_needs_every_answer(unlabelled: bool, tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", {"prompt": "1+1?", "answer": 2}, {"prompt": "2+2?"})
    with pytest.raises(DataError) as error:
        load("jsonl", tmp_path, "test", unlabelled=unlabelled)
    assert str(error.value).startswith(f"{file}, line 2 has no answer. Add 'answer'")
    assert str(error.value).endswith("remove the row. Held-out problems need one, whoever gives the labels.")


def test_of_a_single_file_only_problems_with_an_answer_are_held_out(fixtures: Path) -> None:
    file = fixtures / "own" / "unlabelled" / "train.jsonl"
    train, test = (load("jsonl", file, split, unlabelled=True) for split in ("train", "test"))
    # The seven prompts' buckets are 0, 81, 94, 8, 89, 82, 84; the second to the fifth have no answer.
    assert [p.prompt for p in test] == ["What is 6 x 6?", "What is 18 / 3?"]
    assert [p.answer for p in train] == ["52", "", "", "", ""]
    check_disjoint(train=train, public=[], test=test)


def test_a_copy_without_an_answer_of_a_held_out_problem_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", {"prompt": TEST_PROMPT, "answer": 36, "id": "a"})
    rows = [{"prompt": TEST_PROMPT.upper(), "id": "b"}, {"prompt": TRAIN_PROMPT, "answer": 52, "id": "c"}]
    write(tmp_path / "train.jsonl", *rows)
    train, test = (load("jsonl", tmp_path, split, unlabelled=True) for split in ("train", "test"))
    assert ([p.id for p in train], [p.id for p in test]) == (["b", "c"], ["a"])
    with pytest.raises(DataError, match="train and test splits share 1 problems"):
        check_disjoint(train=train, public=[], test=test)
    assert [p.id for p in drop_overlap(train, test)] == ["c"]


def test_a_single_file_that_leaves_nothing_to_hold_out_asks_for_answers(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", {"prompt": TEST_PROMPT}, {"prompt": TRAIN_PROMPT, "answer": "52"})
    assert [p.answer for p in load("jsonl", file, "train", unlabelled=True)] == ["", "52"]
    with pytest.raises(DataError) as error:
        load("jsonl", file, "test", unlabelled=True)
    assert str(error.value) == (
        f"{file} leaves no problem to hold out: 1 of 2 rows have no answer, and the others fall to training. Add rows "
        "with answers, or give a directory with train.jsonl and test.jsonl."
    )
    write(file, {"prompt": TRAIN_PROMPT, "answer": "52"})  # with all answers it is what it always was
    with pytest.raises(DataError, match="has no problem in split 'test'"):
        load("jsonl", file, "test", unlabelled=True)


def test_other_data_sets_are_as_they_were(fixtures: Path) -> None:
    for name in ("svamp", "gsm8k"):
        for split in ("train", "test"):
            assert load(name, fixtures / name, split, unlabelled=True) == load(name, fixtures / name, split)
    assert load("jsonl", fixtures / "own", "train", unlabelled=True) == load("jsonl", fixtures / "own", "train")


def test_public_problems_have_an_answer() -> None:
    # Of a's problems 4 of 10 have an answer and of b's all 8: 6 in proportion to 4 and 8 are 2 and 4.
    train = [problem(f"a{n}", "1" if n < 4 else "", "a") for n in range(10)]
    train += [problem(f"b{n}", "1", "b") for n in range(8)]
    for seed in range(4):
        rest, public = set_aside(train, 6, seed, setting="data.public_size")
        assert all(p.answer for p in public)
        assert Counter(p.source for p in public) == {"a": 2, "b": 4}
        assert [p for p in train if p not in public] == rest
    rest, public = set_aside(
        train, 12, seed=0, setting="data.public_size"
    )  # all that have one; the rest are trained on
    assert {p.answer for p in rest} == {""}
    assert len(public) == 12


def test_a_public_problem_takes_its_copies_without_an_answer_along() -> None:
    train = [problem("Same", ""), problem("same", "1"), problem("other", "")]
    rest, public = set_aside(train, 1, seed=0, setting="data.public_size")
    assert ([p.id for p in rest], [p.id for p in public]) == (["other/"], ["same/1"])


def test_too_few_answers_for_the_public_set_is_said() -> None:
    train = [problem("a", "1"), problem("A", "2"), problem("b", ""), problem("c", ""), problem("B", "")]
    with pytest.raises(DataError, match=r"data\.public_size = 2: .* only 1 of 3 "):
        set_aside(train, 2, seed=0, setting="data.public_size")
    with pytest.raises(DataError, match=r"data\.public_size = 3"):
        set_aside(train, 3, seed=0, setting="data.public_size")
    assert set_aside(train[2:], 0, seed=0, setting="data.public_size") == (train[2:], [])


def test_a_sample_takes_no_notice_of_answers() -> None:
    train = [problem(f"a{n}", "", "a") for n in range(6)] + [problem(f"b{n}", "1", "b") for n in range(3)]
    drawn = sample(train, 3, seed=0)
    assert Counter(p.source for p in drawn) == {"a": 2, "b": 1}
    assert drawn == [p for p in train if p in drawn]
    bare = [Problem(p.prompt, "1", p.id, p.source, p.kind) for p in train]
    assert [p.id for p in sample(bare, 3, seed=0)] == [p.id for p in drawn]
    assert [p.id for p in set_aside(bare, 3, seed=0, setting="data.public_size")[1]] == [p.id for p in drawn]
    copies = [problem("same", ""), problem("Same", "1"), problem("other", "")]
    assert [p.id for p in sample(copies, 2, seed=0)] == ["same/", "other/"]


@pytest.mark.parametrize("kind", ["math", "choice", "yes_no_maybe", "exact"])
def test_nothing_can_be_graded_without_an_answer(kind: Kind) -> None:
    for completion in ("", r"\boxed{}", "<answer>A</answer>", "<answer>yes</answer>"):
        with pytest.raises(GradingError, match="no response could be right"):
            grade(completion, "", kind)
        with pytest.raises(GradingError, match="no response could be right"):
            grader_for(None)(completion, Problem("q", "", "p", "s", kind))


def test_validation_counts_problems_without_an_answer_and_checks_the_others() -> None:
    calls: list[str] = []

    def never(completion: str, problem: Problem) -> float:
        calls.append(problem.id)
        return 0.0

    problems = [problem("a", ""), problem("b", "1"), problem("c", ""), problem("d", "2"), problem("e", "")]
    verdict = validate(problems, never, attacked=1)
    assert (verdict.checked, verdict.attacked, verdict.unlabelled) == (2, 1, 3)
    assert [f.id for f in verdict.failures] == ["b/1", "d/2"]  # the gold answers; the first also met the strings
    assert set(calls) == {"b/1", "d/2"}
    assert validate(problems, grader_for(None), attacked=5).ok
    assert validate(problems[:1], never).unlabelled == 1
    assert validate(problems[1:2], grader_for(None)).unlabelled == 0
