"""Personal adapters at organisations equal a simulation's and lie at the organisation; floors and limits hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from factories import FLOORS_OFF
from flwr.app import Message
from organisations import (
    Deployed,
    Organisations,
    References,
    federation,
    give_problems,
    give_secrets,
    log_of,
)
from small_runs import adapter_bytes, lines, without_seconds

from fedrlvr.config import Config
from fedrlvr.deployment.site import handler
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.site.handler import Answering
from fedrlvr.deployment.superlink.disclosure import travels
from fedrlvr.simulation.run import run
from fedrlvr.tasks.deal import deal

QUORUM = {"clients": ["ann", "bob"], "quorum": 0.5}


class Stop(Exception):
    """Ends a server."""


def own(root: Path, client: str) -> bytes:
    """A client's personal adapter, in the directory of a simulated run or of an organisation's run."""
    return (root / "clients" / client / "personal" / "adapter_model.safetensors").read_bytes()


def of_site(org: Organisation) -> bytes:
    return own(org.state / "runs" / "run", org.name)


@pytest.fixture
def both(organisation: Organisations) -> Mapping[str, Organisation]:
    return {name: organisation(name) for name in ("ann", "bob")}


@pytest.mark.parametrize(
    ("variant", "stop"),
    [
        *(("finish", stop) for stop in ("", "train", "evaluate")),
        *(("fedsa", s) for s in ("", "evaluate")),
        ("fedalt", ""),
    ],
)
def test_a_site_keeps_the_adapter_that_a_simulation_makes(
    variant: str,
    stop: str,
    model: Path,
    both: Mapping[str, Organisation],
    workers: dict[str, Answering],
    reference: References,
    tmp_path: Path,
) -> None:
    """Also where the server, and the workers with it, were killed while the personal adapters were made."""
    config = federation(model, tmp_path / "problems", tmp_path / "run", variant)
    give_problems(config, tmp_path / "sites")
    round_ = str(config.train.rounds + config.personal.method.finishes)

    def before(client: str, message: Message) -> None:
        if (client, message.metadata.message_type, message.metadata.group_id) == ("bob", stop, round_):
            raise Stop

    if stop:
        with pytest.raises(Stop):
            Deployed(config, both, before=before).go()
        workers.clear()
    Deployed(config, both).go(resume=bool(stop))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(reference(variant))
    assert without_seconds(tmp_path / "run") == without_seconds(reference(variant))
    for name, org in both.items():
        assert of_site(org) == own(reference(variant), name)
    assert not list((tmp_path / "run").rglob("personal"))
    assert any("the personal adapter stays here" in line for line in log_of(workers["ann"]))


def test_a_site_chooses_its_mixture_by_its_own_validation_problems(
    model: Path,
    both: Mapping[str, Organisation],
    workers: dict[str, Answering],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes: dict[str, Any] = {"data": {"validation_size": 4}, "personal": {"type": "mix"}}
    secrets = {"secrets": str(give_secrets(tmp_path / "secrets"))}
    alone = federation(
        model, tmp_path / "problems", tmp_path / "alone", "finish", engine={"cohort": False}, run=secrets, **changes
    )
    run(alone)
    config = federation(model, tmp_path / "problems", tmp_path / "run", "finish", **changes)
    dealt = {client.name: client for client in deal(config).clients}

    def problems(task: Any, **_: Any) -> Any:
        client = dealt[task.path.parent.name]  # a site sets aside others of its problems than a simulation
        return client.answers.everything(), client.validation, client.test

    monkeypatch.setattr(handler, "own_problems", problems)
    Deployed(config, both).go()
    assert without_seconds(tmp_path / "run") == without_seconds(tmp_path / "alone")
    for name, org in both.items():
        assert of_site(org) == own(tmp_path / "alone", name)
    shares = {c: n["global_share"] for c, n in lines(tmp_path / "run")[-1]["personal"]["clients"].items()}
    assert set(shares) == {"ann", "bob"}


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no personal adapters": ({}, {"personal": False}, "limits.personal"),
    "too many steps": ({}, {"local_steps": 2}, "limits.local_steps"),
    "a floor": ({}, {"least_learned": 1000}, "limits.least_learned"),
    "no validation problems": ({"personal": {"type": "mix"}, "data": {"validation_size": 4}}, {}, "validation_size"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_a_site_refuses_or_withholds_leaves_it_out_and_nothing_with_it(
    why: str,
    model: Path,
    organisation: Organisations,
    workers: dict[str, Answering],
    tmp_path: Path,
) -> None:
    changes, limits, reason = REFUSALS[why]
    config = federation(
        model,
        tmp_path / "problems",
        tmp_path / "run",
        "moments",
        **{"personal": {"type": "finish", "steps": 3}, "federation": QUORUM, "train": {"local_steps": 2}, **changes},
    )
    give_problems(config, tmp_path / "sites")
    task = {
        "main": {"name": "jsonl", "path": "problems", "prompt": {"instruction": ""}, "rewards": "small_runs:parity"}
    }
    orgs = {"ann": organisation("ann"), "bob": organisation("bob", limits={**FLOORS_OFF, **limits})}
    if why == "no validation problems":
        orgs["ann"] = organisation("ann", tasks={"main": {**task["main"], "validation_size": 2}})
    Deployed(config, orgs).go()
    part = lines(tmp_path / "run")[-1]["personal"]
    assert list(part["left_out"]) == ["bob"]
    assert reason in part["left_out"]["bob"]
    assert set(part["evaluate"]) == {"ann"}
    assert not (orgs["bob"].state / "runs" / "run" / "clients" / "bob" / "personal").exists()


def test_the_server_says_that_the_personal_adapter_never_travels(model: Path, tmp_path: Path) -> None:
    def told(config: Config) -> str:
        return "\n".join(travels(config))

    with_it = told(federation(model, tmp_path / "problems", tmp_path / "run", "finish"))
    assert "its personal adapter" in with_it.partition("Never:")[2]
    fedsa = told(federation(model, tmp_path / "problems", tmp_path / "run", "fedsa"))
    assert "the A factors of its adapter, whose B factors stay there" in fedsa
    fedalt = told(federation(model, tmp_path / "problems", tmp_path / "run", "fedalt"))
    assert "its own adapter, for the means that the others are sent" in fedalt
    assert "personal" not in told(federation(model, tmp_path / "problems", tmp_path / "run", "moments"))
