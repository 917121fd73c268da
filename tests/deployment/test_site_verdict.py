"""`fedrlvr site verdict`: an organisation compares the federation's adapter with its own, and nothing leaves."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import FLOORS_OFF, write_secret, write_site
from organisations import NAMES
from small_runs import adapter_bytes, settings, write_problems, write_toml
from typer.testing import CliRunner

import fedrlvr
from fedrlvr.cli.main import app
from fedrlvr.config import parse_config
from fedrlvr.deployment.site.config import load_site
from fedrlvr.deployment.site.verdict import plan
from fedrlvr.errors import AdapterError, ConfigError, LimitError
from fedrlvr.server.metrics_log import read_metrics

Sites = Callable[..., Path]
TASK = {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": "small_runs:parity"}


@pytest.fixture(scope="module")
def experiment(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a federation of ann and bob in which most of what is about the federation alone is set."""
    problems = write_problems(tmp_path_factory.mktemp("both") / "problems", NAMES)
    changes = {"federation": {"clients": list(NAMES), "fraction": 0.5}, "aggregation": {"type": "fedex"}}
    return settings(model, problems, None, **changes, train={"proximal_mu": 0.1}, run={"seed": 3, "verdict": False})


@pytest.fixture(scope="module")
def adapter(experiment: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of that federation, as its server exports it."""
    directory = tmp_path_factory.mktemp("federation") / "run"
    fedrlvr.run({**experiment, "run": {**experiment["run"], "directory": str(directory)}})
    return directory / "adapter"


@pytest.fixture
def ann(model: Path, tmp_path: Path) -> Sites:
    """The directory of the organisation ann, with eight problems for training and four held out."""

    def make(**more: Any) -> Path:
        directory = tmp_path / "ann"
        limits = {**FLOORS_OFF, **more.pop("limits", {})}
        write_site(
            directory,
            tasks={"main": {**TASK, **more.pop("task", {})}},
            models={model.name: str(model)},
            machine={"device": "cpu"},
            engine={"threads": 1},
            limits=limits,
            **more,
        )
        if not (directory / "problems").exists():
            write_problems(directory / "problems", ["ann"])
        return directory

    return make


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that opens a connection."""

    def refuse(*_: Any) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    return tree


def command(directory: Path, toml: Path, *more: object) -> Any:
    words = ["site", "verdict", str(directory), "--config", str(toml), "--quiet", *map(str, more)]
    return CliRunner().invoke(app, words)


@pytest.mark.usefixtures("no_network")
def test_a_site_makes_its_own_verdict_and_sends_nothing(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    directory, toml = ann(), write_toml(tmp_path / "exp.toml", experiment)
    done = command(directory, toml, "--adapter", adapter, "--personal", adapter)
    (made,) = (directory / "state" / "verdict").glob("main-*")
    tree = json.loads((made / "verdict.json").read_text("utf-8"))
    (line,) = tree["clients"].values()
    assert list(tree["clients"]) == ["ann"]
    assert line["n"] == 4
    assert list(line["pass@1"]) == ["base", "alone", "federated", "personal"]
    assert line["pass@1"]["personal"] == line["pass@1"]["federated"]
    assert line["pass@1"]["alone"] == read_metrics(made)[-1]["evaluate"]["ann"]["ann"]["total"] / 4
    assert done.exit_code == (line["verdict"] == "worse"), done.output
    assert "4 local steps" in done.output
    assert "nothing was sent" in done.output
    for place in (directory / "state", directory / "state" / "verdict"):
        assert place.stat().st_mode & 0o077 == 0
    before = adapter_bytes(made)
    again = command(directory, toml, "--adapter", adapter, "--personal", adapter)
    assert again.exit_code == done.exit_code
    assert "local steps" not in again.output, "training is done once"
    assert json.loads((made / "verdict.json").read_text("utf-8")) == tree
    assert "federated" not in command(directory, toml, "--personal", adapter).output
    assert adapter_bytes(made) == before


@pytest.mark.usefixtures("no_network")
def test_a_site_audits_the_federations_adapter_and_sends_nothing(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    """As another site and the public see it: two rounds of two steps have drawn all of ann's eight problems."""
    directory, toml = ann(), write_toml(tmp_path / "exp.toml", experiment)
    words = ["site", "audit", str(directory), "--config", str(toml), "--adapter", str(adapter), "--responses", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    place = directory / "state" / "audit"
    tree = json.loads((place / "audit.json").read_text("utf-8"))
    assert tree["clients"] == ["ann"]
    assert {row["view"] for row in tree["membership"]} == {"site", "public"}
    assert {(row["members"], row["others"]) for row in tree["membership"]} == {(8, 4)}
    assert place.stat().st_mode & 0o077 == 0
    assert "of ann?" not in (place / "audit.html").read_text("utf-8")


def test_where_organisations_share_no_adapter_the_personal_one_is_compared(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    directory = ann()
    toml = write_toml(tmp_path / "exp.toml", {**experiment, "aggregation": {}, "personal": {"type": "fedsa"}})
    for options in ([], ["--adapter", adapter, "--personal", adapter]):
        refused = command(directory, toml, *options)
        assert isinstance(refused.exception, ConfigError)
        assert "--adapter" in str(refused.exception)
    command(directory, toml, "--personal", adapter)
    (made,) = (directory / "state" / "verdict").glob("main-*")
    tree = json.loads((made / "verdict.json").read_text("utf-8"))
    assert list(tree["clients"]["ann"]["pass@1"]) == ["base", "alone", "personal"]
    assert ["federation.fraction" in note for note in tree["notes"]] == [False, True]
    assert "run.alone_rates" in tree["notes"][0]


def test_it_trains_what_a_simulation_of_the_site_alone_trains(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    """With the organisation's secret, its own data and the experiment's settings."""
    directory = ann()
    (directory / "state").mkdir(mode=0o700)
    write_secret(directory / "state" / "sampling.secret", "ann")
    write_secret(tmp_path / "secrets" / "ann.secret", "ann")
    planned = plan(load_site(directory), parse_config(experiment))
    planned.make(adapter, None, fedrlvr.reporting.observer.Observer)
    alone = {**experiment, "aggregation": {}, "federation": {"clients": ["ann"], "arm": "local"}}
    alone["train"] = {**experiment["train"], "proximal_mu": 0.0}
    alone["data"] = {**experiment["data"], "path": str(directory / "problems")}
    alone["run"] = {"seed": 3, "directory": str(tmp_path / "run"), "secrets": str(tmp_path / "secrets")}
    fedrlvr.run(alone)
    assert adapter_bytes(planned.directory) == adapter_bytes(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "limits", "error", "words"),
    [
        ({"federation": {"clients": ["bob", "cyd"]}}, {}, ConfigError, "federation.clients: ann is none of"),
        ({"federation": {"clients": list(NAMES), "task": "other"}}, {}, ConfigError, "no task called 'other'"),
        ({"model": {"name": "/srv/unknown"}}, {}, ConfigError, "no model called 'unknown'"),
        ({}, {"local_steps": 1, "problems_per_step": 1}, LimitError, "limits.local_steps.*limits.problems_per_step"),
        ({}, {"least_problems": 9}, LimitError, "limits.least_problems"),
        ({}, {"tokens_per_message": 130, "message_types": ["train"]}, None, ""),
        ({"evaluate": {"samples": 64}}, {"tokens_per_message": 1000}, LimitError, "limits.tokens_per_message"),
    ],
)
def test_its_own_file_decides(
    change: dict[str, Any],
    limits: dict[str, Any],
    error: type[Exception] | None,
    words: str,
    ann: Sites,
    experiment: dict[str, Any],
) -> None:
    tree = {**experiment, **{section: {**experiment.get(section, {}), **v} for section, v in change.items()}}
    if change.get("federation"):
        tree["federation"] = change["federation"]
    org = load_site(ann(limits=limits))
    if error is None:
        assert plan(org, parse_config(tree)).todo == 4
        return
    with pytest.raises(error, match=words):
        plan(org, parse_config(tree))


def test_an_adapter_of_another_model_is_refused_before_training(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text("utf-8"))
    (other / "adapter_config.json").write_text(json.dumps({**config, "r": 3}), "utf-8")
    planned = plan(load_site(ann()), parse_config(experiment))
    with pytest.raises(AdapterError, match="other"):
        planned.make(other, None, fedrlvr.reporting.observer.Observer)
    with pytest.raises(ConfigError, match="--adapter DIR, --personal DIR"):
        planned.make(None, None, fedrlvr.reporting.observer.Observer)
    with pytest.raises(AdapterError, match="missing"):
        planned.make(tmp_path / "missing", None, fedrlvr.reporting.observer.Observer)
    assert not planned.directory.exists()


def test_training_alone_at_several_rates_keeps_the_one_that_its_validation_problems_choose(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    directory = ann(task={"validation_size": 2}, limits={"learning_rate": [0, 0.1]})
    run, data = {**experiment["run"], "alone_rates": [1, 0.5]}, {**experiment["data"], "validation_size": 4}
    toml = write_toml(tmp_path / "exp.toml", {**experiment, "run": run, "data": data})
    done = command(directory, toml, "--adapter", adapter)
    assert "8 local steps" in done.output
    made = {parse_config(load(path)).train.learning_rate: path for path in (directory / "state/verdict").glob("main-*")}
    assert sorted(made) == [5e-3, 1e-2]
    tree = json.loads((made[1e-2] / "verdict.json").read_text("utf-8"))
    chosen = made[1e-2 * tree["alone_rates"]["ann"]]
    test = read_metrics(chosen)[-1]["evaluate"]["ann"]["ann"]
    assert tree["clients"]["ann"]["pass@1"]["alone"] == test["total"] / test["n"]
    refused = command(directory, toml, "--adapter", adapter, "--set", "run.alone_rates=[20]")
    assert isinstance(refused.exception, LimitError)
    assert "limits.learning_rate" in str(refused.exception)


def test_a_choice_of_rates_needs_validation_problems_of_the_site(
    ann: Sites, experiment: dict[str, Any], adapter: Path, tmp_path: Path
) -> None:
    data = {**experiment["data"], "validation_size": 4}
    toml = write_toml(tmp_path / "exp.toml", {**experiment, "data": data})
    refused = command(ann(), toml, "--adapter", adapter, "--set", "run.alone_rates=[0.5,1]")
    assert isinstance(refused.exception, ConfigError)
    assert "tasks.main.validation_size" in str(refused.exception)
