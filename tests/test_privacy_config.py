"""The section [privacy]: what goes together with noise, and the noise of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedrlvr.config import Config, Noise, load_config, parse_config
from fedrlvr.config.experiment import load_resolved
from fedrlvr.errors import ConfigError
from fedrlvr.privacy.accountant import epsilon_of, mu_of
from fedrlvr.wire.messages import RespondRequest, TrainRequest


def private(**changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with site-level privacy; `changes` go into the sections they name."""
    tree: dict[str, Any] = {
        "privacy": {"unit": "site", "epsilon": 4.0},
        "aggregation": {"weights": "equal"},
        "train": {"rounds": 9},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"privacy": {"epsilon": None}}, r"privacy\.epsilon"),
        ({"privacy": {"unit": "none"}}, r"privacy\.epsilon.*privacy\.unit"),
        ({"aggregation": {"weights": "examples"}}, r"aggregation\.weights"),
        ({"aggregation": {"weights": "fgrpo"}}, r"aggregation\.weights"),
        ({"coordination": {"type": "pubswap"}, "data": {"public_size": 64}}, r"coordination\.type"),
        ({"supervision": {"type": "care", "share_probes": True}}, r"supervision\.share_probes"),
        ({"supervision": {"type": "majority", "audit": True}}, r"supervision\.audit"),
        ({"personal": {"type": "finish"}}, r"personal\.type"),
        ({"run": {"verdict": True}}, r"run\.verdict.*privacy\.unnoised_scores"),
    ],
)
def test_what_noise_does_not_protect_is_refused_by_both_names(changes: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError, match=setting) as raised:
        parse_config(private(**changes))
    assert "privacy." in str(raised.value)


def test_other_arms_of_the_experiment_have_no_noise() -> None:
    alone = parse_config(private()).in_arm("local")
    assert alone.privacy.unit == "none"
    assert alone.privacy.noise(9) is None
    assert alone.privacy.spent(9, 3) == {}


def test_the_noise_of_a_run_follows_from_epsilon_and_rounds() -> None:
    config = parse_config(private(privacy={"clip": 0.5}))
    noise = config.privacy.noise(config.train.rounds)
    assert noise is not None
    assert noise.clip == 0.5
    assert noise.noise == pytest.approx(2 * math.sqrt(9) / mu_of(4.0, 1e-5), rel=1e-6)
    spent = [config.privacy.spent(9, done)["epsilon"] for done in (0, 1, 9)]
    assert spent[0] == 0.0
    assert spent[1] == pytest.approx(epsilon_of(2 / noise.noise, 1e-5), abs=1e-6)
    assert spent[2] == pytest.approx(4.0, abs=1e-6)
    assert spent[2] <= 4.0


def test_noise_is_set_from_the_command_line_and_keeps_the_plain_server_step() -> None:
    config = load_config(
        None, ["privacy.unit=site", "privacy.epsilon=8", "privacy.delta=1e-6", "aggregation.weights=equal"]
    )
    assert (config.privacy.epsilon, config.privacy.delta, config.privacy.withholds_scores) == (8.0, 1e-6, True)
    assert config.aggregation.server_rate(config) == 1
    assert Config().aggregation.server_rate(Config()) == "auto"


def test_more_rounds_than_the_noise_was_computed_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for tree, more in ((private(privacy={"unit": "none", "epsilon": None}), True), (private(), False)):
        path.write_text(json.dumps(parse_config(tree).model_dump(mode="json")))
        assert load_resolved(path, ["train.rounds=9"]).train.rounds == 9
        if more:
            assert load_resolved(path, ["train.rounds=10"]).train.rounds == 10
            continue
        with pytest.raises(ConfigError, match=r"train\.rounds.*privacy\.unit.*privacy\.epsilon"):
            load_resolved(path, ["train.rounds=10"])


@pytest.mark.parametrize(
    "others",
    [
        {"coordination": {"type": "pubswap"}},
        {"supervision": {"type": "care", "share_probes": True}},
        {"supervision": {"type": "majority", "audit": True}},
        {"personal": True},
        {"own_adapter": True},
    ],
)
def test_a_request_for_noise_asks_for_nothing_else(others: dict[str, Any]) -> None:
    config = Config()
    fields: dict[str, Any] = {
        "round": 1,
        "seed": 0,
        "steps": 1,
        "sampling": config.sampling.model_dump(),
        "train": config.train.model_dump(),
        "supervision": config.supervision.model_dump(),
        **others,
    }
    TrainRequest.model_validate(fields | {"round": 2})
    with pytest.raises(ValidationError, match="no noise protects"):
        TrainRequest.model_validate(fields | {"round": 2, "privacy": {"clip": 1.0, "noise": 1.0}})
    if "coordination" in others:
        with pytest.raises(ValidationError, match="no noise protects"):
            RespondRequest.model_validate(fields | {"exchange": 1, "privacy": {"clip": 1.0, "noise": 1.0}})


@pytest.mark.parametrize("values", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_clip_and_noise_are_positive_numbers(values: tuple[float, float]) -> None:
    with pytest.raises(ValidationError):
        Noise(clip=values[0], noise=values[1])
