"""Personal adapters by hand: the interpolation of two adapters, and the share that validation problems choose."""

from __future__ import annotations

import pytest
import torch
from factories import adapter_from, random_adapter

from fedrlvr.aggregation.lora_rule import RULES
from fedrlvr.aggregation.personal import PERSONAL, SHARES, best_share, mean_of_others, mixed
from fedrlvr.config import parse_config
from fedrlvr.errors import ConfigError

WHOLE = adapter_from([[1.0, 2.0]], [[4.0], [8.0]], alpha=2.0)
OWN = adapter_from([[3.0, -2.0]], [[0.0], [4.0]], alpha=2.0)


def test_a_quarter_of_the_global_adapter() -> None:
    result = mixed(WHOLE, OWN, 0.25)
    assert result.layers["q"].A.tolist() == [[0.25 * 1 + 0.75 * 3, 0.25 * 2 - 0.75 * 2]]
    assert result.layers["q"].B.tolist() == [[1.0], [5.0]]
    assert (result.alpha, result.rank) == (2.0, 1)
    assert WHOLE.layers["q"].A.tolist() == [[1.0, 2.0]], "what goes in stays as it is"


@pytest.mark.parametrize(("share", "place"), [(1.0, 0), (0.0, 1)])
def test_at_its_ends_the_mix_is_one_of_the_two_to_the_bit(share: float, place: int) -> None:
    both = random_adapter(1), random_adapter(2)
    result = mixed(*both, share)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(result.tensors(), both[place].tensors(), strict=True))


@pytest.mark.parametrize(
    ("right", "share"),
    [
        ({1.0: 3, 0.75: 3, 0.5: 3, 0.25: 3, 0.0: 3}, 1.0),
        ({1.0: 2, 0.75: 3, 0.5: 1, 0.25: 3, 0.0: 0}, 0.75),
        ({1.0: 2, 0.75: 3, 0.5: 1, 0.25: 3, 0.0: 4}, 0.0),
        ({0.0: 4, 0.5: 4}, 0.5),
    ],
)
def test_the_best_share_and_in_a_tie_the_larger_one(right: dict[float, int], share: float) -> None:
    assert best_share(right) == share


def test_both_adapters_alone_are_among_the_candidates() -> None:
    assert {0.0, 1.0} <= set(SHARES)


@pytest.mark.parametrize("name", [name for name in PERSONAL if name != "none"])
@pytest.mark.parametrize("arm", ["local", "central"])
def test_a_personal_adapter_needs_a_federation(name: str, arm: str) -> None:
    with pytest.raises(ConfigError, match=rf"personal\.type = '{name}'.*federation\.arm = '{arm}'"):
        parse_config({"personal": {"type": name}, "federation": {"arm": arm}})


@pytest.mark.parametrize("setting", ["steps", "learning_rate"])
def test_settings_of_the_personal_steps_need_a_method_that_takes_some(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"personal\.{setting}.*personal\.type"):
        parse_config({"personal": {setting: 1}})


def test_a_mixed_adapter_is_not_measured_on_the_problems_that_chose_it() -> None:
    tree = {"personal": {"type": "mix"}, "data": {"validation_size": 4}, "evaluate": {"split": "validation"}}
    with pytest.raises(ConfigError, match=r"personal\.type.*evaluate\.split"):
        parse_config(tree)


def test_personal_steps_follow_no_schedule() -> None:
    tree = {"train": {"schedule": "cosine", "warmup_steps": 3}, "personal": {"type": "finish", "steps": 7}}
    config = parse_config(tree)
    train = config.personal.train(config.train)
    assert (train.local_steps, train.schedule, train.warmup_steps) == (7, "constant", 0)
    assert train.learning_rate == config.train.learning_rate
    faster = parse_config({"personal": {"type": "finish", "learning_rate": 0.5}})
    assert faster.personal.train(faster.train).learning_rate == 0.5


def test_the_mean_of_the_others() -> None:
    third = adapter_from([[5.0, 6.0]], [[2.0], [0.0]], alpha=2.0)
    clients = {"ann": WHOLE, "bob": OWN, "cyd": third}
    result = mean_of_others(clients, "ann")
    assert result is not None
    assert result.layers["q"].A.tolist() == [[4.0, 2.0]]
    assert result.layers["q"].B.tolist() == [[2.0 * 1.0], [2.0 * 2.0]], "of scale 1: B has alpha / rank = 2"
    assert result.scale == 1.0
    only = mean_of_others({"ann": WHOLE, "bob": OWN}, "bob")
    assert only is not None
    assert only.layers["q"].A.tolist() == [[1.0, 2.0]]
    assert mean_of_others({"ann": WHOLE}, "ann") is None
    assert mean_of_others({}, "ann") is None


KEEPING = [name for name, method in PERSONAL.items() if method.keeps]


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "fedit"])
def test_rules_that_freeze_or_replace_factors_leave_none_to_keep(name: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"personal\.type = '{name}'.*aggregation\.type = '{rule}'"):
        parse_config({"personal": {"type": name}, "aggregation": {"type": rule}})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("weights", "equal"),
        ("precision", "int8"),
        ("robust", "clip"),
        ("server_learning_rate", 2.0),
        ("largest_change", 3.0),
    ],
)
def test_with_fedalt_nothing_is_averaged_that_these_settings_could_change(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"aggregation\.{setting}.*personal\.type = 'fedalt'"):
        parse_config({"personal": {"type": "fedalt"}, "aggregation": {setting: value}})
    parse_config({"personal": {"type": "fedsa"}, "aggregation": {setting: value}})
    parse_config({"personal": {"type": "fedalt"}, "aggregation": {"change_bound": 3.0}})


def test_fedalt_has_no_exchanges_and_needs_others() -> None:
    exchanges = {"coordination": {"type": "pubswap"}, "data": {"public_size": 8}}
    with pytest.raises(ConfigError, match=r"personal\.type = 'fedalt'.*coordination\.type"):
        parse_config({"personal": {"type": "fedalt"}, **exchanges})
    with pytest.raises(ConfigError, match=r"personal\.type = 'fedalt'.*federation\.clients"):
        parse_config({"personal": {"type": "fedalt"}, "federation": {"clients": 1}})
