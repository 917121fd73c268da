"""Checkpoints are whole or absent, damage is named with its way out, and a full disk costs no finished round."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_adapter
from fakes import contexts
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from small_runs import VARIANTS, Configs, Runs, adapter_bytes, start_command, without_seconds, write_toml

from fedrlvr import files
from fedrlvr.config import parse_config
from fedrlvr.errors import CheckpointError, ReleaseError
from fedrlvr.reporting.observer import Event, Observer, RoundSaved
from fedrlvr.server.checkpoint import ADAPTER, MEMORY, Checkpoint, Checkpoints
from fedrlvr.simulation.run import resume, run


def saved(directory: Path, rounds: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep)
    for round_ in range(rounds):
        checkpoints.save(Checkpoint(round_, make_adapter(float(round_)), {"note": [round_, None, "x"]}))
    return checkpoints


def test_what_is_loaded_is_what_was_saved_in_the_models_order(tmp_path: Path) -> None:
    loaded = saved(tmp_path, 3).load()
    assert loaded is not None
    assert (loaded.round, loaded.strategy) == (2, {"note": [2, None, "x"]})
    assert list(loaded.adapter.layers) == ["up", "down"], "not the alphabet's"
    loaded.adapter.check_like(make_adapter(0.0), place="the loaded one")
    assert all(bool((tensor == 2).all()) for _, tensor in loaded.adapter.tensors())


def test_shared_probes_are_loaded_bit_by_bit_beside_the_adapter(tmp_path: Path) -> None:
    probes = torch.tensor([0.1, -0.0, 1e-45, 3e38])
    checkpoints = Checkpoints(tmp_path, 2)
    change = make_adapter(3.0).at_rank(2)
    for probed in (probes, None):
        checkpoints.save(Checkpoint(1, make_adapter(1.0), {}, {"change": change}, probed))
        loaded = checkpoints.load()
        assert loaded is not None
        assert list(loaded.adapter.layers) == ["up", "down"]
        assert list(loaded.updates) == ["change"]
        assert list(loaded.updates["change"].layers) == ["up", "down"]
        if probed is None:
            assert loaded.probes is None
        else:
            assert loaded.probes is not None
            assert torch.equal(loaded.probes.view(torch.int32), probes.view(torch.int32))


def test_the_newest_are_kept_and_none_before_any(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 2).load() is None
    assert saved(tmp_path, 5, keep=3).rounds() == [2, 3, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [f"round-000{i}" for i in (2, 3, 4)]


def test_a_memory_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints, by_name = Checkpoints(tmp_path, 2), {"ann": contexts([1])[1], "bob": contexts([2])[2]}
    state = by_name["ann"].state
    state["fedrlvr"] = ConfigRecord({"cursor": 5, "steps": 2})
    arrays = {"z": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7), "m": torch.tensor([1.5], dtype=torch.float64)}
    state["moments"] = ArrayRecord(arrays)
    state["empty"] = ArrayRecord()
    state["metrics"] = MetricRecord({"loss": 0.5})
    checkpoints.save_memories(4, by_name)
    memory = checkpoints.load_memory(4, "ann")
    assert dict(memory.config_records["fedrlvr"]) == {"cursor": 5, "steps": 2}
    back = memory.array_records["moments"].to_torch_state_dict()
    assert list(back) == ["z", "a", "m"]
    for name, tensor in arrays.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert list(memory.array_records["empty"]) == []
    assert dict(memory.metric_records["metrics"]) == {"loss": 0.5}
    assert len(checkpoints.load_memory(4, "bob")) == 0


def failing(*errors: Exception | None) -> Callable[..., Any]:
    """Stands in for a function that fails in the calls for which an error is given, and then always with the last."""
    queue = list(errors)

    def call(real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            error = queue.pop(0) if len(queue) > 1 else queue[0]
            if error is not None:
                raise error
            return real(*args, **kwargs)

        return stand_in

    return call


FULL = OSError(errno.ENOSPC, "No space left on device")


def fill(patch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """A disk that is full once so many files of a name have been written."""
    real = Path.write_bytes
    failing_later = failing(*[None] * calls, FULL)(real)
    patch.setattr(Path, "write_bytes", lambda p, data: (failing_later if name in p.name else real)(p, data))


@pytest.mark.parametrize("where", ["write", "sync"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones_and_nothing_else(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 2)
    if where == "write":
        fill(monkeypatch, ADAPTER, 0)
    else:
        monkeypatch.setattr(files, "sync", failing(FULL)(files.sync))
    with pytest.raises(CheckpointError, match=r"round-0002 .*No space left") as caught:
        checkpoints.save(Checkpoint(2, make_adapter(9.0), {}))
    assert "Earlier rounds are intact" in str(caught.value)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["round-0000", "round-0001"]
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.round == 1


def damage_adapter(directory: Path) -> None:
    path = directory / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate_adapter(directory: Path) -> None:
    path = directory / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def change_state(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "state.json"
        state = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({k: v for k, v in {**state, **changes}.items() if v is not ...}), "utf-8")

    return change


@pytest.mark.parametrize(
    "damage",
    [
        damage_adapter,
        truncate_adapter,
        lambda d: (d / "adapter.safetensors").unlink(),
        lambda d: (d / "state.json").unlink(),
        lambda d: (d / "state.json").write_text("{"),
        lambda d: (d / "state.json").write_text("[]"),
        lambda d: (d / "state.json").write_bytes(b"\xff"),
        change_state(round=1),
        change_state(sha256={ADAPTER: "0"}),
        change_state(sha256="0"),
        change_state(alpha=...),
        change_state(alpha="much"),
        change_state(order=...),
        change_state(order=["up.A"]),
        change_state(order=["up.A", "nobody.A"]),
        change_state(strategy=3),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_round_before_it_is_the_way_out(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path, 3)
    newest = tmp_path / "checkpoints" / "round-0002"
    damage(newest)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load()
    assert f"{newest} is damaged" in str(caught.value)
    assert f"Delete {newest} to go on from the round before it" in str(caught.value)
    shutil.rmtree(newest)
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.round == 1


def test_a_run_of_another_release_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    change_state(format=...)(tmp_path / "checkpoints" / "round-0000")
    with pytest.raises(ReleaseError, match=r"round-0000 .*0\.6\.0"):
        checkpoints.load()


class Stop(Exception):
    """Ends a run from within."""


class StopAfter(Observer):
    """Ends a run after a round."""

    essential = True

    def notify(self, event: Event) -> None:
        if isinstance(event, RoundSaved) and event.round == 3:
            raise Stop


@pytest.fixture
def half_done(configured: Configs, tmp_path: Path) -> Path:
    """A run of the arm `local` that stopped after round 3 of 5."""
    with pytest.raises(Stop):
        run(parse_config(configured(tmp_path / "run", **VARIANTS["local"])), observer=StopAfter())
    return tmp_path / "run"


@pytest.mark.parametrize("how", ["cut", "gone", "json"])
def test_a_damaged_memory_is_named_and_its_way_out_leads_to_the_same_end(
    how: str, half_done: Path, finished: Runs
) -> None:
    memory, checkpoint = half_done / "clients" / "bob" / "round-0003", half_done / "checkpoints" / "round-0003"
    if how == "gone":
        shutil.rmtree(memory)
    else:
        name = {"cut": "memory.packed", "json": "memory.json"}[how]
        (memory / name).write_bytes((memory / name).read_bytes()[:-9])
    with pytest.raises(CheckpointError) as caught:
        resume(half_done)
    assert str(memory) in str(caught.value)
    assert f"elete {checkpoint} to go on from the round before it" in str(caught.value)
    shutil.rmtree(checkpoint)
    resume(half_done)
    assert adapter_bytes(half_done) == adapter_bytes(finished("local"))
    assert without_seconds(half_done) == without_seconds(finished("local"))


def test_a_checkpoint_of_another_model_is_refused(half_done: Path) -> None:
    Checkpoints(half_done, 3).save(Checkpoint(4, make_adapter(0.0), {}))
    for client in (half_done / "clients").iterdir():
        shutil.copytree(client / "round-0003", client / "round-0004")
    with pytest.raises(Exception, match=r"round 4: .*layers"):
        resume(half_done)


def fill_memory(patch: pytest.MonkeyPatch) -> None:
    # Rounds 0 to 2 write three memories each; of round 3 one memory is written, and no second.
    fill(patch, MEMORY, 10)


def fill_checkpoint(patch: pytest.MonkeyPatch) -> None:
    fill(patch, ADAPTER, 3)


class HalfLine:
    """A file on a disk with room for twenty characters more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> HalfLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        self.file.write(text[:20])
        raise FULL


def fill_line(patch: pytest.MonkeyPatch) -> None:
    real, lines = Path.open, iter(range(6))

    def open_(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = real(path, mode, *rest, **options)
        return HalfLine(file) if path.name == "metrics.jsonl" and mode == "a" and next(lines) == 3 else file

    patch.setattr(Path, "open", open_)


def fill_export(patch: pytest.MonkeyPatch) -> None:
    fill(patch, "adapter_model", 0)


@pytest.mark.parametrize(("broken", "done"), [(fill_memory, 2), (fill_checkpoint, 2), (fill_line, 2), (fill_export, 5)])
@pytest.mark.parametrize("variant", ["local", "pubswap"])
def test_a_disk_that_fills_up_ends_the_run_in_one_sentence_and_resume_finishes_it(
    variant: str,
    broken: Callable[[pytest.MonkeyPatch], None],
    done: int,
    finished: Runs,
    configured: Configs,
    tmp_path: Path,
) -> None:
    directory = tmp_path / "run"
    finished(variant)  # made before anything is broken
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        with pytest.raises(CheckpointError, match=r"cannot be written .*No space left on device"):
            run(parse_config(configured(directory, **VARIANTS[variant])))
    assert not (directory / "adapter").exists()
    checkpoint = Checkpoints(directory, 3).load()
    assert checkpoint is not None
    assert checkpoint.round == done
    resume(directory)
    assert adapter_bytes(directory) == adapter_bytes(finished(variant))
    assert without_seconds(directory) == without_seconds(finished(variant))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "largest", "file"),
    [({}, 6_000, "round-0000"), ({"lora": {"rank": 1, "targets": ["q_proj"]}}, 5_000, "metrics.jsonl")],
)
def test_the_operating_system_refuses_to_write_more_than_so_many_bytes(
    changes: dict[str, Any], largest: int, file: str, configured: Configs, tmp_path: Path
) -> None:
    """With adapters of 20 kB the first checkpoint does not fit; with small ones the third or fourth line of metrics."""
    run(parse_config(configured(tmp_path / "reference", **VARIANTS["all"], **changes)))
    directory = tmp_path / "run"
    toml = write_toml(tmp_path / "exp.toml", configured(directory, **VARIANTS["all"], **changes))
    process = start_command(["run", str(toml), "--quiet"], tmp_path / "out", largest_file=largest)
    process.join()
    said = (tmp_path / "out").read_text("utf-8")
    assert process.exitcode == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"{file} cannot be written (" in last
    assert "File too large" in last
    assert "--resume" in last
    assert "Traceback" not in said
    if file == "metrics.jsonl":
        assert Checkpoints(directory, 3).rounds()[-1] >= 1
        assert (directory / file).stat().st_size == largest, "the line was cut by the limit"
    process = start_command(["run", "--resume", str(directory), "--quiet"], tmp_path / "out")
    process.join()
    assert process.exitcode == 0, (tmp_path / "out").read_text("utf-8")
    assert adapter_bytes(directory) == adapter_bytes(tmp_path / "reference")
    assert without_seconds(directory) == without_seconds(tmp_path / "reference")
