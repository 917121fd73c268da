"""How a client's problems become prompts: template, instruction, system message, shots and examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedrlvr.config.prompt import Shot, Wording
from fedrlvr.config.prompt_template import LONGEST_RENDERED, prompt_template
from fedrlvr.errors import DataError, MessageError
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.problem import Problem, Question, Turn
from fedrlvr.tasks.prompts import Prompts
from fedrlvr.tasks.rewards import grader_for
from fedrlvr.wire.public_messages import problems_record, read_problems

SUM = Question("3+4=", "sum", "sums", "math")
SHOT = {"prompt": "1+1=", "answer": "2"}


def boxed(kind: str) -> str:
    return f"Box it ({kind})."


def text(wording: dict[str, Any] | None = None, **others: Any) -> str:
    return Prompts(Wording.model_validate(wording or {}), **others).text(SUM)


def test_a_problem_is_asked_as_it_is() -> None:
    prompt = Prompts().ask(SUM)
    assert prompt.text == "3+4="
    assert prompt.turns == (Turn("user", "3+4="),)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "3+4=\nBox it (math)."),
        ("Q: {{ prompt }}\nA:", "Q: 3+4=\nA:\nBox it (math)."),
        ("{{ instruction }}\nQ: {{ prompt }}\nA:", "Box it (math).\nQ: 3+4=\nA:"),
        (
            "{{ kind | upper }}: {{ prompt }} {% if '4' in prompt %}4{% else %}none{% endif %}",
            "MATH: 3+4= 4\nBox it (math).",
        ),
    ],
)
def test_an_instruction_comes_last_unless_the_template_places_it(template: str | None, expected: str) -> None:
    assert text({"template": template}, instruction=boxed) == expected


def test_shots_stand_before_the_problem_as_they_are_written() -> None:
    assert text({"shots": [SHOT]}) == "1+1=2\n\n3+4="
    assert text({"shots": [SHOT], "system": "Add."}, instruction=boxed) == (
        "Add.\n\n1+1=\nBox it (math).\n2\n\n3+4=\nBox it (math)."
    )
    spaced = {"shots": [{"prompt": "1+1", "answer": " 2"}], "template": "Q: {{ prompt }}\nA:", "system": "Add."}
    prompt = Prompts(Wording.model_validate(spaced)).ask(SUM)
    assert prompt.text == "Add.\n\nQ: 1+1\nA: 2\n\nQ: 3+4=\nA:"
    assert prompt.turns == (
        Turn("system", "Add."),
        Turn("user", "Q: 1+1\nA:"),
        Turn("assistant", "2"),
        Turn("user", "Q: 3+4=\nA:"),
    )


def client(count: int, examples: int, **others: Any) -> ClientData:
    train = [Problem(f"{n}+0=", str(n), f"p{n}", "sums", "math") for n in range(count)]
    test = [Problem("9+9=", "18", "t", "sums", "math")]
    wording = Wording(examples=examples)
    return ClientData.of("ann", train, test, grader_for(None), wording=wording, **others)


def test_examples_are_training_problems_in_every_prompt_and_never_the_problem_itself() -> None:
    ann = client(5, 2)
    shown = ann.prompts.text(ann.test[0]).split("\n\n")
    assert shown[-1] == "9+9="
    numbers = [part.partition("+")[0] for part in shown[:2]]
    assert shown[:2] == [rf"{n}+0= \boxed{{{n}}}" for n in numbers]
    for problem in ann.train:
        parts = ann.prompts.text(problem).split("\n\n")
        assert len(parts) == 3
        assert parts[2] == problem.prompt
        assert not any(part.startswith(problem.prompt) for part in parts[:2])
        if problem.prompt[0] not in numbers:
            assert parts[:2] == shown[:2]
    assert {ann.prompts.text(ann.test[0]) for _ in range(2)} == {"\n\n".join(shown)}
    texts = {client(5, 2, seed=seed).prompts.text(ann.test[0]) for seed in range(8)}
    assert len(texts) > 1, "another seed draws others"


def test_too_few_problems_for_the_examples_name_the_client_and_the_setting() -> None:
    with pytest.raises(DataError, match=r"^ann: prompt\.examples = 3 needs 4 .* 3\."):
        _ = client(3, 3).prompts


def test_a_template_is_rendered_within_its_bounds() -> None:
    long = Question("x" * (LONGEST_RENDERED // 2), "long", "s", "math")
    with pytest.raises(DataError, match=r"'long'.*200,000"):
        Prompts(Wording(template="{{ prompt }}{{ prompt }}{{ prompt }}")).text(long)
    with pytest.raises(DataError, match=r"'sum'.*'unit'"):
        text({"template": "{{ prompt }} {{ unit }}"})
    assert text({"template": "{{ prompt }} {{ unit | default('?') }}"}) == "3+4= ?"
    assert text({"template": "{% if unit is defined %}{{ unit }}{% endif %}{{ prompt }}"}) == "3+4="
    # What stands in a problem is text, whatever it looks like.
    assert (
        Prompts(Wording(template="Q: {{ prompt }}")).text(Question("{{ 7 * 7 }}", "q", "s", "math")) == "Q: {{ 7 * 7 }}"
    )


@pytest.mark.parametrize(
    "template",
    [
        "no field",
        "{{ kind }}",
        "{{ prompt",
        "{% for x in prompt %}{{ x }}{% endfor %}",
        "{{ prompt.__class__ }}",
        "{{ prompt['x'] }}",
        "{{ prompt.upper() }}",
        "{{ prompt }}{{ 'a' * 10 ** 9 }}",
        "{{ prompt | replace('a', prompt) }}",
        "{{ prompt | center(10 ** 9) }}",
        "{{ prompt | default(prompt) }}",
        "{% set x = 1 %}{{ prompt }}",
        "{% include 'x' %}{{ prompt }}",
        "{% macro f() %}{% endmacro %}{{ prompt }}",
        "{{ prompt }}{{ range(9) }}",
        "{{ prompt }}" + "{{ prompt }}" * 500,
        "(" * 3000 + "{{ " + "(" * 3000 + "prompt",
    ],
)
def test_what_a_template_may_not_hold(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Wording(template=template)


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        ("Q: {{ prompt }}", True),
        ("Q: {{ prompt | trim }} {{ instruction }} {{ kind }}", True),
        ("{{ prompt if kind == 'math' else '' }}", False),
        ("{% if 'x' in prompt %}y{% endif %}{{ prompt }}", False),
        ("{{ prompt or 'x' }}", False),
        ("{{ prompt | length }}{{ prompt }}", False),
        ("{{ prompt ~ 'x' }}", False),
    ],
)
def test_a_template_is_plain_if_its_text_is_the_same_around_every_problem(template: str, plain: bool) -> None:
    assert prompt_template(template).is_plain == plain


def test_a_shot_is_shown_with_the_instruction_of_the_problems_kind() -> None:
    wording = Wording(shots=[Shot(prompt="Is 1 a number?", answer="yes")])
    asked = Prompts(wording, boxed).text(Question("Is x?", "q", "s", "yes_no_maybe"))
    assert asked == "Is 1 a number?\nBox it (yes_no_maybe).\nyes\n\nIs x?\nBox it (yes_no_maybe)."


TURNS = (Turn("system", "Be brief."), Turn("user", "2+2="), Turn("assistant", "4"), Turn("user", "3+3="))
ASKED = Question("Be brief.\n\n2+2=\n\n4\n\n3+3=", "c", "s", "math", TURNS)


def test_a_conversation_keeps_its_turns_and_its_own_system_message() -> None:
    prompt = Prompts(instruction=boxed).ask(ASKED)
    assert prompt.turns == (*TURNS[:-1], Turn("user", "3+3=\nBox it (math)."))
    assert prompt.text == "Be brief.\n\n2+2=\n\n4\n\n3+3=\nBox it (math)."
    wording = Wording.model_validate({"system": "Other.", "template": "Q: {{ prompt }}", "shots": [SHOT]})
    prompt = Prompts(wording).ask(ASKED)
    assert prompt.text == "Be brief.\n\nQ: 1+1=2\n\n2+2=\n\n4\n\nQ: 3+3="
    assert [turn.role for turn in prompt.turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert Prompts(wording).ask(replace(ASKED, messages=TURNS[3:])).turns[0] == Turn("system", "Other.")


def test_a_template_sees_the_declared_columns_and_never_what_a_problem_has_under_another_name() -> None:
    problem = replace(SUM, columns={"unit": "cm", "prompt": "x", "kind": "x", "instruction": "x"})
    template = Wording(template="{{ prompt }} in {{ unit }} ({{ kind }}){{ instruction }}")
    assert Prompts(template).text(problem) == "3+4= in cm (math)"
    for name in ("answer", "info", "source", "id", "messages"):
        with pytest.raises(DataError, match=f"'{name}'"):
            text({"template": "{{ prompt }} {{ " + name + " }}"})


def test_a_public_problem_travels_with_its_turns_and_columns_and_without_what_is_empty() -> None:
    talk = Problem(
        "Be brief.\n\n1+1=", "2", "a", "s", "math", messages=(Turn("system", "Be brief."), Turn("user", "1+1="))
    )
    with_column = Problem("2+2=", "4", "b", "s", "math", columns={"unit": "cm"})
    plain = Problem("3+3=", "6", "c", "s", "math", response="no part of a message")
    record = problems_record([talk, with_column, plain])
    read, _ = read_problems(RecordDict({"public": record}), 3)
    assert read == [talk, with_column, replace(plain, response="")]
    assert all(type(turn) is Turn for turn in read[0].messages)
    assert str(record["problems"]).count("messages") == str(record["problems"]).count("columns") == 1
    other = RecordDict({"public": ConfigRecord({"problems": str(record["problems"]).replace('"system"', '"tool"')})})
    with pytest.raises(MessageError):
        read_problems(other, 3)
