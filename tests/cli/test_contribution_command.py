"""`fedrlvr contribution`: a small federation and its leave-one-out runs, going on, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Refused = Callable[..., str]
Toml = Callable[..., Path]


def test_it_says_the_cost_first_then_measures_and_goes_on(fedrlvr: Command, toml: Toml, tmp_path: Path) -> None:
    directory = tmp_path / "runs"
    free = ("--set", "federation.deviations.bob.free_rider=true")
    path = toml(train={"rounds": 1})
    arguments = ("contribution", path, "--seeds", "1", *free, "--directory", directory, "--quiet")
    said = fedrlvr(*arguments)
    assert said.code == 0, said.err
    cost, *_ = said.out.splitlines()
    # A federation of three, and three of two: 3 + 3 x 2 clients, each one round of two local steps.
    assert "4 federations" in cost
    assert "18 local steps of all clients together, 3 times" in cost
    tree = json.loads((directory / "contribution.json").read_text("utf-8"))
    assert {client["client"] for client in tree["clients"]} == {"ann", "bob", "cyd"}
    means = [client["others"]["mean"] for client in tree["clients"]]
    assert means == sorted(means, reverse=True)
    assert tree["cost"] == cost
    order = [client["client"] for client in tree["clients"]]
    rows = [line for line in said.out.splitlines() if line.split() and line.split()[0] in order]
    assert [row.split()[0] for row in rows if row.split()[1:2] == ["1"]] == order, "the seeds follow the name"
    assert (directory / "contribution.md").is_file()
    config = json.loads((directory / "excluded=bob" / "seed-3" / "config.json").read_text("utf-8"))
    assert config["federation"]["excluded"] == ["bob"]

    again = fedrlvr(*arguments)
    assert again.code == 0
    assert "4 of them finished before" in again.out
    assert json.loads((directory / "contribution.json").read_text("utf-8"))["clients"] == tree["clients"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("federation.arm=local", "federation.arm"),
        ("federation.arm=central", "federation.arm"),
        ('federation.clients=["ann"]', "federation.clients"),
        ('federation.excluded=["ann","bob"]', "federation.clients"),
        ("aggregation.robust=median", "aggregation.robust"),
    ],
)
def test_what_has_no_contribution_is_refused_by_name(
    refused: Refused, toml: Toml, tmp_path: Path, setting: str, named: str
) -> None:
    refused([named], "contribution", toml(), "--set", setting, "--directory", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
