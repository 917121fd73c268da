"""What `fedrlvr site check` says of what can be wrong: key, connection, certificate, tasks, models, worker."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from siteparts import closed_port, init_site, serving
from small_runs import write_problems

from fedrlvr.config.prompt import PromptConfig
from fedrlvr.deployment import certificates
from fedrlvr.deployment import flower_private as flowerparts
from fedrlvr.deployment.site import check as checks
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site import wording
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import ConfigError, RoundError
from fedrlvr.reporting.doctor import Finding

Organisations = Callable[..., Organisation]


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The directory of a SuperLink's authority, without certificate."""
    directory = tmp_path / "authority"
    directory.mkdir()
    certificates.make_authority(directory, "a test")
    return directory


# check: key, port, disk


def test_a_key_is_checked_for_who_may_read_it_and_its_public_half(tmp_path: Path) -> None:
    org = init_site(tmp_path)
    mark = certificates.key_fingerprint(certificates.read_public_key(tmp_path / "ann.key.pub"))
    assert checks.key_pair(org) == Finding("key", f"{mark} in {org.key}")
    org.key.chmod(0o640)
    assert checks.key_pair(org).advice.startswith("Others may read it: chmod 600")
    org.key.chmod(0o600)
    certificates.make_node_key(tmp_path / "other.key")
    shutil.copy(tmp_path / "other.key.pub", tmp_path / "ann.key.pub")
    assert "belongs to another key" in checks.key_pair(org).advice
    (tmp_path / "ann.key.pub").unlink()
    assert "no such file" in checks.key_pair(org).advice
    org.key.write_text("nonsense")
    assert "no private key" in checks.key_pair(org).advice
    org.key.unlink()
    result = checks.key_pair(org)
    assert result.status == "problem"
    assert "site init" in result.advice


def test_a_port_is_free_or_anothers(tmp_path: Path) -> None:
    number = closed_port()
    org = init_site(tmp_path, "--port", number)
    assert checks.port(org) == Finding("port", f"{number} on 127.0.0.1 is free")
    with socket.create_server(("127.0.0.1", number)):
        result = checks.port(org)
    assert (result.status, result.value) == ("problem", f"{number} is taken")


def test_a_disk_without_room_is_told_in_an_organisations_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    org = init_site(tmp_path)
    assert checks.room(org).status == "ok"
    full = Finding("disk", "0 B free", "problem", "Lower run.keep_checkpoints.")
    monkeypatch.setattr(checks, "disk", lambda path: full)
    assert checks.room(org).status == "problem"
    assert str(org.state) in checks.room(org).advice


# check: connection and certificate


def shown(authority: Path, directory: Path | None) -> Finding:
    with serving(directory) as address:
        return checks.server_certificate(address, authority / "ca.crt")


def test_a_good_certificate_is_said_to_be_good_for_so_many_days(authority: Path) -> None:
    certificates.make_server_certificate(authority, ["127.0.0.1"])
    result = shown(authority, authority)
    assert result.status == "ok"
    assert "of this authority, good for 729 more days" in result.value


def test_a_certificate_that_expires_soon_is_noted(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "SERVER_YEARS", 10.5 / 365)
    certificates.make_server_certificate(authority, ["127.0.0.1"])
    result = shown(authority, authority)
    assert (result.status, "good for 10 more days" in result.value) == ("note", True)
    assert "superlink renew" in result.advice


def test_a_certificate_that_has_expired_is_told_from_one_that_is_not_valid_yet(
    authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    early = shutil.copytree(authority, tmp_path / "early")
    monkeypatch.setattr(certificates, "SERVER_YEARS", -1 / 365)
    monkeypatch.setattr(certificates, "_SLACK", datetime.timedelta(days=2))
    certificates.make_server_certificate(authority, ["127.0.0.1"])
    result = shown(authority, authority)
    assert result.status == "problem"
    assert "has expired" in result.advice
    monkeypatch.setattr(certificates, "SERVER_YEARS", 1)
    monkeypatch.setattr(certificates, "_SLACK", datetime.timedelta(days=-2))
    certificates.make_server_certificate(early, ["127.0.0.1"])
    assert "not valid yet" in shown(authority, early).advice


def test_a_certificate_for_another_name_is_told_from_one_of_another_authority(authority: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    certificates.make_authority(other, "a test")
    certificates.make_server_certificate(other, ["127.0.0.1"])
    certificates.make_server_certificate(authority, ["link.example", "127.0.0.2"])
    for directory, advice in ((authority, "not for this name"), (other, "Another authority than")):
        result = shown(authority, directory)
        assert result.status == "problem"
        assert advice in result.advice


def test_a_server_without_tls_is_told(authority: Path) -> None:
    result = shown(authority, None)
    assert result.status == "problem"
    assert "does not speak TLS" in result.advice


def test_why_nobody_answers_is_told(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(address: str) -> Finding:
        return checks.server_certificate(address, authority / "ca.crt")

    result = connect(f"127.0.0.1:{closed_port()}")
    assert (result.name, result.status) == (checks.UNREACHED, "problem")
    assert "nothing listens on that port" in result.advice
    failures: list[tuple[OSError, str]] = [
        (socket.gaierror(-2, "Name or service not known"), "The name link.example is unknown here"),
        (TimeoutError("timed out"), "A firewall may be between"),
        (OSError(113, "No route to host"), "Is this machine connected"),
    ]
    for failure, advice in failures:

        def fail(*args: Any, failure: OSError = failure) -> socket.socket:
            raise failure

        monkeypatch.setattr(socket, "create_connection", fail)
        result = connect("link.example:9092")
        assert (result.name, result.status) == (checks.UNREACHED, "problem")
        assert advice in result.advice


def test_an_authority_that_is_missing_or_none_is_told(tmp_path: Path) -> None:
    assert "no such file" in checks.server_certificate("127.0.0.1:1", tmp_path / "ca.crt").advice
    (tmp_path / "ca.crt").write_text("nonsense")
    assert "no certificate" in checks.server_certificate("127.0.0.1:1", tmp_path / "ca.crt").advice


def test_a_superlink_without_tls_is_only_asked_whether_it_is_there(tmp_path: Path) -> None:
    with serving(None) as address:
        org = init_site(tmp_path, "--insecure", superlink=address)
        assert checks.registration(org).status == "ok"
    result = checks.registration(org)
    assert (result.name, result.status) == (checks.UNREACHED, "problem")


def test_a_registration_that_cannot_be_asked_for_is_no_yes(
    tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    org = init_site(tmp_path / "ann", "--root-certificates", authority / "ca.crt")

    def fail(*args: Any) -> bool:
        raise ConfigError("It refuses the signature.")

    monkeypatch.setattr(flowerparts, "is_registered", fail)
    assert checks.registration(org) == Finding(
        "registration", "cannot be found out", "problem", "It refuses the signature."
    )


# check: tasks, models, worker


def test_a_tasks_problems_are_counted_and_graded(organisation: Organisations) -> None:
    org = organisation(tasks={"main": {"name": "jsonl", "path": "problems", "prompt": {"instruction": "Say it."}}})
    write_problems(org.directory / "problems", ["ann"], train=8, test=4)
    held: dict[str, Any] = {}
    result = checks.task(org, "main", held)
    assert result == Finding("task main", "8 problems for training, 4 held out; 12 gold answers graded")
    assert len(held["main"]) == 12
    assert held["main"][0].text.endswith("\nSay it.")


def test_a_prompt_is_shown_as_the_server_and_the_task_word_it(organisation: Organisations) -> None:
    org = organisation(tasks={"main": {"name": "jsonl", "path": "problems", "prompt": {"instruction": "Say it."}}})
    write_problems(org.directory / "problems", ["ann"])

    def shown(experiment: PromptConfig | None = None) -> list[str]:
        held: dict[str, Any] = {}
        checks.task(org, "main", held, experiment)
        return checks.prompt_of(org, "main", held["main"][0], experiment).value.split("\n         ")

    source, instruction, _, *lines = shown()
    assert "no server" in source
    assert instruction == 'instruction = "Say it." (site.toml)'
    assert lines == ["| user: train 0 of ann?", "| Say it."]
    server = PromptConfig(system="Be \u202ekind.", template="Q: {{ prompt }}", prefill="So", instruction="No.")
    wording.keep(org.state / "runs" / "r-1", "main", server)
    source, *stated, _ = shown()[: -len(lines) - 2]
    assert "run r-1" in source
    assert stated == [
        'instruction = "Say it." (site.toml)',
        r'system = "Be \u202ekind." (the server)',
        'template = "Q: {{ prompt }}" (the server)',
        'prefill = "So" (the server)',
    ]
    assert shown()[-4:] == [r"| system: Be \u202ekind.", "| user: Q: train 0 of ann?", "| Say it.", "| assistant: So"]
    assert shown(PromptConfig(chat="off"))[-2:] == ["| train 0 of ann?", "| Say it."]


def test_gold_answers_of_a_large_task_are_graded_spread_over_it(
    organisation: Organisations, monkeypatch: pytest.MonkeyPatch
) -> None:
    org = organisation(tasks={"main": {"name": "jsonl", "path": "problems"}})
    write_problems(org.directory / "problems", ["ann"], train=8, test=4)
    monkeypatch.setattr(checks, "MOST_GRADED", 5)
    assert checks.task(org, "main", {}).value.endswith("4 gold answers graded")


def test_what_is_wrong_with_a_task_is_told(organisation: Organisations) -> None:
    org = organisation()  # its reward pays by chance
    assert "there" in checks.task(org, "main", {}).advice
    assert checks.task(org, "main", {}).status == "problem"
    write_problems(org.directory / "problems", ["ann"])
    result = checks.task(org, "main", {})
    assert result.status == "problem"
    assert "The reward is wrong on" in result.advice
    org = organisation(tasks={"main": {"rewards": "absent:nothing"}})
    assert checks.task(org, "main", {}).value == "its problems cannot be used"


def test_a_task_below_the_privacy_floor_is_told(organisation: Organisations) -> None:
    org = organisation(tasks={"main": {"name": "jsonl", "path": "problems"}}, limits={"least_problems": 9})
    write_problems(org.directory / "problems", ["ann"], train=8)
    result = checks.task(org, "main", {})
    assert result.status == "problem"
    assert "limits.least_problems = 9" in result.advice


def test_problems_without_answers_are_noted_where_somebody_may_give_them(organisation: Organisations) -> None:
    task = {"name": "jsonl", "path": "problems"}
    org = organisation(tasks={"main": task})
    write_problems(org.directory / "problems", ["ann"])
    rows = [json.loads(line) for line in (org.directory / "problems" / "train.jsonl").read_text().splitlines()]
    for row in rows:
        del row["answer"]
    (org.directory / "problems" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = checks.task(org, "main", {})
    assert (result.status, result.value.endswith("4 gold answers graded, 8 without an answer")) == ("note", True)
    limits = {"labels_from": ["dataset"], "supervision": ["labels"]}
    assert checks.task(organisation(tasks={"main": task}, limits=limits), "main", {}).status == "problem"


def test_a_model_is_loaded_tried_and_its_marks_are_shown(organisation: Organisations) -> None:
    from fedrlvr.config import ModelConfig
    from fedrlvr.policy.base import load_base

    def findings_of(limit: int) -> list[Finding]:
        org = organisation(
            tasks={
                "main": {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "max_prompt_tokens": limit}
            }
        )
        write_problems(org.directory / "problems", ["ann", "barbara"], train=8, test=4)
        held: dict[str, Any] = {}
        checks.task(org, "main", held)
        return list(checks.model(org, "tiny", held))

    # "train 0 of ann?" and "test 0 of ann?" have 15 and 14 characters, barbara's 4 more; each is a token, and one
    # begins the text. So 16 and 15, 20 and 19, of 512; at most 16 have 12 of the 24 problems.
    marks, tried, *chosen, prompts = findings_of(16)
    base = load_base(ModelConfig(name=organisation().config.models["tiny"], device="cpu"))
    ids = f"model {base.model_id}, weights {base.weights_id}, tokenizer {base.tokenizer_id}"
    assert marks == Finding("model tiny", f"{ids}; on cpu")
    assert tried.value.startswith("reaches the sampler")
    assert prompts.value == (
        "prompts of up to 16 tokens; 496 are left for a response; 12 longer than max_prompt_tokens = 16 are left out"
    )
    parts = ("sampler", "attention", "number format", "batches")
    assert [finding.name for finding in chosen] == [f"model tiny, {part}" for part in parts]
    assert [finding.status for finding in findings_of(14)] == ["ok", "ok", *["ok"] * len(parts), "problem"]


def test_prompts_that_fill_the_model_are_told(organisation: Organisations) -> None:
    org = organisation(tasks={"main": {"name": "jsonl", "path": "problems", "prompt": {"instruction": 600 * "x"}}})
    write_problems(org.directory / "problems", ["ann"])
    held: dict[str, Any] = {}
    checks.task(org, "main", held)
    last = list(checks.model(org, "tiny", held))[-1]
    assert last.status == "problem"
    assert "Set max_prompt_tokens" in last.advice


def test_a_model_that_is_not_there_is_told(organisation: Organisations) -> None:
    org = organisation(models={"absent": "./absent"})
    [result] = checks.model(org, "absent", {})
    assert result.status == "problem"
    assert "is not a directory" in result.advice


def test_a_model_beside_site_toml_is_found_from_anywhere(
    organisation: Organisations, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    org = organisation(models={"beside": "model", "hub": "org/model", "here": str(model)})
    shutil.copytree(model, org.directory / "model")
    monkeypatch.chdir("/")
    places = [org.model(name).name for name in ("beside", "hub", "here")]
    assert places == [str(org.directory / "model"), "org/model", str(model)]


def test_a_worker_is_tried_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    org, done = init_site(tmp_path), []
    for running in (True, False):
        monkeypatch.setattr(channel, "status", lambda org, running=running: {"pid": 1} if running else None)
        monkeypatch.setattr(channel, "ask", lambda org, header, content: done.append(header["type"]) or ({}, b""))
        monkeypatch.setattr(channel, "stop", lambda org: bool(done.append("stop")) or True)
        assert checks.worker(org).status == "ok"
    assert done == ["status", "status", "stop"]

    def fail(*args: Any) -> Any:
        raise RoundError("The worker ended at once.")

    monkeypatch.setattr(channel, "ask", fail)
    assert checks.worker(org) == Finding("worker", "does not answer", "problem", "The worker ended at once.")
