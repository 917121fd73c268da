"""The model card of an export states the run's numbers, and gives away no path, problem or organisation's count."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models import moved_adapter, tiny_cohort, tiny_model
from transformers import AutoModelForCausalLM

from fedrlvr.config import LoraConfig, ModelConfig, PromptConfig, parse_config
from fedrlvr.policy.export import export_adapter, export_merged
from fedrlvr.server.model_card import CARD, PROMPT, CardFacts, documents, prompt_settings, read_facts
from fedrlvr.tasks import load, task_of
from fedrlvr.tasks.deal import instruction_of
from fedrlvr.tasks.problem import Problem
from fedrlvr.tasks.prompts import Prompts
from fedrlvr.tasks.rows import PUBLISHED


def score(n: int, total: float) -> dict[str, float]:
    return {"n": n, "total": total, "squares": total}


def record(round_: int, ann: float, bob: float) -> dict[str, Any]:
    clients = {name: {"num-examples": count, "reward": 0.5} for name, count in (("ann", 30), ("bob", 12))}
    evaluate = {"ann": {"sums": score(10, ann)}, "bob": {"sums": score(10, bob)}}
    return {"round": round_, "clients": clients if round_ else {}, "evaluate": evaluate}


def facts_of(client: str | None = None, merged: bool = False, **sections: Any) -> CardFacts:
    tree = {
        "federation": {"clients": ["ann", "bob"]},
        "data": {"name": "gsm8k", "path": "/secret/place"},
        "model": {"name": "/secret/models/Llama"},
        "train": {"rounds": 4, "local_steps": 7},
    }
    config = parse_config({**tree, **sections})
    records = [record(0, 2, 4), record(4, 5, 8)]
    return CardFacts(config, 4, client, 8, 16.0, merged, records, {"ann": 30, "bob": 12})


def card_of(facts: CardFacts) -> str:
    return documents(facts, None)[CARD]


def front_of(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def test_the_privacy_loss_stands_on_the_card() -> None:
    facts = facts_of()
    facts.records[-1]["privacy"] = {"unit": "site", "epsilon": 7.96, "delta": 1e-5, "clip": 1.0, "noise": 2.0}  # type: ignore[index]
    (row,) = (line for line in card_of(facts).splitlines() if "differential privacy" in line)
    assert "epsilon 7.96, delta 1e-05" in row
    assert "differential privacy" not in card_of(facts_of())


def test_the_front_matter_is_yaml() -> None:
    front = front_of(card_of(facts_of()))
    assert (front["base_model"], front["library_name"]) == ("Llama", "peft")
    assert "fedrlvr" in front["tags"]
    merged = front_of(card_of(facts_of(merged=True, model={"name": "org/model-1"})))
    assert (merged["base_model"], merged["library_name"]) == ("org/model-1", "transformers")


def test_the_table_and_the_scores_are_the_runs() -> None:
    card = card_of(facts_of())
    for text in (
        "rank 8, alpha 16",
        "| rounds | 4 of 4, 7 local steps each |",
        "| supervision | `labels` |",
        "| aggregation | `fedit`, weights `examples` |",
        "| training problems | 42 at 2 clients (`ann` 30, `bob` 12) |",
        "| before training | 20 | 30.0 % [",
        "| after round 4 | 20 | 65.0 % [",
        "+35.0 [",
    ):
        assert text in card
    assert "personal adapter" not in card


def test_a_personal_adapter_is_scored_on_its_clients_problems() -> None:
    facts = facts_of("ann", personal={"type": "finish"})
    personal = {"clients": {}, "evaluate": {"ann": {"sums": score(10, 9)}, "bob": {"sums": score(10, 1)}}}
    facts = replace(facts, records=[*facts.records[:-1], {**facts.records[-1], "personal": personal}])
    card = card_of(facts)
    for text in (
        "| personal adapter | `finish` |",
        "| client | `ann` |",
        "| before training | 10 | 20.0 % [",
        "| global adapter, after round 4 | 10 | 50.0 % [",
        "| personal adapter | 10 | 90.0 % [",
    ):
        assert text in card


def test_of_organisations_the_card_has_totals_only(tmp_path: Path) -> None:
    (tmp_path / "holdings.json").write_text(json.dumps({"digest": "x", "public": 0}), "utf-8")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record(i, 2, 4)) + "\n" for i in range(6)), "utf-8")
    facts = read_facts(tmp_path, facts_of().config, 4, None, rank=8, alpha=16.0, merged=False)
    assert [line["round"] for line in facts.records] == [0, 1, 2, 3, 4]
    card = card_of(facts)
    assert "| training problems | 42 at 2 clients |" in card
    assert "ann" not in card
    assert prompt_settings(facts, chat=True)["instruction"] is None
    assert facts.config.prompt.instruction is None
    assert "\\boxed" not in card, "an organisation words its own instruction"


def test_a_run_without_metrics_and_holdings_has_a_card(tmp_path: Path) -> None:
    (tmp_path / "holdings.json").write_text("[]", "utf-8")
    facts = read_facts(tmp_path, facts_of().config, 4, None, rank=8, alpha=16.0, merged=False)
    card = card_of(facts)
    assert "no scores" in card
    assert "not known" in card


def test_the_card_holds_no_path_and_no_raw_foreign_text() -> None:
    foreign = "x\x1b[31m`|<script>\u202e\n# head"
    facts = facts_of(
        run={"name": foreign}, model={"name": "/secret/a\u202e`b"}, data={"name": "jsonl", "path": "/secret"}
    )
    facts = replace(facts, problems={foreign: 3})
    for text in documents(facts, lambda prompt: f"````\x07 {prompt}").values():
        assert "/secret" not in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    card = card_of(facts)
    assert front_of(card)["base_model"].startswith("a")
    assert "\n# head" not in card
    assert all("<script>" not in re.sub("`[^`\n]*`", "", line) for line in card.splitlines())
    assert "`````text" in documents(facts, lambda prompt: f"```` {prompt}")[CARD], "a fence is longer than any within"


def test_prompt_settings_are_those_of_the_run() -> None:
    assert prompt_settings(facts_of(), chat=False)["instruction"] == {"math": task_of("gsm8k").instruction("math")}
    stated = facts_of(data={"name": "jsonl", "path": "/secret"}, prompt={"instruction": "Be brief."})
    asking = prompt_settings(stated, chat=True)
    assert set(asking["instruction"].values()) == {"Be brief."}
    assert asking["answer_marks"] == ["<answer>ANSWER</answer>", r"\boxed{ANSWER}", "#### ANSWER"]
    graded_elsewhere = facts_of(data={"name": "gsm8k", "path": "/secret", "rewards": "mine:reward"})
    assert prompt_settings(graded_elsewhere, chat=True)["answer_marks"] is None
    reworded = facts_of(
        "ann", federation={"clients": ["ann", "bob"], "deviations": {"ann": {"template": "Q: {{ prompt }}"}}}
    )
    assert prompt_settings(reworded, chat=True)["template"] == "Q: {{ prompt }}"
    assert "Q: A clinic" in card_of(reworded)


@pytest.mark.parametrize("task", PUBLISHED, ids=lambda task: task.name)
def test_kinds_of_published_data_sets_are_those_of_their_problems(task: Any) -> None:
    fixtures = Path(__file__).parents[1] / "fixtures" / task.name
    assert {problem.kind for problem in load(task.name, fixtures, "train")} == set(task.kinds)


PROMPTS: dict[str, dict[str, Any]] = {
    "default": {},
    "off": {"chat": "off"},
    "everything": {
        "system": "Add.",
        "template": "Q ({{ kind }}): {{ prompt }}\nA:",
        "instruction": "Be brief.",
        "shots": [{"prompt": "1+1=", "answer": " 2"}, {"prompt": "2+2=", "answer": "4"}],
        "prefill": "So ",
        "stop": ["e", "7"],
    },
    "everything off": {
        "chat": "off",
        "system": "Add.",
        "template": "{{ instruction }} {{ prompt | trim }}",
        "shots": [{"prompt": "1+1=", "answer": " 2"}],
        "stop": ["e"],
    },
    "columns": {"template": "{{ prompt }} {{ unit }}{{ year }}{{ hint | default('none') }}"},
    "shots off": {"chat": "off", "shots": [{"prompt": "1+1=", "answer": "2"}]},
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("merged", [True, False])
def test_the_cards_program_asks_the_model_as_it_was_trained(
    name: str, merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's program, run where the export lies, against plain weights and the prompt that training encodes."""
    base = tiny_model(tmp_path / "base", chat_template=True)
    cohort = tiny_cohort(base, LoraConfig(rank=3, alpha=6.0))
    adapter = moved_adapter(cohort, 1)
    model, prompted = ModelConfig(name=str(base), device="cpu"), PromptConfig.model_validate(PROMPTS[name])
    sampling = {"max_new_tokens": 9}
    facts = facts_of(merged=merged, model={"name": str(base)}, sampling=sampling, prompt=PROMPTS[name])
    write = export_merged if merged else export_adapter
    out = tmp_path / "out"
    write(adapter, model, cohort_lora(adapter), out, lambda b: documents(facts, b.asking(prompted).in_template))
    asking = json.loads((out / PROMPT).read_text("utf-8"))
    assert asking["chat"] is (prompted.chat == "auto")
    assert {key: asking[key] for key in ("system", "template", "prefill", "stop", "template_args")} == (
        prompted.model_dump(include={"system", "template", "prefill", "stop", "template_args"})
    )
    card = (out / CARD).read_text("utf-8")
    question = Problem(
        task_of("gsm8k").example("math"), "17", "made up", "", "math", columns={"unit": "UNIT", "year": "YEAR"}
    )
    prompt = Prompts(prompted, instruction_of(facts.config.data, prompted)).ask(question)
    cohort.base = cohort.base.asking(prompted)
    assert cohort.base.rendered(prompt) in card

    plain = tmp_path / "plain"
    export_merged(adapter, model, cohort_lora(adapter), plain)
    ids = torch.tensor([cohort.base.encode(prompt)])
    tokens = AutoModelForCausalLM.from_pretrained(plain).generate(ids, do_sample=False, max_new_tokens=9)
    expected = cohort.base.decode(tokens[0, ids.shape[1] :].tolist())

    (out / "base").symlink_to(base)  # the name that the card knows the base model by
    monkeypatch.chdir(out)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(card.split("```python\n")[1].split("\n```")[0], {})
    assert printed.getvalue() == f"{expected}\n"


def test_the_card_says_that_examples_of_training_problems_are_not_in_it() -> None:
    facts = facts_of(prompt={"examples": 3, "system": "Add."})
    asking = prompt_settings(facts, chat=False)
    assert (asking["examples"], asking["shots"]) == (3, [])
    assert "3 training problems" in card_of(facts)
    assert "Add.\n\nA clinic" in card_of(facts)
    assert "training problems with" not in card_of(facts_of())


def cohort_lora(adapter: Any) -> LoraConfig:
    return LoraConfig(rank=adapter.rank, alpha=adapter.alpha)
