"""A run's directory and its checkpoints, opened to be evaluated, exported and started from, with every LoRA rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Configs, adapter_bytes, write_problems

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import RULES
from fedrlvr.aggregation.stacking import update
from fedrlvr.config import parse_config
from fedrlvr.errors import AdapterError, CheckpointError, ConfigError
from fedrlvr.files import atomic_bytes
from fedrlvr.policy.peft_format import load_peft, save_peft
from fedrlvr.server.checkpoint import Checkpoints, read_checkpoint
from fedrlvr.server.metrics_log import read_metrics, scores_json
from fedrlvr.server.saved_adapter import SavedRun, load_adapter, open_run, whole
from fedrlvr.simulation.evaluate import evaluate, evaluate_run
from fedrlvr.simulation.run import resume, run

Changes = Mapping[str, Mapping[str, Any]]
RANKS = {"ann": 2, "bob": 4, "cyd": 1}
EVERY_ROUND: Changes = {"train": {"rounds": 3}, "evaluate": {"every": 1}, "run": {"keep_checkpoints": 4, "seed": 3}}
ARMS: dict[str, Changes] = {
    **{rule: {"aggregation": {"type": rule}} for rule in RULES},
    "fedex pubswap": {
        "data": {"public_size": 6},
        "coordination": {"type": "pubswap", "public_problems": 2},
        "aggregation": {"type": "fedex", "precision": "float16"},
    },
    "rolora int8": {"federation": {"fraction": 0.6}, "aggregation": {"type": "rolora", "precision": "int8"}},
    "flora mixed": {"lora": {"rank": RANKS}, "aggregation": {"type": "flora"}},
    "hetlora mixed": {"lora": {"rank": RANKS}, "aggregation": {"type": "hetlora"}},
    "local": {"federation": {"arm": "local"}},
    "local mixed": {"federation": {"arm": "local"}, "lora": {"rank": RANKS}},
    "central": {"federation": {"arm": "central"}},
    "care": {"supervision": {"type": "care", "share_probes": True, "vote_free_share": 0}},
}
Sources = Callable[[str], Path]


@pytest.fixture(scope="module")
def source(configured: Configs, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The finished run of three rounds of an arm, each evaluated, with all checkpoints."""
    made: dict[str, Path] = {}
    problems = write_problems(tmp_path_factory.mktemp("more"), test=16)

    def make(arm: str) -> Path:
        if arm not in made:
            directory = tmp_path_factory.mktemp("source") / "run"
            changes = {
                section: {**EVERY_ROUND.get(section, {}), **ARMS[arm].get(section, {})}
                for section in {*EVERY_ROUND, *ARMS[arm]}
            }
            changes["data"] = {"path": str(problems), **changes.get("data", {})}
            changes["run"] = {**changes["run"], "directory": str(directory)}
            run(parse_config(configured(directory, **changes)))
            made[arm] = directory
        return made[arm]

    return make


def written(directory: Path, round_: int) -> Any:
    return read_metrics(directory)[round_]["evaluate"]


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_and_its_checkpoints_have_the_scores_that_the_run_wrote(arm: str, source: Sources) -> None:
    directory = source(arm)
    assert written(directory, 0) != written(directory, 3), "the adapters differ"
    round_, evaluation = evaluate_run(open_run(directory))
    scores = evaluation.scores
    assert (round_, scores_json(scores)) == (3, written(directory, 3))
    _, evaluation = evaluate_run(open_run(directory / "checkpoints" / "round-0001"))
    scores = evaluation.scores
    assert scores_json(scores) == written(directory, 1)
    assert scores_json(evaluate(open_run(directory).config, None).scores) == written(directory, 0)


@pytest.mark.parametrize("arm", ["fedit", "local"])
def test_without_checkpoints_the_exported_adapter_is_evaluated(arm: str, source: Sources, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(source(arm), directory)
    shutil.rmtree(directory / "checkpoints")
    round_, evaluation = evaluate_run(open_run(directory))
    scores = evaluation.scores
    assert (round_, scores_json(scores)) == (None, written(directory, 3))


@pytest.mark.parametrize("arm", ARMS)
def test_the_last_checkpoint_is_what_is_exported(arm: str, source: Sources) -> None:
    directory = source(arm)
    checkpoint = open_run(directory / "checkpoints" / "round-0003")
    for client in ("ann", "bob", "cyd") if checkpoint.local else (None,):
        exported = dict(load_peft(directory / "adapter" / (client or "")).tensors())
        for saved in (open_run(directory), checkpoint):
            tensors = dict(saved.adapter(client).tensors())
            assert tensors.keys() == exported.keys()
            assert all(torch.equal(tensors[name], exported[name]) for name in exported)


def distance(adapter: Adapter, other: Adapter) -> float:
    pairs = [(update(adapter)[name], update(other)[name]) for name in adapter.layers]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


STARTS = [("fedit", arm) for arm in ("fedit", "ffa", "flora", "rolora int8", "local")]
STARTS += [("fedex", "fedex"), ("fedex", "flora mixed"), ("hetlora mixed", "hetlora mixed")]
ALL_STARTS = [(start, arm) for start in ("fedit", "fedex", "hetlora mixed") for arm in ARMS if arm != "local mixed"]


@pytest.mark.parametrize(
    ("start", "arm"),
    [pytest.param(*pair, marks=[] if pair in STARTS else [pytest.mark.slow]) for pair in ALL_STARTS],
)
def test_another_run_starts_from_a_checkpoint(
    start: str, arm: str, source: Sources, configured: Configs, tmp_path: Path
) -> None:
    """Its round 0 is the checkpoint's model, and so is what clients and exports are given."""
    checkpoint = tmp_path / "source" / "checkpoints" / "round-0002"
    shutil.copytree(source(start), tmp_path / "source")
    given = load_adapter(checkpoint)
    changes = {**ARMS[arm], "train": {"rounds": 2}}
    if start == "fedex" and not RULES[changes.get("aggregation", {}).get("type", "fedit")].changes_base:
        assert given.rank > 4
        changes["lora"] = {**changes.get("lora", {}), "rank": given.rank}
    lora = changes.get("lora", {}).get("rank")
    if start == "fedex" and isinstance(lora, dict):
        changes["lora"] = {"rank": {**lora, "bob": given.rank}}
    tree = configured(tmp_path / "run", **changes)
    tree["model"]["adapter"] = str(checkpoint)

    class Stop(Exception):
        pass

    from fedrlvr.reporting.observer import Event, Observer, RoundSaved

    class StopAfter(Observer):
        essential = True

        def notify(self, event: Event) -> None:
            if isinstance(event, RoundSaved) and event.round == 0:
                raise Stop

    with pytest.raises(Stop):
        run(parse_config(tree), observer=StopAfter())
    if arm != "local":
        assert distance(open_run(tmp_path / "run").adapter(), given) < 1e-5
    shutil.rmtree(tmp_path / "source")  # the run has its own copy
    resume(tmp_path / "run")
    reference = configured(tmp_path / "again", **changes)
    reference["model"]["adapter"] = str(tmp_path / "run" / "start")
    run(parse_config(reference))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "again")
    assert len(adapter_bytes(tmp_path / "run")) == (3 if arm == "local" else 1)
    for client in ("ann", "bob", "cyd") if arm == "local" else (None,):
        assert distance(open_run(tmp_path / "run").adapter(client), given) > 1e-3, "it was trained"


def test_an_adapter_of_too_high_a_rank_is_refused_with_what_to_do(
    source: Sources, configured: Configs, tmp_path: Path
) -> None:
    for changes, word in (
        ({"lora": {"rank": 2}}, "lora.rank is 2"),
        ({"lora": {"rank": RANKS}, "federation": {"arm": "local"}}, "lora.rank of ann is 2"),
    ):
        tree = configured(tmp_path / "run", **changes)
        tree["model"]["adapter"] = str(source("fedit"))
        with pytest.raises(AdapterError, match=word):
            run(parse_config(tree))
        assert not (tmp_path / "run").exists()


def test_an_adapter_of_a_smaller_rank_and_another_alpha_starts_as_the_same_update(
    source: Sources, configured: Configs, tmp_path: Path
) -> None:
    given = load_peft(source("fedit") / "adapter")
    save_peft(Adapter(given.at_rank(2).layers, 8.0), tmp_path / "small", base_name="x")
    tree = configured(tmp_path / "run", lora={"rank": 4, "alpha": 32.0}, train={"rounds": 1})
    tree["model"]["adapter"] = str(tmp_path / "small")
    run(parse_config(tree))
    first = whole(read_checkpoint(tmp_path / "run" / "checkpoints" / "round-0000"))
    assert (first.rank, first.alpha) == (4, 32.0)
    assert distance(first, given.at_rank(2)) < 1e-6
    assert all(bool(factors.A[2:].any()) for factors in first.layers.values()), "the others can be trained"


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "local", "model"])
def test_what_is_no_adapter_is_named(what: str, source: Sources, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", "utf-8")
    path = {"nothing": tmp_path / "nothing", "local": source("local"), "model": model}.get(what, tmp_path / what)
    with pytest.raises((AdapterError, ConfigError), match=path.name):
        load_adapter(path)
    if what != "local":
        with pytest.raises(ConfigError, match=path.name):
            open_run(path)


def test_a_run_before_its_first_checkpoint_has_no_adapter(source: Sources, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(source("fedit") / "config.json", tmp_path / "run" / "config.json")
    saved = open_run(tmp_path / "run")
    for read in (saved.adapter, lambda: evaluate_run(saved)):
        with pytest.raises(AdapterError, match="no adapter yet"):
            read()


def test_a_run_with_organisations_elsewhere_has_no_problems_here(source: Sources, tmp_path: Path) -> None:
    shutil.copytree(source("fedit"), tmp_path / "run")
    (tmp_path / "run" / "run-id").write_text("run-1\n", "utf-8")
    with pytest.raises(ConfigError, match="--adapter"):
        evaluate_run(open_run(tmp_path / "run"))
    assert scores_json(evaluate(open_run(source("fedit")).config, tmp_path / "run").scores) == written(
        source("fedit"), 3
    )


def test_a_copied_checkpoint_is_an_adapter_but_no_run(source: Sources, tmp_path: Path) -> None:
    copy = tmp_path / "round-0002"
    shutil.copytree(source("flora") / "checkpoints" / "round-0002", copy)
    assert load_adapter(copy).layout == open_run(source("flora") / "checkpoints" / "round-0002").adapter().layout
    with pytest.raises(ConfigError, match="outside of its run"):
        open_run(copy)
    with pytest.raises(CheckpointError, match="round-NNNN"):
        load_adapter(copy.rename(tmp_path / "mine"))


def test_links_stand_for_what_they_point_to(source: Sources, tmp_path: Path) -> None:
    directory = source("fedit")
    (tmp_path / "latest").symlink_to(directory / "checkpoints" / "round-0002")
    (tmp_path / "run").symlink_to(directory)
    assert open_run(tmp_path / "latest").round == 2
    assert open_run(tmp_path / "run" / "checkpoints" / "round-0001").round == 1
    assert open_run(tmp_path / "run").round is None


def test_a_checkpoint_that_is_deleted_while_it_is_read(
    source: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is read then; one that was asked for by name is said to be gone."""
    directory = tmp_path / "run"
    shutil.copytree(source("fedit"), directory)
    shutil.rmtree(directory / "adapter")
    newest = directory / "checkpoints" / "round-0003"
    later = tmp_path / "round-0003"
    newest.rename(later)
    load = Checkpoints.load

    def pruned_first(self: Checkpoints, round_: int | None = None) -> Any:
        if round_ == 2 and later.exists():
            shutil.rmtree(directory / "checkpoints" / "round-0002")
            later.rename(newest)
        return load(self, round_)

    monkeypatch.setattr(Checkpoints, "load", pruned_first)
    assert SavedRun.adapter(open_run(directory)).layout
    assert newest.exists()
    with pytest.raises(CheckpointError, match=r"round-0002 does not exist"):
        open_run(directory / "checkpoints" / "round-0002").adapter()


def test_a_deleted_round_vanishes_at_once_and_what_a_kill_left_is_cleared(source: Sources, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(source("fedit"), directory)
    left = directory / "checkpoints" / ".round-0000.old"
    left.mkdir()
    atomic_bytes(left / "adapter.safetensors", b"half")
    rounds = Checkpoints(directory, 2).directories
    rounds.prune(2)
    assert sorted(path.name for path in rounds.root.iterdir()) == ["round-0002", "round-0003"]
    assert json.loads((rounds.path(3) / "state.json").read_text("utf-8"))["round"] == 3
