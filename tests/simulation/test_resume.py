"""A run that is killed at any moment goes on as if it never had been: the same bytes, each round once."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import (
    VARIANTS,
    Configs,
    Runs,
    adapter_bytes,
    start_command,
    without_seconds,
    write_problems,
    write_toml,
)

from fedrlvr.config import load_resolved, parse_config
from fedrlvr.errors import CheckpointError, ConfigError, DataError, FedrlvrError
from fedrlvr.reporting.observer import Event, Observer, RoundSaved
from fedrlvr.simulation.run import resume, run
from fedrlvr.tasks.deal import deal


class Stop(Exception):
    """Ends a run from within."""


class StopAfter(Observer):
    """Ends a run after a round."""

    essential = True

    def __init__(self, last: int) -> None:
        self.last = last

    def notify(self, event: Event) -> None:
        if isinstance(event, RoundSaved) and event.round == self.last:
            raise Stop


def stopped(configured: Configs, directory: Path, variant: str, after: int) -> Path:
    with pytest.raises(Stop):
        run(parse_config(configured(directory, **VARIANTS[variant])), observer=StopAfter(after))
    return directory


def same_as(directory: Path, reference: Path) -> None:
    assert adapter_bytes(directory) == adapter_bytes(reference)
    lines = without_seconds(directory)
    assert [line["round"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert lines == without_seconds(reference)
    texts = [
        {path.relative_to(root): path.read_bytes() for path in root.glob("clients/*/responses.jsonl")}
        for root in (directory, reference)
    ]
    assert texts[0]
    assert texts[0] == texts[1]
    assert list(directory.rglob(".*")) == [], "something temporary is left behind"


def wait_for(path: Path, process: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        assert process.exitcode is None, "the run ended by itself"  # type: ignore[attr-defined]
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "seed"),
    [("all", 0), ("all", 1), ("some", 2), ("local", 3), ("moments", 4)],
)
def test_kill_9_in_round_3_of_5_and_resume(
    variant: str, seed: int, finished: Runs, configured: Configs, tmp_path: Path
) -> None:
    reference = finished(variant)
    directory = tmp_path / "run"
    toml = write_toml(tmp_path / "exp.toml", configured(directory, **VARIANTS[variant]))
    process = start_command(["run", str(toml), "--quiet"], tmp_path / "out")
    wait_for(directory / "checkpoints" / "round-0002", process)
    # At most as long as round 2 took, and some for what is written after it: sampling, learning and writing are hit.
    seconds = json.loads((directory / "metrics.jsonl").read_text("utf-8").splitlines()[2])["seconds"]
    time.sleep(random.Random(seed).random() * (sum(seconds.values()) + 0.02))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "out").read_text("utf-8")
    assert not (directory / "adapter").exists()

    process = start_command(["run", "--resume", str(directory), "--quiet"], tmp_path / "out")
    process.join()
    assert process.exitcode == 0, (tmp_path / "out").read_text("utf-8")
    same_as(directory, reference)


@pytest.mark.parametrize(("variant", "after"), [("pubswap", 0), ("flora", 0), *((variant, 3) for variant in VARIANTS)])
def test_a_run_that_stopped_between_rounds_goes_on(
    variant: str, after: int, finished: Runs, configured: Configs, tmp_path: Path
) -> None:
    resume(stopped(configured, tmp_path / "run", variant, after))
    same_as(tmp_path / "run", finished(variant))


def test_a_run_may_be_stopped_more_than_once(finished: Runs, configured: Configs, tmp_path: Path) -> None:
    directory = stopped(configured, tmp_path / "run", "some", 1)
    for last in (2, 4):
        with pytest.raises(Stop):
            resume(directory, observer=StopAfter(last))
    resume(directory)
    same_as(directory, finished("some"))


@pytest.mark.parametrize("variant", ["all", "local"])
def test_killed_after_the_line_and_before_the_memories(
    variant: str, finished: Runs, configured: Configs, tmp_path: Path
) -> None:
    directory = stopped(configured, tmp_path / "run", variant, 3)
    for path in (directory / "checkpoints" / "round-0003", *directory.glob("clients/*/round-0003")):
        shutil.rmtree(path)
    resume(directory)
    same_as(directory, finished(variant))


@pytest.mark.parametrize("variant", ["all", "local"])
def test_killed_after_one_memory_and_before_the_checkpoint(
    variant: str, finished: Runs, configured: Configs, tmp_path: Path
) -> None:
    directory = stopped(configured, tmp_path / "run", variant, 3)
    shutil.rmtree(directory / "checkpoints" / "round-0003")
    shutil.rmtree(directory / "clients" / "cyd" / "round-0003")
    half_written = directory / "clients" / "cyd" / ".round-0003.tmp"
    half_written.mkdir()
    (half_written / "memory.packed").write_bytes(b"cut")
    resume(directory)
    same_as(directory, finished(variant))


def test_killed_in_the_middle_of_a_line(finished: Runs, configured: Configs, tmp_path: Path) -> None:
    directory = stopped(configured, tmp_path / "run", "all", 3)
    shutil.rmtree(directory / "checkpoints" / "round-0003")
    path = directory / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    resume(directory)
    same_as(directory, finished("all"))


def test_killed_before_anything_was_checkpointed(finished: Runs, configured: Configs, tmp_path: Path) -> None:
    directory = stopped(configured, tmp_path / "run", "all", 0)
    shutil.rmtree(directory / "checkpoints")
    shutil.rmtree(directory / "clients")
    resume(directory)
    same_as(directory, finished("all"))


@pytest.mark.report
def test_resume_of_a_finished_run_changes_nothing_and_succeeds(finished: Runs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished("all"), directory)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    resume(directory)
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert set(after) == set(before)
    # The report and the configuration carry the run's directory, which is another one; all else is as it was.
    assert {path.name for path in before if before[path] != after[path]} <= {"report.html", "config.json"}


@pytest.mark.report
def test_resume_writes_what_a_finished_run_lost(finished: Runs, tmp_path: Path) -> None:
    for variant in ("all", "local"):
        directory = tmp_path / variant
        shutil.copytree(finished(variant), directory)
        shutil.rmtree(directory / "adapter")
        (directory / "report.html").unlink()
        resume(directory)
        same_as(directory, finished(variant))
        assert (directory / "report.html").stat().st_size > 1000


def test_a_metrics_file_that_lacks_a_round_is_not_gone_on_with(configured: Configs, tmp_path: Path) -> None:
    directory = stopped(configured, tmp_path / "run", "all", 2)
    path = directory / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    for kept in (lines[:1] + lines[2:], [*lines, lines[1]]):
        path.write_text("".join(kept), "utf-8")
        with pytest.raises(CheckpointError, match=r"metrics.jsonl .*rounds 0 to 2"):
            resume(directory)
    path.write_text(lines[0] + "{]\n" + lines[2], "utf-8")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 2"):
        resume(directory)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl cannot be read"):
        resume(directory)


def test_a_finished_run_goes_on_for_longer(finished: Runs, configured: Configs, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(parse_config(configured(directory, train={"rounds": 3})))
    resume(directory, ["train.rounds=5"])
    assert load_resolved(directory / "config.json").train.rounds == 5
    assert adapter_bytes(directory) == adapter_bytes(finished("all"))
    # Round 3 was evaluated as the last one; all else is what a run of five rounds writes.
    assert [{**line, "evaluate": None} for line in without_seconds(directory) if line["round"] != 3] == [
        {**line, "evaluate": None} for line in without_seconds(finished("all")) if line["round"] != 3
    ]
    before = adapter_bytes(directory)
    for override in ("train.rounds=4", "run.seed=1", "train=3"):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            resume(directory, [override])
    assert adapter_bytes(directory) == before


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("all", "moments")])
def test_a_longer_run_is_one_of_that_length(variant: str, finished: Runs, configured: Configs, tmp_path: Path) -> None:
    """For every method whose learning rate is constant."""
    changes = {**VARIANTS[variant], "train": {**VARIANTS[variant]["train"], "rounds": 3}}
    run(parse_config(configured(tmp_path / "run", **changes)))
    resume(tmp_path / "run", ["train.rounds=5"])
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(finished(variant))


def test_relative_paths_mean_the_directory_that_the_run_was_started_from(
    model: Path, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "start" / "llm").symlink_to(model)
    write_problems(tmp_path / "start" / "data")
    tree = configured(Path("runs/first"))
    tree["model"]["name"] = "llm"
    tree["data"]["path"] = "data"
    monkeypatch.chdir(tmp_path / "start")
    with pytest.raises(Stop):
        run(parse_config(tree), observer=StopAfter(1))
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(Path("../start/runs/first"))
    assert (tmp_path / "start" / "runs" / "first" / "adapter" / "adapter_model.safetensors").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "holdings.json", "checkpoints/round-0001/state.json"])
@pytest.mark.parametrize("text", ["[" * 200_000 + "\n", '{"a": ' * 200_000 + "\n"])
def test_a_file_of_brackets_is_an_error_of_ours(file: str, text: str, configured: Configs, tmp_path: Path) -> None:
    directory = stopped(configured, tmp_path / "run", "all", 1)
    (directory / file).write_text(text, "utf-8")
    if file == "holdings.json":  # its digest alone is needed, and it is written again
        resume(directory)
    else:
        with pytest.raises(FedrlvrError, match=f"{file.split('/')[-1]}.*nested|round-0001 .*nested"):
            resume(directory)


def test_a_directory_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        resume(tmp_path)
    with pytest.raises(ConfigError, match="not a run directory"):
        resume(tmp_path / "nowhere")


def test_a_run_is_not_started_over_another(finished: Runs, configured: Configs) -> None:
    before = adapter_bytes(finished("all"))
    with pytest.raises(ConfigError, match="already holds a run"):
        run(parse_config(configured(finished("all"))))
    assert adapter_bytes(finished("all")) == before


def test_the_public_set_is_part_of_what_a_run_is_known_by(configured: Configs, tmp_path: Path) -> None:
    dealt = deal(parse_config(configured(tmp_path, data={"public_size": 3})))
    assert len(dealt.public) == 3
    changed = replace(dealt, public=[*dealt.public[:2], replace(dealt.public[2], answer="another")])
    assert changed.digest != dealt.digest
    assert replace(dealt, public=[]).digest != dealt.digest


def test_resume_refuses_problems_that_changed(configured: Configs, tmp_path: Path) -> None:
    data = write_problems(tmp_path / "data")
    directory = tmp_path / "run"
    tree = configured(directory)
    run(parse_config({**tree, "data": {**tree["data"], "path": str(data)}}))
    changed = (data / "train.jsonl").read_text("utf-8").replace('"answer": "1"', '"answer": "2"')
    (data / "train.jsonl").write_text(changed, "utf-8")
    with pytest.raises(DataError, match="not those the run was started with"):
        resume(directory)
