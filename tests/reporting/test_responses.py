"""responses.jsonl and the command that shows it: each round once, private, bounded, and clean in a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedrlvr.cli.main import main
from fedrlvr.config import Config
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.reporting.report import render
from fedrlvr.reporting.responses import (
    LONGEST,
    LoggedResponse,
    ResponseLog,
    excerpt,
    newest,
    read_logged,
    response_files,
    shortened,
    show,
)

RIGHT = LoggedResponse(1, "p1", "sums", "2 + 2?", r"It is \boxed{4}.", "4", "4", 1.0, 1.0, "known", True, 9, -0.25)
WRONG = replace(RIGHT, problem="p2", text=r"\boxed{5}", answer="5", reward=0.0, grade=0.0)
UNGRADED = replace(RIGHT, problem="p3", gold=None, grade=None, fate="trusted")


def written(run: Path, *rounds: int, client: str = "ann") -> Path:
    for round_ in rounds:
        ResponseLog(run, 2).write(client, round_, [replace(r, round=round_) for r in (RIGHT, WRONG)])
    return run / "clients" / client / "responses.jsonl"


def test_a_round_that_is_done_again_replaces_itself_and_what_came_after_it(tmp_path: Path) -> None:
    path = written(tmp_path, 1, 2, 3)
    whole = path.read_bytes()
    assert [(r.round, r.problem) for r in read_logged(path)] == [(n, p) for n in (1, 2, 3) for p in ("p1", "p2")]
    written(tmp_path, 2)
    assert [r.round for r in read_logged(path)] == [1, 1, 2, 2]
    written(tmp_path, 3)
    assert path.read_bytes() == whole
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_a_kill_cut_short_is_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(read_logged(path)) == 3
    written(tmp_path, 2)
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named_and_never_deleted(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    path.write_text(path.read_text("utf-8") + '{"round": 1}\n', "utf-8")
    with pytest.raises(CheckpointError, match=r"responses\.jsonl, line 3: problem"):
        read_logged(path)
    path.write_text(path.read_text("utf-8") + "nonsense\n", "utf-8")
    written(tmp_path, 2)
    assert path.read_text("utf-8").splitlines()[3] == "nonsense"


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "clients").write_text("a file where the directory should be", "utf-8")
    written(tmp_path, 1)
    assert "responses of round 1 cannot be written" in caplog.text


def test_long_texts_are_shortened_in_the_middle() -> None:
    assert shortened("x" * LONGEST) == "x" * LONGEST
    assert shortened("a" * 6 + "b" * 6, 10) == "aaaaa\n[2 characters left out]\nbbbbb"
    assert shortened("1\n2\n3\n4\n5", 100, 2) == "1\n[3 lines left out]\n5"
    line = json.loads(replace(RIGHT, text="x" * 9000, prompt="\ud800").line())
    assert len(line["text"]) < LONGEST + 40
    assert line["prompt"] == "\ud800"  # a lone surrogate is no error


def test_the_facts_of_a_response_in_one_line() -> None:
    assert RIGHT.facts == "reward 1 (label), right, answer 4, gold 4, 9 tokens, mean log-prob -0.25"
    cut = replace(UNGRADED, answer=None, finished=False, mean_logp=None)
    assert cut.facts == "reward 1 (majority vote), not graded, no answer found, 9 tokens, cut at the length limit"
    assert not UNGRADED.wrong


def test_show_takes_the_newest_round_or_the_wrong_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, 1, 2)
    ResponseLog(tmp_path, 1).write("bob", 1, [UNGRADED])
    files = response_files(tmp_path)
    show(files)
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith(("ann", "bob"))] == [
        "ann, round 2, problem p1 (sums)",
        "ann, round 2, problem p2 (sums)",
        "bob, round 1, problem p3 (sums)",
    ]
    assert "1 of 3 responses have no grade" in out
    show(files, round_=1, wrong=True)
    out = capsys.readouterr().out
    assert "ann, round 1, problem p2 (sums)" in out
    assert "p1" not in out
    assert "1 of 1 wrong responses" in out
    show(files, most=1)
    assert "1 of 3 responses; --most 3 shows all of them" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"round 7 .*1 to 2"):
        show(files, round_=7)


def test_a_model_s_text_reaches_a_terminal_and_a_page_with_its_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "one\x1b]0;title\x07\n\u202e<script>two"
    path = tmp_path / "clients" / "ann"
    path.mkdir(parents=True)
    response = replace(RIGHT, text=evil, answer=evil, problem=evil, source=evil, prompt=evil, gold=evil)
    (path / "responses.jsonl").write_text(response.line(), "utf-8")
    with pytest.raises(SystemExit):
        main(["responses", str(tmp_path)])
    out = capsys.readouterr().out
    assert "    one\\x1b]0;title\\x07\n    \\u202e<script>two\n" in out
    page = render(Config(), [], responses=excerpt(tmp_path, 4))
    for text in (out, page):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "<script>" not in page
    assert "&lt;script&gt;two" in page


def test_an_excerpt_takes_clients_in_turn(tmp_path: Path) -> None:
    for client in ("client-10", "client-2", "client-1"):
        written(tmp_path, 1, 2, client=client)
    assert [(client, r.problem, r.round) for client, r in excerpt(tmp_path, 4)] == [
        ("client-1", "p1", 2),
        ("client-1", "p2", 2),
        ("client-2", "p1", 2),
        ("client-10", "p1", 2),
    ]
    assert excerpt(tmp_path / "none", 4) == []
    assert newest([]) == []


@pytest.mark.parametrize(
    ("arguments", "name"), [(["--client", "an"], "'ann'"), (["--round", "9"], "round 9"), ([], "run.responses")]
)
def test_what_is_not_there_is_named(
    arguments: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments:
        written(tmp_path, 1)
    with pytest.raises(SystemExit) as end:
        main(["responses", str(tmp_path), *arguments])
    assert end.value.code == 1
    assert name in capsys.readouterr().err
