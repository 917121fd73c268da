"""Personal adapters in whole runs: what stays at a client, what is written down, and that a resume changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_request
from flwr.app import Context, Error, Message, RecordDict
from small_runs import CLIENTS, Configs, adapter_bytes, lines, without_seconds

import fedrlvr
from fedrlvr.adapter import Adapter
from fedrlvr.client.app import CohortApp
from fedrlvr.client.state import OWN_ADAPTER, PERSONAL_ADAPTER, arrays_in
from fedrlvr.config import parse_config
from fedrlvr.errors import AdapterError, ConfigError, DataError, RoundError
from fedrlvr.reporting.observer import Event, Observer, PersonalEnded, PhaseStarted, RoundSaved
from fedrlvr.server.metrics_log import scores_json
from fedrlvr.server.saved_adapter import SavedRun, open_run
from fedrlvr.server.strategy import WrappingStrategy
from fedrlvr.simulation import run as run_module
from fedrlvr.simulation.evaluate import evaluate_run
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.simulation.run import Federation, new_cohort, resume, settled
from fedrlvr.wire.messages import adapter_to_arrays, content

Changes = dict[str, dict[str, Any]]

FINISH: Changes = {"personal": {"type": "finish", "steps": 2}}
MIX: Changes = {"personal": {"type": "mix", "steps": 2}, "data": {"validation_size": 6}}
VARIANTS: dict[str, Changes] = {
    "finish": FINISH,
    "mix": MIX,
    "flora": {**FINISH, "aggregation": {"type": "flora"}, "lora": {"rank": {"ann": 2, "bob": 4, "cyd": 1}}},
    "rolora": {**MIX, "aggregation": {"type": "rolora", "precision": "int8"}},
    "pubswap": {
        **FINISH,
        "data": {"public_size": 4},
        "train": {"rounds": 2, "optimizer_state": "keep", "proximal_mu": 0.1},
        "coordination": {"type": "pubswap", "exchanges": 1, "public_problems": 2},
    },
    "care": {**FINISH, "supervision": {"type": "care", "budget": 0.5, "share_probes": True}},
}
"""A personal adapter with a base that rounds change, with halves in turns, after exchanges, and with shared probes."""
KEEPING: dict[str, Changes] = {
    "fedsa": {
        "personal": {"type": "fedsa"},
        "train": {"rounds": 3, "optimizer_state": "keep"},
        "federation": {"fraction": 0.6},
        "aggregation": {"precision": "int8", "server_learning_rate": "auto"},
    },
    "fedsa pubswap": {
        "personal": {"type": "fedsa"},
        "data": {"public_size": 4},
        "train": {"rounds": 2, "proximal_mu": 0.1},
        "coordination": {"type": "pubswap", "exchanges": 1, "public_problems": 2},
    },
    "fedalt": {"personal": {"type": "fedalt"}, "train": {"rounds": 5}, "federation": {"fraction": 0.6}},
}
"""Clients that keep a part of their adapter in every round: B, also with exchanges, or all of it."""
EVERY = {**VARIANTS, **KEEPING}


class Watching(LocalGrid):
    """Notes the records of each message by direction, type and round."""

    seen: list[tuple[str, str, str, list[str]]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for direction, these in (("down", messages), ("up", replies)):
            self.seen += [(direction, m.metadata.message_type, m.metadata.group_id, sorted(m.content)) for m in these]
        return replies


class Stop(Exception):
    """Ends a run from within."""


class StopAt(Observer):
    """Ends a run at an event."""

    essential = True

    def __init__(self, at: Callable[[Event], bool]) -> None:
        self.at = at

    def notify(self, event: Event) -> None:
        if self.at(event):
            raise Stop


def personal(directory: Path) -> dict[str, bytes]:
    """The bytes of each client's personal adapter."""
    return {path.parts[-3]: path.read_bytes() for path in directory.glob("clients/*/personal/*.safetensors")}


@pytest.fixture(scope="module")
def made(configured: Configs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of the finished run of a variant."""
    done: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("personal") / "run"
            fedrlvr.run(configured(done[name], **EVERY[name]))
        return done[name]

    return make


@pytest.mark.parametrize("name", VARIANTS)
def test_no_personal_adapter_is_in_a_message(
    name: str, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watching.seen = []
    monkeypatch.setattr(run_module, "LocalGrid", Watching)
    fedrlvr.run(configured(tmp_path / "run", **VARIANTS[name]))
    late = [(direction, kind, records) for direction, kind, round_, records in Watching.seen if round_ == "3"]
    assert len(late) == 2 * 2 * 3, "two directions, two messages, three clients"
    up = {(kind, tuple(records)) for direction, kind, records in late if direction == "up"}
    assert up == {("train", ("metrics",)), ("evaluate", ("config", "metrics"))}
    assert {tuple(r) for direction, kind, r in late if (direction, kind) == ("down", "evaluate")} == {("config",)}
    numbers = lines(tmp_path / "run")[-1]["personal"]["clients"]
    assert set(numbers) == set(CLIENTS)
    assert max(of_client["bytes_up"] for of_client in numbers.values()) < 2500  # an adapter has 18,000


@pytest.mark.parametrize("name", VARIANTS)
def test_the_global_adapter_and_its_numbers_are_those_of_a_run_without(
    name: str, made: Callable[[str], Path], configured: Configs, tmp_path: Path
) -> None:
    changes = {section: values for section, values in VARIANTS[name].items() if section != "personal"}
    fedrlvr.run(configured(tmp_path / "run", **changes))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(made(name))
    with_it = without_seconds(made(name))
    assert set(with_it[-1].pop("personal")) == {"clients", "evaluate"}
    assert with_it == without_seconds(tmp_path / "run")


@pytest.mark.parametrize("name", EVERY)
def test_what_is_kept_is_what_was_measured(name: str, made: Callable[[str], Path]) -> None:
    run, last = open_run(made(name)), lines(made(name))[-1]
    wanted = last.get("personal", last)["evaluate"]
    _, evaluation = evaluate_run(run, personal=True)
    scores = evaluation.scores
    assert scores_json(scores) == wanted
    adapters = {client: run.personal_adapter(client) for client in CLIENTS}
    assert all(adapters.values())
    if "mix" not in str(EVERY[name]["personal"]):  # which may choose the global adapter
        assert len({a.flat().sum().item() for a in adapters.values() if a}) == 3, "each client has its own"


def test_the_mixture_is_between_the_two(made: Callable[[str], Path], configured: Configs, tmp_path: Path) -> None:
    """With the data of `mix`, `finish` ends in the client's own adapter, from which the shares go to the global one."""
    fedrlvr.run(configured(tmp_path / "run", **{**MIX, **FINISH}))
    finished, run = open_run(tmp_path / "run"), open_run(made("mix"))
    whole = run.adapter().flat()
    for client, numbers in lines(made("mix"))[-1]["personal"]["clients"].items():
        alone, result, share = finished.personal_adapter(client), run.personal_adapter(client), numbers["global_share"]
        assert alone is not None
        assert result is not None
        torch.testing.assert_close(result.flat(), share * whole + (1 - share) * alone.flat(), atol=1e-7, rtol=0)
    assert "global_share" not in lines(tmp_path / "run")[-1]["personal"]["clients"]["ann"]


def test_finishing_is_the_arm_local_continued_from_the_same_adapter(configured: Configs, tmp_path: Path) -> None:
    config = settled(parse_config(configured(tmp_path / "run")), tmp_path / "run")
    cohort = new_cohort(config)
    federation = Federation(config, tmp_path / "run", cohort, Observer())
    begun = adapter_to_arrays(cohort.fresh_adapter(7))
    result = {}
    for local in (False, True):
        request = make_request(config, round=3, personal=not local, own_adapter=local)
        state = RecordDict({OWN_ADAPTER: begun}) if local else RecordDict()
        body = content(request) if local else content(request, arrays=begun)
        context = Context(1, 1, {}, state, {})
        (reply,) = federation.app([Message(body, 1, "train")], [context])
        kept = arrays_in(context, OWN_ADAPTER if local else PERSONAL_ADAPTER)
        assert kept is not None
        result[local] = [array.data for array in kept.values()], sorted(reply.content)
    assert result[True] == result[False]
    assert result[True][0] != [array.data for array in begun.values()]


STOPS: dict[str, Callable[[Event], bool]] = {
    "before": lambda event: isinstance(event, PhaseStarted) and event.phase == "personal",
    "within": lambda event: isinstance(event, PhaseStarted) and event.phase == "aggregate" and event.round == 3,
    "after": lambda event: isinstance(event, PersonalEnded),
}


@pytest.mark.parametrize("when", STOPS)
@pytest.mark.parametrize("name", ["mix", "flora", "pubswap", "care"])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    name: str, when: str, made: Callable[[str], Path], configured: Configs, tmp_path: Path
) -> None:
    config = parse_config(configured(tmp_path / "run", **VARIANTS[name]))
    with pytest.raises(Stop):
        run_module.run(config, observer=StopAt(STOPS[when]))
    assert not (tmp_path / "run" / "adapter").exists()
    resume(tmp_path / "run")
    assert personal(tmp_path / "run") == personal(made(name))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(made(name))
    assert without_seconds(tmp_path / "run") == without_seconds(made(name))


def test_a_finished_run_is_not_finished_again_and_gets_back_what_it_lost(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(made("mix"), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("clients/*/personal/*")}
    resume(tmp_path / "run")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("clients/*/personal/*")}
    shutil.rmtree(tmp_path / "run" / "clients" / "bob" / "personal")
    resume(tmp_path / "run")
    assert personal(tmp_path / "run") == personal(made("mix"))
    assert without_seconds(tmp_path / "run") == without_seconds(made("mix"))


def test_a_longer_run_has_the_personal_adapters_of_its_length(
    made: Callable[[str], Path], configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path / "run", **FINISH, train={"rounds": 1}))
    resume(tmp_path / "run", ["train.rounds=2"])
    assert personal(tmp_path / "run") == personal(made("finish"))
    assert without_seconds(tmp_path / "run")[-1] == without_seconds(made("finish"))[-1]


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("name", KEEPING)
def test_a_run_that_stopped_between_rounds_goes_on_with_what_its_clients_keep(
    name: str, after: int, made: Callable[[str], Path], configured: Configs, tmp_path: Path
) -> None:
    stop = StopAt(lambda event: isinstance(event, RoundSaved) and event.round == after)
    with pytest.raises(Stop):
        run_module.run(parse_config(configured(tmp_path / "run", **KEEPING[name])), observer=stop)
    resume(tmp_path / "run")
    assert personal(tmp_path / "run") == personal(made(name))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(made(name))
    assert without_seconds(tmp_path / "run") == without_seconds(made(name))


@pytest.mark.parametrize("name", ["fedsa", "fedalt"])
def test_a_longer_run_of_clients_that_keep_a_part(
    name: str, made: Callable[[str], Path], configured: Configs, tmp_path: Path
) -> None:
    fedrlvr.run(configured(tmp_path / "run", **{**KEEPING[name], "train": {**KEEPING[name]["train"], "rounds": 1}}))
    resume(tmp_path / "run", [f"train.rounds={KEEPING[name]['train']['rounds']}"])
    assert personal(tmp_path / "run") == personal(made(name))


def numbers_of(run: SavedRun, half: int) -> int:
    return sum(factors[half].numel() for factors in run.checkpoints.load().adapter.layers.values())  # type: ignore[union-attr]


def test_with_fedsa_only_a_travels_and_each_client_has_its_own_b(made: Callable[[str], Path]) -> None:
    run = open_run(made("fedsa pubswap"))
    a, b = numbers_of(run, 0), numbers_of(run, 1)
    for record in lines(made("fedsa pubswap"))[1:]:
        for numbers in record["clients"].values():
            assert 0 < numbers["bytes_up"] - numbers["bytes_up_exchanges"] - 4 * a < min(4 * b, 2500)
    checkpoint = run.checkpoints.load()
    assert checkpoint is not None
    adapters = [run.personal_adapter(client) for client in CLIENTS]
    for layer, (shared, first) in checkpoint.adapter.layers.items():
        assert not first.any(), "the B of the server is that of the first adapter"
        kept = [adapter.layers[layer].B for adapter in adapters if adapter]
        assert all(torch.equal(adapter.layers[layer].A, shared) for adapter in adapters if adapter)
        assert all(bool(half.any()) for half in kept)
        assert not torch.equal(kept[0], kept[1])
    for numbers in lines(made("fedsa"))[-1]["clients"].values():  # int8: a byte a number, or nothing where not drawn
        assert numbers["bytes_up"] < 2500 + a


def test_with_fedalt_a_client_ends_beside_the_mean_of_what_the_others_sent_last(made: Callable[[str], Path]) -> None:
    run = open_run(made("fedalt"))
    checkpoint = run.checkpoints.load()
    assert checkpoint is not None
    sent = {name.removeprefix("own."): adapter for name, adapter in checkpoint.updates.items()}
    assert set(sent) == set(CLIENTS)
    for client in CLIENTS:
        adapter = run.personal_adapter(client)
        assert adapter is not None
        others = [sent[name] for name in CLIENTS if name != client]
        for layer, (a, b) in adapter.layers.items():
            mean_a = torch.stack([other.layers[layer].A for other in others]).mean(0)
            mean_b = torch.stack([other.layers[layer].B for other in others]).mean(0)
            wanted = 2.0 * (sent[client].layers[layer].B @ sent[client].layers[layer].A + mean_b @ mean_a)
            torch.testing.assert_close(adapter.scale * (b @ a), wanted, atol=1e-5, rtol=1e-4)


def test_whoever_asks_for_the_one_adapter_of_such_a_run_is_told_that_there_is_none(made: Callable[[str], Path]) -> None:
    for name in ("fedsa", "fedalt"):
        with pytest.raises(ConfigError, match="--client"):
            open_run(made(name)).adapter()
        assert open_run(made(name)).adapter("ann").rank == {"fedsa": 4, "fedalt": 8}[name]


@pytest.mark.parametrize("name", ["fedsa", "fedalt"])
def test_a_given_adapter_is_where_clients_that_keep_a_part_begin(
    name: str, made: Callable[[str], Path], configured: Configs, tmp_path: Path
) -> None:
    changes = {"personal": {"type": name}, "train": {"rounds": 1, "learning_rate": 1e-20}}
    tree = configured(tmp_path / "run", **changes)
    fedrlvr.run({**tree, "model": {**tree["model"], "adapter": str(made("finish") / "adapter")}})
    begun = open_run(made("finish")).adapter()
    adapter = open_run(tmp_path / "run").personal_adapter("bob")
    assert adapter is not None
    for layer, (a, b) in begun.layers.items():
        update = adapter.scale * (adapter.layers[layer].B @ adapter.layers[layer].A)
        parts = {"fedsa": 1, "fedalt": 2}[name]  # its own, and the mean of the others', which are the same here
        torch.testing.assert_close(update, parts * begun.scale * (b @ a), atol=1e-5, rtol=1e-4)


def test_a_wrapper_cannot_be_escaped_by_means_that_it_does_not_see(configured: Configs, tmp_path: Path) -> None:
    config = settled(parse_config(configured(tmp_path / "run", **KEEPING["fedalt"])), tmp_path / "run")
    federation = Federation(config, tmp_path / "run", new_cohort(config), Observer(), wrap=WrappingStrategy)
    with pytest.raises(ConfigError, match=r"personal\.type"):
        federation.go(resume=False)


def failing(client: str, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str] = ("train",)) -> None:
    """Have a client fail when it is asked for its personal adapter."""
    real = CohortApp.compute

    def compute(self: CohortApp, batch: Any) -> Any:
        replies = real(self, batch)
        for i, request in enumerate(batch):
            late = request.asked.personal and request.message.metadata.message_type in kinds
            if late and request.client.name == client:
                replies[i] = Message(Error(1, "no disk"), reply_to=request.message)
        return replies

    monkeypatch.setattr(CohortApp, "compute", compute)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_client_that_fails_is_left_out_by_name(
    kind: str, configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing("bob", monkeypatch, [kind])
    quorum = {"federation": {"clients": list(CLIENTS), "quorum": 0.6}}
    fedrlvr.run(configured(tmp_path / "run", **FINISH, **quorum))
    part = lines(tmp_path / "run")[-1]["personal"]
    assert list(part["left_out"]) == ["bob"]
    assert "no disk" in part["left_out"]["bob"]
    assert set(part["evaluate"]) == {"ann", "cyd"}
    assert "left_out" not in lines(tmp_path / "run")[-1]
    resume(tmp_path / "run")  # which does not try again


def test_without_the_quorum_the_rounds_are_kept_and_a_resume_ends_the_run(
    made: Callable[[str], Path], configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing("bob", patch)
        with pytest.raises(RoundError, match=r"bob.*no disk"):
            fedrlvr.run(configured(tmp_path / "run", **FINISH))
    assert (tmp_path / "run" / "checkpoints" / "round-0002").is_dir()
    assert open_run(tmp_path / "run").personal_adapter("ann") is None
    resume(tmp_path / "run")
    assert personal(tmp_path / "run") == personal(made("finish"))


def test_a_client_left_out_has_none_and_whoever_asks_for_it_is_told(
    configured: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[str], Path]
) -> None:
    failing("bob", monkeypatch)
    quorum = {"federation": {"clients": list(CLIENTS), "quorum": 0.6}}
    fedrlvr.run(configured(tmp_path / "run", **FINISH, **quorum))
    run = open_run(tmp_path / "run")
    assert run.personal_adapter("bob") is None
    with pytest.raises(AdapterError, match="no personal adapter of bob"):
        run.adapter("bob")
    assert isinstance(run.adapter("ann"), Adapter)
    with pytest.raises(ConfigError, match="--client dan"):
        run.personal_adapter("dan")
    _, evaluation = evaluate_run(run, personal=True)
    scores = evaluation.scores
    assert set(scores) == {"ann", "cyd"}


def test_mixing_without_validation_problems_is_refused(configured: Configs, tmp_path: Path) -> None:
    for data in ({}, {"validation_size": 1}):
        with pytest.raises(DataError, match=r"personal\.type.*data\.validation_size"):
            fedrlvr.run(configured(tmp_path / "run", personal={"type": "mix"}, data=data))


def test_requests_without_a_personal_adapter_are_as_they_were(configured: Configs) -> None:
    text = make_request(parse_config(configured(None))).model_dump_json()
    assert "personal" not in json.loads(text)
    assert "choose" not in json.loads(text)
