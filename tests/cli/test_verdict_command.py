"""`fedrlvr verdict` and a run with run.verdict: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrlvr.reporting.verdict import ClientVerdict, Verdict

Command = Callable[..., Any]
Arm = Callable[[str], Path]


@pytest.mark.report
def test_the_command_trains_what_is_missing_and_prints_a_line_a_client(
    fedrlvr: Command, runs: Arm, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(runs("federated"), directory)
    said = fedrlvr("verdict", directory, "--quiet", "--matrix")
    tree = json.loads((directory / "verdict.json").read_text("utf-8"))
    words = [client["verdict"] for client in tree["clients"].values()]
    assert said.code == ("worse" in words), said.err
    assert "12 local steps of 3 clients" in said.out
    assert str(directory / "alone") in "".join(said.out.split())
    for client, line in tree["clients"].items():
        assert any(row.split()[:2] == [client, "4"] and line["verdict"] in row for row in said.out.splitlines())
        assert f"{client}, alone" in said.out
    assert "What each client gains" in (directory / "report.html").read_text("utf-8")
    again = fedrlvr("verdict", directory, "--quiet")
    assert again.code == said.code
    assert "local steps" not in again.out
    given = fedrlvr("verdict", directory, "--alone", runs("local"))
    assert given.code == said.code
    kept = json.loads((directory / "verdict.json").read_text("utf-8"))
    assert kept["clients"] == tree["clients"]
    assert kept["alone"] == str(runs("local"))


@pytest.mark.parametrize(("federated", "code"), [(0.0, 1), (0.5, 0), (1.0, 0)])
def test_the_exit_code_says_whether_a_client_is_worse(
    federated: float, code: int, fedrlvr: Command, runs: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrlvr.simulation import verdict as engine

    rates = {"base": [0.0] * 9, "alone": [0.5] * 9}
    even = ClientVerdict.of("ann", {**rates, "federated": [0.5] * 9})
    other = ClientVerdict.of("bob", {**rates, "federated": [federated] * 8 + [0.5]})
    monkeypatch.setattr(engine, "judge", lambda *_, **__: Verdict(2, [even, other]))
    said = fedrlvr("verdict", runs("federated"), "--alone", runs("local"))
    assert said.code == code
    assert ("Worse than alone" in said.out) == bool(code)
    assert ("bob." in said.out) == bool(code)


def test_a_run_with_a_verdict_prints_it_and_is_no_failure(fedrlvr: Command, toml: Callable[..., Path]) -> None:
    path = toml(train={"rounds": 1})
    said = fedrlvr("run", path, "--set", "run.verdict=true", "--quiet")
    assert said.code == 0, said.err
    assert "federated - alone" in said.out
    assert "verdict.json" in "".join(said.out.split())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "--set", "run.verdict=true", "--set", "federation.arm=local"], "run.verdict"),
        (["sweep", "--set", "run.verdict=true"], "run.verdict"),
        (
            ["run", "--set", "run.verdict=true", "--set", "supervision={type='care', labels_from='desk'}"],
            "supervision.labels_from",
        ),
        (["verdict", "nowhere"], "nowhere"),
    ],
)
def test_what_has_no_verdict_is_refused_by_name(arguments: list[str], word: str, refused: Callable[..., str]) -> None:
    refused([word], *arguments)
