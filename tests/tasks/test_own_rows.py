"""The user's own rows: numbers keep their text, conversations are questions, rows that repeat are one problem."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks import Problem, grade, load
from fedrlvr.tasks.own import read_own, write_own
from fedrlvr.tasks.problem import Turn


def problems(tmp_path: Path, *rows: str | dict[str, Any], **options: Any) -> list[Problem]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return load("jsonl", tmp_path, "train", **options)


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        ("0.00005", "0.00005"),
        ("0.1", "0.1"),
        ("1.50", "1.50"),
        ("51.0", "51"),
        ("0.10000000000000000000001", "0.10000000000000000000001"),
        ("123456789012345678901.5", "123456789012345678901.5"),
        ("5e-05", "5e-05"),
        ("-0.0", "0"),
        ("12345678901234567890", "12345678901234567890"),
        ("7", "7"),
    ],
)
def test_a_number_keeps_its_text(number: str, answer: str, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f'{{"prompt": "How much?", "answer": {number}, "info": {{"weight": {number}}}}}')
    assert problem.answer == answer
    assert problem.info["weight"] == json.loads(number)
    (nested,) = problems(tmp_path, f'{{"prompt": "How much?", "reward_model": {{"ground_truth": {number}}}}}')
    assert nested.answer == answer


def test_a_small_number_is_met_by_its_own_digits(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, '{"prompt": "What is 5 divided by 100000?", "answer": 0.00005}')
    assert grade(r"\boxed{0.00005}", problem.answer, problem.kind) == 1.0


USER = {"role": "user", "content": "What is 2 + 2?"}
SYSTEM = {"role": "system", "content": "You are brief."}
ASSISTANT = {"role": "assistant", "content": "It is 4."}


def test_conversations_of_verl_and_trl_load(tmp_path: Path) -> None:
    verl = {
        "data_source": "sums",
        "prompt": [USER],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"split": "train", "index": 7},
    }
    (problem,) = problems(tmp_path, verl)
    assert (problem.prompt, problem.answer) == ("What is 2 + 2?", "4")
    assert problem.info == {"extra_info": {"split": "train", "index": 7}}
    plain = problems(tmp_path, {"prompt": "What is 2 + 2?", "answer": "4"})[0]
    assert problem.id == plain.id
    for row in (
        {"messages": [USER], "solution": "4"},
        {"prompt": [USER], "ground_truth": 4},
        {"messages": [USER, ASSISTANT], "answer": "4"},  # the worked answer is left out
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]}], "answer": "4"},
        {"prompt": None, "messages": [USER], "answer": "4"},
    ):
        assert problems(tmp_path, row) == [plain], row


def test_a_response_to_imitate_is_kept_as_it_stands(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, {"prompt": "2+2=", "answer": "4", "response": " 4\n"})
    assert problem.response == " 4\n"
    write_own(tmp_path / "again.jsonl", [problem])
    assert read_own(tmp_path / "again.jsonl", "math") == [problem]
    (without,) = problems(tmp_path, {"prompt": "2+2=", "answer": "4", "response": None})
    assert without.response == ""


@pytest.mark.parametrize("response", ["", "  ", 4, ["4"], "\ud800"])
def test_a_response_that_is_no_text_is_refused_by_its_row(tmp_path: Path, response: object) -> None:
    with pytest.raises(DataError, match="line 1: 'response'"):
        problems(tmp_path, {"prompt": "2+2=", "answer": "4", "response": response})


def test_a_conversation_keeps_its_turns_and_is_also_one_text(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, {"messages": [SYSTEM, USER], "answer": "4"})
    assert problem.prompt == "You are brief.\n\nWhat is 2 + 2?"
    assert problem.messages == (Turn("system", "You are brief."), Turn("user", "What is 2 + 2?"))
    assert problem.question.messages == problem.messages
    again = {"role": "user", "content": "And 3 + 3?"}
    developer = {**SYSTEM, "role": "developer"}
    (longer,) = problems(tmp_path, {"prompt": [developer, USER, ASSISTANT, again], "answer": "6"})
    assert [turn.role for turn in longer.messages] == ["system", "user", "assistant", "user"]
    assert longer.prompt == "You are brief.\n\nWhat is 2 + 2?\n\nIt is 4.\n\nAnd 3 + 3?"
    (alone,) = problems(tmp_path, {"prompt": [USER], "answer": "4"})
    assert alone.messages == ()
    write_own(tmp_path / "written" / "train.jsonl", [problem, longer, alone])
    assert read_own(tmp_path / "written" / "train.jsonl", "math") == [problem, longer, alone]


def test_columns_are_those_that_the_holder_of_the_data_declares(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "answer": "4", "unit": " cm ", "year": 1999, "hint": None, "solution": "4"}
    (problem,) = problems(tmp_path, row)
    assert problem.columns == {}
    file = tmp_path / "train.jsonl"
    (problem,) = read_own(file, "math", columns=["unit", "year", "hint", "none"])
    assert problem.columns == problem.question.columns == {"unit": "cm", "year": 1999, "hint": None}
    write_own(tmp_path / "again.jsonl", [problem])
    assert read_own(tmp_path / "again.jsonl", "math", columns=["unit", "year", "hint"]) == [problem]
    for name in ("answer", "solution", "ground_truth", "reward_model", "info", "extra_info", "source", "prompt"):
        with pytest.raises(ConfigError, match=f"columns names '{name}'"):
            load("jsonl", tmp_path, columns=[name])
    for names in ("unit", [3], ["a b"]):
        with pytest.raises(ConfigError, match="columns"):
            load("jsonl", tmp_path, columns=names)
    problems(tmp_path, {**row, "unit": ["cm"]})
    with pytest.raises(DataError, match=r"line 1: 'unit' is a list.*data\.options\.columns"):
        read_own(file, "math", columns=["unit"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [], "answer": "4"}, "'prompt' has no turn"),
        ({"prompt": [SYSTEM], "answer": "4"}, "'prompt' has system"),
        ({"prompt": [USER, USER], "answer": "4"}, "'prompt' has user, user"),
        ({"prompt": [USER, SYSTEM], "answer": "4"}, "'prompt' has user, system"),
        ({"prompt": [ASSISTANT, USER], "answer": "4"}, "'prompt' has assistant, user"),
        ({"prompt": [{"role": "tool", "content": "x"}], "answer": "4"}, "message 0 (from 0) has no 'role'"),
        ({"prompt": [ASSISTANT], "answer": "4"}, "'prompt' has assistant"),
        ({"prompt": [USER, ASSISTANT], "answer": "4"}, "'prompt' ends in an assistant's turn"),
        ({"messages": [USER, ASSISTANT]}, "'messages' ends in an assistant's turn, and the row has no gold answer"),
        ({"messages": [USER, ASSISTANT], "answer": ""}, "'messages' ends in an assistant's turn"),
        ({"messages": [USER]}, "has no answer"),
        ({"prompt": ["What?"], "answer": "4"}, "message 0 (from 0) is text"),
        ({"prompt": [{"content": "What?"}], "answer": "4"}, "message 0 (from 0) has no 'role'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "4"}, "'content' is a list"),
        ({"prompt": [{"role": "user", "content": " "}], "answer": "4"}, "'content' is empty"),
    ],
)
def test_what_is_no_single_question_is_refused_by_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        problems(tmp_path, {"prompt": "1 + 1?", "answer": "2"}, row)
    assert "train.jsonl, line 2" in str(error.value)
    assert message in str(error.value)


def test_an_assistants_turn_is_no_answer_even_where_answers_may_lack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'messages' ends in an assistant's turn"):
        problems(tmp_path, {"messages": [USER, ASSISTANT]}, unlabelled=True)
    assert [p.answer for p in problems(tmp_path, {"messages": [USER]}, unlabelled=True)] == [""]


def test_equal_rows_are_merged_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "1 + 1?", "answer": "2", "source": "first"},
        {"prompt": "1/2 of 1?", "answer": "1/2"},
        {"prompt": " 1 + 1?", "answer": 2, "source": "second"},
        {"prompt": "1 + 1?", "answer": "2", "id": "named"},
        {"prompt": "1/2 of 1?", "answer": r"\frac{1}{2}"},
    ]
    kept = problems(tmp_path, *rows)
    assert [(p.prompt, p.answer, p.source) for p in kept] == [("1 + 1?", "2", "first"), ("1/2 of 1?", "1/2", "jsonl")]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"{tmp_path / 'train.jsonl'}: merged 3 rows that repeat a prompt and its answer: 2 problems are left"
    ]


def test_of_a_single_file_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problems(tmp_path, *[{"prompt": f"{n} + 1?", "answer": n + 1} for n in [*range(20), 0, 1, 2]])
    caplog.clear()
    train, test = (load("jsonl", tmp_path / "train.jsonl", split) for split in ("train", "test"))
    assert len(train) + len(test) == 20
    assert len([record for record in caplog.records if "merged 3 rows" in record.getMessage()]) == 1


def test_all_contradictions_are_listed_at_once(tmp_path: Path) -> None:
    rows = [("a?", "1"), ("b?", "2"), ("a?", "2"), ("c?", "3"), ("b?", "2"), ("B?", "4"), ("a?", "3")]
    with pytest.raises(DataError) as error:
        problems(tmp_path, *[{"prompt": prompt, "answer": answer} for prompt, answer in rows])
    assert "kinds: line 1, line 3 and line 7; line 2 and line 6. Correct" in str(error.value)
    with pytest.raises(DataError, match="line 1 and line 2"):
        problems(tmp_path, {"prompt": "a?", "answer": "A"}, {"prompt": "a?", "answer": "A", "kind": "choice"})


def test_rows_named_apart_with_other_info_are_problems_of_their_own(tmp_path: Path) -> None:
    rows = [{"prompt": "Write.", "answer": str(n), "id": str(n), "info": {"words": n}} for n in range(3)]
    assert [p.answer for p in problems(tmp_path, *rows)] == ["0", "1", "2"]
    assert len(problems(tmp_path, *[{**row, "answer": "1", "info": {}} for row in rows])) == 1
