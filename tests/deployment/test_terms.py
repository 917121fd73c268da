"""The terms in a message: read as they were written, and nothing else is taken for them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from factories import make_terms
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedrlvr import __version__
from fedrlvr.config import parse_config
from fedrlvr.deployment.superlink.server_app import terms_of
from fedrlvr.deployment.terms import LONGEST, PROTOCOL, TERMS, Terms, read_terms, terms_record
from fedrlvr.errors import MessageError

PLAIN = make_terms().model_dump(exclude_unset=True)


def message(**changes: Any) -> RecordDict:
    fields = {"protocol": PROTOCOL, "version": __version__, **PLAIN, **changes}
    return RecordDict({TERMS: ConfigRecord({"json": json.dumps(fields)})})


def test_terms_come_back_as_they_went() -> None:
    for more in ({}, {"targets": ["q_proj"], "max_prompt_tokens": 9}):
        terms = Terms(**PLAIN, **more)
        assert read_terms(RecordDict({TERMS: terms_record(terms)})) == terms
    assert (terms.protocol, terms.version) == (PROTOCOL, __version__)


def test_the_number_of_clients_is_that_of_those_that_train() -> None:
    """A site's floor `least_clients` is about how many adapters an average has."""
    config = parse_config({"federation": {"clients": ["ann", "bob", "cyd"], "excluded": ["cyd"]}})
    cohort: Any = SimpleNamespace(base=SimpleNamespace(model_id="m", weights_id="w", tokenizer_id="t"))
    terms = terms_of(config, cohort, "run")
    assert {client: of_client.clients for client, of_client in terms.items()} == {"ann": 2, "bob": 2, "cyd": 2}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({TERMS: ArrayRecord()}),
        RecordDict({TERMS: ConfigRecord()}),
        RecordDict({TERMS: ConfigRecord({"json": 3})}),
        message(model="x" * LONGEST),
    ],
)
def test_who_sends_no_terms_is_no_server_of_ours(content: RecordDict) -> None:
    with pytest.raises(MessageError, match="without usable terms"):
        read_terms(content)


@pytest.mark.parametrize("text", ["{", "[" * 9000])
def test_terms_that_are_not_json(text: str) -> None:
    with pytest.raises(MessageError, match="not JSON"):
        read_terms(RecordDict({TERMS: ConfigRecord({"json": text})}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"protocol": PROTOCOL + 1, "version": "9.9"}, f"(fedrlvr 9.9) speaks protocol {PROTOCOL + 1} "),
        ({"protocol": "1"}, "(fedrlvr None) speaks protocol 1 "),
        ({"version": "9" * 100}, f"(fedrlvr {'9' * 40}) speaks protocol None "),
        ([], "(fedrlvr of unknown version) speaks protocol None "),
    ],
)
def test_another_protocol_is_told_by_both_versions_before_anything_else(content: Any, words: str) -> None:
    with pytest.raises(MessageError) as error:
        read_terms(RecordDict({TERMS: ConfigRecord({"json": json.dumps(content)})}))
    assert words in str(error.value)
    assert f"(fedrlvr {__version__}) {PROTOCOL}: install the same release at both" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "../../etc"},
        {"run": "a/b"},
        {"run": ""},
        {"run": "x" * 101},
        {"run": "a\n"},
        {"client": "a b"},
        {"client": ""},
        {"task": "../x"},
        {"clients": 0},
        {"rounds": 0},
        {"rank": 0},
        {"rank": 1025},
        {"largest": 1025},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"max_prompt_tokens": 0},
        {"prompt": None},
        {"targets": "some"},
        {"model_id": "x" * 201},
        {"more": 1},
    ],
)
def test_a_field_that_does_not_fit_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match=f"terms that cannot be used: {next(iter(changes))}"):
        read_terms(message(**changes))
