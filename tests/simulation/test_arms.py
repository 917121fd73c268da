"""Whole runs: the arms, FedProx, and that the same config gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message
from safetensors.torch import load_file
from small_runs import CLIENTS, VARIANTS, Configs, Runs, adapter_bytes, without_seconds

import fedrlvr
from fedrlvr.client.local_training import LocalTraining
from fedrlvr.reporting.observer import (
    ClientAnswered,
    ClientsAsked,
    Evaluated,
    Event,
    Observer,
    PhaseStarted,
    RoundEnded,
    RoundSaved,
    RunEnded,
    RunStarted,
    StepEnded,
)
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.grid import LocalGrid

FILES = {
    "about.json",
    "adapter",
    "checkpoints",
    "clients",
    "config.json",
    "holdings.json",
    "metrics.jsonl",
    "report.html",
    "run.lock",
}


class Watching(LocalGrid):
    """Notes which records each message held."""

    seen: list[tuple[str, str, list[str]]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for direction, these in (("down", messages), ("up", replies)):
            self.seen += [(direction, m.metadata.message_type, sorted(m.content)) for m in these]
        return replies


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, list[str]]]:
    Watching.seen = []
    monkeypatch.setattr(run_module, "LocalGrid", Watching)
    return Watching.seen


def test_a_federated_run_sends_adapters_both_ways(
    configured: Configs, tmp_path: Path, watching: list[tuple[str, str, list[str]]]
) -> None:
    fedrlvr.run(configured(tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert set(adapter_bytes(tmp_path / "run")) == {"adapter_model.safetensors"}
    kinds = {(direction, kind): records for direction, kind, records in watching}
    assert kinds == {
        ("down", "train"): ["arrays", "config"],
        ("up", "train"): ["arrays", "metrics"],
        ("down", "evaluate"): ["arrays", "config"],
        ("up", "evaluate"): ["config", "metrics"],
    }
    assert len(watching) == 2 * 3 * (2 + 2)  # two directions, three clients, two trainings and two evaluations


def test_the_arm_local_sends_no_adapter_and_leaves_one_for_each_client(
    configured: Configs, tmp_path: Path, watching: list[tuple[str, str, list[str]]]
) -> None:
    fedrlvr.run(configured(tmp_path / "run", federation={"arm": "local"}))
    assert watching
    assert not any("arrays" in records for _, _, records in watching)
    exported = adapter_bytes(tmp_path / "run")
    assert set(exported) == {f"{client}/adapter_model.safetensors" for client in CLIENTS}
    assert len(set(exported.values())) == 3
    for line in without_seconds(tmp_path / "run"):
        for numbers in line["clients"].values():
            assert max(numbers["bytes_up"], numbers["bytes_down"]) < 2500  # an adapter has 19,000
            assert "weight" not in numbers


def test_the_arm_central_gives_one_client_everything(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    real = LocalTraining._local_step

    def counted(self: LocalTraining) -> None:
        steps.append(self.asked.train.problems_per_step)
        real(self)

    monkeypatch.setattr(LocalTraining, "_local_step", counted)
    result = fedrlvr.run(configured(tmp_path / "run", federation={"arm": "central"}))
    assert steps == [2 * 3] * 4
    holdings = json.loads((tmp_path / "run" / "holdings.json").read_text("utf-8"))
    assert holdings["train"] == [["central", client, 8] for client in CLIENTS]
    assert holdings["test"] == [["central", client, 4] for client in CLIENTS]
    assert set(result.records[1]["clients"]) == {"central"}
    assert result.records[1]["clients"]["central"]["num-examples"] == 24
    # What is written down is what was asked for, so that a resumed run does not multiply again.
    assert json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))["train"]["problems_per_step"] == 2


def drift(configured: Configs, directory: Path, mu: float) -> tuple[float, dict[str, bytes]]:
    """Squared distance of the adapter from where it began, after one round of ten steps."""
    many = {"rounds": 1, "local_steps": 10, "proximal_mu": mu}
    fedrlvr.run(configured(directory, train=many))
    start = load_file(directory / "checkpoints" / "round-0000" / "adapter.safetensors")
    end = load_file(directory / "checkpoints" / "round-0001" / "adapter.safetensors")
    return sum(float(((end[name] - start[name]) ** 2).sum()) for name in start), adapter_bytes(directory)


def test_fedprox_holds_the_clients_back_and_with_mu_0_is_fedavg(configured: Configs, tmp_path: Path) -> None:
    free, bytes_free = drift(configured, tmp_path / "free", 0.0)
    fedrlvr.run(configured(tmp_path / "plain", train={"rounds": 1, "local_steps": 10}))
    assert adapter_bytes(tmp_path / "plain") == bytes_free
    held, bytes_held = drift(configured, tmp_path / "held", 100.0)
    assert bytes_held != bytes_free
    assert held < 0.8 * free


@pytest.mark.parametrize("variant", ["some", "pubswap"])  # a run that stopped and went on tests it of the others
def test_the_same_config_twice_gives_the_same_bytes_and_numbers(
    variant: str, finished: Runs, configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path / "again", **VARIANTS[variant]))
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(finished(variant))
    assert without_seconds(tmp_path / "again") == without_seconds(finished(variant))


def test_another_seed_gives_other_samples(configured: Configs, finished: Runs, tmp_path: Path) -> None:
    fedrlvr.run(configured(tmp_path / "run", run={"seed": 4, "directory": str(tmp_path / "run")}, train={"rounds": 1}))
    round_, other = without_seconds(tmp_path / "run")[1], without_seconds(finished("all"))[1]
    assert round_["clients"]["ann"].keys() == other["clients"]["ann"].keys()
    assert round_["clients"]["ann"]["loss"] != other["clients"]["ann"]["loss"]


def test_partial_participation_trains_two_of_three(finished: Runs) -> None:
    lines = without_seconds(finished("some"))
    trained = [{c for c, numbers in line["clients"].items() if "reward" in numbers} for line in lines]
    assert trained[0] == set()
    assert [len(who) for who in trained[1:]] == [2] * 5  # 0.6 of 3 clients, rounded
    assert len({frozenset(who) for who in trained[1:]}) > 1
    assert set(lines[-1]["evaluate"]) == set(CLIENTS), "all are evaluated"


def test_a_run_tells_its_observer_what_happens(configured: Configs, tmp_path: Path) -> None:
    heard: list[str] = []
    directory = tmp_path / "run"

    class Listener(Observer):
        def notify(self, event: Event) -> None:
            word = type(event).__name__
            saved = len(list((directory / "checkpoints").glob("round-*")))
            match event:
                case RunStarted():
                    assert (event.clients, event.rounds) == (list(CLIENTS), 1)
                    assert (event.local_steps, event.first_round) == (2, 0)
                case PhaseStarted():
                    word = f"{event.phase} {event.round}"
                case ClientsAsked():
                    word = f"asked to {event.kind}: {' '.join(event.clients)}"
                case ClientAnswered():
                    word = f"{event.client} answered"
                case StepEnded():
                    assert set(event.rewards) == set(CLIENTS)
                    assert event.tokens > 0
                    word = f"step {event.step} of {event.steps}"
                case Evaluated():
                    assert event.problems == 12
                case RoundEnded():
                    assert read_metrics(directory)[-1] == event.record, "its line is there, and the checkpoint is not"
                    assert saved == event.round
                case RoundSaved():
                    assert saved == event.round + 1
                case RunEnded():
                    assert list(event.records) == read_metrics(directory)
                    assert (directory / "report.html").exists()
            heard.append(word)

        def close(self) -> None:
            heard.append("close")

    from fedrlvr.config import parse_config

    run_module.run(parse_config(configured(directory, train={"rounds": 1})), observer=Listener())
    assert heard == [
        "EngineChosen",
        "RunStarted",
        "RoundStarted",
        "evaluate 0",
        "asked to evaluate: ann bob cyd",
        "Evaluated",
        *(f"{client} answered" for client in CLIENTS),
        "checkpoint 0",
        "RoundEnded",
        "RoundSaved",
        "RoundStarted",
        "train 1",
        "asked to train: ann bob cyd",
        "step 1 of 2",
        "step 2 of 2",
        *(f"{client} answered" for client in CLIENTS),
        "aggregate 1",
        "evaluate 1",
        "asked to evaluate: ann bob cyd",
        "Evaluated",
        *(f"{client} answered" for client in CLIENTS),
        "checkpoint 1",
        "RoundEnded",
        "RoundSaved",
        "RunEnded",
        "close",
    ]
