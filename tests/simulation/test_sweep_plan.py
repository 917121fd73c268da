"""What a sweep is made of: combinations, names of arms, directories, and what is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedrlvr.errors import ConfigError
from fedrlvr.simulation.sweep_plan import Plan, plan, split_values

Planner = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planner:
    (tmp_path / "exp.toml").write_text("[run]\nname = 'trial'\nseed = 7\n", "utf-8")

    def make(*vary: str, **more: object) -> Plan:
        return plan(tmp_path / "exp.toml", vary=vary, **{"directory": tmp_path / "sweep", **more})  # type: ignore[arg-type]

    return make


def test_every_combination_at_every_seed(planned: Planner, tmp_path: Path) -> None:
    made = planned("train.loss=grpo,dapo", "train.learning_rate=1e-3,0.01", seeds=2)
    assert made.seeds == [7, 8]
    assert [arm.name for arm in made.arms] == [
        "loss=grpo,learning_rate=1e-3",
        "loss=grpo,learning_rate=0.01",
        "loss=dapo,learning_rate=1e-3",
        "loss=dapo,learning_rate=0.01",
    ]
    assert made.arms[1].settings == {"train.loss": "grpo", "train.learning_rate": "0.01"}
    result = [
        (federation.name, federation.config.train.loss, federation.config.train.learning_rate, federation.seed)
        for federation in made.federations
    ]
    assert result[1] == ("loss=grpo,learning_rate=1e-3/seed-8", "grpo", 1e-3, 8)
    assert result[6] == ("loss=dapo,learning_rate=0.01/seed-7", "dapo", 0.01, 7)
    assert len(set(result)) == 8
    for federation in made.federations:
        assert federation.directory == tmp_path / "sweep" / federation.name
        assert federation.config.run.seed == federation.seed
        assert not federation.started


def test_a_sweep_over_seeds_alone_has_one_arm(planned: Planner) -> None:
    assert [federation.name for federation in planned(seeds=3).federations] == [
        f"as-given/seed-{seed}" for seed in (7, 8, 9)
    ]


def test_where_a_sweep_lies(tmp_path: Path, planned: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert planned(directory=None).directory.parent == Path("runs")
    assert planned(directory=None).directory.name.startswith("trial-sweep-20")
    path = tmp_path / "own.toml"
    path.write_text("[run]\ndirectory = 'of/its/own'\n", "utf-8")
    assert plan(path).directory == Path("of/its/own")
    assert plan(path, directory=tmp_path).directory == tmp_path


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        (" 1 , 2.5 ", ["1", "2.5"]),
        ('["q_proj", "v_proj"],all-linear', ['["q_proj", "v_proj"]', "all-linear"]),
        ('"a,b",\'c,"d\'', ['"a,b"', "'c,\"d'"]),
        (
            '{families = ["sum", "drip"], levels = ["easy"]},{}',
            ['{families = ["sum", "drip"], levels = ["easy"]}', "{}"],
        ),
        ("a,,b", ["a", "", "b"]),
        ("", [""]),
    ],
)
def test_values_part_at_the_commas_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


@pytest.mark.parametrize(
    ("vary", "names"),
    [
        (['lora.targets=["q_proj","v_proj"],all-linear'], ["targets=q_proj-v_proj", "targets=all-linear"]),
        (["data.path=/a/b c,/a/b-c"], ["path=a-b-c", "path=a-b-c-2"]),
        (["model.name=X,x"], ["name=X", "name=x-2"]),
        (["prompt.instruction='',../.."], ["instruction=", "instruction=-2"]),
        (["data.path=" + "p" * 300], ["path=" + "p" * 60]),
        (["model.name=a", "data.name=jsonl"], ["model.name=a,data.name=jsonl"]),
    ],
)
def test_names_of_arms_are_safe_and_differ(vary: list[str], names: list[str], planned: Planner) -> None:
    assert [arm.name for arm in planned(*vary).arms] == names


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        (["train.ronuds=1,2"], "unknown key 'train.ronuds' .did you mean 'train.rounds'"),
        (["train.rounds=1,many"], "train.rounds: .*'many'"),
        (["train.rounds=1,0"], "train.rounds: .*greater than or equal to 1"),
        (["federation.fraction=0.5,1.0", "federation.arm=local,federated"], "federation.fraction has no effect"),
        (["train.rounds"], "--vary 'train.rounds': write section.key=value,value"),
        (["train.rounds="], "--vary 'train.rounds=': write section.key=value,value"),
        (["train.rounds=1,,2"], "write section.key=value,value"),
        (["=1,2"], "write section.key=value,value"),
        (["train.rounds=3,3"], "train.rounds=3 and train.rounds=3 are the same"),
        (["train.learning_rate=1e-3,0.001"], "learning_rate=1e-3 and train.learning_rate=0.001 are the same"),
        (["train.rounds=1,2", " train.rounds =3"], "varied twice"),
        (["run.seed=1,2"], "--vary run.seed: .* --seeds"),
        (["run.directory=a,b"], "--vary run.directory: .* --directory"),
        (["run={seed=1},{seed=2}"], "--vary run: "),
        ([f"train.{key}=" + "1," * 64 + "1" for key in ("rounds", "local_steps")], "has 4225 federations"),
    ],
)  # fmt: skip
def test_what_cannot_be_varied(vary: list[str], words: str, planned: Planner) -> None:
    with pytest.raises(ConfigError, match=words):
        planned(*vary)


def test_what_else_is_refused(planned: Planner, tmp_path: Path) -> None:
    for seeds in (0, -1):
        with pytest.raises(ConfigError, match=f"--seeds {seeds}"):
            planned(seeds=seeds)
    with pytest.raises(ConfigError, match="has 5000 federations; at most 4096"):
        planned(seeds=5000)
    with pytest.raises(ConfigError, match=r"--set train\.rounds .*--vary train\.rounds"):
        planned("train.rounds=1,2", overrides=["train.rounds=3"])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match="sweep holds a single run"):
        planned()


def test_a_damaged_run_is_named_before_anything_is_computed(planned: Planner, tmp_path: Path) -> None:
    place = tmp_path / "sweep" / "as-given" / "seed-8"
    place.mkdir(parents=True)
    assert not any(federation.started for federation in planned(seeds=2).federations)
    (place / "config.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"seed-8/config.json cannot be read"):
        planned(seeds=2)


def test_threads_that_a_run_settled_are_gone_on_with(planned: Planner, tmp_path: Path) -> None:
    place = tmp_path / "sweep" / "as-given" / "seed-7"
    place.mkdir(parents=True)
    config = planned().federations[0].config
    engine = config.engine.model_copy(update={"threads": 3})
    (place / "config.json").write_text(config.model_copy(update={"engine": engine}).model_dump_json(), "utf-8")
    (federation,) = planned().federations
    assert (federation.started, federation.finished, federation.config.engine.threads) == (True, False, 3)
    with pytest.raises(ConfigError, match=r"engine.threads is 3 there and 2 here"):
        planned(overrides=["engine.threads=2"])
