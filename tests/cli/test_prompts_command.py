"""`fedrlvr prompts`: candidates from a file, from varied settings and built in, tried on the same problems."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrlvr.config import PromptConfig
from fedrlvr.errors import ConfigError
from fedrlvr.reporting.prompt_table import as_toml
from fedrlvr.simulation.prompt_plan import OWN, candidates
from fedrlvr.zoo import embedded_config

Command = Callable[..., Any]
Toml = Callable[..., Path]
FILE = r"""
[say]
instruction = "Box it: \\boxed{}."
[question]
template = "Q: {{ prompt }}"
stop = ["Q:"]
"""


def written(directory: Path, text: str, name: str = "tries.toml") -> Path:
    (directory / name).write_text(text, "utf-8")
    return directory / name


def test_candidates_of_a_file_and_of_varied_settings_come_after_the_runs_own(tmp_path: Path) -> None:
    section = written(tmp_path, '[prompt]\nsystem = "Add."\n', "alone.toml")
    made = candidates(
        embedded_config(),
        ["prompt.prefill=so"],
        ["prompt.chat=auto,off", "prompt.instruction='','Be brief.'"],
        [written(tmp_path, FILE), section],
    )
    assert [candidate.name for candidate in made] == [
        OWN,
        "say",
        "question",
        "alone",
        "chat=auto, instruction=''",
        "chat=auto, instruction='Be brief.'",
        "chat=off, instruction=''",
        "chat=off, instruction='Be brief.'",
    ]
    prompts = {candidate.name: candidate.config.prompt for candidate in made}
    assert prompts[OWN].prefill == "so"
    assert prompts["say"].prefill == "", "a table in a file is the whole section"
    assert prompts["chat=off, instruction='Be brief.'"] == PromptConfig(
        chat="off", instruction="Be brief.", prefill="so"
    )


def test_built_in_candidates_show_no_label_that_is_not_paid_for() -> None:
    made = {candidate.name: candidate.config.prompt for candidate in candidates(embedded_config())}
    assert [*made] == [OWN, "chat=off", "boxed", "few-shot"]
    assert "\\boxed{}" in str(made["boxed"].instruction)
    assert (made["few-shot"].chat, made["few-shot"].examples) == ("off", 4)
    names = [c.name for c in candidates(embedded_config(), ["supervision.type=care", "prompt.chat=off"])]
    assert names == [OWN, "chat=auto", "boxed"]


@pytest.mark.parametrize(
    ("text", "vary", "words"),
    [
        ("[a]\nchat = 3\n", [], ("tries.toml", "'a'", "prompt.chat")),
        ("a = 3\n", [], ("tries.toml", "[NAME]")),
        ("", [], ("tries.toml", "[NAME]")),
        ("[a\n", [], ("tries.toml", "TOML")),
        ("[a]\n", ["train.rounds=1,2"], ("--vary", "prompt.key")),
        ("[a]\n", ["prompt.chat="], ("--vary", "prompt.key")),
        ("[a]\n", ["prompt.chat=on", "prompt.chat=off"], ("--vary", "prompt.key")),
        ('["chat=on"]\n', ["prompt.chat=on"], ("'chat=on'",)),
    ],
)
def test_a_candidate_that_cannot_be_read_is_named(
    text: str, vary: list[str], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        candidates(embedded_config(), [], vary, [written(tmp_path, text)])
    assert all(word in str(error.value) for word in words), error.value


def test_settings_are_shown_as_they_are_written_in_a_file() -> None:
    assert as_toml(PromptConfig()) == "prompt = {}"
    prompt = PromptConfig.model_validate({"stop": ["\n"], "shots": [{"prompt": "1+1=", "answer": "2"}]})
    assert as_toml(prompt) == r'prompt = {shots = [{prompt = "1+1=", answer = "2"}], stop = ["\n"]}'


def numbers_of(out: str, name: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if re.match(rf"\s*{re.escape(name)}\s+\d", line))
    return line.split(name, 1)[1].split()


def test_candidates_are_tried_side_by_side_and_those_that_cannot_be_are_named(
    fedrlvr: Command, toml: Toml, tmp_path: Path
) -> None:
    tries = written(tmp_path, FILE + '[none]\nchat = "on"\n[same]\nchat = "off"\ninstruction = ""\n')
    path = toml(data={"rewards": "grader"})
    path.write_text(re.sub(r"^reward = .*\n", "", path.read_text("utf-8"), flags=re.M), "utf-8")
    said = fedrlvr("prompts", path, "--prompt", tries, "--problems", 5, "--samples", 2)
    assert said.code == 0, said.err
    assert "5 training problems x 2 responses" in said.out
    tokens = {name: float(numbers_of(said.out, name)[-1]) for name in (OWN, "say", "question")}
    assert tokens["question"] > tokens["say"] > tokens[OWN]
    assert "'none' cannot be used: " in said.out
    assert "'same' asks in the same way as 'as given'" in said.out
    assert said.out.count("  response to problem ") == 3 * 3
    assert 'question: prompt = {template = "Q: {{ prompt }}", stop = ["Q:"]}' in said.out
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_validation_problems_come_first_and_held_out_ones_only_where_they_are_asked_for(
    fedrlvr: Command, toml: Toml, refused: Callable[..., str]
) -> None:
    path = toml(data={"validation_size": 3})
    said = fedrlvr("prompts", path, "--vary", "prompt.chat=off", "--problems", 9, "--samples", 1)
    assert "3 validation problems x 1 responses" in said.out
    assert "held-out" not in said.out
    said = fedrlvr("prompts", path, "--vary", "prompt.chat=off", "--problems", 2, "--samples", 1, "--split", "test")
    assert "2 test problems" in said.out
    assert "held-out problems" in said.out.splitlines()[-1]
    care = ("--set", "supervision.type=care", "--vary", "prompt.chat=off")
    refused(["data.validation_size", "'care'"], "prompts", path, *care, "--split", "training")
