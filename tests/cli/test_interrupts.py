"""Real processes that are interrupted: the last line says what is kept, and the command it names goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import Configs, adapter_bytes, write_toml

from fedrlvr.config import parse_config
from fedrlvr.simulation.run import run

pytestmark = pytest.mark.slow

FEDRLVR = (sys.executable, "-m", "fedrlvr")
FEDERATE = """
import subprocess, sys
from fedrlvr.cli import federate
from fedrlvr.__main__ import main

def flwr(link, *arguments):
    return subprocess.CompletedProcess(arguments, 0, '{"run-id": "77"}', "")

def follow(link, *arguments):
    return subprocess.call(["sh", "-c", "echo following; exec sleep 600"])

federate.Link.flwr, federate.Link.follow = flwr, follow
main()
"""
"""`fedrlvr federate` with a Flower that takes every run and never ends one."""


class Process:
    """A command in a process group of its own, as a terminal starts it."""

    def __init__(self, command: tuple[str, ...], place: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.out, self.err = place / "out", place / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            # A test suite in the background has Ctrl-C switched off, which every process that it starts would inherit.
            self.process = subprocess.Popen(
                ("env", "--default-signal=INT", *command),
                cwd=place,
                env=environment,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )

    def wait_for(self, seen: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not seen():
            assert time.monotonic() < end, self.err.read_text("utf-8")
            assert self.process.poll() is None, self.err.read_text("utf-8")
            time.sleep(0.01)

    def stop(self, *signals: signal.Signals) -> tuple[int, str]:
        """Exit code and last line after these signals to the group."""
        for number in signals:
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)
            time.sleep(0.05)
        code = self.process.wait(60)
        errors = self.err.read_text("utf-8")
        assert "Traceback" not in errors
        return code, errors.splitlines()[-1]


def again(last: str, place: Path) -> None:
    """Run the command that the last line names, to its end."""
    words = shlex.split(last.partition("go on with: ")[2])
    assert words[0] == "fedrlvr"
    process = Process((*FEDRLVR, *words[1:], "--quiet"), place)
    assert process.process.wait(240) == 0, process.err.read_text("utf-8")


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGTERM,), 143),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGINT, signal.SIGINT, signal.SIGTERM), 130),
    ],
)
def test_an_interrupted_run_names_its_directory_and_the_command_that_goes_on(
    signals: tuple[signal.Signals, ...], code: int, configured: Configs, tmp_path: Path
) -> None:
    (tmp_path / "a b").mkdir()
    toml = write_toml(tmp_path / "exp.toml", configured(Path("a b/run"), train={"rounds": 100}))
    process = Process((*FEDRLVR, "run", str(toml)), tmp_path)
    process.wait_for((tmp_path / "a b" / "run" / "checkpoints" / "round-0001").is_dir)
    ended, last = process.stop(*signals)
    assert ended == code
    assert last == "interrupted; finished rounds are kept in a b/run; go on with: fedrlvr run --resume 'a b/run'"


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(configured: Configs, tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "exp.toml", configured(tmp_path / "run", train={"rounds": 12}))
    process = Process((*FEDRLVR, "run", str(toml), "--quiet"), tmp_path)
    process.wait_for((tmp_path / "run" / "checkpoints" / "round-0001").is_dir)
    code, last = process.stop(signal.SIGINT)
    assert code == 130
    assert not (tmp_path / "run" / "adapter").exists()
    again(last, tmp_path)
    run(parse_config(configured(tmp_path / "whole", train={"rounds": 12})))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")


def test_an_interrupted_sweep_names_the_command_that_goes_on(configured: Configs, tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "exp.toml", configured(None, train={"rounds": 6}))
    vary = ("--vary", "train.learning_rate=1e-2,1e-3", "--seeds", "2")
    process = Process((*FEDRLVR, "sweep", str(toml), *vary, "--directory", "my sweep"), tmp_path)
    first = tmp_path / "my sweep" / "learning_rate=1e-2" / "seed-3"
    process.wait_for((first / "checkpoints" / "round-0001").is_dir)  # a search of the tree would meet vanishing files
    code, last = process.stop(signal.SIGINT)
    assert code == 130
    assert last.startswith("interrupted; finished rounds are kept in my sweep; go on with: fedrlvr sweep ")
    again(last, tmp_path)
    assert (tmp_path / "my sweep" / "sweep.json").is_file()


def test_an_interrupted_evaluation_has_changed_nothing(configured: Configs, tmp_path: Path) -> None:
    changes = {"evaluate": {"samples": 256}, "sampling": {"group_size": 4, "max_new_tokens": 200}}
    toml = write_toml(tmp_path / "exp.toml", configured(None, **changes))
    process = Process((*FEDRLVR, "eval", str(toml), "--base"), tmp_path)
    process.wait_for(lambda: "libtorch" in Path(f"/proc/{process.process.pid}/maps").read_text("utf-8"))
    code, last = process.stop(signal.SIGINT)
    assert (code, last) == (130, "interrupted; nothing was changed; give the same command again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_federate_stops_following_and_says_where_the_run_is(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "exp.toml").write_text("", "utf-8")
    arguments = ("federate", "exp.toml", "--superlink", "127.0.0.1:1", "--insecure", "--set", "run.directory=a run")
    process = Process((sys.executable, "-c", FEDERATE, *arguments), tmp_path)
    process.wait_for(lambda: "following" in process.out.read_text("utf-8"))
    code, last = process.stop(number)
    assert code == 128 + number
    run = tmp_path / "a run"
    assert last.startswith(f"interrupted; the run goes on in {run}; ")
    assert last.endswith(f"fedrlvr federate --resume '{run}' --superlink 127.0.0.1:1 --insecure")
    assert "follows it again" in process.out.read_text("utf-8")


def test_a_signal_that_the_parent_has_switched_off_stays_off(configured: Configs, tmp_path: Path) -> None:
    """As `nohup` and a script's background jobs do with Ctrl-C."""
    toml = write_toml(tmp_path / "exp.toml", configured(tmp_path / "run", train={"rounds": 4}))
    command = f"trap '' INT; exec {shlex.join(FEDRLVR)} run {toml} --quiet"
    process = Process(("bash", "-c", command), tmp_path)
    process.wait_for((tmp_path / "run" / "checkpoints" / "round-0001").is_dir)
    os.killpg(process.process.pid, signal.SIGINT)
    assert process.process.wait(120) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()
