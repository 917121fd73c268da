"""Federations that share a cohort come out as they would have alone, however the sweep is run or interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import largest_gap
from small_runs import CLIENTS, Configs, without_seconds, write_problems, write_toml
from test_resume import Stop, StopAfter

import fedrlvr
from fedrlvr.adapter import Adapter
from fedrlvr.client.request import batches
from fedrlvr.config import Config, TrainConfig, parse_config
from fedrlvr.errors import CheckpointError, ConfigError, DataError, GradingError, RoundError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import load_peft
from fedrlvr.reporting.observer import Event, Observer, PhaseStarted, RunFailed, StepEnded, SweepStarted
from fedrlvr.simulation.run import run
from fedrlvr.simulation.sweep import sweep
from fedrlvr.simulation.sweep_plan import Plan, plan
from fedrlvr.tasks import Problem
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.wire.messages import EvaluateRequest, TrainRequest

Planner = Callable[..., Plan]
Graded = Counter[tuple[str, str, tuple[str, ...]]]

WEIGHTS = "aggregation.weights=examples,equal"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of which ann has 3 and the others 8, so that the weights of clients matter."""
    directory = write_problems(tmp_path_factory.mktemp("uneven"))
    lines = (directory / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (directory / "train.jsonl").write_text("".join(lines[:3] + lines[8:]), "utf-8")
    return directory


@pytest.fixture(scope="module")
def changes(uneven: Path) -> dict[str, Mapping[str, Any]]:
    """The settings that the runs of this file have in common: greater steps would let rounding grow."""
    return {"data": {"path": str(uneven)}, "train": {"learning_rate": 1e-3}}


@pytest.fixture
def planned(configured: Configs, changes: dict[str, Mapping[str, Any]], tmp_path: Path) -> Planner:
    """A plan in tmp_path/sweep."""

    def make(*vary: str, seeds: int = 2, overrides: Sequence[str] = ()) -> Plan:
        toml = write_toml(tmp_path / "exp.toml", configured(None, **changes))
        return plan(toml, overrides, vary, seeds=seeds, directory=tmp_path / "sweep")

    return make


@pytest.fixture(scope="module")
def alone(
    configured: Configs, changes: dict[str, Mapping[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The directory of a run of its own, made when it is first asked for, or again if it is to be watched."""
    made: dict[str, Path] = {}

    def make(seed: int, *, watched: bool = False, **more: Mapping[str, Any]) -> Path:
        key = repr((seed, more))
        if watched or key not in made:
            made[key] = directory = tmp_path_factory.mktemp("alone") / "run"
            sections = {name: {**changes.get(name, {}), **more.get(name, {})} for name in {*changes, *more}}
            sections["run"] = {"seed": seed, "directory": str(directory)}
            fedrlvr.run(configured(directory, **sections))
        return made[key]

    return make


def adapters(directory: Path) -> list[Adapter]:
    files = sorted((directory / "adapter").rglob("adapter_config.json"))
    assert files
    return [load_peft(file.parent) for file in files]


def rounded(value: Any) -> Any:
    """Numbers that differ in their last digits only come out equal, or at least comparable by approx."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def same(directory: Path, reference: Path) -> None:
    """All that a run leaves behind, to rounding."""
    records, expected = without_seconds(directory), without_seconds(reference)
    assert len(records) == len(expected)
    for line, other in zip(records, expected, strict=True):
        assert line == rounded(other)
    for adapter, other in zip(adapters(directory), adapters(reference), strict=True):
        assert largest_gap(adapter, other) < 3e-5
    names = {str(path.relative_to(reference)) for path in reference.rglob("*")}
    assert {str(path.relative_to(directory)) for path in directory.rglob("*")} == names
    assert (directory / "holdings.json").read_text("utf-8") == (reference / "holdings.json").read_text("utf-8")
    configs = [json.loads((place / "config.json").read_text("utf-8")) for place in (directory, reference)]
    for config in configs:
        del config["run"]["directory"]
    assert configs[0] == configs[1]


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> Graded:
    """Every group of samples that was graded: whose, of which problem, and its texts."""
    seen: Graded = Counter()
    real = ClientData.grade

    def grade(self: ClientData, problem: Problem, completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
        seen[self.name, problem.id, tuple(completions)] += 1
        return real(self, problem, completions, finished)

    monkeypatch.setattr(ClientData, "grade", grade)
    return seen


@pytest.fixture
def seated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of clients that were seated together, at each call."""
    counts: list[int] = []
    real = Cohort.seat

    def seat(self: Cohort, adapters: Mapping[str, Adapter], *changes: Mapping[str, Adapter]) -> None:
        counts.append(len(adapters))
        real(self, adapters, *changes)

    monkeypatch.setattr(Cohort, "seat", seat)
    return counts


def test_two_arms_of_two_seeds_are_what_four_runs_are_alone(
    planned: Planner, alone: Callable[..., Path], graded: Graded, seated: list[int]
) -> None:
    result = sweep(planned(WEIGHTS))
    assert result.failures == {}
    assert set(seated[1:]) == {2 * 2 * len(CLIENTS)}, "all rows of one cohort, after the check"
    together = Counter(graded)
    graded.clear()
    for arm in ("examples", "equal"):
        for seed in (3, 4):
            reference = alone(seed, watched=True, aggregation={"weights": arm})
            same(result.directory / f"weights={arm}" / f"seed-{seed}", reference)
    assert together == graded, "the same samples"
    ends = [adapters(path)[0] for path in sorted(result.directory.glob("*/seed-*"))]
    assert min(largest_gap(end, other) for i, end in enumerate(ends) for other in ends[:i]) > 1e-4, "four results"


def test_federated_and_alone_in_one_cohort(planned: Planner, alone: Callable[..., Path], seated: list[int]) -> None:
    """Arms differ in what is sent, not in what is computed; the central one has other steps and sits by itself."""
    result = sweep(planned("federation.arm=federated,local,central", seeds=1))
    result.check()
    assert set(seated[1:]) == {6, 7, 1}  # trained, evaluated, the central arm's own training
    for arm in ("federated", "local", "central"):
        same(result.directory / f"arm={arm}" / "seed-3", alone(3, federation={"arm": arm}))


def test_arms_of_other_shapes_come_one_after_the_other(
    planned: Planner, alone: Callable[..., Path], seated: list[int]
) -> None:
    result = sweep(planned("lora.rank=2,4", "train.rounds=1,2", seeds=1))
    result.check()
    assert set(seated) == {2, 6, 3}  # the checks, both lengths, and what is left when the shorter has ended
    for rank, rounds in ((2, 1), (4, 2)):
        reference = alone(3, lora={"rank": rank}, train={"rounds": rounds})
        same(result.directory / f"rank={rank},rounds={rounds}" / "seed-3", reference)


def test_one_after_another_gives_the_same(planned: Planner, seated: list[int], tmp_path: Path) -> None:
    """One federation at a time, one client at a time, and as many rows at a time as one federation's clients take."""
    together = sweep(planned(WEIGHTS, seeds=1)).directory
    shutil.move(together, tmp_path / "together")
    assert max(seated) == 6
    # 4 responses of 3 clients take 12 rows.
    for overrides, apart, most in (
        ([], True, 3),
        (["engine.cohort=false"], False, 1),
        (["engine.decode_rows=23"], False, 3),
    ):
        seated.clear()
        sweep(planned(WEIGHTS, seeds=1, overrides=overrides), apart=apart).check()
        assert max(seated[1:]) == most
        for arm in ("weights=examples/seed-3", "weights=equal/seed-3"):
            directory, reference = tmp_path / "sweep" / arm, tmp_path / "together" / arm
            assert without_seconds(directory) == [rounded(line) for line in without_seconds(reference)]
            assert largest_gap(adapters(directory)[0], adapters(reference)[0]) < 1e-5
        shutil.rmtree(tmp_path / "sweep")


def test_clients_one_at_a_time_sample_and_learn_the_same(
    alone: Callable[..., Path], graded: Graded, seated: list[int]
) -> None:
    on = alone(3, watched=True)
    assert set(seated) == {2, 3}
    together = Counter(graded)
    graded.clear()
    seated.clear()
    off = alone(3, watched=True, engine={"cohort": False})
    assert set(seated) == {2, 1}
    assert graded == together
    assert without_seconds(off) == [rounded(line) for line in without_seconds(on)]
    assert largest_gap(adapters(off)[0], adapters(on)[0]) < 1e-5


def test_what_is_computed_at_once() -> None:
    """Rows may differ in seed, round and whose adapter they start from, and a row takes one message at a time."""
    config = Config()
    train = {"round": 1, "seed": 0, "sampling": config.sampling, "steps": 2, "train": config.train}
    longer = {**train, "train": TrainConfig(problems_per_step=9)}
    evaluate = {"round": 1, "seed": 0, "sampling": config.sampling, "evaluate": config.evaluate}

    def asked(row: str, kind: type[TrainRequest | EvaluateRequest], fields: dict[str, Any], **more: Any) -> Any:
        labels = {"supervision": config.supervision} if kind is TrainRequest else {}
        return SimpleNamespace(row=row, asked=kind(**{**fields, **labels, **more}))

    a = asked("x/ann", TrainRequest, train)
    b = asked("x/bob", EvaluateRequest, evaluate)
    c = asked("y/ann", TrainRequest, train, seed=5, round=3)
    d = asked("y/bob", TrainRequest, longer)
    e = asked("x/ann", TrainRequest, train, round=2)
    f = asked("z/ann", TrainRequest, train, own_adapter=True)
    g = asked("y/bob", EvaluateRequest, evaluate, seed=5)
    h = asked("x/cyd", TrainRequest, train, steps=3)
    every = [a, b, c, d, e, f, g, h]
    assert batches(every) == [[a, c, f], [b, g], [d], [e], [h]]
    assert batches(every, together=False) == [[member] for member in every]
    assert batches([]) == []


# Going on.


def test_a_sweep_goes_on_where_each_federation_stopped(
    planned: Planner, alone: Callable[..., Path], configured: Configs, changes: dict[str, Any], seated: list[int]
) -> None:
    """Of four seeds one is finished, two stopped at different rounds and one has nothing; all end as if never so."""

    def wanted() -> Plan:
        return planned(seeds=4, overrides=["train.rounds=3"])

    train = {"rounds": 3}
    directory = wanted().directory / "as-given"
    shutil.copytree(alone(3, train=train), directory / "seed-3")
    for seed, last in ((4, 1), (5, 0)):
        run_ = {"seed": seed, "directory": str(directory / f"seed-{seed}")}
        sections = {**changes, "train": {**changes["train"], **train}, "run": run_}
        with pytest.raises(Stop):
            run(parse_config(configured(None, **sections)), observer=StopAfter(last))
    before = {path: path.read_bytes() for path in (directory / "seed-3").rglob("*") if path.is_file()}
    seated.clear()
    observer = Hearing()
    result = sweep(wanted(), observer=observer)
    result.check()
    (started,) = observer.started
    assert (started.federations, started.finished, started.rounds, started.local_steps) == (4, 1, 9, 18)
    # Rounds 2 and 1 train together, while the new one evaluates; then rounds 3, 2 and 1 together; and so on.
    assert seated[1:] == [6, 3, 9, 3, 6, 3, 3, 3]
    assert {path: path.read_bytes() for path in (directory / "seed-3").rglob("*") if path.is_file()} == before
    for seed in (4, 5, 6):
        same(directory / f"seed-{seed}", alone(seed, train=train))
    assert result.lines[0].seeds == [3, 4, 5, 6]
    seated.clear()
    again = sweep(wanted())
    assert seated == [], "nothing is left to do"
    assert again.lines == result.lines


class Interrupting(Observer):
    """Ctrl-C for the main thread: while it computes a step of seed 4, or while that federation writes its round 1."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def notify(self, event: Event) -> None:
        match self.moment, event:
            case "step", StepEnded(federation="as-given/seed-4"):
                raise KeyboardInterrupt
            case "phase", PhaseStarted(federation="as-given/seed-4", round=1, phase="checkpoint"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the suite was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("moment", "rounds"), [("step", 1), ("phase", 2)])
def test_an_interrupt_ends_everything_and_keeps_finished_rounds(
    moment: str, rounds: int, planned: Planner, alone: Callable[..., Path]
) -> None:
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        sweep(planned(), observer=Interrupting(moment))
    assert threading.active_count() == threads
    directory = planned().directory / "as-given"
    for seed in (3, 4):
        kept = sorted(path.name for path in (directory / f"seed-{seed}" / "checkpoints").iterdir())
        assert kept == ["round-0000", "round-0001"][:rounds]
    sweep(planned()).check()
    for seed in (3, 4):
        same(directory / f"seed-{seed}", alone(seed))


@pytest.mark.parametrize(
    ("now", "key"),
    [
        (["train.learning_rate=0.1"], r"train.learning_rate is 0.001 there and 0.1 here"),
        (["run.name='other'"], r"run.name"),
        (["partition.type='dirichlet'"], r"partition.type"),
    ],
)
def test_a_directory_with_runs_of_another_configuration_is_refused(now: list[str], key: str, planned: Planner) -> None:
    sweep(planned(seeds=1, overrides=["train.rounds=1"])).check()
    with pytest.raises(ConfigError, match=rf"seed-3 .*{key}"):
        planned(seeds=1, overrides=["train.rounds=1", *now])
    assert all(federation.finished for federation in planned(seeds=1, overrides=["train.rounds=1"]).federations)


# Failing.


class Hearing(Observer):
    """Keeps how a sweep started and what failed."""

    def __init__(self) -> None:
        self.started: list[SweepStarted] = []
        self.failed: list[RunFailed] = []

    def notify(self, event: Event) -> None:
        if isinstance(event, SweepStarted):
            self.started.append(event)
        elif isinstance(event, RunFailed):
            self.failed.append(event)


def test_one_whose_disk_fails_leaves_and_the_others_go_on(planned: Planner, alone: Callable[..., Path]) -> None:
    wanted = planned(seeds=3)
    place = wanted.directory / "as-given" / "seed-4"
    place.mkdir(parents=True)
    (place / "clients").write_text("in the way", "utf-8")
    observer = Hearing()
    result = sweep(wanted, observer=observer)
    assert list(result.failures) == ["as-given/seed-4"]
    error = result.failures["as-given/seed-4"]
    assert isinstance(error, CheckpointError)
    assert observer.failed == [RunFailed(str(error), federation="as-given/seed-4")]
    for seed in (3, 5):
        same(wanted.directory / "as-given" / f"seed-{seed}", alone(seed))
    assert result.lines[0].seeds == [3, 5]
    with pytest.raises(RoundError, match=r"^1 of .* as-given/seed-4: .*clients"):
        result.check()
    table = json.loads((wanted.directory / "sweep.json").read_text("utf-8"))
    assert list(table["failed"]) == ["as-given/seed-4"]
    (place / "clients").unlink()
    sweep(planned(seeds=3)).check()
    same(place, alone(4))


def test_one_whose_problems_cannot_be_graded_leaves_in_the_middle(planned: Planner, alone: Callable[..., Path]) -> None:
    """The computation they share fails because of one arm; the other is none the wiser."""
    result = sweep(planned("data.rewards=small_runs:parity,small_runs:tells_all"))
    bad = [f"rewards=small_runs-tells_all/seed-{seed}" for seed in (3, 4)]
    assert list(result.failures) == bad
    assert all(isinstance(error, GradingError) for error in result.failures.values())
    for seed in (3, 4):
        same(result.directory / "rewards=small_runs-parity" / f"seed-{seed}", alone(seed))
    with pytest.raises(RoundError, match=r"^2 of .* raised ValueError on problem"):
        result.check()


def test_one_whose_data_are_missing_never_begins(planned: Planner, uneven: Path, tmp_path: Path) -> None:
    observer = Hearing()
    result = sweep(planned(f"data.path={tmp_path / 'nowhere'},{uneven}", seeds=1), observer=observer)
    assert [type(error) for error in result.failures.values()] == [DataError]
    assert [event.federation for event in observer.failed] == list(result.failures)
    assert [line.seeds for line in result.lines] == [[], [3]]


def test_all_failing_for_one_reason_is_that_error(planned: Planner, tmp_path: Path) -> None:
    result = sweep(planned(overrides=[f"data.path={tmp_path / 'nowhere'}"]))
    assert len(result.failures) == 2
    with pytest.raises(DataError, match="nowhere"):
        result.check()
    assert not (tmp_path / "sweep").exists()


def test_a_federations_threads_compute_with_the_threads_of_the_run(planned: Planner) -> None:
    """Torch hands the number on to new threads; were that to change, sums would be rounded in another way."""
    seen: list[int] = []

    class Counting(Observer):
        def notify(self, event: Event) -> None:
            if isinstance(event, PhaseStarted):
                seen.append(torch.get_num_threads())

    sweep(planned(seeds=1, overrides=["train.rounds=1"]), observer=Counting()).check()
    assert set(seen) == {1}
