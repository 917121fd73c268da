"""The server's side of a run over Flower, with the organisations' client code behind a grid in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Context, Error, Message, RecordDict
from models import tiny_model
from safetensors.torch import load_file
from small_runs import CLIENTS, settings, without_seconds, write_problems

import fedrlvr
from fedrlvr.config import parse_config
from fedrlvr.deployment.superlink import server_app
from fedrlvr.deployment.superlink.server_app import serve
from fedrlvr.deployment.terms import TERMS, Terms, read_terms
from fedrlvr.errors import CheckpointError, ConfigError, DataError, RoundError
from fedrlvr.files import atomic_text
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.run_directory import RUN_ID_FILE, run_id
from fedrlvr.simulation.grid import RUN_ID as FLOWERS_RUN
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.simulation.run import Federation, new_cohort, settled

PUBSWAP = {
    "train": {"rounds": 3, "local_steps": 2},
    "data": {"public_size": 6},
    "coordination": {"type": "pubswap", "exchanges": 1, "public_problems": 2},
    "evaluate": {"every": 2},
}


class Organisations(LocalGrid):
    """SuperNodes with the nodes and names of a registration, each answered by its own client code in this process."""

    def __init__(self, config: Any, directory: Path) -> None:
        federation = Federation(config, directory, new_cohort(config), Observer())
        super().__init__(federation.app, {n: Context(FLOWERS_RUN, n, {}, RecordDict(), {}) for n in federation.names})
        self.names = dict(federation.names)
        self.terms: list[Terms] = []
        self.fails: Callable[[Message], str | None] = lambda _: None

    def get_nodes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(node_id=n, name=name, status="online") for n, name in reversed(self.names.items())]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        for message in messages:
            self.terms.append(read_terms(message.content))
            content = RecordDict({name: record for name, record in message.content.items() if name != TERMS})
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            plain = Message(content, node, kind, group_id=message.metadata.group_id)
            if (reason := self.fails(plain)) is None:
                sent += super().push_messages([plain])
            else:
                plain.metadata.__dict__["_message_id"] = f"failed-{len(self.terms)}"
                self._replies[plain.metadata.message_id] = Message(Error(1, reason), reply_to=plain)
                sent.append(plain.metadata.message_id)
        return sent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and everybody's problems."""
    return tiny_model(tmp_path_factory.mktemp("model")), write_problems(tmp_path_factory.mktemp("problems"))


def prepared(place: tuple[Path, Path], directory: Path, changes: Mapping[str, Mapping[str, Any]]) -> Organisations:
    """A run directory as `fedrlvr federate` makes it, and the organisations."""
    config = settled(parse_config(settings(*place, directory, **changes)), directory)
    atomic_text(directory / "config.json", config.model_dump_json() + "\n")
    return Organisations(config, directory)


def adapter(directory: Path) -> dict[str, Any]:
    return dict(load_file(directory / "adapter" / "adapter_model.safetensors"))


def largest_difference(directory: Path, other: Path) -> float:
    tensors, expected = adapter(directory), adapter(other)
    assert list(tensors) == list(expected)
    return max(float((tensors[name] - expected[name]).abs().max()) for name in tensors)


@pytest.mark.report
def test_it_ends_with_the_adapter_and_the_numbers_of_the_local_engine(
    place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fedrlvr.run(settings(*place, tmp_path / "local", **PUBSWAP))
    grid = prepared(place, tmp_path / "deployed", PUBSWAP)
    result = serve(grid, {"directory": str(tmp_path / "deployed"), "wait": 1.0})
    assert largest_difference(tmp_path / "local", tmp_path / "deployed") < 1e-5
    local, deployed = without_seconds(tmp_path / "local"), without_seconds(tmp_path / "deployed")
    for line, other in zip(local, deployed, strict=True):
        assert line.get("evaluate") == other.get("evaluate")
        for client in CLIENTS:
            same = [key for key in line["clients"][client] if "tokens" in key or "reward" in key or "bytes" in key]
            assert {key: line["clients"][client][key] for key in same} == {
                key: pytest.approx(other["clients"][client][key]) for key in same
            }
    assert (tmp_path / "deployed" / "report.html").stat().st_size > 1000
    assert result.directory == tmp_path / "deployed"
    said = capsys.readouterr().out
    assert "From each organisation, each round: its adapter (" in said
    assert "Never: its own problems" in said
    assert "connected: ann, bob, cyd" in said


@pytest.mark.parametrize("rule", ["fedit", "ffa", "rolora", "flora", "fedex"])
def test_a_given_adapter_reaches_organisations_that_have_only_the_model(
    rule: str, place: tuple[Path, Path], tmp_path: Path
) -> None:
    fedrlvr.run(settings(*place, tmp_path / "first", train={"rounds": 1}))
    changes = {"train": {"rounds": 2}, "aggregation": {"type": rule}}

    def given(directory: Path) -> dict[str, Any]:
        tree = settings(*place, directory, **changes)
        tree["model"]["adapter"] = str(tmp_path / "first" / "checkpoints" / "round-0001")
        return tree

    fedrlvr.run(given(tmp_path / "local"))
    grid = prepared(place, tmp_path / "deployed", changes)
    config = settled(parse_config(given(tmp_path / "deployed")), tmp_path / "deployed")
    atomic_text(tmp_path / "deployed" / "config.json", config.model_dump_json() + "\n")
    serve(grid, {"directory": str(tmp_path / "deployed"), "wait": 1.0})
    assert largest_difference(tmp_path / "local", tmp_path / "deployed") < 2e-4, "a step is 1e-2"
    first, local = adapter(tmp_path / "first"), adapter(tmp_path / "local")
    assert any(local[name].shape != first[name].shape or bool((local[name] != first[name]).any()) for name in first)


def test_every_message_says_the_same_run_its_receiver_and_the_servers_model(
    place: tuple[Path, Path], tmp_path: Path
) -> None:
    changes = {**PUBSWAP, "federation": {"task": "letters"}, "train": {"rounds": 1, "local_steps": 1}}
    grid = prepared(place, tmp_path / "a run", changes)
    serve(grid, {"directory": str(tmp_path / "a run"), "wait": 1.0})
    assert {(t.run, t.task, t.model, t.clients, t.rounds, t.rank) for t in grid.terms} == {
        (run_id(tmp_path / "a run"), "letters", place[0].name, 3, 1, 4)
    }
    assert run_id(tmp_path / "a run").startswith("a-run-")
    assert {t.client for t in grid.terms} == set(CLIENTS)
    base = new_cohort(parse_config(settings(*place, None))).base
    assert {(t.model_id, t.weights_id, t.tokenizer_id) for t in grid.terms} == {
        (base.model_id, base.weights_id, base.tokenizer_id)
    }
    assert not any(str(tmp_path) in t.model_dump_json() for t in grid.terms), "no path of the server's travels"


def test_a_run_that_broke_off_goes_on_from_its_last_complete_round(place: tuple[Path, Path], tmp_path: Path) -> None:
    whole = prepared(place, tmp_path / "whole", PUBSWAP)
    serve(whole, {"directory": str(tmp_path / "whole"), "wait": 1.0})
    grid = prepared(place, tmp_path / "broken", PUBSWAP)
    contexts, states = grid.contexts, dict[int, RecordDict]()

    def fails(message: Message) -> str | None:
        node = message.metadata.dst_node_id
        if message.metadata.group_id != "3":
            return None
        # A deployed client keeps its last rounds' states: round 3 will begin from that of round 2 again.
        states.setdefault(node, RecordDict(dict(contexts[node].state)))
        return "power cut" if message.metadata.message_type == "train" else None

    grid.fails = fails
    with pytest.raises(RoundError, match="power cut"):
        serve(grid, {"directory": str(tmp_path / "broken"), "wait": 1.0})
    name = run_id(tmp_path / "broken")
    for node, state in states.items():
        contexts[node].state = state
    grid.fails = lambda _: None
    serve(grid, {"directory": str(tmp_path / "broken"), "wait": 1.0})
    assert largest_difference(tmp_path / "whole", tmp_path / "broken") == 0.0
    assert without_seconds(tmp_path / "whole") == without_seconds(tmp_path / "broken")
    assert {t.run for t in grid.terms} == {name}


@pytest.mark.report
def test_who_misses_a_round_is_named_in_the_record_and_comes_back(place: tuple[Path, Path], tmp_path: Path) -> None:
    changes = {**PUBSWAP, "federation": {"clients": list(CLIENTS), "quorum": 0.6}}
    grid = prepared(place, tmp_path / "run", changes)
    grid.fails = lambda m: "no disk" if m.metadata.group_id == "2" and m.metadata.dst_node_id == 2 else None
    records = serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0}).records
    assert [sorted(record.get("left_out", {})) for record in records] == [[], [], ["bob"], []]
    assert "no disk" in records[2]["left_out"]["bob"]
    assert "tokens_sampled" in records[3]["clients"]["bob"]
    assert "no disk" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_run_directory_with_other_public_problems_does_not_go_on(place: tuple[Path, Path], tmp_path: Path) -> None:
    grid = prepared(place, tmp_path / "run", PUBSWAP)
    grid.fails = lambda m: "down" if m.metadata.group_id == "2" else None
    with pytest.raises(RoundError, match="down"):
        serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0})
    config = parse_config(settings(*place, tmp_path / "run", **{**PUBSWAP, "data": {"public_size": 5}}))
    atomic_text(tmp_path / "run" / "config.json", config.model_dump_json())
    with pytest.raises(DataError, match="the problems are not those"):
        serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0})


def test_arms_without_a_federation_are_not_for_a_network(place: tuple[Path, Path], tmp_path: Path) -> None:
    grid = prepared(place, tmp_path / "run", {"federation": {"clients": list(CLIENTS), "arm": "local"}})
    with pytest.raises(ConfigError, match="nothing travels"):
        serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0})
    assert grid.terms == []


def test_a_runs_id_is_made_once_and_has_nothing_in_it_that_a_path_could_not(tmp_path: Path) -> None:
    directory = tmp_path / ".. über/run:1"
    directory.mkdir(parents=True)
    first = run_id(directory)
    assert first == run_id(directory)
    assert set(first) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    (directory / RUN_ID_FILE).write_text("../../etc", "utf-8")
    with pytest.raises(CheckpointError, match="does not hold a run's id"):
        run_id(directory)


def test_a_toml_file_of_the_superlinks_machine_can_be_named_in_the_run_config(
    place: tuple[Path, Path], tmp_path: Path
) -> None:
    from small_runs import write_toml

    tree = settings(*place, tmp_path / "run", train={"rounds": 1, "local_steps": 1})
    path = write_toml(tmp_path / "exp.toml", tree)
    grid = Organisations(parse_config(tree), tmp_path / "elsewhere")
    assert serve(grid, {"experiment": str(path), "wait": 1.0}).directory == tmp_path / "run"
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_one_run_directory_has_one_server_at_a_time(place: tuple[Path, Path], tmp_path: Path) -> None:
    grid = prepared(place, tmp_path / "run", {"train": {"rounds": 1, "local_steps": 1}})

    def meanwhile(message: Message) -> str | None:
        with pytest.raises(CheckpointError, match="another process is at work"):
            serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0})
        return None

    grid.fails = meanwhile
    serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0})
    grid.fails = lambda _: None
    serve(grid, {"directory": str(tmp_path / "run"), "wait": 1.0})


def test_a_superlink_whose_disk_is_full_ends_the_run_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve_with(code: int) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            raise httpx.HTTPStatusError("no", request=httpx.Request("POST", "http://h"), response=httpx.Response(code))

        return fail

    context = Context(1, 1, {}, RecordDict(), {})
    monkeypatch.setattr(server_app, "serve", serve_with(500))
    with pytest.raises(RoundError, match="disk may be full"):
        server_app.main(LocalGrid(lambda *_: [], {}), context)
    monkeypatch.setattr(server_app, "serve", serve_with(403))
    with pytest.raises(httpx.HTTPStatusError):
        server_app.main(LocalGrid(lambda *_: [], {}), context)
