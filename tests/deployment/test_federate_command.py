"""`fedrlvr federate` up to Flower's own commands, which a test answers in their place."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedrlvr.cli import federate as federate_command
from fedrlvr.cli.main import app
from fedrlvr.config import load_resolved
from fedrlvr.deployment.superlink.disclosure import travels
from fedrlvr.errors import ConfigError, FedrlvrError, RoundError
from fedrlvr.interrupts import Interrupted
from fedrlvr.server.run_directory import is_deployed

TOML = """
[federation]
clients = ["ann", "bob"]
quorum = 0.5
[data]
public_size = 4
[coordination]
type = "pubswap"
public_problems = 2
[train]
rounds = 2
"""


INTERNAL = "Using SuperLink\n\nInternal server error."
"""The output of Flower's commands where the SuperLink's disk is full."""


class Flower:
    """Flower's command line: what it was called with, and what it says."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.app: dict[str, Any] = {}
        self.files: list[str] = []
        self.connection: dict[str, Any] = {}
        self.submitted = 'Using SuperLink\n{"success": true, "run-id": "77"}'
        self.status: str | None = "finished:completed"
        self.interrupt = False
        self.records: list[dict[str, Any]] = [{"round": 1, "clients": {"ann": {"num-examples": 8}}}]

    def flwr(self, link: federate_command.Link, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments)
        if arguments[0] == "run":
            place = Path(arguments[1])
            self.files = sorted(path.name for path in place.rglob("*"))
            self.app = tomllib.loads((place / "pyproject.toml").read_text("utf-8"))
            self.connection = tomllib.loads((link.home / "config.toml").read_text("utf-8"))["superlink"]
            return subprocess.CompletedProcess(arguments, 0, self.submitted, "")
        if self.status in (None, INTERNAL):
            return subprocess.CompletedProcess(arguments, 1, "", self.status or "connection refused")
        runs = json.dumps({"success": True, "runs": [{"run-id": "77", "status": self.status}]})
        return subprocess.CompletedProcess(arguments, 0, "Using SuperLink\n" + runs, "")

    def follow(self, link: federate_command.Link, *arguments: str) -> int:
        self.calls.append(arguments)
        if self.interrupt:
            raise KeyboardInterrupt
        return 0


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Flower:
    result = Flower()
    monkeypatch.setattr(federate_command.Link, "flwr", lambda link, *a: result.flwr(link, *a))
    monkeypatch.setattr(federate_command.Link, "follow", lambda link, *a: result.follow(link, *a))
    monkeypatch.setattr("fedrlvr.reporting.tables.final_table", lambda *_: print("the table"))
    monkeypatch.setattr("fedrlvr.server.metrics_log.read_metrics", lambda _: result.records)
    return result


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(TOML, "utf-8")
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The files of `fedrlvr superlink init` that `federate` reads."""
    home = tmp_path / "hub" / "flower"
    home.mkdir(parents=True)
    text = '[superlink.fedrlvr]\naddress = "127.0.0.1:18000"\nroot-certificates = "/srv/ca.crt"\n'
    (home / "config.toml").write_text(text, "utf-8")
    return tmp_path / "hub"


def federate(*arguments: object) -> tuple[str, BaseException | None, int]:
    """The output of `fedrlvr federate`, its FedrlvrError or None, and the exit code."""
    result = CliRunner().invoke(app, ["federate", *map(str, arguments)])
    error = result.exception if isinstance(result.exception, FedrlvrError) else None
    return result.output, error, result.exit_code


def run_settings(call: tuple[str, ...]) -> dict[str, Any]:
    """Flower's run config, in which values are TOML."""
    return tomllib.loads(
        call[call.index("--run-config") + 1].replace(" wait=", "\nwait=").replace(" insecure=", "\ninsecure=")
    )


def test_it_says_what_will_travel_submits_an_app_without_code_and_follows_the_run(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    said, error, code = federate(exp, "--superlink", hub, "--set", f"run.directory={run}", "--wait", "20")
    assert (error, code) == (None, 0), said
    submit, follow, listed = flower.calls
    assert run_settings(submit) == {"directory": str(run), "wait": 20.0, "insecure": False}
    assert submit[2] == follow[2] == listed[1] == "fedrlvr"
    assert follow[:2] == ("log", "77")
    assert flower.files == ["pyproject.toml"], "no code, and not a path of this machine but the run's"
    assert flower.app["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "fedrlvr.deployment.superlink.server_app:app",
        "clientapp": "fedrlvr.deployment.site.client_app:app",
    }
    settings = load_resolved(run / "config.json")
    assert is_deployed(run)
    assert settings.run.directory == run
    assert settings.engine.threads, "a resumed run rounds alike"
    assert said.index("Never: its own problems") < said.index("Run directory:") < said.index("the table")
    assert "2 public problems" in said
    assert "Nothing was trained" not in said


def test_a_run_in_which_no_reply_was_used_exits_with_3_unless_it_is_allowed(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path
) -> None:
    flower.records = [{"round": 1, "clients": {"ann": {"bytes_up": 9}}, "left_out": {"ann": "a floor"}}]
    for number, (options, expected) in enumerate((((), 3), (("--allow-nothing",), 0))):
        directory = ("--set", f"run.directory={tmp_path / str(number)}")
        said, error, code = federate(exp, "--superlink", hub, *directory, *options)
        assert (error, code) == (None, expected)
        assert "Nothing was trained" in said


def test_the_app_names_what_is_there() -> None:
    from fedrlvr.deployment.site.client_app import app as client
    from fedrlvr.deployment.superlink.server_app import app as server

    assert type(server).__name__ == "ServerApp"
    assert callable(client)


def test_a_bare_address_needs_the_authority_and_gets_a_connection_of_its_own(
    flower: Flower, exp: Path, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text("PEM", "utf-8")
    run = ("--set", f"run.directory={tmp_path / 'run'}")
    _, error, _ = federate(exp, "--superlink", "127.0.0.1:18000", *run)
    assert "Give --root-certificates FILE" in str(error)
    said, error, code = federate(exp, "--superlink", "127.0.0.1:18000", "--root-certificates", authority, *run)
    assert (error, code) == (None, 0), said
    assert flower.connection["fedrlvr"] == {"address": "127.0.0.1:18000", "root-certificates": str(authority)}


def test_insecure_is_for_this_machine_alone(flower: Flower, exp: Path, tmp_path: Path) -> None:
    _, error, _ = federate(exp, "--superlink", "hub.example.org:18000", "--insecure")
    assert "is for a SuperLink on this machine" in str(error)
    run = ("--set", f"run.directory={tmp_path / 'run'}")
    said, error, code = federate(exp, "--superlink", "127.0.0.1:18000", "--insecure", *run)
    assert (error, code) == (None, 0), said
    assert flower.connection["fedrlvr"] == {"address": "127.0.0.1:18000", "insecure": True}
    assert run_settings(flower.calls[0])["insecure"] is True


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Give a configuration"),
        (("exp.toml",), "--superlink"),
        (("exp.toml", "--resume", "x"), "Give a configuration"),
        (("--resume", "x", "--set", "run.seed=2", "--superlink", "hub"), "run.seed"),
        (("exp.toml", "--superlink", "nowhere"), "there is no such directory"),
        (("exp.toml", "--superlink", "."), "is no directory that `fedrlvr superlink init` made"),
        (("exp.toml", "--superlink", "hub", "--insecure"), "a directory says both"),
        (("exp.toml", "--superlink", "127.0.0.1:1", "--root-certificates", "no.crt"), "there is no such file"),
        (("alone.toml", "--superlink", "hub"), "nothing travels"),
        (("exp.toml", "--superlink", "hub", "--set", "run.ledgers=/x"), "run.ledgers"),
        (("exp.toml", "--superlink", "hub", "--set", "run.secrets=/x"), "run.secrets"),
        (("exp.toml", "--superlink", "hub", "--set", "run.verdict=true"), "fedrlvr site verdict"),
        (
            ("exp.toml", "--superlink", "hub", "--set", "federation.deviations.client-1.free_rider=true"),
            "federation.deviations",
        ),
    ],
)
def test_mistakes_are_said_before_anything_is_started(
    flower: Flower, exp: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.chdir(exp.parent)
    Path("alone.toml").write_text('[federation]\narm = "local"\n', "utf-8")
    _, error, _ = federate(*arguments)
    assert isinstance(error, ConfigError)
    assert text in str(error)
    assert flower.calls == []
    assert not (exp.parent / "runs").exists()


def test_a_directory_that_holds_a_run_is_not_begun_anew_and_resume_goes_on_with_it(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    federate(exp, "--superlink", hub, "--set", f"run.directory={run}")
    before = (run / "config.json").read_bytes()
    _, error, _ = federate(exp, "--superlink", hub, "--set", f"run.directory={run}")
    assert "already holds a run" in str(error)
    said, error, code = federate("--resume", run, "--superlink", hub)
    assert (error, code) == (None, 0), said
    assert run_settings(flower.calls[-3])["directory"] == str(run)
    assert (run / "config.json").read_bytes() == before
    said, error, code = federate("--resume", run, "--superlink", hub, "--set", "train.rounds=41")
    assert (error, code) == (None, 0), said
    longer = json.loads((run / "config.json").read_bytes())
    assert longer["train"].pop("rounds") == 41
    shorter = json.loads(before)
    assert shorter["train"].pop("rounds") == 2
    assert longer == shorter
    (run / "checkpoints" / "round-0041").mkdir(parents=True)
    _, error, _ = federate("--resume", run, "--superlink", hub, "--set", "train.rounds=40")
    assert "has done 41 rounds" in str(error)
    assert load_resolved(run / "config.json").train.rounds == 41


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("finished:failed", "the run has ended as 'finished:failed'"),
        (None, "cannot be reached any more"),
        (INTERNAL, "its disk may be full"),
    ],
)
def test_a_run_that_fails_or_a_superlink_that_is_gone_says_who_missed_rounds_and_how_to_go_on(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path, status: str | None, text: str
) -> None:
    flower.status = status
    flower.records = [{"round": 1, "clients": {"ann": {}}, "left_out": {"bob": "too late"}}]
    said, error, _ = federate(exp, "--superlink", hub, "--set", f"run.directory={tmp_path / 'run'}")
    assert isinstance(error, RoundError)
    assert text in str(error)
    assert "too late" in said
    assert f"fedrlvr federate --resume {tmp_path / 'run'} --superlink {hub}" in str(error)


def test_what_flower_does_not_take_is_told_in_its_words(flower: Flower, exp: Path, hub: Path, tmp_path: Path) -> None:
    flower.submitted = "Error: permission denied"
    _, error, _ = federate(exp, "--superlink", hub, "--set", f"run.directory={tmp_path / 'run'}")
    assert "permission denied" in str(error)
    assert "its own machine only" in str(error)


def test_a_superlink_that_fails_is_not_said_to_be_on_another_machine(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path
) -> None:
    flower.submitted = INTERNAL
    _, error, _ = federate(exp, "--superlink", hub, "--set", f"run.directory={tmp_path / 'run'}")
    assert "its disk may be full" in str(error)
    assert "its own machine only" not in str(error)


def test_ctrl_c_stops_following_and_says_how_to_follow_end_or_resume(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path
) -> None:
    flower.interrupt = True
    run = tmp_path / "run"
    result = CliRunner().invoke(app, ["federate", str(exp), "--superlink", str(hub), "--set", f"run.directory={run}"])
    said, last = result.output, str(result.exception)
    assert isinstance(result.exception, Interrupted)
    assert f"the run goes on in {run}" in last
    assert last.endswith(f"fedrlvr federate --resume {run} --superlink {hub}")
    assert "The run goes on." in said
    assert "flwr log 77 fedrlvr" in said
    assert "flwr stop 77 fedrlvr" in said


@pytest.mark.parametrize(("answer", "ends"), [("y", True), ("n", False), ("", False)])
def test_in_a_terminal_ctrl_c_asks_whether_the_run_is_to_end(
    flower: Flower, exp: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, ends: bool
) -> None:
    monkeypatch.setattr(federate_command, "_in_a_terminal", lambda: True)
    flower.interrupt = True
    run = tmp_path / "run"
    words = ["federate", str(exp), "--superlink", str(hub), "--set", f"run.directory={run}"]
    result = CliRunner().invoke(app, words, input=f"{answer}\n")
    assert isinstance(result.exception, Interrupted)
    assert (("stop", "77", "fedrlvr") in flower.calls) == ends
    assert ("the run has ended" in str(result.exception)) == ends
    assert ("flwr stop 77 fedrlvr" in result.output) != ends
    assert str(result.exception).endswith(f"fedrlvr federate --resume {run} --superlink {hub}")


def test_what_travels_depends_on_the_methods(exp: Path, tmp_path: Path) -> None:
    from fedrlvr.config import load_config

    def lines_of(*overrides: str, numbers: int | None = None, path: Path | None = exp) -> str:
        return "\n".join(travels(load_config(path, overrides), numbers))

    both = lines_of(numbers=1000)
    assert "(1,000 numbers, 4.0 kB)" in both
    assert "1 x 2 x 8 responses to the public problems" in both
    assert "labels" not in both
    alone = lines_of(numbers=1000, path=None)
    assert "public problems" not in alone
    unswapped = lines_of("coordination.swap=none")
    assert "public problems with their answers" in unswapped
    assert "responses to the public problems" not in unswapped
    assert "(1,000 numbers, 1.0 kB)" in lines_of("aggregation.precision=int8", numbers=1000)
    large = lines_of("aggregation.precision_down=bfloat16", numbers=1_000_000)
    assert "(1,000,000 numbers, 2.0 MB)" in large
    assert "(1,000,000 numbers, 1.0 MB)" in large
    assert "CARE's probes" in lines_of("supervision.type=care", "supervision.share_probes=true")
    assert "labels, its optimizer" in lines_of("supervision.type=care")
    assert "probes" not in lines_of("supervision.type=care")
