"""about.json: the command and versions of a run's start, and those of its continuations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrlvr.reporting import provenance
from fedrlvr.reporting.provenance import ABOUT_FILE, command_line, latest_versions, read_about, versions, write_about


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/usr/bin/fedrlvr", "run", "a b.toml"], "fedrlvr run 'a b.toml'"),
        (["/lib/fedrlvr/__main__.py", "run"], "fedrlvr run"),
        (["/home/me/mine.py", "run"], ""),
        (["/lib/other/__main__.py", "run"], ""),
        (["-c"], ""),
    ],
)
def test_the_command_is_ours_or_none(arguments: list[str], command: str) -> None:
    assert command_line(arguments) == command


def test_versions_of_the_start_and_of_a_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_about(tmp_path, 0)
    first = read_about(tmp_path)
    assert first["versions"] == versions()
    assert {"fedrlvr", "Python", "torch"} <= first["versions"].keys()
    assert first["continued"] == []
    before = (tmp_path / ABOUT_FILE).read_bytes()
    write_about(tmp_path, 3)
    assert (tmp_path / ABOUT_FILE).read_bytes() == before, "the same versions go on"
    monkeypatch.setattr(provenance, "versions", lambda: {"fedrlvr": "99"})
    write_about(tmp_path, 4)
    write_about(tmp_path, 5)
    later = read_about(tmp_path)
    assert later["continued"] == [{"round": 4, "versions": {"fedrlvr": "99"}}]
    assert later["versions"] == first["versions"]
    assert latest_versions(later) == {"fedrlvr": "99"}


def test_a_run_of_an_earlier_release_is_continued(tmp_path: Path) -> None:
    write_about(tmp_path, 2)
    about = read_about(tmp_path)
    assert (about["command"], about["versions"]) == ("", {})
    assert about["continued"][0]["round"] == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"versions": 3}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ABOUT_FILE).write_text(text, "utf-8")
    assert read_about(tmp_path) == {}


def test_what_is_not_of_its_form_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ABOUT_FILE).write_text(json.dumps({"versions": {}, "continued": [1, {"round": 2}]}), "utf-8")
    assert read_about(tmp_path)["continued"] == [{"round": 2}]
