"""The server's step in the round loop: which settings go together, what clients count, what is recorded and sent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import NAMES, make_adapter, make_strategy
from fakes import answering, contexts, scores_reply
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedrlvr.aggregation import RULES
from fedrlvr.aggregation.robust import ROBUST_MEANS
from fedrlvr.aggregation.server_step import SERVER_OPTIMIZERS
from fedrlvr.errors import ConfigError, RoundError
from fedrlvr.reporting.observer import Event, Observer, RoundEnded
from fedrlvr.server.checkpoint import Checkpoints
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.grid import LocalGrid
from fedrlvr.wire.messages import adapter_to_arrays

FIVE = dict(enumerate(["ann", "bob", "cyd", "dan", "eve"], start=1))


class Records(Observer):
    """Keeps the rounds' lines of metrics.jsonl."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def notify(self, event: Event) -> None:
        if isinstance(event, RoundEnded):
            self.lines.append(dict(event.record))


Moves = Callable[[str, int, torch.Tensor], torch.Tensor]
"""What a client's factor becomes in a round: client, round, the factor that it was sent."""


def add(client: str, round_: int, tensor: torch.Tensor) -> torch.Tensor:
    """Every client moves numbers of its own, by 1."""
    moved = tensor.clone().view(-1)
    moved[list(FIVE.values()).index(client) :: len(FIVE)] += 1.0
    return moved.view_as(tensor)


def ran(
    strategy: FederatedRLVR, directory: Path, move: Moves = add, examples: dict[str, int] | None = None, **how: Any
) -> list[dict[str, Any]]:
    """The records of all rounds, in which clients answer with what `move` makes of each factor that trains."""
    records = Records()
    strategy.observer = strategy.participation.observer = records

    def answer(message: Message) -> RecordDict | Error:
        client, round_ = strategy.clients[message.metadata.dst_node_id], int(message.metadata.group_id)
        if message.metadata.message_type == "evaluate":
            return scores_reply(["s"], [1], [0.0], [0.0])
        rank = strategy.participation.rank(client)
        start = strategy.model.start_of(rank)
        tensors = {name: move(client, round_, tensor) for name, tensor in start.tensors()}
        adapter = type(start).from_tensors(tensors, start.alpha)
        arrays = adapter_to_arrays(adapter, strategy.model.rule.trains(round_))
        numbers = MetricRecord({"num-examples": (examples or {}).get(client, 1), "reward": 0.1 * round_})
        return RecordDict({"arrays": arrays, "metrics": numbers})

    grid = LocalGrid(answering(answer), contexts(strategy.clients))
    directory.mkdir(exist_ok=True)
    strategy.start(grid, Checkpoints(directory, 2), **how)
    return records.lines


COMBINATIONS = list(
    itertools.product(
        RULES, SERVER_OPTIMIZERS, ("auto", 0.5), ("none", "clip", *ROBUST_MEANS), ("examples", "fgrpo"), (False, True)
    )
)


@pytest.mark.parametrize("rule", RULES)
def test_every_combination_of_settings_runs_or_is_refused_by_both_names(rule: str, tmp_path: Path) -> None:
    refused = 0
    for at, (_, optimizer, rate, robust, weights, mixed) in enumerate(c for c in COMBINATIONS if c[0] == rule):
        settings: dict[str, Any] = {"server_learning_rate": rate, "server_optimizer": optimizer, "robust": robust}
        table, adaptive = RULES[rule], SERVER_OPTIMIZERS[optimizer].adaptive
        if (mixed and not table.mixes_ranks) or (weights != "examples" and robust in ROBUST_MEANS):
            continue  # refused for reasons of their own
        names: tuple[str, ...] = ()
        if table.server_step is None:
            names = ("server_", f"type = '{rule}'")
        elif rate == "auto" and robust == "krum":
            names = ("server_learning_rate = 'auto'", "robust = 'krum'")
        elif adaptive and table.server_step == "products":
            names = (f"server_optimizer = '{optimizer}'", f"type = '{rule}'")
        elif adaptive and rate == "auto":
            names = (f"server_optimizer = '{optimizer}'", "server_learning_rate")
        elif robust in ROBUST_MEANS and not table.is_linear:
            names = (f"robust = '{robust}'", "type = ")

        def make(settings: dict[str, Any] = settings, weights: str = weights, mixed: bool = mixed) -> FederatedRLVR:
            rank = dict(zip(FIVE.values(), (4, 2, 1, 4, 3), strict=True)) if mixed else 2
            return make_strategy(FIVE, rank=rank, rounds=2, type=rule, weights=weights, **settings)

        if names:
            with pytest.raises(ConfigError) as caught:
                make()
            assert all(name in str(caught.value) for name in names), str(caught.value)
            refused += 1
            continue
        strategy = make()
        lines = ran(strategy, tmp_path / str(at), lambda c, r, t: add(c, r, t) + 0.5)  # of which a median is not zero
        assert all(bool(torch.isfinite(tensor).all()) for _, tensor in strategy.adapter.tensors())
        assert any(bool(tensor.any()) for _, tensor in strategy.adapter.tensors())
        steps = [line["server_step"] for line in lines[1:]]
        assert all(math.isfinite(step["learning_rate"]) for step in steps)
        if rate == "auto":
            most = math.sqrt(len(FIVE)) + 1e-9
            assert all(1.0 <= step["learning_rate"] <= most for step in steps)
    assert refused


def test_a_fixed_step_by_hand(tmp_path: Path) -> None:
    """Weights 0.5, 0.3 and 0.2; each round the model moves by twice the mean of 1, 2 and 4, which is 1.9."""
    values = {"ann": 1.0, "bob": 2.0, "cyd": 4.0}
    strategy = make_strategy(server_learning_rate=2)
    lines = ran(strategy, tmp_path, lambda c, _, t: t + values[c], {"ann": 5, "bob": 3, "cyd": 2})
    for _, tensor in strategy.adapter.tensors():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 7.6))
    assert lines[1]["clients"]["ann"]["weight"] == 0.5
    assert "server_step" not in lines[0]
    numbers = 2 * 2 * (4 + 3)  # of two layers of rank 2, in A and in B
    assert lines[1]["server_step"]["norms"] == pytest.approx({c: v * math.sqrt(numbers) for c, v in values.items()})
    assert lines[1]["server_step"]["mean_norm"] == pytest.approx(1.9 * math.sqrt(numbers))
    assert lines[1]["server_step"]["mean_cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize(("robust", "moved"), [("clip", 1.0), ("median", 1.0), ("trimmed_mean", 1.0), ("krum", 1.0)])
def test_a_defence_comes_before_the_step(robust: str, moved: float, tmp_path: Path) -> None:
    strategy = make_strategy(FIVE, rounds=1, robust=robust, server_learning_rate=3)
    ran(strategy, tmp_path, lambda c, _, t: t + (50.0 if c == "eve" else 1.0))
    for _, tensor in strategy.adapter.tensors():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 3 * moved))


@pytest.mark.parametrize("settings", [{}, {"weights": "fgrpo"}, {"largest_change": 3.0}])
def test_a_client_that_is_left_out_does_not_count_in_the_step(settings: dict[str, Any], tmp_path: Path) -> None:
    """Of three, two are left that move different numbers: sqrt 2."""
    strategy = make_strategy(quorum=0.6, rounds=1, server_learning_rate="auto", **settings)
    lost = math.nan if "largest_change" not in settings else 1e3
    lines = ran(strategy, tmp_path, lambda c, r, t: t + lost if c == "cyd" else add(c, r, t))
    step = lines[1]["server_step"]
    assert set(lines[1]["left_out"]) == {"cyd"}
    assert set(step["norms"]) == {"ann", "bob"}
    # ann moves 12 and bob 11 of 56 numbers that no other moves.
    lengths = list(step["norms"].values())
    assert step["learning_rate"] == pytest.approx(sum(lengths) / math.hypot(*lengths))
    assert step["learning_rate"] == pytest.approx(math.sqrt(2), rel=1e-2)


def test_the_bound_on_a_change_is_of_clients_and_not_of_the_step(tmp_path: Path) -> None:
    """A step of 50 moves the model by 50, and each client moves by 1 from there: half of what the bound allows."""
    strategy = make_strategy(rounds=4, quorum=0.6, change_bound=2.0, server_learning_rate=50)
    lines = ran(strategy, tmp_path, lambda c, _, t: t + 1.0)
    assert not any("left_out" in line for line in lines)
    assert all(bool((tensor == 200.0).all()) for _, tensor in strategy.adapter.tensors())


@pytest.mark.parametrize("rule", [rule.name for rule in RULES.values() if rule.server_step and not rule.changes_base])
def test_messages_are_as_large_as_without_a_step(rule: str, tmp_path: Path) -> None:
    ways = {}
    for rate in (1, "auto"):
        lines = ran(make_strategy(rounds=3, type=rule, server_learning_rate=rate), tmp_path / str(rate))
        ways[rate] = [[line["clients"]["ann"][way] for way in ("bytes_up", "bytes_down")] for line in lines]
    assert ways[1] == ways["auto"]


@pytest.mark.parametrize("rule", ["ffa", "rolora"])
def test_a_half_that_does_not_train_does_not_move(rule: str, tmp_path: Path) -> None:
    """Not by the momentum of the rounds in which it trained either."""
    sizes: list[tuple[float, float]] = []

    def move(client: str, round_: int, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 1.0

    class Watching(WrappingStrategy):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> Iterable[Message]:
            note()
            return self.inner.configure_train(server_round, arrays, config, grid)

    def note() -> None:
        factors = strategy.adapter.layers["up"]
        sizes.append((float(factors.A[0, 0]), float(factors.B[0, 0])))

    strategy = make_strategy(rounds=4, type=rule, server_optimizer="momentum", server_momentum=0.5)
    ran(strategy, tmp_path, move, hooks=Watching(strategy))
    note()
    b = [0.0, 1.0, 2.5, 4.25, 6.125]
    expected = list(zip([0.0] * 5, b, strict=True))
    if rule == "rolora":
        expected = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 2.5), (2.5, 2.5)]
    assert sizes == expected


def test_the_order_of_the_replies_changes_nothing(tmp_path: Path) -> None:
    """A deployment's replies come in any order, and give the numbers of a simulation."""
    values = {"ann": 0.1, "bob": 0.7, "cyd": 1.3}
    results = []
    for order in ([1, 2, 3], [3, 1, 2]):
        strategy = make_strategy(server_learning_rate="auto", server_agreement="clients")
        strategy.participation.record = RoundRecord(1)
        grid = LocalGrid(lambda messages, _: [], contexts())
        sent = {
            message.metadata.dst_node_id: message
            for message in strategy.configure_train(1, adapter_to_arrays(strategy.adapter), ConfigRecord(), grid)
        }
        for message in sent.values():
            message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
        replies = []
        for node in order:
            adapter = make_adapter(values[NAMES[node]])
            adapter.layers["up"].B.view(-1)[node] += 1.0 / 3.0
            content = RecordDict(
                {"arrays": adapter_to_arrays(adapter), "metrics": MetricRecord({"num-examples": node})}
            )
            replies.append(Message(content, reply_to=sent[node]))
        strategy.aggregate_train(1, replies)
        results.append((strategy.record.server_step, dict(strategy.adapter.tensors())))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], tensor) for name, tensor in results[1][1].items())


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, "auto"),
        ({"weights": "fgrpo"}, "auto"),
        ({"robust": "clip"}, "auto"),
        ({"server_learning_rate": 1}, 1),
        ({"server_learning_rate": 1.5}, 1.5),
        ({"federation": {"clients": 32}}, "auto"),
        ({"federation": {"clients": 33}}, 1),
        ({"federation": {"clients": 66, "fraction": 0.25}}, "auto"),
        ({"federation": {"clients": ["ann"]}}, 1),
        ({"federation": {"clients": ["ann", "bob"], "excluded": ["bob"]}}, 1),
        ({"robust": "median"}, 1),
        ({"server_optimizer": "nesterov"}, 1),
        *(({"type": rule}, 1) for rule in RULES if rule != "fedit"),
    ],
)
def test_an_unset_step_is_automatic_where_that_was_measured(settings: dict[str, Any], rate: float | str) -> None:
    config = make_strategy(**settings).config
    assert config.aggregation.server_rate(config) == rate


@pytest.mark.parametrize("arm", ["local", "central"])
def test_other_arms_have_no_step(arm: str) -> None:
    config = make_strategy(federation={"arm": arm}).config
    assert config.aggregation.server_rate(config) == 1
    assert config.aggregation.server_step(config) is None


@pytest.mark.parametrize("kind", ["fedsa", "fedalt"])
def test_what_stays_at_the_clients_has_no_step_by_default(kind: str) -> None:
    config = make_strategy(personal={"type": kind}).config
    assert config.aggregation.server_rate(config) == 1


def test_without_a_step_nothing_is_measured_or_remembered(tmp_path: Path) -> None:
    strategy = make_strategy(server_learning_rate=1)
    lines = ran(strategy, tmp_path)
    assert strategy.combiner.step is None
    assert not any("server_step" in line for line in lines)
    checkpoint = Checkpoints(tmp_path, 2).load()
    assert checkpoint is not None
    assert checkpoint.step == {}


def test_only_the_agreement_of_clients_keeps_their_changes_on_disk(tmp_path: Path) -> None:
    kept = {}
    for form in ("mean", "clients"):
        ran(make_strategy(server_learning_rate="auto", server_agreement=form), tmp_path / form)
        checkpoint = Checkpoints(tmp_path / form, 2).load()
        assert checkpoint is not None
        kept[form] = {path.rpartition("/")[0] for path in checkpoint.step}
    assert kept["mean"] == {"previous"}
    assert kept["clients"] == {f"previous/{name}" for name in NAMES.values()}


def test_a_wrapper_that_changes_the_aggregate_is_refused_with_a_step(tmp_path: Path) -> None:
    """Noise that a wrapper adds is measured for the mean, and a step would multiply what it has to hide."""

    class Noise(WrappingStrategy):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            arrays, metrics = self.inner.aggregate_train(server_round, replies)
            assert arrays is not None
            return ArrayRecord(arrays.to_torch_state_dict()), metrics

    strategy = make_strategy(server_learning_rate=2)
    with pytest.raises(RoundError, match=r"round 1: .*server_learning_rate"):
        ran(strategy, tmp_path, hooks=Noise(strategy))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"server_learning_rate": 0}, ("server_learning_rate",)),
        ({"server_learning_rate": "fast"}, ("server_learning_rate", "auto")),
        ({"server_momentum": 0.5}, ("server_momentum", "server_optimizer")),
        ({"server_beta1": 0.5, "server_optimizer": "momentum"}, ("server_beta1", "server_optimizer")),
        ({"server_agreement": "clients", "robust": "median"}, ("server_agreement", "server_learning_rate")),
        ({"server_agreement": "clients", "server_learning_rate": 2}, ("server_agreement", "server_learning_rate")),
        ({"server_optimizer": "adam"}, ("server_optimizer = 'adam'", "server_learning_rate")),
        ({"server_optimizer": "sdg"}, ("server_optimizer",)),
        (
            {"server_learning_rate": "auto", "federation": {"clients": ["ann", "bob"], "fraction": 0.5}},
            ("server_learning_rate = 'auto'", "federation"),
        ),
        ({"server_learning_rate": 2, "federation": {"arm": "central"}}, ("server_learning_rate", "federation.arm")),
        ({"server_learning_rate": 2, "federation": {"arm": "local"}}, ("server_learning_rate", "federation.arm")),
    ],
)
def test_a_setting_of_the_step_without_an_effect_is_refused(settings: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_strategy(**settings)
    assert all(name in str(caught.value) for name in names), str(caught.value)
