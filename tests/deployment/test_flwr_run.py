"""`flwr run .` in a clone of the project, against a SuperLink and SuperNodes of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from factories import FLOORS_OFF, make_site
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


def test_flwr_run_in_a_clone_trains_a_federation_and_both_sides_name_what_a_site_keeps_back(
    model: Path, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    config = federation(model, tmp_path / "problems", tmp_path / "run", train={"rounds": 1})
    tree = config.model_dump(mode="json", exclude_unset=True)
    tree["federation"]["quorum"] = 0.5
    experiment = write_toml(tmp_path / "exp.toml", tree)
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
            tasks={
                "main": {
                    "name": "jsonl",
                    "path": "problems",
                    "prompt": {"instruction": ""},
                    "rewards": "small_runs:parity",
                }
            },
            models={model.name: str(model)},
            machine={"device": "cpu"},
            engine={"threads": 1},
            limits=FLOORS_OFF | ({} if name == "ann" else {"message_types": ["train"], "least_tokens": 10_000}),
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
        rounds = records(tmp_path / "run")
        assert [record["round"] for record in rounds] == [0, 1], said
        # What bob refuses and what it keeps back is named in its log, in the server's, and in the record.
        for record, how, limit in zip(rounds, ("refused", "withheld"), ("message_types", "least_tokens"), strict=True):
            (client,) = record["left_out"]
            assert (client, f"limits.{limit}" in record["left_out"]["bob"]) == ("bob", True), said
            assert f"limits.{limit}" in said
            assert re.search(rf"round {record['round']}: {how}: .*limits\.{limit}", text(sites[1].log))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
