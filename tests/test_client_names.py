"""Client names that a reader could take for each other are refused together, in a run and at a SuperLink."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedrlvr.cli import superlink
from fedrlvr.config import parse_config
from fedrlvr.config.client_names import check_client_names
from fedrlvr.deployment import certificates
from fedrlvr.errors import ConfigError

ALIKE = [
    ("a", "\u0430"),  # Cyrillic
    ("o", "\u03bf"),  # Greek
    ("a", "\uff41"),  # full width
    ("e\u0301", "e"),
    ("\u00e9", "e"),
    ("North", "north"),
    ("north", "north."),
    ("north", "north "),
    ("north", "north\u200b"),
    ("n\u043erth", "north"),
    ("site0", "siteO"),
    ("l1", "ll"),
    ("s5", "ss"),
    ("ward8", "wardB"),
    ("barn", "bam"),
    ("vvest", "west"),
    ("clock", "dock"),
    ("north-1", "north_1"),
    ("\u0131", "i"),
    ("\u017fouth", "south"),
    ("\ufb01n", "fin"),
    ("K", "\u212a"),
    ("\u30ab", "\u529b"),
    ("\u30ed", "\u53e3"),
]


@pytest.mark.parametrize("names", ALIKE, ids=range(len(ALIKE)))
def test_names_that_look_alike_are_refused_together(names: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="client name"):
        check_client_names(names)
    with pytest.raises(ConfigError, match=r"federation\.clients"):
        parse_config({"federation": {"clients": list(names)}})


@pytest.mark.parametrize(
    "names", [("north", "south", "east-1", "east-2"), ("Zürich", "Genf"), ("Москва", "Казань"), ("東京", "大阪")]
)
def test_names_that_differ_plainly_stand_together(names: tuple[str, ...]) -> None:
    check_client_names(names)


def test_a_superlink_registers_no_name_that_looks_like_a_registered_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = superlink.SuperLink("link.example:9092", "0.0.0.0", 9092, insecure=False)
    monkeypatch.setattr(superlink, "load_superlink", lambda _: link)
    monkeypatch.setattr(superlink, "_members", lambda *_: [SimpleNamespace(name="North", public_key=b"")])
    monkeypatch.setattr(certificates, "read_public_key", lambda _: None)
    monkeypatch.setattr(certificates, "key_fingerprint", lambda _: "aa:bb")
    with pytest.raises(ConfigError, match=r"--name north.*North"):
        superlink.register(tmp_path, tmp_path / "k.pub", "north")
