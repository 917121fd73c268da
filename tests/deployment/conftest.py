"""Organisations in directories of their own with a tiny model, and one loaded model for what plays the server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import FLOORS_OFF, make_site, write_secret
from organisations import Organisations, References, answering, federation, give_secrets

from fedrlvr.config import Config
from fedrlvr.deployment.site import client_app
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.handler import SAMPLING_SECRET, Answering
from fedrlvr.policy.cohort import Cohort
from fedrlvr.simulation.run import new_cohort, run


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Config:
    """A federation of ann and bob."""
    return federation(model, tmp_path / "problems", tmp_path / "run")


@pytest.fixture(scope="session")
def cohort(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """A cohort on the tiny model, of the rank that federations of ann and bob have."""
    root = tmp_path_factory.mktemp("cohort")
    torch.set_num_threads(1)
    return new_cohort(federation(model, root / "problems", root / "run"))


@pytest.fixture(scope="session")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> References:
    """The directory of a federation that the local engine ran, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(variant: str) -> Path:
        if variant not in made:
            root = tmp_path_factory.mktemp(variant)
            made[variant] = root / "run"
            # One after another, as organisations are: stacked clients round sums otherwise.
            secrets = {"secrets": str(give_secrets(root / "secrets"))}
            run(federation(model, root / "problems", made[variant], variant, engine={"cohort": False}, run=secrets))
        return made[variant]

    return of


@pytest.fixture
def organisation(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Organisations]:
    """Makes organisations in <tmp_path>/sites with floors off; their workers find the tests' reward, and end with the
    test."""
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]))
    made: list[Organisation] = []

    def make(name: str = "ann", **changes: Any) -> Organisation:
        directory = tmp_path / "sites" / name
        task = {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": "small_runs:parity"}
        tree: dict[str, Any] = {
            "name": name,
            "superlink": "127.0.0.1:9092",
            "tasks": {"main": task},
            "models": {"tiny": str(model)},
            "machine": {"device": "cpu"},
            "engine": {"threads": 1},
            "limits": FLOORS_OFF,
        }
        write_secret(directory / "state" / SAMPLING_SECRET, name)
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, Mapping) else value
        made.append(make_site(directory, **tree))
        return made[-1]

    yield make
    for org in made:
        channel.stop(org)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answering]]:
    """Stand-ins for the organisations' workers, by name; each is made when it is first asked, and has its site.log in
    memory (`log_of`)."""
    made: dict[str, Answering] = {}

    def ask(org: Organisation, head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        if org.name not in made:
            made[org.name] = answering(org)
        return made[org.name].reply(head, data)

    monkeypatch.setattr(client_app, "ask", ask)
    yield made
    torch.set_num_threads(1)
