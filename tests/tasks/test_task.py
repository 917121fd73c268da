"""What a data set's name stands for, and the instruction of each kind of problem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrlvr.config import DataConfig, PromptConfig, parse_config
from fedrlvr.errors import ConfigError, DataError
from fedrlvr.tasks import KINDS, instruction, task_of
from fedrlvr.tasks.deal import check_dealt, deal, instruction_of, own_problems


def test_each_name_has_a_task_and_an_unknown_one_is_refused() -> None:
    for name in ("gsm8k", "math", "svamp", "medqa", "medmcqa", "pubmedqa", "jsonl", "embedded"):
        assert task_of(name).name == name
        assert task_of(name).takes_labels
    assert task_of("reasoning_gym:chain_sum").name == "reasoning_gym:chain_sum"
    assert not task_of("reasoning_gym:chain_sum").takes_labels
    for unknown in ("gsm", "reasoning_gim:chain_sum", "reasoning_gym"):
        with pytest.raises(ConfigError, match="no data set"):
            task_of(unknown)


def test_generated_sizes_follow_from_the_configuration() -> None:
    data = DataConfig(name="embedded", train_size=10, public_size=7, test_size=3, options={"families": ["sum", "unit"]})
    train, test = task_of("embedded").options_of(data)  # 17 and 3 over 2 families x 2 levels, rounded up
    assert (train["size"], test["size"]) == (5, 1)
    data = DataConfig(name="reasoning_gym:chain_sum", train_size=10, public_size=7)
    train, test = task_of(data.name).options_of(data)
    assert (train["size"], test["size"]) == (17, 1024)
    with pytest.raises(ConfigError, match=r"data\.options\.size"):
        task_of("embedded").options_of(DataConfig(name="embedded", options={"size": 3}))
    data = DataConfig(name="jsonl", train_size=10, options={"kind": "exact"})
    assert task_of("jsonl").options_of(data) == ({"kind": "exact"}, {"kind": "exact"})


def test_labels_cannot_be_asked_for_where_a_scorer_takes_none() -> None:
    with pytest.raises(ConfigError, match=r"data\.name"):
        own_problems(DataConfig(name="reasoning_gym:chain_sum"), unlabelled=True, seed=0)


def test_each_prompt_gets_the_instruction_of_its_own_kind(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} + 1?", "answer": n + 1} for n in range(4)]
    rows += [{"prompt": f"Which is {n}?\n\nA. {n}\nB. no", "answer": "A", "kind": "choice"} for n in range(4)]
    for split, kept in (("train", rows[::2]), ("test", rows[1::2])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    tree = {"data": {"name": "jsonl", "path": str(tmp_path)}, "federation": {"clients": 1}}
    (client,) = deal(parse_config(tree)).clients
    asked = {problem.kind: client.prompts.text(problem) for problem in [*client.train, *client.test]}
    assert asked.keys() == {"math", "choice"}
    for kind, text in asked.items():
        assert text.endswith("\n" + instruction(kind))
    tree["prompt"] = {"instruction": "Be short."}
    (client,) = deal(parse_config(tree)).clients
    assert {client.prompts.text(p).rpartition("\n")[2] for p in [*client.train, *client.test]} == {"Be short."}
    tree["prompt"] = {"instruction": ""}
    (client,) = deal(parse_config(tree)).clients
    assert [client.prompts.text(p) for p in client.train] == [p.prompt for p in client.train]


def test_embedded_problems_are_asked_without_an_instruction() -> None:
    assert {instruction_of(DataConfig(), PromptConfig())(kind) for kind in KINDS} == {""}  # type: ignore[arg-type]
    assert instruction_of(DataConfig(name="medqa"), PromptConfig())("choice") == instruction("choice")


def test_problems_whose_golds_cannot_be_met_are_refused_before_a_run(tmp_path: Path) -> None:
    golds = ["1", "2", "3", "B. Heparin"]
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {n}?", "answer": gold} for n, gold in enumerate(golds)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def check(**settings: object) -> None:
        data = {"name": "jsonl", "path": str(tmp_path), **settings}
        config = parse_config({"data": data, "federation": {"clients": 2}})
        check_dealt(deal(config), config.data)

    with pytest.raises(
        DataError, match=r"2 of 8 gold answers.*client-\d, problem \w{16}, 't\w+ 3\?': .*data\.unreachable_golds"
    ):
        check()
    check(unreachable_golds=0.25)
    check(rewards="small_runs:zero")  # what a reward of one's own takes is not known here
    check(options={"kind": "exact"})
