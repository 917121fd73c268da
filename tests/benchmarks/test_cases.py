"""The cases: the same problems for every side, responses that cannot end early, and both sides doing the same work."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cases, speed
from benchmarks.cases import build, parity, take
from benchmarks.worker import Pacer
from fedrlvr.tasks import Problem


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_problems_are_taken_in_order_and_around() -> None:
    pool = [Problem(str(i), "0", str(i), "s", "exact") for i in range(5)]
    assert [p.id for p in take(pool, 3, 4)] == ["3", "4", "0", "1"]


def test_parity_is_of_the_bytes() -> None:
    problem = Problem("p", "0", "i", "s", "exact")
    assert [parity(text, problem) for text in ("", "b", "a", "ab", "é")] == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_scaled_cases_share_no_problem_between_clients(models: Path) -> None:
    case = build("E1", clients=4, length=16, models=models)
    assert (case.clients, case.max_new_tokens, case.responses, case.problems) == (4, 16, 8, 8)
    ids = [p.id for pool in case.pools for p in pool]
    assert len(ids) == len(set(ids)) == 4096
    assert case.draw(2, 1) == list(case.pools[2][8:16])


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(ValueError, match="'E9'"):
        build("E9")


def test_a_long_case_has_an_end_token_the_model_cannot_say(models: Path) -> None:
    from fedrlvr.config import ModelConfig

    base = cases.load_endless(ModelConfig(name=str(build("LENGTH", models=models).model), device="cpu"))
    assert base.eos_ids == {base.model.config.vocab_size}
    assert base.max_length >= 256 + 60


def test_a_small_corpus_fills_the_vocabulary_and_prompts_are_chosen_by_length(models: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["the knee hurts", "the hip hurts more than the knee", "no pain"]
    shape = {**cases.TINY, "vocab_size": 400}
    model = cases._once(
        models / "bpe", lambda path: cases._random_llama(path, shape, cases._bpe_tokenizer(texts, shape["vocab_size"]))
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.eos_token_id == 400
    ids = tokenizer(texts[1])["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == texts[1]
    problems = [Problem(text, "0", text, "s", "exact") for text in texts]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert [p.prompt for p in cases.fitting(model, problems, 1, lengths[1], lengths[1])] == [texts[1]]
    with pytest.raises(ValueError, match="the case needs 2"):
        cases.fitting(model, problems, 2, lengths[1], lengths[1])


def rounds(runner: Any, commands: list[str]) -> list[dict[str, Any]]:
    """The worker's answers to these commands, computed in this process."""
    answers = io.StringIO()
    runner.run(Pacer(io.StringIO("\n".join([*commands, "quit"]) + "\n"), answers, imported=1))
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_our_side_answers_with_costs_and_its_floor(models: Path) -> None:
    from benchmarks.ours import Ours

    case = build("TINY", models=models)
    ready, timed, memory, floor = rounds(Ours(case, ["engine.threads=1"]), ["round", "memory", "floor"])
    assert ready["ready"]
    tokens = case.clients * case.problems * case.responses * case.max_new_tokens
    assert timed["tokens_sampled"] == memory["tokens_sampled"] == tokens  # none ended early
    assert timed["peak"] is None
    assert memory["peak"] >= memory["before"] > 0
    assert {"sample", "train", "grade"} <= set(timed["phases"])
    assert floor["calls"] > 0
    assert min(floor["seconds"]) > 0


@pytest.mark.slow
def test_the_baseline_trains_on_the_same_problems_and_tokens(models: Path) -> None:
    pytest.importorskip("trl")
    from benchmarks.flower_trl import FlowerTrl

    case = build("TINY", models=models)
    seen: list[str] = []
    kept = case.reward

    def reward(text: str, problem: Problem) -> float:
        seen.append(problem.id)
        return kept(text, problem)

    object.__setattr__(case, "reward", reward)
    runner = FlowerTrl(case, per_device=8)
    before = {name: value.clone() for name, value in runner.initial.items()}
    _, first, second = rounds(runner, ["round", "round"])
    tokens = case.clients * case.problems * case.responses * case.max_new_tokens
    assert first["tokens_sampled"] == second["tokens_sampled"] == tokens
    wanted = [p.id for round_ in range(2) for client in range(2) for p in case.draw(client, round_)]
    # Flower draws the clients of a round in an order of its own.
    assert sorted(seen) == sorted(name for name in wanted for _ in range(case.responses))
    assert 0 < first["phases"]["sample and grade"] < first["phases"]["train"] < first["cpu"]
    from peft import get_peft_model_state_dict

    after = get_peft_model_state_dict(runner.model)
    assert all(not after[name].equal(value) for name, value in before.items() if "lora_B" in name)
    with pytest.raises(ValueError, match="do not divide"):
        FlowerTrl(case, per_device=7)


def test_measurements_are_kept_and_taken_up(tmp_path: Path) -> None:
    counted = iter(range(9))
    kept = speed.Keeper(tmp_path, "a command", again=False)
    assert [kept("E1-a row, twice", lambda: next(counted)) for _ in range(2)] == [0, 0]
    assert speed.Keeper(tmp_path, "later", again=True)("E1-a row, twice", lambda: next(counted)) == 1
    assert len(kept.when) == 1


def test_cases_not_measured_now_stay(tmp_path: Path) -> None:
    speed.write(tmp_path, {"E1": {"found": 1}}, ["one\n"])
    speed.write(tmp_path, {"E4": {"found": 4}}, ["four\n"])
    assert json.loads((tmp_path / "speed.json").read_text("utf-8")) == {"E1": {"found": 1}, "E4": {"found": 4}}


@pytest.mark.parametrize(("arguments", "said"), [(["--cases", "E9"], "no E9"), (["--rounds", "0"], "at least 1")])
def test_what_cannot_be_measured_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(arguments)
    assert said in capsys.readouterr().err
