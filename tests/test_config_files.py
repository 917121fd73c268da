"""Files of a configuration, resolved ones, and overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_config import care, drawn, pubswap

import fedrlvr
from fedrlvr.config import (
    Config,
    load_config,
    load_resolved,
    parse_config,
)
from fedrlvr.errors import ConfigError, FedrlvrError

ROOT = Path(__file__).parent.parent
SHIPPED = sorted([*(ROOT / "examples").glob("*.toml"), *Path(fedrlvr.__file__).parent.rglob("*.toml")])


def test_a_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "exp.toml"
    path.write_text('[train]\nrounds = 3\nloss = "grpo"\n', "utf-8")
    overrides = ["train.rounds=20", "train.loss=dr_grpo", "lora.targets=['q_proj']", "run.name=a = b", "model.name=./x"]
    config = load_config(path, [*overrides, "federation.clients=['a', 'b']", "data.path=some/where"])
    assert (config.train.rounds, config.train.loss) == (20, "dr_grpo")
    assert config.lora.targets == ["q_proj"]
    assert config.run.name == "a = b"  # a value that is not TOML is a bare string
    assert config.federation.names == ["a", "b"]
    assert config.data.path == Path("some/where")


def test_the_last_override_counts() -> None:
    assert load_config(overrides=["train.rounds=2", "train.rounds=5"]).train.rounds == 5


@pytest.mark.parametrize("override", ["train.rounds", "=3", ".rounds=3", "train.=3", ""])
def test_an_override_of_no_form(override: str) -> None:
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        load_config(overrides=[override])


def test_an_override_below_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'rounds' is a value, not a section"):
        load_config(overrides=["train.rounds=3", "train.rounds.more=4"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, reason in (
        ("broken.toml", b"[train\nrounds = 3", "is not valid TOML"),
        ("latin.toml", "name = 'café'".encode("latin-1"), "is not valid TOML in UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=reason) as caught:
            load_config(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_the_errors_of_a_file_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exp.toml"
    path.write_text("[train]\nronuds = 3\n", "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: unknown key 'train.ronuds'")
    assert isinstance(caught.value, FedrlvrError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"partition": {"type": "dirichlet", "alpha": 0.2}, "federation": {"clients": ["x"]}, "train": {"rounds": 7}},
        {"federation": {"arm": "local"}},
        {"supervision": {"type": "majority"}},
        {**care(labels_from="desk", share_probes=True), "run": {"ledgers": "some/where"}},
        drawn(rest="pseudo"),
        {"federation": {"arm": "central"}, "lora": {"targets": ["q_proj"]}, "data": {"path": "some/where"}},
    ],
)
def test_a_resolved_configuration_reads_back_as_itself(tree: dict[str, Any], tmp_path: Path) -> None:
    """It states every setting, those left at their defaults too, and must not be told that they have no effect."""
    config = parse_config(tree)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load_resolved(tmp_path / "config.json") == config


@pytest.mark.parametrize(("cap", "today"), [(None, 2.0), (3.0, 3.0)])
def test_the_cap_of_an_earlier_release_has_its_new_name(cap: float | None, today: float, tmp_path: Path) -> None:
    tree = parse_config(pubswap(ratio="truncated")).model_dump(mode="json")
    tree["coordination"]["cap"] = cap
    (tmp_path / "config.json").write_text(json.dumps(tree), "utf-8")
    assert load_resolved(tmp_path / "config.json").train.ratio_cap == today


def test_a_resolved_configuration_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="not a run directory"):
        load_resolved(path)
    for text, reason in (
        ("{", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ('{"x": 1}', "not a run directory"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            load_resolved(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_parses_and_is_short(path: Path) -> None:
    config = load_config(path)
    assert config != Config()
    assert len(path.read_text("utf-8").splitlines()) <= 40


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "exp.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\nrounds = 7\n")
    assert load_config(path).train.rounds == 7
