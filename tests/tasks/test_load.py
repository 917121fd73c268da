"""Each published format, from the project's own small files, from the hub's layouts, and from the user's own rows."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedrlvr.errors import ConfigError, DataError, MissingExtraError
from fedrlvr.tasks import check_disjoint, grader_for, load, validate

KNOWN = ["gsm8k", "math", "svamp", "medqa", "medmcqa", "pubmedqa"]


@pytest.mark.parametrize("name", KNOWN)
def test_every_gold_answer_scores_and_nothing_else_does(name: str, fixtures: Path) -> None:
    splits = {split: load(name, fixtures / name, split) for split in ("train", "test")}
    check_disjoint(train=splits["train"], public=[], test=splits["test"])
    for problems in splits.values():
        assert validate(problems, grader_for(None), attacked=5).failures == []


def test_gsm8k(fixtures: Path) -> None:
    train = load("gsm8k", fixtures / "gsm8k", "train")
    assert len(train) == 24
    assert (train[0].id, train[0].source, train[0].kind) == ("gsm8k-train-0", "gsm8k", "math")
    assert [p.answer for p in train[5:7]] == ["13500", "-7"]  # thousands separators go


def test_gsm8k_solutions_are_rewritten_to_the_form_of_answers_that_is_asked_for(fixtures: Path) -> None:
    train = load("gsm8k", fixtures / "gsm8k", "train")
    assert train[0].response == "The jars hold 7*2 = 14 pears.\nThen 14-3 = 11 are left.\nThe answer is \\boxed{11}."
    for problem in train:
        assert grader_for(None)(problem.response, problem) == 1.0
        assert "<<" not in problem.response
        assert "####" not in problem.response


def test_math(fixtures: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fedrlvr.tasks"):
        train = load("math", fixtures / "math", "train")
    assert len(train) == 30
    assert {p.source for p in train} >= {"Algebra", "Counting & Probability", "Precalculus"}
    assert caplog.messages == [
        f"{fixtures / 'math' / 'math_train.json'}: skipped 2 rows without an answer (counted from 0): 28, 29"
    ]
    test = load("math", fixtures / "math", "test")
    assert (test[1].id, test[1].answer, test[1].source) == (
        "test/made_up/1.json",
        r"\frac{1}{3}",
        "Counting & Probability",
    )


def test_math_answers_stand_in_the_published_solutions_too(fixtures: Path, tmp_path: Path) -> None:
    with_answers = load("math", fixtures / "math", "test")
    rows = [json.loads(line) for line in (fixtures / "math" / "math500_test.jsonl").read_text("utf-8").splitlines()]
    (tmp_path / "math500_test.jsonl").write_text("".join(json.dumps({**r, "answer": None}) + "\n" for r in rows))
    assert [p.answer for p in load("math", tmp_path, "test")] == [p.answer for p in with_answers]


def test_svamp(fixtures: Path) -> None:
    problems = load("svamp", fixtures / "svamp", "train") + load("svamp", fixtures / "svamp", "test")
    by_id = {p.id: p for p in problems}
    assert len(by_id) == 21
    assert {p.source for p in problems} == {"Addition", "Subtraction", "Multiplication", "Common-Division"}
    assert by_id["made-up-1"].prompt == "Aino had 30 pears and found 4 more How many pears does Aino have?"
    assert (by_id["made-up-1"].answer, by_id["made-up-21"].answer) == ("34", "2.5")
    assert by_id["made-up-1"].response == r"30 + 4 = \boxed{34}"


@pytest.mark.parametrize(
    ("equation", "response"),
    [
        ("( ( 8.0 - 3.0 ) * 2.05 )", r"(8 - 3) * 2.05 = \boxed{10.25}"),
        ("( 4.0 / ( 3.0 - 1.0 ) )", r"4 / (3 - 1) = \boxed{10.25}"),
        ("7.0", r"7 = \boxed{10.25}"),
        (None, ""),
    ],
)
def test_svamp_equations_are_responses_to_imitate(equation: str | None, response: str, tmp_path: Path) -> None:
    row = {"Question": "b", "Equation": equation, "Answer": 10.25, "Type": "Addition"}
    rows = [{"ID": str(number), "Body": f"a {number}", **row} for number in range(20)]
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    assert {problem.response for problem in load("svamp", tmp_path, "train")} == {response}


def test_medqa(fixtures: Path) -> None:
    train, test = (load("medqa", fixtures / "medqa", split) for split in ("train", "test"))
    assert train[0].prompt == (
        "A sailor of 40 has bleeding gums after months without fruit. Nothing else is remarkable. Which vitamin is he "
        "short of?\n\nA. Vitamin A\nB. Vitamin C\nC. Vitamin D\nD. Vitamin E"
    )
    assert (train[0].answer, train[0].kind, train[0].source) == ("B", "choice", "medqa")
    assert [p.source for p in test] == ["step1", "step2&3", "step1", "step2&3"]


def test_medmcqa(fixtures: Path) -> None:
    train, test = (load("medmcqa", fixtures / "medmcqa", split) for split in ("train", "test"))
    assert len(train) + len(test) == 24
    insulin = next(p for p in train + test if p.id == "made-up-1")
    assert insulin.prompt == "Which organ makes insulin?\n\nA. Liver\nB. Pancreas\nC. Spleen\nD. Kidney"
    assert (insulin.answer, insulin.source) == ("B", "Physiology")


def test_pubmedqa(fixtures: Path, tmp_path: Path) -> None:
    train, test = (load("pubmedqa", fixtures / "pubmedqa", split) for split in ("train", "test"))
    assert [p.id for p in test] == ["900003", "900005", "900007", "900010"]  # the ids that the test file names
    assert (len(train), test[0].answer, test[0].source, test[0].kind) == (8, "maybe", "maybe", "yes_no_maybe")
    assert train[0].prompt.endswith(
        "in the ward with handwashing posters.\n\nQuestion: Do handwashing posters change how patients rate a ward?"
    )
    alone = tmp_path / "ori_pqal.json"  # without that file: by content
    alone.write_bytes((fixtures / "pubmedqa" / "ori_pqal.json").read_bytes())
    both = [load("pubmedqa", alone, split) for split in ("train", "test")]
    assert sum(map(len, both)) == 12
    check_disjoint(train=both[0], public=[], test=both[1])


def test_the_split_by_content_is_the_same_everywhere(fixtures: Path) -> None:
    assert [p.id for p in load("medmcqa", fixtures / "medmcqa", "test")] == MEDMCQA_TEST
    assert [p.id for p in load("svamp", fixtures / "svamp", "test")] == SVAMP_TEST


def test_a_single_file_is_split_by_content_whatever_the_set(fixtures: Path) -> None:
    file = fixtures / "gsm8k" / "train.jsonl"
    train, test = load("gsm8k", file, "train"), load("gsm8k", file, "test")
    assert len(train) + len(test) == 24
    assert train
    assert test
    check_disjoint(train=train, public=[], test=test)


def test_own_rows_and_their_aliases(fixtures: Path) -> None:
    train = load("jsonl", fixtures / "own", "train")
    assert [p.answer for p in train] == ["42", "2", "2.5", "yes", "B", "Paris"]
    assert [p.kind for p in train] == ["math", "math", "math", "yes_no_maybe", "choice", "exact"]
    assert (train[0].id, train[0].source, train[0].info) == ("a", "tables", {"weight": 2})
    assert train[1].id == train[1].content_key[:16]
    assert train[1].source == "jsonl"
    assert [p.answer for p in load("jsonl", fixtures / "own", "test")] == ["56", "63"]
    assert load("jsonl", fixtures / "own", "test", kind="exact")[0].kind == "exact"
    assert validate(train, grader_for(None)).failures == []


def test_embedded_passes_its_options_on() -> None:
    pytest.importorskip("fedrlvr.zoo")
    problems = load("embedded", None, "public", size=3, seed=0, levels=["easy"])
    assert len(problems) == 24
    assert validate(problems, grader_for(None)).failures == []
    with pytest.raises(ConfigError, match="needs the option 'size'"):
        load("embedded", None, "train", seed=0)
    with pytest.raises(ConfigError, match=r"a path \(x\) would have no effect"):
        load("embedded", "x", "train", size=3, seed=0)


def _hub(monkeypatch: pytest.MonkeyPatch, rows: Callable[..., list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        calls.append((name, config, split))
        return rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_hub_layouts_give_the_same_problems(monkeypatch: pytest.MonkeyPatch, fixtures: Path) -> None:
    raw = [json.loads(line) for line in (fixtures / "medmcqa" / "dev.jsonl").read_text("utf-8").splitlines()]
    calls = _hub(monkeypatch, lambda: [{**row, "cop": row["cop"] - 1} for row in raw])  # the hub counts from 0
    local = load("medmcqa", fixtures / "medmcqa", "train") + load("medmcqa", fixtures / "medmcqa", "test")
    assert {p.id: p for p in load("medmcqa", None, "test")} == {p.id: p for p in local}
    assert calls == [("openlifescienceai/medmcqa", None, "validation")]

    papers = json.loads((fixtures / "pubmedqa" / "ori_pqal.json").read_text("utf-8"))
    hub_rows = [
        {
            "pubid": int(key),
            "question": row["QUESTION"],
            "context": {"contexts": row["CONTEXTS"]},
            "final_decision": row["final_decision"],
        }
        for key, row in papers.items()
    ]
    calls = _hub(monkeypatch, lambda: hub_rows)
    both = [load("pubmedqa", None, split) for split in ("train", "test")]
    local = load("pubmedqa", fixtures / "pubmedqa", "train") + load("pubmedqa", fixtures / "pubmedqa", "test")
    assert {p.id: p for p in both[0] + both[1]} == {p.id: p for p in local}
    assert calls == [("qiaojin/PubMedQA", "pqa_labeled", "train")] * 2


@pytest.mark.parametrize(
    ("name", "split", "call"),
    [
        ("gsm8k", "train", ("openai/gsm8k", "main", "train")),
        ("math", "train", ("DigitalLearningGmbH/MATH-lighteval", None, "train")),
        ("math", "test", ("HuggingFaceH4/MATH-500", None, "test")),
        ("svamp", "test", ("ChilleD/SVAMP", None, "test")),
        ("medqa", "train", ("GBaker/MedQA-USMLE-4-options", None, "train")),
    ],
)
def test_hub_ids(name: str, split: str, call: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, dict[str, Any]] = {
        "gsm8k": {"question": "1+1?", "answer": "#### 2"},
        "math": {"problem": "1+1?", "solution": r"\boxed{2}", "type": "Algebra"},
        "svamp": {"ID": "1", "Body": "One", "Question": "and one?", "Answer": "2", "Type": "Addition"},
        "medqa": {
            "question": "Which?",
            "options": [{"key": "A", "value": "a"}, {"key": "B", "value": "b"}],
            "answer_idx": "B",
        },
    }
    calls = _hub(monkeypatch, lambda: [rows[name]])
    assert load(name, None, split)[0].answer in ("2", "B")
    assert calls == [call]


def test_the_real_library_reads_a_local_directory_as_a_hub_id(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    problems = load("gsm8k", None, "test", hub=str(fixtures / "gsm8k"))
    assert problems == load("gsm8k", fixtures / "gsm8k", "test")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedrlvr\[hub\]'"):
        load("gsm8k", None, "train")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedrlvr\[reasoning-gym\]'"):
        load("reasoning_gym:chain_sum", None, "train")


def test_a_hub_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[dict[str, Any]]:
        raise ConnectionError("offline")

    _hub(monkeypatch, fail)
    with pytest.raises(DataError, match=r"'openai/gsm8k' .*ConnectionError: offline"):
        load("gsm8k", None, "train")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("gsm8", None, "train"), "no data set 'gsm8' (did you mean 'gsm8k'"),
        (("gsm8k", "x", "validation"), "no split 'validation'. Use one of train, test"),
        (("jsonl", None, "train"), "'jsonl' needs a path"),
    ],
)
def test_bad_calls(call: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(*call)
    assert message in str(error.value)


def test_bad_options(fixtures: Path) -> None:
    with pytest.raises(ConfigError, match=r"'cop_fron'.* 'cop_from'"):
        load("medmcqa", fixtures / "medmcqa", "train", cop_fron=0)
    with pytest.raises(ConfigError, match="option hub would have no effect"):
        load("gsm8k", fixtures / "gsm8k", "train", hub="x")
    with pytest.raises(ConfigError, match="option kind is 'letter'"):
        load("jsonl", fixtures / "own", "train", kind="letter")
    with pytest.raises(ConfigError, match="cop_from is 2"):
        load("medmcqa", fixtures / "medmcqa", "train", cop_from=2)


MEDMCQA_TEST = ["made-up-1", "made-up-10", "made-up-11", "made-up-12", "made-up-13", "made-up-16", "made-up-18"]
SVAMP_TEST = ["made-up-4", "made-up-8", "made-up-17", "made-up-20", "made-up-21"]
