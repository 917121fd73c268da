"""Verdicts on small runs: the clients alone are those of a run of the arm `local`, and the run is the one it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import write_secret
from small_runs import CLIENTS, Configs, Runs, adapter_bytes, without_seconds, write_problems
from test_resume import Stop, StopAfter

import fedrlvr
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.metrics_log import read_metrics, scores_json
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation import verdict as engine
from fedrlvr.simulation.evaluate import RateKeeper, evaluate_run
from fedrlvr.simulation.verdict import judge, missing_steps

FIVE = {"train": {"rounds": 5}}


@pytest.fixture(scope="module")
def judged(configured: Configs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with run.verdict whose other settings are those of the variants `all` and `local`."""
    directory = tmp_path_factory.mktemp("judged") / "run"
    fedrlvr.run(configured(directory, **FIVE, run={"seed": 3, "directory": str(directory), "verdict": True}))
    return directory


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float]]]:
    """The pass rates of every evaluation that keeps them, by client."""
    seen: list[tuple[str, list[float]]] = []
    real = RateKeeper.rated

    def rated(self: RateKeeper, request: Any, rates: Any) -> None:
        seen.append((request.client.name, list(rates)))
        real(self, request, rates)

    monkeypatch.setattr(RateKeeper, "rated", rated)
    return seen


def written(directory: Path) -> Any:
    return json.loads((directory / "verdict.json").read_text("utf-8"))


def test_a_run_with_a_verdict_trains_what_two_runs_train(judged: Path, finished: Runs) -> None:
    assert adapter_bytes(judged) == adapter_bytes(finished("all"))
    assert adapter_bytes(judged / "alone") == adapter_bytes(finished("local"))
    assert without_seconds(judged) == without_seconds(finished("all"))
    assert without_seconds(judged / "alone") == without_seconds(finished("local"))


def test_its_numbers_are_those_of_the_runs_last_evaluations(judged: Path) -> None:
    clients = written(judged)["clients"]
    assert list(clients) == list(CLIENTS)
    for model, directory in (("federated", judged), ("alone", judged / "alone")):
        scores = read_metrics(directory)[-1]["evaluate"]
        for client in CLIENTS:
            (score,) = scores[client].values()
            assert clients[client]["n"] == score["n"] == 4
            assert clients[client]["pass@1"][model] == pytest.approx(score["total"] / 4)
    for client in clients.values():
        gain = client["pass@1"]["federated"] - client["pass@1"]["alone"]
        assert client["minus_alone"]["federated"]["mean"] == pytest.approx(gain)
    scores = read_metrics(judged)[0]["evaluate"]
    assert clients["bob"]["pass@1"]["base"] == scores["bob"]["bob"]["total"] / 4, "as before the first round"


@pytest.mark.parametrize("given", ["trained", "stopped", "--alone"])
def test_the_command_comes_to_the_same_verdict(given: str, judged: Path, finished: Runs, tmp_path: Path) -> None:
    """On a run without run.verdict: alone is missing, has stopped after two rounds, or is given."""
    directory = tmp_path / "run"
    shutil.copytree(finished("all"), directory)
    run, alone = open_run(directory), finished("local") if given == "--alone" else None
    assert missing_steps(run) == 5 * 2 * 3
    if given == "stopped":
        with pytest.raises(Stop):
            judge(run, watch=lambda: StopAfter(2))
        assert missing_steps(run) == 3 * 2 * 3
    judge(run, alone=alone)
    verdict = written(directory)
    assert (directory / "alone").exists() == (alone is None)
    assert verdict.pop("alone") == (str(alone) if alone else "alone")
    assert verdict == {key: value for key, value in written(judged).items() if key != "alone"}
    if alone is None:
        assert missing_steps(run) == 0
        assert adapter_bytes(directory / "alone") == adapter_bytes(finished("local"))


def test_a_run_stopped_in_either_half_goes_on_with_both(judged: Path, configured: Configs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    config = parse_config(configured(directory, **FIVE, run={"seed": 3, "directory": str(directory), "verdict": True}))
    with pytest.raises(Stop):
        engine.run(config, lambda: StopAfter(3))
    assert not (directory / "alone").exists()
    observers = iter([Observer(), StopAfter(1)])
    with pytest.raises(Stop):
        engine.resume(directory, watch=lambda: next(observers))
    assert not (directory / "verdict.json").exists()
    assert engine.resume(directory).verdict is not None
    for half in ("", "alone"):
        assert adapter_bytes(directory / half) == adapter_bytes(judged / half)
    assert written(directory) == written(judged)


def test_a_longer_run_is_judged_anew(judged: Path, finished: Runs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(judged, directory)
    longer = engine.resume(directory, ["train.rounds=6"])
    assert longer.verdict is not None
    assert longer.verdict.rounds == written(directory)["rounds"] == 6
    assert read_metrics(directory / "alone")[-1]["round"] == 6


RANKS = {"ann": 2, "bob": 4, "cyd": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": RANKS}, "aggregation": {"type": "flora"}},
        {"lora": {"rank": RANKS}, "aggregation": {"type": "hetlora"}, "federation": {"fraction": 0.6}},
        {
            "data": {"public_size": 6},
            "coordination": {"type": "pubswap", "exchanges": 1, "public_problems": 2},
            "train": {"proximal_mu": 0.1},
            "aggregation": {"type": "fedex"},
        },
        {"supervision": {"type": "care", "share_probes": True}},
    ],
)
def test_settings_without_an_effect_alone_are_left_out(
    changes: dict[str, Any], configured: Configs, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    fedrlvr.run(configured(directory, **changes, run={"seed": 3, "directory": str(directory), "verdict": True}))
    alone = open_run(directory / "alone").config
    assert (alone.federation.arm, alone.federation.fraction, alone.run.verdict) == ("local", 1.0, False)
    verdict = written(directory)
    scores = read_metrics(directory)[-1]["evaluate"]
    for client in CLIENTS:
        (score,) = scores[client].values()
        assert verdict["clients"][client]["pass@1"]["federated"] == pytest.approx(score["total"] / score["n"])
    notes = [note for note in verdict["notes"] if "run.alone_rates" not in note]
    assert len(notes) == len(verdict["notes"]) - 1, "a rate of its own was not tried"
    assert len(notes) == ("fraction" in changes.get("federation", {})) + ("coordination" in changes)


def test_a_matrix_has_every_adapter_on_everybodys_problems(judged: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(judged, directory)
    verdict = judge(open_run(directory), matrix=True)
    assert [row.adapter for row in verdict.matrix] == ["federated", *(f"{client}, alone" for client in CLIENTS)]
    for client in verdict.clients:
        rows = {row.adapter: row.pass_at_1[client.client] for row in verdict.matrix}
        assert rows["federated"] == client.pass_at_1["federated"]
        assert rows[f"{client.client}, alone"] == client.pass_at_1["alone"]
    assert len({row.pass_at_1["ann"] for row in verdict.matrix}) > 1
    assert len(written(directory)["matrix"]) == 4


def test_no_result_of_a_problem_is_written_down(
    configured: Configs, tmp_path: Path, kept: list[tuple[str, list[float]]]
) -> None:
    """With 12 problems and 3 responses to each, a client's rates are a list that occurs nowhere else by chance."""
    directory, problems = tmp_path / "run", write_problems(tmp_path / "problems", test=12)
    changes = {"data": {"path": str(problems)}, "evaluate": {"samples": 3}, "train": {"rounds": 1}}
    changes["run"] = {"seed": 3, "directory": str(directory), "verdict": True}
    fedrlvr.run(configured(directory, **{"data": {}, **changes}))
    assert [client for client, _ in kept] == [*CLIENTS] * 3, "base, alone, federated"
    assert all(len(rates) == 12 and len(set(rates)) > 1 for _, rates in kept)

    def lists(value: Any) -> list[list[Any]]:
        if isinstance(value, dict):
            return [part for item in value.values() for part in lists(item)]
        return [value, *(part for item in value for part in lists(item))] if isinstance(value, list) else []

    tree = written(directory)
    assert [part for part in lists(tree) if part] == [tree["notes"]]
    assert set(tree["clients"]["ann"]) == {"n", "pass@1", "minus_alone", "verdict"}
    files = [
        path for path in directory.rglob("*") if path.is_file() and "clients" not in path.relative_to(directory).parts
    ]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        for _, rates in kept:
            for sequence in (rates, [round(3 * rate) for rate in rates]):
                for separator in (",", ", ", "\n", " "):
                    assert separator.join(map(str, sequence)).encode() not in data, path
        for client in CLIENTS:
            assert f"{client}-test-".encode() not in data, f"{path} holds the id of a held-out problem"


# Refusals.

Copied = Callable[[str], Path]


@pytest.mark.parametrize("variant", ["local", "unfinished", "flower", "checkpoint"])
def test_some_runs_have_no_verdict(variant: str, finished: Runs, tmp_path: Path) -> None:
    directory, place = tmp_path / "run", tmp_path / "run"
    shutil.copytree(finished("local" if variant == "local" else "all"), directory)
    words = {
        "local": "arm 'local'.*--alone",
        "unfinished": "4 of 5 rounds.*--resume",
        "flower": "fedrlvr site verdict",
        "checkpoint": "checkpoint",
    }
    if variant == "unfinished":
        shutil.rmtree(directory / "checkpoints" / "round-0005")
    if variant == "flower":
        (directory / "run-id").write_text("x\n", "utf-8")
    if variant == "checkpoint":
        place = directory / "checkpoints" / "round-0004"
    with pytest.raises(ConfigError, match=words[variant]):
        judge(open_run(place))
    assert not (directory / "alone").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"seed": 4}}, "run.seed is 4"),
        ({"train": {"rounds": 2}}, "train.rounds is 2"),
        ({"federation": {"arm": "federated"}}, "arm 'federated'"),
        ({}, "not finished"),
        (None, "holdings.json"),
    ],
)
def test_what_alone_must_have_in_common(
    change: dict[str, Any] | None, words: str, finished: Runs, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished("local"), other)
    config = json.loads((other / "config.json").read_text("utf-8"))
    for section, values in (change or {}).items():
        config[section] |= values
    (other / "config.json").write_text(json.dumps(config), "utf-8")
    if change == {}:
        shutil.rmtree(other / "checkpoints" / "round-0005")
    if change is None:
        (other / "holdings.json").write_text('{"digest": "x", "train": [], "test": []}', "utf-8")
    with pytest.raises(ConfigError, match=words):
        judge(open_run(finished("all")), alone=other)


def test_another_learning_rate_alone_is_allowed_and_noted(finished: Runs, tmp_path: Path) -> None:
    """Each arm may have the learning rate that suits it."""
    directory, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished("all"), directory)
    shutil.copytree(finished("local"), other)
    config = json.loads((other / "config.json").read_text("utf-8"))
    config["train"]["learning_rate"] = 0.003
    (other / "config.json").write_text(json.dumps(config), "utf-8")
    verdict = judge(open_run(directory), alone=other)
    assert verdict.notes == ["train.learning_rate is 0.003 alone and 0.01 in the federation."]


def test_personal_adapters_are_compared_too_and_decide(configured: Configs, tmp_path: Path) -> None:
    """With a rule whose personal adapters have a higher rank than those that train."""
    directory = tmp_path / "run"
    changes = {"personal": {"type": "finish", "steps": 2}, "aggregation": {"type": "fedex"}}
    fedrlvr.run(configured(directory, **changes, run={"seed": 3, "directory": str(directory), "verdict": True}))
    assert open_run(directory / "alone").config.personal.type == "none"
    measured = read_metrics(directory)[-1]["personal"]["evaluate"]
    verdict = written(directory)
    for client in CLIENTS:
        line = verdict["clients"][client]
        (score,) = measured[client].values()
        assert line["pass@1"]["personal"] == pytest.approx(score["total"] / score["n"])
        gain = line["pass@1"]["personal"] - line["pass@1"]["alone"]
        assert line["minus_alone"]["personal"]["mean"] == pytest.approx(gain)
    assert any(c["pass@1"]["personal"] != c["pass@1"]["federated"] for c in verdict["clients"].values())
    rows = [(row.owner, row.model) for row in judge(open_run(directory), matrix=True).matrix]
    assert rows == [(None, "federated"), *((c, kind) for kind in ("alone", "personal") for c in CLIENTS)]


@pytest.mark.parametrize("kind", ["fedsa", "fedalt"])
def test_a_matrix_has_whole_adapters_where_clients_keep_a_part(kind: str, configured: Configs, tmp_path: Path) -> None:
    """A client's own adapters come to the same there as in the verdict; a client that is excluded has none."""
    directory = tmp_path / "run"
    federation = {"clients": list(CLIENTS), "excluded": ["bob"]}
    changes = {"personal": {"type": kind}, "federation": federation, "evaluate": {"samples": 16, "temperature": 1.0}}
    fedrlvr.run(configured(directory, **changes))
    verdict = judge(open_run(directory), matrix=True)
    rows = {row.adapter: row.pass_at_1 for row in verdict.matrix}
    assert list(rows) == [f"{client}, {model}" for model in ("alone", "personal") for client in ("ann", "cyd")]
    for client in verdict.clients:
        for model in ("alone", "personal"):
            assert (
                rows[f"{client.client}, {model}"][client.client] == client.pass_at_1[model] != client.pass_at_1["base"]
            )


def test_what_else_differs_from_training_alone_is_noted(configured: Configs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    federation = {"clients": list(CLIENTS), "deviations": {"bob": {"free_rider": True}}}
    fedrlvr.run(configured(directory, federation=federation, personal={"type": "finish", "steps": 3}))
    *lines, last = (directory / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.dumps({**json.loads(last), "left_out": {"cyd": "late"}})
    (directory / "metrics.jsonl").write_text("\n".join([*lines, last, ""]), "utf-8")
    shutil.rmtree(directory / "clients" / "ann" / "personal")
    verdict = judge(open_run(directory))
    without, rate, steps, missing, riders = verdict.notes
    assert "run.alone_rates" in rate
    assert "of ann" in without
    assert verdict.clients[0].decisive == verdict.clients[0].minus_alone["federated"]
    assert "3 more local steps" in steps
    assert "cyd of 1" in missing
    assert riders.startswith("bob: ")


def test_a_client_that_is_excluded_has_no_verdict(configured: Configs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    federation = {"clients": list(CLIENTS), "excluded": ["bob"]}
    run = {"seed": 3, "directory": str(directory), "verdict": True}
    fedrlvr.run(configured(directory, federation=federation, run=run))
    verdict = judge(open_run(directory), matrix=True)
    assert [client.client for client in verdict.clients] == ["ann", "cyd"]
    assert verdict.notes[1:] == ["No verdict on bob, excluded from training (federation.excluded)."]
    assert set(verdict.matrix[0].pass_at_1) == {"ann", "bob", "cyd"}


def test_with_the_clients_secrets_the_random_numbers_are_those_of_the_run(configured: Configs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    for client in CLIENTS:
        write_secret(tmp_path / "secrets" / f"{client}.secret", client)
    run = {"seed": 3, "directory": str(directory), "secrets": str(tmp_path / "secrets"), "verdict": True}
    fedrlvr.run(configured(directory, train={"rounds": 1}, run=run))
    scores = read_metrics(directory)[-1]["evaluate"]
    assert scores_json(evaluate_run(open_run(directory))[1].scores) == scores
    for client, line in written(directory)["clients"].items():
        (score,) = scores[client].values()
        assert line["pass@1"]["federated"] == score["total"] / score["n"]


@pytest.mark.parametrize("kind", ["fedsa", "fedalt"])
def test_where_no_adapter_is_everybodys_the_personal_ones_are_compared(
    kind: str, configured: Configs, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    run = {"seed": 3, "directory": str(directory), "verdict": True}
    fedrlvr.run(configured(directory, personal={"type": kind}, run=run))
    scores = read_metrics(directory)[-1]["evaluate"]
    for client, line in written(directory)["clients"].items():
        (score,) = scores[client].values()
        assert line["pass@1"].keys() == {"base", "alone", "personal"}
        assert line["pass@1"]["personal"] == pytest.approx(score["total"] / score["n"])
    rows = [row.adapter for row in judge(open_run(directory), matrix=True).matrix]
    assert rows == [f"{client}, {model}" for model in ("alone", "personal") for client in CLIENTS]
