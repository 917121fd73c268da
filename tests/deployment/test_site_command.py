"""`fedrlvr site`: what init writes, what run starts, and what the other commands print."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from siteparts import closed_port, init_site, output_of, serving
from small_runs import write_problems
from typer.testing import CliRunner

from fedrlvr.cli.site import NOT_BY_RESTARTING, SUPERNODE, site, supernode_command
from fedrlvr.cli.superlink import superlink
from fedrlvr.deployment import certificates
from fedrlvr.deployment.site import link
from fedrlvr.deployment.site import socket as channel
from fedrlvr.deployment.site.config import EgressConfig, Limits, MachineConfig, Organisation, SiteConfig, load_site
from fedrlvr.deployment.site.keeper import Keeper
from fedrlvr.errors import ConfigError
from fedrlvr.files import file_lock

Organisations = Callable[..., Organisation]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Commands set Flower's variables, which must not reach other tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The directory of a SuperLink's authority, without certificate."""
    directory = tmp_path / "authority"
    directory.mkdir()
    certificates.make_authority(directory, "a test")
    return directory


# init


def test_init_makes_a_key_and_a_config_and_says_what_is_next(tmp_path: Path, authority: Path) -> None:
    directory = tmp_path / "clinic a"
    options = ["--superlink", "link.example:9092", "--root-certificates", authority / "ca.crt", "--port", 9999]
    said = output_of("init", directory, "--name", "ann", *options)
    org = load_site(directory)
    expected = SiteConfig.model_validate(
        {
            "name": "ann",
            "superlink": "link.example:9092",
            "port": 9999,
            "tasks": {"main": {}},
            "models": {"embedded": "embedded"},
        }
    )
    assert org.config == expected
    assert org.key.stat().st_mode & 0o777 == 0o600
    assert (directory / "ca.crt").read_bytes() == (authority / "ca.crt").read_bytes()
    mark = certificates.key_fingerprint(certificates.read_public_key(directory / "ann.key.pub"))
    assert f"fingerprint: {mark}" in said
    assert certificates.certificate_fingerprint(certificates.read_certificate(authority / "ca.crt")) in said
    assert "fedrlvr superlink register DIRECTORY ann.key.pub --name ann" in said
    for command in ("check", "run"):
        assert f"fedrlvr site {command} '{directory}'" in said
    assert "flower-supernode --superlink link.example:9092 --host 127.0.0.1 --port 9999" in said


def test_every_setting_stands_in_the_file_with_its_meaning_and_default(tmp_path: Path) -> None:
    text = init_site(tmp_path).path.read_text()
    for section, fields in (("limits", Limits), ("machine", MachineConfig), ("egress", EgressConfig)):
        part = text.split(f"[{section}]\n")[1].split("\n[")[0]
        shown = "\n".join(line.removeprefix("# ") for line in part.splitlines() if " = " in line and line[0] == "#")
        values = tomllib.loads(shown)
        unset = {name for name, field in fields.model_fields.items() if field.default is None}
        assert set(values) | unset == set(fields.model_fields)
        assert fields.model_validate(values) == fields()
        joined = " ".join(part.replace("\n# ", " ").split())
        for name, field in fields.model_fields.items():
            assert field.description is not None
            assert " ".join(field.description.split()) in joined
            if name in unset:
                assert f"# {name} is not set" in part
    for name in SiteConfig.model_fields:
        assert any(line.lstrip("# [").startswith(name) for line in text.splitlines()) or name == "engine", name


def test_init_takes_the_organisations_own_problems_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / 'pro "blems')
    org = init_site(tmp_path / "ann", "--data", 'pro "blems', "--task", "sums-2", "--model", "org/model=models/m")
    assert org.task("sums-2").name == "jsonl"
    assert org.task("sums-2").path == tmp_path / 'pro "blems'
    assert org.config.models == {"org/model": "models/m"}


def test_init_overwrites_nothing(tmp_path: Path, authority: Path) -> None:
    org = init_site(tmp_path)
    before = org.key.read_bytes(), org.path.read_bytes()
    with pytest.raises(ConfigError, match=r"site\.toml exists already"):
        init_site(tmp_path)
    org.path.unlink()
    with pytest.raises(ConfigError, match=r"ann\.key exists already"):
        init_site(tmp_path)
    (tmp_path / "ca.crt").write_text("another")
    with pytest.raises(ConfigError, match=r"ca\.crt exists already"):
        init_site(tmp_path, "--root-certificates", authority / "ca.crt")
    assert org.key.read_bytes() == before[0]
    assert not org.path.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--name", "a b"], "--name: "),
        (["--superlink", "link.example"], "--superlink: write host:port"),
        (["--insecure"], "insecure is for a SuperLink on this machine"),
        (["--task", "a.b"], "--task: "),
        (["--data", "absent"], "there is no such file"),
        (["--root-certificates", "absent"], "there is no such file"),
    ],
)
def test_a_mistake_in_the_options_leaves_nothing_behind(tmp_path: Path, options: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        init_site(tmp_path / "ann", *options)
    assert not (tmp_path / "ann").exists()


def test_a_place_that_flower_could_not_be_told_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quotation mark"):
        init_site(tmp_path / 'a"b')
    assert not list(tmp_path.iterdir())


# run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands and environments of the SuperNodes that `site run` would have kept."""
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(Keeper, "run", lambda keeper: calls.append((keeper.command, keeper.environment)))
    return calls


def test_flower_reads_the_place_of_site_toml_as_it_is(tmp_path: Path) -> None:
    from flwr.common.config import parse_config_args

    org = init_site(tmp_path / "a 'b = c", "--insecure", superlink="127.0.0.1:9092")
    command = supernode_command(org)
    assert parse_config_args([command[command.index("--node-config") + 1]]) == {"site": str(org.path)}
    assert "--insecure" in command
    assert not {"--auth-supernode-private-key", "--root-certificates"} & set(command)


def test_run_starts_the_supernode_with_our_programs_first(
    tmp_path: Path, authority: Path, started: list[tuple[list[str], dict[str, str]]]
) -> None:
    org = init_site(tmp_path / "ann", "--root-certificates", authority / "ca.crt")
    (tmp_path / "ann" / "state").mkdir(mode=0o755)
    output_of("run", tmp_path / "ann", "--superlink", "other.example:7")
    [(command, environment)] = started
    assert command == [
        *(
            sys.executable,
            "-P",
            "-m",
            SUPERNODE,
            "--superlink",
            "other.example:7",
            "--host",
            "127.0.0.1",
            "--port",
            "9094",
        ),
        *("--root-certificates", str(tmp_path / "ann" / "ca.crt"), "--auth-supernode-private-key", str(org.key)),
        *("--node-config", f'site="{org.path}"'),
    ]
    assert environment["PATH"].split(os.pathsep)[0] == str(org.state / "bin")
    assert environment["FLWR_HOME"] == str(org.state / "flower")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert (org.state / "bin" / "flwr-clientapp").stat().st_mode & 0o777 == 0o700
    assert org.state.stat().st_mode & 0o777 == 0o700


def test_what_restarting_cannot_mend_has_an_exit_code_of_its_own(
    tmp_path: Path, started: list[tuple[list[str], dict[str, str]]]
) -> None:
    org = init_site(tmp_path, "--insecure", superlink="127.0.0.1:9092")
    org.path.write_text("nam = 1\n")
    result = CliRunner().invoke(site, ["run", str(tmp_path)])
    assert (result.exit_code, started) == (NOT_BY_RESTARTING, [])
    assert "nam: unknown setting" in result.output


def test_an_organisation_has_one_site_run(tmp_path: Path, started: list[tuple[list[str], dict[str, str]]]) -> None:
    org = init_site(tmp_path, "--insecure", superlink="127.0.0.1:9092")
    channel.state_directory(org)
    with file_lock(link.lock_file(org)) as lock:  # type: ignore[union-attr]
        lock.write("4711\n")
        lock.flush()
        result = CliRunner().invoke(site, ["run", str(tmp_path)])
        assert "site run is process 4711" in output_of("status", tmp_path)
    assert (result.exit_code, started) == (NOT_BY_RESTARTING, [])
    assert "runs already" in result.output
    assert "process 4711" in result.output


def test_an_insecure_site_runs_against_this_machine_alone(
    tmp_path: Path, started: list[tuple[list[str], dict[str, str]]]
) -> None:
    init_site(tmp_path, "--insecure", superlink="127.0.0.1:9092")
    assert not (tmp_path / "ann.key").exists()
    result = CliRunner().invoke(site, ["run", str(tmp_path), "--superlink", "link.example:9092"])
    assert result.exit_code == NOT_BY_RESTARTING
    assert "on this machine" in result.output
    assert not started
    output_of("run", tmp_path)
    assert "--insecure" in started[0][0]


# check, status and stop as commands


def test_check_says_everything_and_ends_with_1_if_anything_is_wrong(organisation: Organisations) -> None:
    org = organisation(
        insecure=True,
        superlink=f"127.0.0.1:{closed_port()}",
        port=closed_port(),
        tasks={"main": {"name": "jsonl", "path": "problems"}},
    )
    write_problems(org.directory / "problems", ["ann"])
    result = CliRunner().invoke(site, ["check", str(org.path), "--skip-model"])
    assert result.exit_code == 1
    assert result.output.splitlines()[0] == "ok       site.toml: ann; tasks main; models tiny"
    assert "problem  connection: 127.0.0.1:" in result.output
    assert result.output.splitlines()[-1] == "1 of these must be mended before a run."
    assert "worker" not in result.output
    with serving(None) as address:
        org = organisation(superlink=address, insecure=True, tasks={"main": {"name": "jsonl", "path": "problems"}})
        result = CliRunner().invoke(site, ["check", str(org.directory)])
    assert result.exit_code == 0, result.output
    assert "ok       worker: starts and answers" in result.output
    assert "ok       model tiny, adapter:" in result.output
    assert result.output.splitlines()[-1] == "Nothing stands in the way of a run."
    assert channel.status(org) is None


def test_check_of_a_config_that_cannot_be_read_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("nam = 1\n")
    result = CliRunner().invoke(site, ["check", str(tmp_path)])
    assert result.exit_code == 1
    assert "nam: unknown setting" in result.output


def test_status_shows_the_last_of_what_was_asked_and_stop_ends_the_worker(organisation: Organisations) -> None:
    org = organisation()
    assert "worker does not run" in output_of("status", org.path)
    assert "nothing was asked yet" in output_of("status", org.path)
    assert output_of("stop", org.path) == "no worker was running\n"
    channel.ask(org, {"type": "status"}, b"")
    said = output_of("status", org.path)
    result = channel.status(org)
    assert result is not None
    assert f"pid {result['pid']}" in said
    for number in range(30):
        with org.log.open("a") as log:
            log.write(f"line {number}\n")
    assert [line.strip() for line in output_of("status", org.path).splitlines()[-10:]] == [
        f"line {n}" for n in range(20, 30)
    ]
    assert output_of("stop", org.path) == "the worker has ended\n"
    assert channel.status(org) is None


def test_help_answers_at_once() -> None:
    code = (
        "import sys\nfrom fedrlvr.cli.site import site\nfrom fedrlvr.cli.superlink import superlink\n"
        "heavy = {'torch', 'flwr', 'numpy', 'transformers', 'cryptography', 'psutil', 'starlette', 'uvicorn'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_directories_of_site_and_superlink_are_this_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        init_site(tmp_path / "a" / "site")
        CliRunner().invoke(superlink, ["init", str(tmp_path / "b" / "link"), "--address", "localhost:9092"])
    finally:
        os.umask(before)
    for path in ("a", "a/site", "b", "b/link", "b/link/flower"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700, path
    keys = list(tmp_path.rglob("*.key"))
    assert keys
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
