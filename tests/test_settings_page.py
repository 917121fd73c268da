"""docs/settings.md is what the configuration says of itself, and each of its sentences stands alone."""

from __future__ import annotations

import re

import pytest

from fedrlvr.config.reference import SINCE, SettingRow
from scripts import settings, words

EVERYTHING = list(settings.everything())


def test_the_page_is_current() -> None:
    assert settings.PAGE.read_text("utf-8") == settings.page(), "run: python -m scripts.settings"


@pytest.mark.parametrize(
    "setting",
    [setting for setting in EVERYTHING if setting.section not in ("site", "machine", "limits")],
    ids=lambda setting: f"{setting.section}.{setting.name}",
)
def test_a_setting_s_row_is_complete_and_its_sentence_stands_alone(setting: SettingRow) -> None:
    assert setting.type
    assert setting.default
    boolean = setting.type == "true or false"
    assert not list(words.faults(words.Sentence(setting.name, setting.sentence, boolean)))
    assert not re.search(r"<\w+>", re.sub(r"`[^`]*`", "", setting.sentence)), "a page would lose it as a tag"


def test_the_versions_are_those_of_the_settings_there_are() -> None:
    assert set(SINCE) == {f"{setting.section}.{setting.name}" for setting in EVERYTHING}


def test_what_a_setting_says_of_its_type_default_and_conditions() -> None:
    rows = {f"{setting.section}.{setting.name}": setting for setting in EVERYTHING}
    assert rows["train.rounds"].type == "whole number, at least 1"
    assert rows["aggregation.robust_trim"].type == "number, above 0, below 0.5"
    assert rows["limits.message_types"].type == "list of `train`, `query.respond` or `evaluate`"
    assert (rows["run.directory"].type, rows["run.directory"].default) == ("path", "unset")
    assert rows["site.superlink"].default == "required"
    assert rows["partition.type"].default == '"source"'
    assert rows["aggregation.robust_trim"].sentence.endswith("Only with `robust` = `trimmed_mean`.")
    assert rows["supervision.min_reliability"].sentence.endswith("Only with `type` = `care`.")
    assert "fedex" in rows["aggregation.type"].type


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Of a run.", "shorter"),
        ("Nor is a majority that is right with a smaller probability than this.", "Nor"),
        ("What of it each client has to be sent each round.", "What"),
        ("`of` the base weights that every client keeps frozen.", "of"),
        ("Whether the probes of all the clients are averaged.", "yes-or-no"),
        ("Maximum number of rounds in one run.", ""),
        ("Maximum number of round in one run.", "repeats"),
    ],
)
def test_a_sentence_that_leans_on_another_is_flagged(text: str, reason: str) -> None:
    before = "Maximum number of rounds in one run." if reason == "repeats" else ""
    faults = list(words.faults(words.Sentence("x", text), before))
    assert bool(faults) == bool(reason)
    assert all(reason in fault for fault in faults[:1])


def test_whether_begins_the_sentence_of_a_yes_or_no_question() -> None:
    assert not list(words.faults(words.Sentence("x", "Whether the clients' probes are averaged.", boolean=True)))


def test_docstrings_of_settings_functions_and_classes_are_read() -> None:
    source = (
        '"""Of what."""\nx: int = 1\n"""That multiple."""\nclass A:\n    def b(self) -> bool:\n        """Whose?"""\n'
    )
    names = [sentence.name for sentence in words.sentences(source, "file.py")]
    assert names == ["file.py:1", "file.py:2 x", "file.py:5 A.b"]
    assert len(list(words.problems(source, "file.py"))) >= 3


def test_variables_parameters_and_attributes_are_checked_for_vague_names() -> None:
    source = "def f(whose, *, rows):\n    self.own = rows\n    return [one for one in rows if one.found]\n"
    flagged = {line.split(": ")[0] for line in words.vague_names(source, "a.py")}
    assert flagged == {"a.py:1 whose", "a.py:2 own", "a.py:3 one"}
