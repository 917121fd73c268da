"""Rows and files that cannot be used: each error names the place and says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrlvr.errors import DataError
from fedrlvr.tasks import load

GOOD = b'{"prompt": "1+1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "2+2?"}', "line 2 has no answer. Add 'answer'"),
        (b'{"prompt": "2+2?", "answer": null}', "line 2 has no answer"),
        (b'{"prompt": "2+2?", "answer": ""}', "line 2: 'answer' is empty"),
        (
            b'{"prompt": "2+2?", "answer": [4]}',
            "line 2: 'answer' is a list. The answer must be text or a finite number",
        ),
        (b'{"prompt": "2+2?", "answer": true}', "line 2: 'answer' is true or false"),
        (b'{"prompt": "2+2?", "answer": NaN}', "line 2: 'answer' is a number. The answer must be text or a finite"),
        (b'{"answer": "4"}', "line 2 has no 'prompt' or 'question' or 'problem' or 'messages'. Add it"),
        (b'{"prompt": "  ", "answer": "4"}', "line 2: 'prompt' is empty"),
        (b'{"prompt": {"role": "user"}, "answer": "4"}', "line 2: 'prompt' is an object. It must be text"),
        (
            b'{"prompt": [{"role": "user"}], "answer": "4"}',
            "line 2: 'prompt', message 0 (from 0): 'content' is null. It must be text",
        ),
        (b'{"prompt": "\\ud800", "answer": "4"}', "line 2: 'prompt' holds half a surrogate pair"),
        (
            b'{"prompt": "2+2?", "answer": "4", "kind": "number"}',
            "line 2: kind 'number' is unknown. Use one of math, choice",
        ),
        (b'{"prompt": "2+2?", "answer": "four", "kind": "choice"}', "line 2: the answer is not of kind 'choice'"),
        (b'{"prompt": "2+2?", "answer": "4", "info": 3}', "line 2: 'info' is not an object"),
        (b'["2+2?", "4"]', "line 2 is not a JSON object but a list"),
        (b'{"prompt": "2+2?", "answer"', "line 2 is not JSON (Expecting ':' delimiter, character 2"),
        (b'{"prompt": "2+2?", "answer": ' + b"9" * 5000 + b"}", "line 2 is not JSON that can be read"),
        (b"[" * 100_000, "line 2 is not JSON that can be read"),
        (b'{"prompt": "caf\xe9", "answer": "4"}', "line 2: byte 15 is not UTF-8. Save the file as UTF-8"),
        (b'{"prompt": "' + b"x" * 1_000_000 + b'"}', "line 2 is longer than 1,000,000 bytes"),
        (
            b'{"prompt": "2+2?", "answer": "so 2+2=4\\n#### 4"}',
            "line 2: the answer holds '####', which in GSM8K's files stands before the final answer",
        ),
        (b'{"prompt": "2+2?", "answer": 1, "kind": "choice"}', "line 2: the answer is not of kind 'choice'"),
        (b'{"prompt": "2+2?", "answer": true, "kind": "choice"}', "line 2: 'answer' is true or false"),
        (b'{"prompt": "2+2?", "answer": null, "kind": "choice"}', "line 2 has no answer"),
        (b'{"prompt": "2+2?", "answer": "4", "extra_info": "x"}', "line 2: 'extra_info' is not an object"),
    ],
)
def test_own_rows(line: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_bytes(GOOD + line + b"\n")
    with pytest.raises(DataError) as error:
        load("jsonl", file, "train")
    assert str(error.value).startswith(f"{file}, {message}")


def test_rows_of_one_id_are_all_named(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [("a", 7), ("b", "7"), ("c", "x"), ("d", 7), ("e", "x"), ("f", "y")]
    file.write_text("\n\n".join(json.dumps({"prompt": prompt, "answer": 1, "id": id}) for prompt, id in rows))
    with pytest.raises(DataError) as error:
        load("jsonl", file, "train")
    assert "one id: line 1, line 3 and line 7; line 5 and line 9." in str(error.value)


def test_a_byte_order_mark_and_blank_lines_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n  \n")
    assert len(load("jsonl", tmp_path, "train")) == 1


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("jsonl", "train.jsonl", b"", "is empty. Put one problem on each line"),
        ("jsonl", "train.jsonl", b"\n\n", "is empty. Put one problem on each line"),
        ("math", "math_train.json", b"", "is empty. It should hold a JSON list"),
        ("math", "math_train.json", b"[]", "is empty. It should hold a JSON list"),
        ("math", "math_train.json", b"3", "holds neither a list nor an object"),
        ("math", "math_train.json", b"[3]", "item 0 (from 0) is not a JSON object but a number"),
        ("math", "math_train.json", b'[{"problem": "a"', "is not JSON ("),
        (
            "math",
            "math_train.json",
            b'[{"problem": "a", "type": "A"}]',
            "item 0 (from 0) has no 'answer' and no 'solution'",
        ),
        ("math", "math_train.json", b'[{"problem": "a", "answer": "1"}]', "item 0 (from 0) has no 'type' or 'subject'"),
        (
            "gsm8k",
            "train.jsonl",
            b'{"question": "a", "answer": "72"}',
            "line 1: 'answer' does not end in '#### number'",
        ),
        ("gsm8k", "train.jsonl", b'{"question": "a", "answer": "x ####"}', "line 1: 'answer' does not end in"),
        ("svamp", "SVAMP.json", b'[{"Body": "a", "Question": "b", "Answer": null, "Type": "t"}]', "'Answer' is null"),
        ("medqa", "test.jsonl", b'{"question": "a", "options": "b"}', "line 1: 'options' is not an object"),
        (
            "medqa",
            "test.jsonl",
            b'{"question": "a", "options": {"A": "b", "C": "c"}, "answer_idx": "A"}',
            "no text for option B",
        ),
        (
            "medqa",
            "test.jsonl",
            b'{"question": "a", "options": {"A": "b", "B": "c"}, "answer_idx": "C"}',
            "not the letter of an",
        ),
        ("medqa", "test.jsonl", b'{"question": "a", "context": "b"}', "'context' is not a list of sentences"),
        (
            "pubmedqa",
            "ori_pqal.json",
            b'{"1": {"QUESTION": "a", "CONTEXTS": []}}',
            "key 1: 'CONTEXTS' is not a list of texts",
        ),
        (
            "pubmedqa",
            "ori_pqal.json",
            b'{"1": {"QUESTION": "a", "CONTEXTS": ["b"], "final_decision": "perhaps"}}',
            "key 1: 'final_decision' is not yes, no or maybe",
        ),
    ],
)
def test_published_formats(name: str, file: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError) as error:
        load(name, tmp_path, "test" if file == "test.jsonl" else "train")
    assert str(error.value).startswith(str(tmp_path / file))
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: there is no such file"):
        load("gsm8k", tmp_path, "train")
    with pytest.raises(DataError, match=r"nowhere: there is no such file"):
        load("jsonl", tmp_path / "nowhere", "train")


def test_a_wrong_count_of_options_says_which_option_to_set(tmp_path: Path) -> None:
    row = {"question": "q", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "subject_name": "s", "id": "i"}
    file = tmp_path / "dev.jsonl"
    file.write_text(json.dumps({**row, "cop": 0}))
    with pytest.raises(DataError, match=r"line 1: 'cop' is 0.*cop_from to 0"):
        load("medmcqa", tmp_path, "train")
    file.write_text(json.dumps({**row, "cop": 4}))
    with pytest.raises(DataError, match=r"line 1: 'cop' is 4.*cop_from to 1"):
        load("medmcqa", tmp_path, "train", cop_from=0)


def test_a_split_that_gets_no_row_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_bytes(GOOD)
    empty = []
    for split in ("train", "test"):
        try:
            load("jsonl", file, split)
        except DataError as error:
            empty.append(str(error))
    assert len(empty) == 1
    assert "give more rows, or a directory with a file for each split" in empty[0]
    assert str(file) in empty[0]


def test_ids_that_repeat_in_a_published_file(tmp_path: Path) -> None:
    rows = [{"ID": "x", "Body": "a", "Question": f"{n}?", "Answer": n, "Type": "t"} for n in range(40)]
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="two problems have the id 'x'"):
        load("svamp", tmp_path, "train")


def test_a_broken_list_of_test_ids(fixtures: Path, tmp_path: Path) -> None:
    (tmp_path / "ori_pqal.json").write_bytes((fixtures / "pubmedqa" / "ori_pqal.json").read_bytes())
    for content, message in (("[1]", "does not hold an object"), ("{", "cannot be read")):
        (tmp_path / "test_ground_truth.json").write_text(content)
        with pytest.raises(DataError, match=rf"test_ground_truth\.json {message}"):
            load("pubmedqa", tmp_path, "test")
