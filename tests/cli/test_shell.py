"""Real processes as a shell starts them: from other directories, side by side, without streams, without room."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import Configs, adapter_bytes, write_problems, write_toml

pytestmark = pytest.mark.slow

FEDRLVR = f"{sys.executable} -m fedrlvr"
REWARD = """
def score(completion, answer, **info):
    return float(sum(map(ord, completion)) % 2 == 0)
"""


def shell(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which FEDRLVR is the command."""
    tests = [path for path in sys.path if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(tests)}
    command = f"set -o pipefail; FEDRLVR={shlex.quote(FEDRLVR)}; {command}"
    return subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def test_a_run_is_opened_from_any_directory_after_it_was_moved(
    model: Path, configured: Configs, tmp_path: Path
) -> None:
    """Data, model, own reward, starting adapter and the configuration itself have paths relative to the start."""
    start, elsewhere = tmp_path / "start", tmp_path / "else where"
    start.mkdir()
    elsewhere.mkdir()
    (start / "llm").symlink_to(model)
    write_problems(start / "data")
    (start / "my_reward.py").write_text(REWARD, "utf-8")
    tree = configured(Path("runs/first"), train={"rounds": 1})
    tree["model"]["name"], tree["data"]["path"], tree["data"]["rewards"] = "llm", "data", "my_reward:score"
    first = write_toml(start / "exp.toml", tree)
    tree["model"]["adapter"], tree["run"]["directory"] = "runs/first/checkpoints/round-0001", "runs/second"
    text = write_toml(start / "secönd.toml", tree).read_bytes()
    (start / "secönd.toml").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    done = shell(f"$FEDRLVR run {first.name} --quiet && $FEDRLVR run secönd.toml --quiet && rm -r runs/first", start)
    assert done.returncode == 0, done.stderr
    (start / "runs" / "second").rename(start / "runs" / "moved on")
    done = shell(
        "R='../start/runs/moved on'; $FEDRLVR run --resume \"$R\" --set train.rounds=2 --quiet && "
        '$FEDRLVR eval "$R" && $FEDRLVR export "$R/checkpoints/round-0002" out',
        elsewhere,
    )
    assert done.returncode == 0, done.stderr
    exported = (elsewhere / "out" / "adapter_model.safetensors").read_bytes()
    assert adapter_bytes(start / "runs" / "moved on") == {"adapter_model.safetensors": exported}
    assert [path.name for path in elsewhere.iterdir()] == ["out"]


def test_a_second_process_on_a_run_or_sweep_is_refused_and_the_first_is_whole(
    configured: Configs, tmp_path: Path
) -> None:
    toml = write_toml(tmp_path / "exp.toml", configured(None, train={"rounds": 1}))
    assert shell(f"$FEDRLVR run {toml} --quiet --set run.directory=a", tmp_path).returncode == 0
    for name, command in (
        ("resume", "run --resume a --set train.rounds=8 --quiet"),
        ("sweep", f"sweep {toml} --seeds 2 --directory s --quiet"),
    ):
        both = f"(for i in 1 2; do ($FEDRLVR {command} 2>{name}-$i; echo $? >{name}-$i.code) & done; wait)"
        shell(both, tmp_path)
        codes = sorted(path.read_text("utf-8").strip() for path in tmp_path.glob(f"{name}-?.code"))
        errors = "".join((tmp_path / f"{name}-{i}").read_text("utf-8") for i in (1, 2))
        # The slower process may find the work done. Whatever it finds, it never works beside the other.
        assert codes[0] == "0", errors
        assert codes == ["0", "0"] or "another process" in errors, errors
    rounds = [json.loads(line)["round"] for line in (tmp_path / "a" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert rounds == list(range(9))
    assert len(list((tmp_path / "s").rglob("adapter_model.safetensors"))) == 2


def test_a_run_under_way_is_evaluated_exported_and_started_from(configured: Configs, tmp_path: Path) -> None:
    """Its checkpoints are deleted meanwhile: what is asked for by the run's directory is read all the same."""
    tree: dict[str, Any] = configured(tmp_path / "run", train={"rounds": 400}, run={"keep_checkpoints": 2, "seed": 3})
    tree["run"]["directory"] = str(tmp_path / "run")
    toml = write_toml(tmp_path / "exp.toml", tree)
    done = shell(
        f"$FEDRLVR run {toml} --quiet & RUN=$!; trap 'kill -9 $RUN' EXIT; "
        "until [ -d run/checkpoints/round-0002 ]; do sleep 0.1; done; "
        "$FEDRLVR eval run && $FEDRLVR export run out && "
        f"$FEDRLVR run {toml} --quiet --set run.directory=next --set model.adapter=run --set train.rounds=1 && "
        "kill -0 $RUN && ! $FEDRLVR eval run/checkpoints/round-0000",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "run.keep_checkpoints" in done.stderr.splitlines()[-1]
    assert (tmp_path / "next" / "adapter" / "adapter_config.json").is_file()


def test_commands_need_no_streams_and_a_full_disk_loses_no_round(configured: Configs, tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "exp.toml", configured(tmp_path / "run", train={"rounds": 2}))
    done = shell(f"$FEDRLVR run {toml} <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    done = shell("$FEDRLVR eval run <&- | head -1", tmp_path)
    assert (done.returncode, done.stdout) == (0, "round 2 of 2\n"), done.stderr
    for command in ("export run out", "export run out --merged"):
        done = shell(f"ulimit -f 8; $FEDRLVR {command}", tmp_path)
        assert done.returncode == 1
        assert "out" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert list(tmp_path.glob("*out*")) == [], "half a directory is left"
