"""`flwr run .` in a clone of the project, against a SuperLink and SuperNodes of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from factories import make_site
from federations import free_port, records, text, until
from organisations import NAMES, federation, give_problems
from small_runs import write_toml
from typer.testing import CliRunner

from fedrlvr.cli.superlink import superlink
from fedrlvr.deployment.site import socket as channel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def running(log: Path, environment: Mapping[str, str], *arguments: object) -> Iterator[None]:
    """`fedrlvr ARGUMENTS` as a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "fedrlvr", *map(str, arguments)]
    with log.open("ab") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            yield
        finally:
            process.terminate()


def shows(log: Path, words: str) -> bool:
    return words in text(log)


def test_flwr_run_in_a_clone_trains_a_federation(model: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    config = federation(model, tmp_path / "problems", tmp_path / "run", train={"rounds": 1})
    experiment = write_toml(tmp_path / "exp.toml", config.model_dump(mode="json", exclude_unset=True))
    give_problems(config, tmp_path / "sites")
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    hub, log = tmp_path / "hub", tmp_path / "hub.log"
    assert CliRunner().invoke(superlink, ["init", str(hub), "--address", address, "--insecure"]).exit_code == 0
    sites = [
        make_site(
            tmp_path / "sites" / name,
            superlink=address,
            insecure=True,
            port=free_port(),
            tasks={"main": {"name": "jsonl", "path": "problems", "instruction": "", "reward": "small_runs:parity"}},
            models={model.name: str(model)},
            machine={"device": "cpu"},
            engine={"threads": 1},
        )
        for name in NAMES
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(log, environment, "superlink", "run", hub))
        until(partial(shows, log, "Uvicorn running"), partial(text, log))
        for site in sites:
            stack.callback(channel.stop, site)
            console = site.directory / "console.log"
            stack.enter_context(running(console, environment, "site", "run", site.directory))
            until(partial(shows, console, "SuperNode ID"), partial(text, console))
        done = subprocess.run(
            [
                Path(sys.executable).with_name("flwr"),
                *("run", ".", "fedrlvr", "--stream"),
                *("--run-config", f'experiment="{experiment}" wait=60.0 insecure=true'),
            ],
            cwd=ROOT,
            env={**environment, "FLWR_HOME": str(hub / "flower"), "FLWR_DISABLE_UPDATE_CHECK": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = done.stdout + done.stderr + text(log)
        assert [record["round"] for record in records(tmp_path / "run")] == [0, 1], said
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
