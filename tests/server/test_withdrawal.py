"""A client withdraws: the way that is taken, what is left of it, and what both logs say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from factories import adapter_from, make_adapter
from small_runs import Configs, adapter_bytes, lines

import fedrlvr
from fedrlvr.config import parse_config
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.privacy.card import digest_of
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.server.checkpoint import Checkpoint
from fedrlvr.server.kept_adapters import Kept, KeptAdapters
from fedrlvr.server.model_card import CARD, documents, read_facts
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.server.withdrawal import How, plan, rounds_of, subtracted, withdraw
from fedrlvr.simulation.run import resume
from fedrlvr.simulation.verdict import judge

KEEP = {"keep_adapters": True, "server_learning_rate": 1}


def newest(directory: Path) -> torch.Tensor:
    """The numbers of the newest checkpoint's adapter."""
    checkpoint = open_run(directory).checkpoints.load()
    assert checkpoint is not None
    return checkpoint.adapter.flat()


def test_a_clients_part_of_a_round_by_hand() -> None:
    """X = 1, 4 and 7 with weights 1, 1 and 2: means 4.75 of all, and (1 + 14) / 3 = 5 without the second."""
    adapters = {name: make_adapter(value) for name, value in (("ann", 1.0), ("bob", 4.0), ("cyd", 7.0))}
    kept = Kept(adapters, {"ann": 1.0, "bob": 1.0, "cyd": 2.0}, step=2.0)
    assert kept.part_of("bob").unique().tolist() == pytest.approx([2 * (4.75 - 5.0)])
    after = kept.without("bob")  # then of the two that are left, 5 without ann becomes 7
    assert after.part_of("ann").unique().tolist() == pytest.approx([2 * (5.0 - 7.0)])
    with pytest.raises(ValueError, match="no other"):
        after.without("cyd").part_of("ann")


def test_kept_adapters_come_back_and_lose_one_client(tmp_path: Path) -> None:
    kept = KeptAdapters(tmp_path)
    for round_ in (1, 2):
        adapters = {"ann": adapter_from([[1.0]], [[float(round_)]], 2.0), "bob": adapter_from([[3.0]], [[4.0]], 2.0)}
        kept.save(round_, Kept(adapters if round_ == 1 else {"ann": adapters["ann"]}, {"ann": 0.25, "bob": 0.75}, 1.5))
    assert kept.clients() == {1: ["ann", "bob"], 2: ["ann"]}
    assert kept.load(1).adapters["bob"].flat().tolist() == [3.0, 4.0]
    assert (kept.load(1).weights, kept.load(1).step) == ({"ann": 0.25, "bob": 0.75}, 1.5)
    kept.remove("ann")
    assert kept.clients() == {1: ["bob"]}
    assert kept.load(1).weights == {"bob": 0.75}


def test_what_is_subtracted_is_the_sum_over_the_rounds_and_only_once(tmp_path: Path) -> None:
    kept = KeptAdapters(tmp_path)
    for round_ in (1, 2, 3):
        adapters = {"ann": make_adapter(2.0), "bob": make_adapter(4.0 * round_)}
        kept.save(round_, Kept(adapters, {"ann": 0.5, "bob": 0.5}))
    checkpoint = Checkpoint(2, make_adapter(10.0), {"middle": 1.0}, step={"previous/x": torch.ones(1)})
    # bob moved the mean by (2 + 4) / 2 - 2 = 1 and (2 + 8) / 2 - 2 = 3; round 3 has no checkpoint
    once = subtracted(checkpoint, kept, "bob")
    assert once.adapter.flat().unique().tolist() == [6.0]
    assert once.strategy["middle"] == 1.0
    assert not once.step
    assert subtracted(once, kept, "bob").adapter.flat().unique().tolist() == [6.0]


def test_the_rounds_of_a_client_are_those_with_its_adapter_or_its_responses() -> None:
    records = [
        {"round": 0, "clients": {"ann": {"seconds_evaluate": 1.0}}},
        {"round": 1, "clients": {"ann": {"num-examples": 5}, "bob": {"num-examples": 5}}},
        {"round": 2, "clients": {"ann": {"num-examples": 5}}, "exchanges": [{"clients": {"bob": {}}}]},
        {"round": 3, "clients": {"ann": {"num-examples": 5}, "bob": {"bytes_up": 3}}},
    ]
    assert rounds_of(records, "bob") == [1, 2]
    assert rounds_of(records, "eve") == []


@pytest.mark.parametrize(
    "changes",
    [{"type": "ffa"}, {"robust": "median"}, {"largest_change": 3.0}, {"server_optimizer": "momentum"}],
)
def test_adapters_are_kept_only_where_they_can_be_subtracted(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"aggregation\.keep_adapters"):
        parse_config({"aggregation": {**KEEP, **changes}})


@pytest.mark.slow
def test_subtraction_in_the_only_round_gives_what_the_others_make(configured: Configs, tmp_path: Path) -> None:
    """Exact: with one round it is the adapter of a run from which the client was excluded from the start."""
    fedrlvr.run(configured(tmp_path / "all", train={"rounds": 1}, aggregation=KEEP))
    fedrlvr.run(configured(tmp_path / "two", train={"rounds": 1}, aggregation=KEEP, federation={"excluded": ["bob"]}))
    run = open_run(tmp_path / "all")
    statement = plan(run, "bob", "subtract")
    assert not any("Indirect" in sentence for sentence in statement.remains)
    withdraw(run, statement)
    left, never = newest(tmp_path / "all"), newest(tmp_path / "two")
    assert float((left - never).abs().max()) < 1e-6
    assert "bob" not in {name for names in KeptAdapters(tmp_path / "all").clients().values() for name in names}
    assert not (tmp_path / "all" / "clients" / "bob").exists()
    resume(tmp_path / "all")  # writes the adapter and the report again
    assert float((newest(tmp_path / "all") - never).abs().max()) < 1e-6


@pytest.mark.slow
def test_a_run_goes_on_from_before_the_clients_first_round_as_if_it_had_never_come(
    configured: Configs, tmp_path: Path
) -> None:
    """And the log of the run and the statement say so."""
    few = {"rounds": 2}
    fedrlvr.run(configured(tmp_path / "all", train=few, run={"keep_checkpoints": 9}))
    fedrlvr.run(configured(tmp_path / "two", train=few, federation={"excluded": ["bob"]}))
    run = open_run(tmp_path / "all")
    statement = plan(run, "bob")
    assert (statement.how, statement.first_round, statement.last_round, statement.continues_after) == (
        "rewind",
        1,
        2,
        0,
    )
    assert (tmp_path / "all" / "adapter").is_dir(), "a plan changes nothing"
    withdraw(run, statement)
    resume(tmp_path / "all")
    assert adapter_bytes(tmp_path / "all") == adapter_bytes(tmp_path / "two")
    assert [sorted(line["clients"]) for line in lines(tmp_path / "all")[1:]] == [["ann", "cyd"]] * 2
    text = (tmp_path / "all" / "withdrawal-bob.json").read_bytes()
    (entry,) = DecisionLog(tmp_path / "all").entries()
    assert (entry["decision"], entry["client"], entry["how"]) == ("withdrawn", "bob", "rewind")
    assert entry["digest"] == digest_of(text)
    assert json.loads(text)["remains"] == statement.remains
    with pytest.raises(ConfigError, match="already"):
        plan(open_run(tmp_path / "all"), "bob")
    verdict = judge(open_run(tmp_path / "all"))
    assert [row.client for row in verdict.clients] == ["ann", "cyd"]
    assert any("federation.withdrawn" in note for note in verdict.notes)
    alone = lines(tmp_path / "all" / "alone")[-1]["clients"]
    assert [name for name in alone if "num-examples" in alone[name]] == ["ann", "cyd"], "nor is it trained alone"
    facts = read_facts(tmp_path / "all", open_run(tmp_path / "all").config, 2, None, rank=2, alpha=4.0, merged=False)
    assert facts.withdrawn == {"bob": "rewind"}
    card = documents(facts, None)[CARD]
    assert "1 of 3: `bob` its rounds trained again without it" in card
    assert "at 2 clients" in card


def crash(*_: object, **__: object) -> None:
    raise CheckpointError("the disk is gone")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "place"), [("subtract", "DecisionLog.append"), ("restart", "DecisionLog.append")])
def test_a_withdrawal_that_was_cut_short_is_finished_by_a_second_call(
    how: How, place: str, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fedrlvr.run(configured(tmp_path, train={"rounds": 2}, aggregation=KEEP))
    with monkeypatch.context() as patched:
        patched.setattr(f"fedrlvr.server.withdrawal.{place}", crash)
        with pytest.raises(CheckpointError):
            withdraw(open_run(tmp_path), plan(open_run(tmp_path), "bob", how))
    between = None if how == "restart" else newest(tmp_path)
    withdraw(open_run(tmp_path), plan(open_run(tmp_path), "bob", how))
    assert open_run(tmp_path).config.federation.withdrawn == ["bob"]
    assert between is None or torch.equal(newest(tmp_path), between), "it is subtracted once"


@pytest.mark.slow
def test_without_an_early_checkpoint_or_kept_adapters_only_a_restart_is_left(
    configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path / "all", train={"rounds": 4}, run={"keep_checkpoints": 2}))
    run = open_run(tmp_path / "all")
    with pytest.raises(ConfigError, match=r"--how restart.*bob"):
        plan(run, "bob")
    withdraw(run, plan(run, "bob", "restart"))
    resume(tmp_path / "all")
    fedrlvr.run(configured(tmp_path / "two", train={"rounds": 4}, federation={"excluded": ["bob"]}))
    assert adapter_bytes(tmp_path / "all") == adapter_bytes(tmp_path / "two")


@pytest.mark.slow
def test_subtraction_over_several_rounds_says_what_it_cannot_take_out(configured: Configs, tmp_path: Path) -> None:
    settings = configured(tmp_path / "all", train={"rounds": 3}, aggregation={"keep_adapters": True})
    fedrlvr.run(settings)
    shutil.rmtree(tmp_path / "all" / "checkpoints" / "round-0000", ignore_errors=True)
    run = open_run(tmp_path / "all")
    before = newest(tmp_path / "all")
    statement = plan(run, "bob")
    assert statement.how == "subtract"
    assert any("from round 2 on" in sentence for sentence in statement.remains)
    withdraw(run, statement)
    assert float((newest(tmp_path / "all") - before).abs().max()) > 0
    assert "evaluate" not in lines(tmp_path / "all")[-1], "it was of the adapter before"
    resume(tmp_path / "all", ["train.rounds=4"])
    assert sorted(lines(tmp_path / "all")[-1]["clients"]) == ["ann", "cyd"]


@pytest.mark.slow
@pytest.mark.parametrize("client", ["eve", "cyd"])
def test_who_cannot_withdraw(client: str, configured: Configs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path, train={"rounds": 1}, federation={"excluded": ["ann", "bob"]}))
    with pytest.raises(ConfigError, match=client):
        plan(open_run(tmp_path), client)
