"""Secret streams: without a secret the run's own seed, with one a seed that nobody else can compute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from factories import write_secret

from fedrlvr.errors import ConfigError
from fedrlvr.seeds import private_seed, stream
from fedrlvr.simulation.run import with_secrets
from fedrlvr.tasks.client_data import ClientData
from fedrlvr.tasks.problem import Problem


def test_without_a_secret_the_seed_is_the_runs() -> None:
    assert private_seed(7, b"", "anything") == 7


def test_with_a_secret_seed_text_and_secret_all_count() -> None:
    seeds = [private_seed(*args) for args in ((7, b"a"), (7, b"a", "x"), (7, b"b"), (8, b"a"), (7, b"a", "y"))]
    assert len({*seeds, 7, 8}) == 7
    assert private_seed(7, b"a", "x") == seeds[1]
    assert 0 < stream(seeds[0], "sample") < 1 << 63


def client(name: str = "ann", secret: bytes = b"") -> ClientData:
    problems = [Problem(id=str(i), prompt=f"p{i}", answer="1", kind="number", source="s") for i in range(8)]
    return ClientData.of(name, problems, [], cast(Any, SimpleNamespace()), secret=secret)


def test_a_secret_orders_problems_anew_and_the_order_goes_on() -> None:
    plain, secret = client(), client(secret=b"s")
    first = [problem.id for problem in secret.draw(0, 8, seed=1)]
    assert sorted(first) == [str(i) for i in range(8)]
    assert first != [problem.id for problem in plain.draw(0, 8, seed=1)]
    assert [problem.id for problem in secret.draw(5, 3, seed=1)] == first[5:]


def test_a_secret_is_in_no_text_about_its_client() -> None:
    assert "hush" not in repr(client(secret=b"hush"))


def test_secrets_of_a_directory_are_given_by_name(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        write_secret(tmp_path / f"{name}.secret", name)
    ann, bob = with_secrets([client("ann"), client("bob")], tmp_path)
    assert (len(ann.secret), len(bob.secret)) == (32, 32)
    assert ann.secret != bob.secret
    assert [c.secret for c in with_secrets([ann, client("bob")], None)] == [ann.secret, b""]


@pytest.mark.parametrize("data", [None, b"", b"x" * 65])
def test_a_secret_that_cannot_be_used_is_named(data: bytes | None, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "ann.secret").write_bytes(data)
    with pytest.raises(ConfigError, match=r"run\.secrets: .*ann\.secret"):
        with_secrets([client("ann")], tmp_path)
