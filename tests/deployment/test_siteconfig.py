"""site.toml: what it says, what it must not say, and that paths in it are relative to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from factories import write_site

from fedrlvr.deployment.site.config import Limits, load_site
from fedrlvr.errors import ConfigError

written = partial(write_site, name="clinic-a")


def test_the_least_that_can_be_said(tmp_path: Path) -> None:
    org = load_site(written(tmp_path))
    assert load_site(tmp_path) == org
    assert org.name == "clinic-a"
    assert org.directory == tmp_path
    assert org.state == tmp_path / "state"
    assert org.log == tmp_path / "state" / "site.log"
    assert org.key == tmp_path / "clinic-a.key"
    assert org.root_certificates == tmp_path / "ca.crt"
    assert org.config.limits == Limits()


def test_paths_are_relative_to_the_file_and_absolute_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {
        "a": {"name": "jsonl", "path": "problems"},
        "b": {"name": "jsonl", "path": "/data"},
        "c": {"name": "embedded"},
    }
    engine = {"sampler": "vllm", "vllm_python": "vllm/bin/python"}
    written(tmp_path, tasks=tasks, key="keys/own", root_certificates="/etc/ca.pem", engine=engine)
    monkeypatch.chdir(tmp_path.parent)
    org = load_site(Path(tmp_path.name))
    assert org.path == tmp_path / "site.toml", "absolute, whatever the working directory will be"
    assert [org.task(name).path for name in "abc"] == [tmp_path / "problems", Path("/data"), None]
    assert org.key == tmp_path / "keys" / "own"
    assert org.root_certificates == Path("/etc/ca.pem")
    assert org.engine.vllm_python == tmp_path / "vllm" / "bin" / "python"
    with pytest.raises(KeyError):
        org.task("d")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "a b"}, "name: "),
        ({"name": "../x"}, "name: "),
        ({"name": None}, "name: this setting is required"),
        ({"superlink": "nowhere"}, "superlink: write host:port"),
        ({"superlink": "host:0"}, "superlink: write host:port"),
        ({"superlink": "host:70000"}, "superlink: write host:port"),
        ({"superlink": ":9092"}, "superlink: write host:port"),
        ({"superlink": "10.0.0.1:9092", "insecure": True}, "insecure is for a SuperLink on this machine"),
        ({"port": 0}, "port: "),
        ({"idle_minutes": 0}, "idle_minutes: "),
        ({"keep_runs": 0}, "keep_runs: "),
        ({"tasks": {}}, "tasks: "),
        ({"models": {}}, "models: "),
        ({"tasks": {"a b": {"name": "embedded"}}}, "tasks.a b"),
        ({"tasks": {"main": {"name": "embedded", "public_size": 2}}}, "tasks.main: public_size has no place here"),
        ({"tasks": {"main": {"nmae": "embedded"}}}, "tasks.main.nmae: "),
        ({"limits": {"local_step": 3}}, "limits.local_step: unknown setting, did you mean 'limits.local_steps'?"),
        ({"limits": {"learning_rate": 0.1}}, "limits.learning_rate: allowed: [least, largest]"),
        ({"limits": {"beta1": [0.1]}}, "limits.beta1: allowed: [least, largest]"),
        ({"limits": {"least_problems": True}}, "least_problems should not be true or false"),
        ({"limits": {"group_size": 1}}, "limits.group_size: "),
        ({"limits": {"message_types": ["query.other"]}}, "limits.message_types: "),
        ({"limits": {"supervision": ["all"]}}, "limits.supervision: "),
        ({"limits": {"least_clients": 0}}, "limits.least_clients: "),
        ({"engine": {"thread": 1}}, "engine.thread: "),
        ({"machine": {"dtype": "int8"}}, "machine.dtype: "),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        load_site(path)
    assert str(error.value).startswith(f"{path}: ")
    assert text in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_insecure_is_for_this_machine(host: str, tmp_path: Path) -> None:
    assert load_site(written(tmp_path, superlink=f"{host}:9092", insecure=True)).config.insecure


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml: .*`fedrlvr site init`"):
        load_site(tmp_path)
    (tmp_path / "site.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_site(tmp_path)
    (tmp_path / "site.toml").write_text("name = ", "utf-8")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_site(tmp_path)
