"""A site withdraws from a run: its messages are refused, and the decision log says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import make_site
from siteparts import output_of

from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.socket import state_directory
from fedrlvr.deployment.site.withdrawals import FILE, withdraw_from, withdrawn_runs
from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.privacy.card import digest_of
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.server.withdrawal import Statement


@pytest.fixture
def org(tmp_path: Path) -> Organisation:
    org = make_site(tmp_path / "ann")
    state_directory(org)
    return org


def statement(path: Path, **changes: object) -> bytes:
    fields = {"run": "run-1", "client": "ann", "how": "rewind", "first_round": 3, "last_round": 4}
    fields |= {"continues_after": 2, "done": ["It is done."], "remains": ["Copies."], **changes}
    path.write_text(Statement(**fields).to_json())  # type: ignore[arg-type]
    return path.read_bytes()


def test_the_log_has_the_digest_of_the_servers_statement(org: Organisation, tmp_path: Path) -> None:
    data = statement(tmp_path / "withdrawal-ann.json")
    said = output_of(
        "withdraw", org.path, "--run", "run-1", "--statement", tmp_path / "withdrawal-ann.json", "--name", "Ruiz"
    )
    assert "remains: Copies." in said
    assert withdrawn_runs(org.state) == ["run-1"]
    (entry,) = DecisionLog(org.state).entries()
    assert (entry["decision"], entry["run"], entry["by"]) == ("withdrawn", "run-1", "person Ruiz")
    assert entry["digest"] == digest_of(data)
    assert DecisionLog(org.state).verify().fault == ""


@pytest.mark.parametrize("changes", [{"client": "bob"}, {"run": "run-2"}, {"done": [1]}])
def test_a_statement_about_something_else_is_refused(
    changes: dict[str, object], org: Organisation, tmp_path: Path
) -> None:
    statement(tmp_path / "s.json", **changes)
    with pytest.raises(ConfigError, match=r"s\.json"):
        output_of("withdraw", org.path, "--run", "run-1", "--statement", tmp_path / "s.json")
    assert withdrawn_runs(org.state) == []


def test_a_damaged_list_refuses_every_run(org: Organisation) -> None:
    withdraw_from(org.state, "run-1", "Ruiz")
    withdraw_from(org.state, "run-2", "Ruiz")
    assert json.loads((org.state / FILE).read_text()) == ["run-1", "run-2"]
    (org.state / FILE).write_text("{")
    with pytest.raises(CheckpointError, match=FILE):
        withdrawn_runs(org.state)
