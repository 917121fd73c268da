"""A client's answers lie sealed: what is open, and the list of who may open it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import fedrlvr
from fedrlvr.errors import DataError, GradingError
from fedrlvr.labels.answers import Answers
from fedrlvr.tasks.problem import Problem, Question
from fedrlvr.tasks.rewards import grader_for

PACKAGE = Path(fedrlvr.__file__).parent
SUM = Problem("2 + 2", "4", "sum", "sums", "math", {"note": 7})
OPEN = Problem("3 + 3", "", "open", "sums", "math")


def answers(*problems: Problem, reward: object = None) -> Answers:
    return Answers("clinic-a", problems or (SUM, OPEN), reward or grader_for(None))  # type: ignore[arg-type]


def attributes(path: Path) -> Iterator[ast.Attribute]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node


def where(*names: str) -> dict[str, set[str]]:
    """The expressions of which one of these attributes is taken, called or handed on, by file."""
    result: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in attributes(path):
            if node.attr in names:
                result.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(ast.unparse(node.value))
    return result


# Who may look.


def test_only_the_ledger_buys_answers() -> None:
    assert where("price") == {"labels/client_ledger.py": {"self._answers"}}


def test_only_experiments_peek_at_answers() -> None:
    """The oracle is handed the look that the federation takes for it."""
    assert where("peek") == {
        "client/supervisor.py": {"request.data.answers", "setting.request.data.answers"},
        "supervision/selection.py": {"self"},
    }


def test_only_what_looks_at_data_before_a_run_takes_everything() -> None:
    result = where("everything")
    assert result.pop("supervision/judge.py") == {"self._replay"}  # labelled problems, which were paid for
    assert result.pop("simulation/prompts.py") == {"client.answers"}  # likewise
    assert result.pop("tasks/client_data.py") == {"self.answers"}  # examples in prompts, with every label paid for
    assert result.pop("audit/run.py") == {"data.answers"}  # attacked by whoever holds them, and never written
    assert result.pop("deployment/site/reply_card.py") == {"client.answers"}  # to keep texts with one of them back
    assert result == {
        "tasks/deal.py": {"client.answers"},
        "tasks/demonstrations.py": {"client.answers"},
        "cli/main.py": {"client.answers"},
    }


def test_only_supervised_training_reads_the_responses_to_imitate() -> None:
    assert where("demonstration") == {"client/imitation.py": {"request.data.answers"}}


def test_nobody_else_is_handed_a_clients_answers() -> None:
    assert set(where("answers")) == {
        "audit/run.py",
        "simulation/prompts.py",
        "tasks/client_data.py",
        "tasks/deal.py",
        "tasks/demonstrations.py",
        "client/supervisor.py",
        "client/imitation.py",
        "deployment/site/reply_card.py",
        "cli/main.py",
    }


def test_only_a_ledger_says_what_the_answer_to_grade_by_is() -> None:
    graded = {file: {value for value in values if value.endswith("answers")} for file, values in where("grade").items()}
    assert {file for file, values in graded.items() if values} == {"labels/client_ledger.py"}


def test_nothing_reaches_behind_the_seal() -> None:
    kept = [name for name in vars(answers()) if name.startswith("_")]
    assert set(kept) == set(vars(answers())) == {"_client", "_reward", "_problems", "_in_order"}
    holders = {file: {v for v in values if v.endswith("answers")} for file, values in where(*kept, "_grade").items()}
    assert {file for file, values in holders.items() if values} == set()
    assert "_in_order" not in {
        node.attr for p in PACKAGE.rglob("*.py") if p.name != "answers.py" for node in attributes(p)
    }


def test_nothing_gets_attributes_of_answers_by_their_names() -> None:
    for path in PACKAGE.rglob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)}
        assert not words & {"peek", "price", "everything", "demonstration", "_in_order", "__dict__"}, path


def test_a_question_has_no_answer_and_no_room_for_one() -> None:
    assert [field.name for field in fields(Question)] == ["prompt", "id", "source", "kind", "messages", "columns"]
    question = SUM.question
    assert type(question) is Question
    assert question == Question("2 + 2", "sum", "sums", "math")
    assert question.question is question
    assert not hasattr(question, "__dict__")
    for name in ("answer", "info", "response"):
        assert not hasattr(question, name)


# What is open.


def test_the_price_is_the_answer_and_nothing_where_there_is_none() -> None:
    assert answers().price(SUM.question) == "4"
    assert answers().price(OPEN.question) == ""


def test_everything_is_in_order() -> None:
    assert list(answers(OPEN, SUM).everything()) == [OPEN, SUM]


def test_a_label_is_graded_by_whatever_the_data_set_says() -> None:
    completions = [r"\boxed{4}", r"\boxed{5}", "none"]
    assert answers().grade(SUM.question, "5", completions) == [0.0, 1.0, 0.0]
    assert answers().grade(OPEN.question, "5.0", completions) == [0.0, 1.0, 0.0]
    assert answers().peek(SUM.question, completions) == [1.0, 0.0, 0.0]


def test_a_reward_of_ones_own_sees_the_label_and_what_else_the_problem_says() -> None:
    seen = []

    def reward(completion: str, problem: Problem) -> float:
        seen.append((completion, problem))
        return 0.25

    rewarded = answers(reward=reward)
    assert rewarded.grade(SUM.question, "9", ["x", "y"]) == [0.25, 0.25]
    labelled = Problem("2 + 2", "9", "sum", "sums", "math", {"note": 7})
    assert seen == [("x", labelled), ("y", labelled)]
    assert next(iter(rewarded.everything())).answer == "4"


def test_an_empty_label_grades_nothing() -> None:
    with pytest.raises(GradingError, match="clinic-a: problem 'sum' has no answer"):
        answers().grade(SUM.question, "", ["x"])
    with pytest.raises(GradingError, match="clinic-a: problem 'open' has no answer"):
        answers().peek(OPEN.question, ["x"])


def test_an_empty_label_is_refused_before_a_reward_of_ones_own_sees_it() -> None:
    with pytest.raises(GradingError, match="no answer"):
        answers(reward=lambda completion, problem: 1.0).peek(OPEN.question, ["x"])


def test_a_reward_that_fails_is_an_error_that_names_the_client_and_keeps_the_cause() -> None:
    cause = KeyError("note")

    def reward(completion: str, problem: Problem) -> float:
        raise GradingError("it broke") from cause

    with pytest.raises(GradingError, match=r"^clinic-a: it broke$") as caught:
        answers(reward=reward).peek(SUM.question, ["x"])
    assert caught.value.__cause__ is cause


def test_two_problems_of_one_id_are_refused() -> None:
    other = Problem("5 + 5", "10", "sum", "sums", "math")
    for twice in ((SUM, OPEN, other), (OPEN, SUM, SUM)):
        with pytest.raises(DataError, match=r"clinic-a: .*'sum'"):
            answers(*twice)
