"""A client that is excluded holds its problems and is evaluated, and never trains, in every arm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_runs import CLIENTS, Configs, Runs, exchanges, lines

import fedrlvr
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation.evaluate import evaluate_run
from fedrlvr.tasks.deal import deal

BOB = {"excluded": ["bob"]}


def trained(line: dict[str, Any]) -> list[str]:
    return [client for client, numbers in line["clients"].items() if "reward" in numbers]


def test_an_excluded_client_is_evaluated_and_never_trains(configured: Configs, finished: Runs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path, federation=BOB, train={"rounds": 3}))
    before, *rounds = lines(tmp_path)
    assert [trained(line) for line in rounds] == [["ann", "cyd"]] * 3
    assert [line["clients"][name]["weight"] for line in rounds for name in ("ann", "cyd")] == [0.5] * 6
    for line in (before, rounds[-1]):
        problems = {client: sum(s["n"] for s in scores.values()) for client, scores in line["evaluate"].items()}
        assert problems == dict.fromkeys(CLIENTS, 4)
    with_bob, without = (
        json.loads((directory / "holdings.json").read_text("utf-8")) for directory in (finished("all"), tmp_path)
    )
    assert with_bob == without, "the same problems, by everybody"


def test_exchanges_leave_an_excluded_client_out(configured: Configs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path, federation={**BOB, "quorum": 0.6}, **exchanges(tmp_path)))
    for line in lines(tmp_path)[1:]:
        assert [sorted(exchange["clients"]) for exchange in line["exchanges"]] == [["ann", "cyd"]] * 2
        assert trained(line) == ["ann", "cyd"]


def test_an_excluded_client_makes_no_personal_adapter(configured: Configs, tmp_path: Path) -> None:
    deviations = {"ann": {"free_rider": True}}
    fedrlvr.run(configured(tmp_path, federation={**BOB, "deviations": deviations}, personal={"type": "finish"}))
    last = lines(tmp_path)[-1]
    assert sorted(last["personal"]["evaluate"]) == ["ann", "cyd"]
    assert last["personal"]["evaluate"]["ann"] == last["evaluate"]["ann"], "a free rider's is the global one"
    assert sorted(evaluate_run(open_run(tmp_path), personal=True)[1].scores) == ["ann", "cyd"]


def test_alone_an_excluded_client_keeps_the_adapter_that_the_run_starts_from(
    configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path, federation={"arm": "local", **BOB}))
    size = {
        client: max(
            float(tensor.abs().max())
            for name, tensor in load_file(tmp_path / "adapter" / client / "adapter_model.safetensors").items()
            if "lora_B" in name
        )
        for client in CLIENTS
    }
    assert size["bob"] == 0.0 < min(size["ann"], size["cyd"])
    _, evaluation = evaluate_run(open_run(tmp_path))
    scores = evaluation.scores
    before, *_, after = lines(tmp_path)
    assert after["evaluate"]["bob"] == before["evaluate"]["bob"]
    assert {client: sum(s.total for s in of_client) for client, of_client in scores.items()} == {
        client: sum(s["total"] for s in of_client.values()) for client, of_client in after["evaluate"].items()
    }


def test_the_arm_central_pools_no_training_problem_of_an_excluded_client(configured: Configs, tmp_path: Path) -> None:
    (pooled,) = deal(parse_config(configured(tmp_path, federation={"arm": "central", **BOB}))).clients
    assert {question.source for question in pooled.train} == {"ann", "cyd"}
    assert {problem.source for problem in pooled.test} == set(CLIENTS)
    fedrlvr.run(configured(tmp_path, federation={"arm": "central", **BOB}))
    drawn = lines(tmp_path)[1]["clients"]["central"]
    assert drawn["num-examples"] == 16


def test_rounds_draw_their_share_of_the_clients_that_train() -> None:
    federation = {"clients": ["a", "b", "c", "d", "e"], "excluded": ["b"], "fraction": 0.5}
    assert parse_config({"federation": federation}).federation.clients_per_round == 2


@pytest.mark.parametrize(
    ("excluded", "others"),
    [
        (["c"], {}),
        (["a", "a"], {}),
        (["a", "b"], {}),
        (["a"], {"aggregation": {"robust": "median"}}),
    ],
    ids=["no client", "twice", "everybody", "too few for a median"],
)
def test_clients_that_cannot_be_excluded_are_refused(excluded: list[str], others: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"federation\.excluded|aggregation\.robust"):
        parse_config({"federation": {"clients": ["a", "b"], "excluded": excluded}, **others})
