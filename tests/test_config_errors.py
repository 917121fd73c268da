"""Errors of a value of a wrong kind: they name the values that a setting takes, once."""

from __future__ import annotations

import pytest
from factories import refused

from fedrlvr.config import load_config
from fedrlvr.errors import ConfigError
from fedrlvr.zoo import embedded_config


@pytest.mark.parametrize(
    ("section", "name", "values", "wrong"),
    [
        ("aggregation", "server_learning_rate", "number, above 0, or `auto`", [[1], "atuo", -1, 0, float("nan")]),
        ("federation", "clients", "whole number or list of text", [1.5, [1, 2]]),
        ("lora", "targets", "`all-linear` or list of text", [3, [1], "q_proj"]),
        ("train", "rounds", "whole number, at least 1", ["three", [2]]),
    ],
)
def test_an_error_of_a_kind_of_value_says_once_which_values_are_allowed(
    section: str, name: str, values: str, wrong: list[object]
) -> None:
    for value in wrong:
        assert refused({section: {name: value}}) == f"exp.toml: {section}.{name}: allowed: {values} (got {value!r})."


@pytest.mark.parametrize(
    ("section", "name"),
    [("train", "rounds"), ("aggregation", "server_learning_rate"), ("federation", "clients"), ("lora", "rank")],
)
def test_true_is_no_number(section: str, name: str) -> None:
    assert name in refused({section: {name: True}})
    assert "rank" in refused({"lora": {"rank": {"client-1": True}}})


def test_an_error_says_whether_there_were_overrides() -> None:
    with pytest.raises(ConfigError, match="the embedded default with --set: unknown key"):
        load_config(embedded_config(), ["train.round=3"])
