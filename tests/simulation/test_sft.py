"""Supervised training: the gradient is the cross entropy's, a run learns its responses, and resumes byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_terms
from leaks import Secrets, leaks, searchable
from models import group_of, largest_gap, moved_adapter, tiny_cohort
from small_runs import CLIENTS, Configs, adapter_bytes, lines, without_seconds

from fedrlvr.config import Config, SamplingConfig, TrainConfig, parse_config
from fedrlvr.deployment.site.config import Limits
from fedrlvr.deployment.site.limits import check as check_limits
from fedrlvr.deployment.superlink.disclosure import check
from fedrlvr.errors import ConfigError, DataError, LimitError
from fedrlvr.policy.peft_format import load_peft
from fedrlvr.reporting.observer import Event, Observer, RoundSaved
from fedrlvr.rl import Response
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.simulation.run import resume, run
from fedrlvr.wire.messages import EvaluateRequest, TrainRequest

DATA = {"name": "jsonl", "options": {"kind": "exact"}, "rewards": "grader"}
TRAIN = {"rounds": 3, "local_steps": 2, "problems_per_step": 2, "learning_rate": 1e-2, "optimizer_state": "keep"}


def tagged(answer: str) -> str:
    return f"so <answer>{answer}</answer>"


def write_demonstrations(directory: Path, **changes: Any) -> Path:
    """Four training and two held-out problems of each client with their responses; `changes` go into the first row."""
    directory.mkdir(exist_ok=True)
    for split, count in (("train", 4), ("test", 2)):
        rows = [
            {
                "prompt": f"{split} {i} of {client}?",
                "answer": str(i),
                "response": tagged(str(i)),
                "id": f"{client}-{split}-{i}",
                "source": client,
            }
            for client in CLIENTS
            for i in range(count)
        ]
        if split == "train":
            rows[0] |= changes
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return directory


def configured_sft(configured: Configs, tmp: Path, name: str = "run", **changes: Any) -> Config:
    """The supervised training before a run, which goes to the directory `<name>-sft`."""
    data = {**DATA, "path": str(write_demonstrations(tmp / "data")), **changes.pop("data", {})}
    sampling = {"group_size": 4, "max_new_tokens": 40}
    train = {**TRAIN, **changes.pop("train", {})}
    return parse_config(configured(tmp / name, data=data, sampling=sampling, train=train, **changes)).for_sft()


def test_the_gradient_is_that_of_the_mean_cross_entropy(model: Path) -> None:
    """Prompt and response alone through the model, torch's own cross entropy on the response, and autograd."""
    cohort = tiny_cohort(model)
    base = cohort.base
    cohort.seat({"a": moved_adapter(cohort, 2)})
    cohort.begin_training(TrainConfig(loss="cross_entropy", max_grad_norm=1e9), SamplingConfig())
    pairs = [("1 + 1 =", "2"), ("What is 12 + 345?", "it is 357"), ("9 - 4", "<answer>5</answer>")]
    total, tokens = torch.zeros(()), 0
    groups = []
    for prompt, text in pairs:
        prompt_ids, response_ids = base.encode(prompt), base.encode_response(text)
        assert response_ids[-1] in base.eos_ids
        cohort.stack.spans = [(0, 0, len(prompt_ids) + len(response_ids))]
        logits = base.model(torch.tensor([[*prompt_ids, *response_ids]])).logits[0, len(prompt_ids) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(response_ids), reduction="sum")
        tokens += len(response_ids)
        groups.append(group_of(prompt_ids, [Response(response_ids, [], text, True)], [1.0]))
    cohort.stack.spans = None
    mean = total / tokens
    wanted = torch.autograd.grad(mean, cohort.stack.parameters())
    stats = cohort.learn({"a": groups}, {"a": 0.0})["a"]
    assert stats.loss == pytest.approx(mean.item(), rel=1e-5)
    assert stats.ratios.tokens == tokens
    for parameter, expected in zip(cohort.stack.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("text", "chat", "stop", "written", "ends"),
    [
        ("64", False, (), "64", True),
        ("64", False, ("?", "!"), "64?", False),  # as a base model ends behind examples
        ("64", True, ("?", "!"), "64", True),
        ("64!", True, ("?", "!"), "64!", False),
        ("64!", False, ("?", "!"), "64!", False),
    ],
)
def test_a_given_response_ends_as_a_sampled_one(
    text: str, chat: bool, stop: tuple[str, ...], written: str, ends: bool, model: Path
) -> None:
    base = replace(tiny_cohort(model).base, chat=chat, stop=stop)
    base.__dict__["opened_thought"] = ""  # this tokenizer has no template to ask
    plain = list(base.tokenizer(written, add_special_tokens=False)["input_ids"])
    ids = base.encode_response(text)
    assert ids[: len(plain)] == plain
    assert [token in base.eos_ids for token in ids[len(plain) :]] == [True] * ends


@pytest.mark.parametrize("text", ["<answer>7</answer>", "7</answer>"])
def test_the_prefill_is_no_part_of_a_given_response(text: str, model: Path) -> None:
    """The prompt ends in it, so that the response is the rest, and its text is whole again."""
    base = replace(tiny_cohort(model).base, prefill="<answer>")
    ids = base.encode_response(text)
    rest = list(base.tokenizer("7</answer>", add_special_tokens=False)["input_ids"])
    assert ids == [*rest, base.tokenizer.eos_token_id]
    assert base.decode(ids) == "<answer>7</answer>"
    assert base.rendered("1 + 1").endswith("<answer>")


def test_a_thought_that_the_template_opens_is_no_part_of_a_given_response(model: Path) -> None:
    base = replace(tiny_cohort(model).base, prefill="So ")
    base.__dict__["opened_thought"] = "<think>\n"
    whole = "<think>\nSo 7</think> 7"
    ids = base.encode_response(whole)
    assert ids[:-1] == list(base.tokenizer("7</think> 7", add_special_tokens=False)["input_ids"])
    assert base.decode(ids) == whole


def test_a_run_learns_its_responses_and_says_how_well(configured: Configs, tmp_path: Path) -> None:
    config = configured_sft(configured, tmp_path, evaluate={"every": 1})
    assert config.run.directory == tmp_path / "run-sft"
    result = run(config)
    every = lines(result.directory)
    for client in CLIENTS:
        trained = [line["clients"][client] for line in every[1:]]
        # Two steps of two responses: `so <answer>i</answer>` is 21 characters, which are a token each, and an end.
        assert [numbers["tokens_trained"] for numbers in trained] == [2 * 2 * 22] * 3
        assert all("reward" not in numbers for numbers in trained)
        losses = [numbers["loss"] for numbers in trained]
        assert losses[0] > losses[1] > losses[2]
        held_out = [line["clients"][client]["held_out_loss"] for line in every]
        assert held_out[0] > held_out[1] > held_out[2] > held_out[3]
    assert not result.trained_nothing


def test_a_run_starts_from_the_adapter(configured: Configs, tmp_path: Path) -> None:
    sft = run(configured_sft(configured, tmp_path))
    data = {**DATA, "path": str(tmp_path / "data")}
    tree = configured(
        tmp_path / "rl",
        data=data,
        train={"rounds": 1, "learning_rate": 1e-9},
        sampling={"group_size": 4, "max_new_tokens": 4},
    )
    tree["model"]["adapter"] = str(sft.directory)
    first = load_peft(run(parse_config(tree)).directory / "adapter")
    assert largest_gap(first, load_peft(sft.directory / "adapter")) < 1e-6


class Stop(Exception):
    """Ends a run from within."""


class StopAfterTwo(Observer):
    """Ends a run when its second round is saved."""

    essential = True

    def notify(self, event: Event) -> None:
        if isinstance(event, RoundSaved) and event.round == 2:
            raise Stop


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sft": {"responses": "own"}, "data": {"rewards": "small_runs:parity"}},
        {"federation": {"arm": "local"}},
        {"aggregation": {"type": "rolora"}},
    ],
    ids=["data", "own", "local", "rolora"],
)
def test_a_stopped_training_goes_on_byte_for_byte(changes: dict[str, Any], configured: Configs, tmp_path: Path) -> None:
    whole = configured_sft(configured, tmp_path, "whole", **changes)
    stopped = configured_sft(configured, tmp_path, "stopped", **changes)
    run(whole)
    with pytest.raises(Stop):
        run(stopped, observer=StopAfterTwo())
    assert stopped.run.directory is not None
    assert whole.run.directory is not None
    resume(stopped.run.directory)
    assert adapter_bytes(stopped.run.directory) == adapter_bytes(whole.run.directory)
    assert without_seconds(stopped.run.directory) == without_seconds(whole.run.directory)


def test_a_changed_response_ends_the_resumption(configured: Configs, tmp_path: Path) -> None:
    config = configured_sft(configured, tmp_path)
    with pytest.raises(Stop):
        run(config, observer=StopAfterTwo())
    write_demonstrations(tmp_path / "data", response=f"well, {tagged('0')}")
    assert config.run.directory is not None
    with pytest.raises(DataError, match="problems are not those"):
        resume(config.run.directory)


def test_the_base_models_own_correct_responses_are_imitated(configured: Configs, tmp_path: Path) -> None:
    """Each response of the tiny model earns the reward half the time; equal and cut ones count once or not at all."""
    config = configured_sft(configured, tmp_path, sft={"responses": "own"}, data={"rewards": "small_runs:parity"})
    numbers = [of_client for line in lines(run(config).directory)[1:] for of_client in line["clients"].values()]
    assert all(of_client["tokens_trained"] < of_client["tokens_sampled"] for of_client in numbers)
    assert sum(of_client["tokens_trained"] for of_client in numbers) > 0
    assert all(0 < of_client["reward"] < 1 for of_client in numbers)


@pytest.mark.parametrize(
    ("changes", "left"),
    [({"response": tagged("7")}, 3), ({"response": 50 * "x" + tagged("0")}, 3), ({"response": None}, 3), ({}, 4)],
    ids=["wrong", "long", "none", "right"],
)
def test_problems_without_a_right_and_short_response_are_left_out(
    changes: dict[str, Any], left: int, configured: Configs, tmp_path: Path
) -> None:
    config = configured_sft(configured, tmp_path, train={"rounds": 1, "local_steps": 1})
    write_demonstrations(tmp_path / "data", **changes)
    result = run(config)
    held = json.loads((result.directory / "holdings.json").read_text("utf-8"))["train"]
    assert held == [["ann", "ann", left], ["bob", "bob", 4], ["cyd", "cyd", 4]]


def test_data_without_responses_is_refused_with_what_to_do(configured: Configs, tmp_path: Path) -> None:
    config = parse_config(configured(tmp_path / "run")).for_sft()
    with pytest.raises(DataError, match=r"ann: .* sft\.responses = 'own'"):
        run(config)


def test_no_response_enters_a_message(configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []

    class Recording(LocalGrid):
        def send_and_receive(self, messages: Any, **options: Any) -> Any:
            messages = list(messages)
            replies = list(super().send_and_receive(messages, **options))
            contents.extend(message.content for message in (*messages, *replies) if message.has_content())
            return replies

    monkeypatch.setattr("fedrlvr.simulation.run.LocalGrid", Recording)
    run(configured_sft(configured, tmp_path))
    assert contents
    rows = [json.loads(line) for name in ("train", "test") for line in (tmp_path / "data" / f"{name}.jsonl").open()]
    assert leaks(Secrets(texts=[row["response"] for row in rows]), searchable(contents)) == []


# The configuration.


def test_what_sft_changes_and_what_it_leaves(configured: Configs, tmp_path: Path) -> None:
    tree = configured(
        tmp_path / "run",
        run={"seed": 3, "name": "sums", "verdict": True},
        train={"rounds": 9, "warmup_steps": 4, "kl_beta": 0.1, "updates_per_batch": 2, "optimizer_state": "keep"},
        supervision={"type": "care", "budget": 0.5},
        aggregation={"type": "fedit", "weights": "fgrpo", "fgrpo_gain": "zscore"},
        personal={"type": "finish"},
        sft={"rounds": 2, "learning_rate": 5e-4},
    )
    config = parse_config(tree).for_sft()
    assert (config.run.name, config.run.verdict) == ("sums-sft", False)
    assert (config.train.rounds, config.train.local_steps, config.train.learning_rate) == (2, 2, 5e-4)
    assert (config.train.loss, config.train.kl_beta, config.train.updates_per_batch) == ("cross_entropy", 0.0, 1)
    assert (config.train.warmup_steps, config.train.optimizer_state) == (0, "keep")
    assert config.supervision.model_dump() == {"type": "demonstrations", "responses": "data"}
    assert (config.personal.type, config.aggregation.weights) == ("none", "examples")
    assert config.lora == parse_config(tree).lora


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("train", {"kl_beta": 0.1}, "train.kl_beta"),
        ("train", {"loss": "dapo"}, "train.loss"),
        ("train", {"updates_per_batch": 2}, "train.updates_per_batch"),
        ("aggregation", {"weights": "fgrpo"}, "aggregation.weights"),
        ("personal", {"type": "finish"}, "personal.type"),
        ("supervision", {"type": "labels"}, "train.loss"),
    ],
)
def test_what_has_no_place_beside_demonstrations(
    section: str, changes: dict[str, Any], named: str, configured: Configs, tmp_path: Path
) -> None:
    tree = configured_sft(configured, tmp_path).model_dump()
    tree[section] = changes if section == "supervision" else {**tree[section], **changes}
    with pytest.raises(ConfigError, match=named):
        parse_config(tree)


# Organisations on their own machines.


def test_a_server_refuses_to_start_it_with_organisations(configured: Configs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="demonstrations"):
        check(configured_sft(configured, tmp_path))


def test_an_organisation_refuses_it_whatever_the_server() -> None:
    sampling = {"group_size": 4, "max_new_tokens": 16}
    asked: dict[str, Any] = {"round": 1, "seed": 1, "sampling": sampling}
    train = {"loss": "cross_entropy"}
    imitate = TrainRequest(**asked, steps=1, train=train, supervision={"type": "demonstrations", "responses": "data"})
    evaluate = EvaluateRequest(**asked, evaluate={}, held_out_loss=True)
    terms = make_terms("ann", rank=4, largest=4)
    with pytest.raises(LimitError, match=r"limits\.supervision"):
        check_limits(Limits(), "train", terms, imitate, 0)
    with pytest.raises(LimitError, match="given responses"):
        check_limits(Limits(), "evaluate", terms, evaluate, 0)


@pytest.mark.parametrize(
    ("loss", "supervision"),
    [("cross_entropy", {"type": "labels"}), ("dapo", {"type": "demonstrations", "responses": "data"})],
)
def test_a_message_cannot_have_the_loss_of_given_responses_for_sampled_ones(
    loss: str, supervision: dict[str, str]
) -> None:
    sampling = {"group_size": 4, "max_new_tokens": 16}
    with pytest.raises(ValueError, match="cross_entropy"):
        TrainRequest(round=1, seed=1, steps=1, sampling=sampling, train={"loss": loss}, supervision=supervision)
