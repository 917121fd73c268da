"""Every LoRA rule in a whole run of a tiny model: what clients are evaluated with is what is exported, and is what the
rule makes of what clients sent.

Tolerances: weights agree to 1e-5 of their largest number and logits to 1e-4, as float32 rounds sums of a few hundred
numbers; what a rule leaves alone agrees to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from peft import PeftModel
from small_runs import CLIENTS, Configs, write_problems
from transformers import AutoModelForCausalLM

from fedrlvr.adapter import Adapter, fresh
from fedrlvr.aggregation import RULES
from fedrlvr.client.state import LOST
from fedrlvr.config import Config, parse_config
from fedrlvr.errors import ConfigError
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.peft_format import load_peft, save_peft
from fedrlvr.reporting.observer import Observer
from fedrlvr.seeds import stream
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.strategy import FederatedRLVR, WrappingStrategy
from fedrlvr.simulation.evaluate import evaluate
from fedrlvr.simulation.run import Federation, new_cohort, settled
from fedrlvr.wire.messages import arrays_to_adapter

IDS = torch.randint(4, 100, (2, 21), generator=torch.Generator().manual_seed(0))
RANKS = {"ann": 2, "bob": 4, "cyd": 1}
FGRPO = {"weights": "fgrpo", "fgrpo_temperature": 0.2}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    **{rule: {"train": {"rounds": 3}, "aggregation": {"type": rule, **FGRPO}} for rule in RULES},
    "fedit int8": {"aggregation": {"type": "fedit", "precision": "int8"}},
    "rolora int8": {"aggregation": {"type": "rolora", "precision": "int8"}},
    "fedex int8": {"aggregation": {"type": "fedex", "precision": "int8"}},
    "fedex step": {
        "train": {"rounds": 3},
        "aggregation": {"type": "fedex", "server_learning_rate": "auto", "server_optimizer": "momentum"},
    },
    "flora mixed": {"train": {"rounds": 5}, "lora": {"rank": RANKS}, "aggregation": {"type": "flora"}},
    "hetlora mixed": {"lora": {"rank": RANKS}, "aggregation": {"type": "hetlora"}},
    "flexlora mixed": {"lora": {"rank": RANKS}, "aggregation": {"type": "flexlora", "precision": "int8"}},
}
CAP = 32
"""Of the tiny model's layers, [48, 32], [32, 48], [32, 32] and [16, 32]: the largest min(d, k)."""


@dataclass
class Round:
    """The inputs and the results of one aggregation."""

    before: Adapter
    changed_before: Adapter | None
    sent: dict[str, Adapter]
    names: set[str]
    after: Adapter = field(init=False)
    change: Adapter | None = field(init=False)
    weights: dict[str, float] = field(init=False)


class Listening(WrappingStrategy):
    """Notes each round, and changes nothing."""

    def __init__(self, inner: FederatedRLVR) -> None:
        super().__init__(inner)
        self.rounds: list[Round] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        model, inner = self.inner.model, self.inner
        now = Round(model.adapter, model.updates().get("change"), {}, set())
        kept = list(replies)
        if inner.config.aggregation.number_format == "float32":
            for reply in kept:
                client = inner.clients[reply.metadata.src_node_id]
                arrays = reply.content.array_records["arrays"]
                now.names |= {name[0] for name in arrays}
                start = model.start_of(inner.participation.rank(client))
                halves = model.rule.trains(server_round)
                now.sent[client] = arrays_to_adapter(arrays, start, place=client, halves=halves)
        made = inner.aggregate_train(server_round, kept)
        now.after, now.change = model.adapter, model.updates().get("change")
        now.weights = {client: inner.record.clients[client]["weight"] for client in CLIENTS}
        self.rounds.append(now)
        return made


@dataclass
class Ran:
    """A finished run."""

    directory: Path
    config: Config
    cohort: Cohort
    initial: Adapter
    records: list[dict[str, Any]]
    rounds: list[Round]

    @property
    def exported(self) -> Adapter:
        return load_peft(self.directory / "adapter")

    @property
    def last(self) -> Checkpoint:
        checkpoint = Checkpoints(self.directory, 1).load()
        assert checkpoint is not None
        return checkpoint


Made = Callable[[str], Ran]


@pytest.fixture(scope="module")
def ran(configured: Configs, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The finished run of this name, made when it is first asked for; evaluations are greedy."""
    done: dict[str, Ran] = {}
    # Enough held-out problems that two adapters hardly ever pass as many of each client's.
    problems = write_problems(tmp_path_factory.mktemp("more"), test=24)

    def make(name: str) -> Ran:
        if name not in done:
            directory = tmp_path_factory.mktemp("rules") / "run"
            tree = configured(directory, evaluate={"temperature": 0.0}, data={"path": str(problems)}, **RUNS[name])
            config = settled(parse_config(tree), directory)
            heard: list[Listening] = []

            def wrap(strategy: FederatedRLVR) -> Strategy:
                heard.append(Listening(strategy))
                return heard[-1]

            cohort = new_cohort(config)
            federation = Federation(config, directory, cohort, Observer(), wrap=wrap)
            records = federation.go(resume=False).records
            done[name] = Ran(directory, config, cohort, federation.initial, records, heard[0].rounds)
        return done[name]

    return make


def dense(adapter: Adapter | None, like: Adapter) -> dict[str, torch.Tensor]:
    if adapter is None:
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in like.shapes.items()}
    return {name: adapter.alpha / len(a) * (b.double() @ a.double()) for name, (a, b) in adapter.layers.items()}


def off(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a number, by the largest number of its layer."""
    assert set(got) == set(wanted)
    return max(float((got[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)


def passed(scores: Mapping[str, Any]) -> dict[str, tuple[int, float, float]]:
    return {source: (s["n"], s["total"], s["squares"]) for source, s in scores.items()}


def evaluated(ran: Ran, adapter: Path | None) -> dict[str, tuple[int, float, float]]:
    scores = evaluate(ran.config, adapter).scores
    return {s.source: (s.n, s.total, s.squares) for of_client in scores.values() for s in of_client}


@pytest.mark.parametrize("name", RUNS)
def test_the_last_evaluation_is_that_of_the_exported_adapter(name: str, ran: Made, tmp_path: Path) -> None:
    run = ran(name)
    for record, whole in ((run.records[0], None), (run.records[-1], run.directory / "adapter")):
        every = evaluated(run, whole)
        for client, scores in record["evaluate"].items():
            wanted = every
            if whole and name in ("hetlora mixed", "flexlora mixed"):  # a client has what its rank has room for
                directory = tmp_path / client
                save_peft(run.exported.at_rank(RANKS[client]), directory, base_name=run.config.model.name)
                wanted = evaluated(run, directory)
            assert passed(scores) == {client: wanted[client]}


def test_training_changed_what_is_evaluated(ran: Made) -> None:
    """Else the test above could not tell an adapter from none."""
    changed = [ran(name).records[0]["evaluate"] != ran(name).records[-1]["evaluate"] for name in RUNS]
    assert all(changed)


@pytest.mark.parametrize("name", RUNS)
def test_plain_peft_gives_the_logits_of_the_cohort(name: str, ran: Made) -> None:
    run = ran(name)
    last = run.last
    run.cohort.seat({"a": last.adapter}, last.updates.get("change") and {"a": last.updates["change"]})
    with torch.no_grad():
        logits = run.cohort.base.model.eval()(IDS).logits
        plain: Any = AutoModelForCausalLM.from_pretrained(run.config.model.name, dtype=torch.float32)
        bare = plain.eval()(IDS).logits
        expected = PeftModel.from_pretrained(plain, run.directory / "adapter").eval()(IDS).logits
    torch.testing.assert_close(expected, logits, rtol=0, atol=1e-4)
    assert float((logits - bare).abs().max()) > 0.01, "the run changed the model"


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        *((rule, 4) for rule in ("fedit", "ffa", "rolora", "hetlora", "flexlora", "fedit int8", "hetlora mixed")),
        ("flora", CAP),  # 3 rounds of three clients of rank 4 would be 36
        ("flora mixed", CAP),  # 5 rounds of 2 + 4 + 1 would be 35
        ("fedex", 4 + 3 * 2 * 4),  # the adapter, and (K - 1) x 4 a round
        ("fedex int8", 4 + 2 * 2 * 4),
    ],
)
def test_the_ranks_of_what_is_exported(name: str, rank: int, ran: Made) -> None:
    run = ran(name)
    assert run.exported.rank == rank
    assert run.exported.shapes == run.initial.shapes


def test_floras_change_grows_by_the_sum_of_the_ranks(ran: Made) -> None:
    for name, ranks in (("flora mixed", [7, 14, 21, 28, 32]), ("flora", [12, 24, 32])):
        assert [now.change.rank if now.change else 0 for now in ran(name).rounds] == ranks


@pytest.mark.parametrize("name", ["ffa", "rolora", "flora", "fedex", "flora mixed"])
def test_exact_rules_make_the_mean_of_what_clients_have(name: str, ran: Made) -> None:
    """In every round: the base weights as they were changed before, and the weighted mean of the clients' updates."""
    run = ran(name)
    for now in run.rounds:
        wanted = dense(now.changed_before, run.initial)
        for client, adapter in now.sent.items():
            for layer, update in dense(adapter, run.initial).items():
                wanted[layer] = wanted[layer] + now.weights[client] * update
        got = dense(now.after, run.initial)
        for layer, update in dense(now.change, run.initial).items():
            got[layer] = got[layer] + update
        assert off(got, wanted) < 1e-5
        assert sum(now.weights.values()) == pytest.approx(1.0)
    assert off(dense(run.exported, run.initial), wanted) < 1e-5


def test_fedit_is_not_exact_on_the_same_clients(ran: Made) -> None:
    now = ran("fedit").rounds[-1]
    wanted = dense(None, now.after)
    for client, adapter in now.sent.items():
        for layer, update in dense(adapter, now.after).items():
            wanted[layer] = wanted[layer] + now.weights[client] * update
    assert off(dense(now.after, now.after), wanted) > 1e-3


def test_ffas_a_is_the_seeded_one_in_every_round(ran: Made) -> None:
    run = ran("ffa")
    shapes = run.initial.shapes
    seeded = fresh(shapes, rank=4, alpha=8.0, seed=stream(3, "adapter"))
    for adapter in [*(now.after for now in run.rounds), run.exported]:
        assert all(torch.equal(adapter.layers[name].A, a) for name, (a, _) in seeded.layers.items())
        assert any(bool(b.any()) for _, b in adapter.layers.values())
    assert all(now.names == {"B"} for now in run.rounds)


@pytest.mark.parametrize("name", ["rolora", "rolora int8"])
def test_rolora_leaves_one_half_alone_in_each_round(name: str, ran: Made) -> None:
    rounds = ran(name).rounds
    for number, now in enumerate(rounds, start=1):
        frozen, moved = ("A", "B") if number % 2 else ("B", "A")
        for layer, factors in now.after.layers.items():
            assert torch.equal(getattr(factors, frozen), getattr(now.before.layers[layer], frozen))
            assert not torch.equal(getattr(factors, moved), getattr(now.before.layers[layer], moved))
        assert now.names == ({moved} if name == "rolora" else set())


def test_flora_begins_each_round_with_another_adapter(ran: Made) -> None:
    run = ran("flora mixed")
    for number, now in enumerate(run.rounds, start=1):
        begun = fresh(run.initial.shapes, rank=4, alpha=8.0, seed=stream(3, "adapter", number))
        for layer, (a, b) in begun.layers.items():
            assert torch.equal(now.after.layers[layer].A, a)
            assert torch.equal(now.after.layers[layer].B, b)
        for client, adapter in now.sent.items():
            assert adapter.rank == RANKS[client]


@pytest.mark.parametrize("rule", RULES)
def test_fgrpo_goes_with_every_rule(rule: str, ran: Made) -> None:
    """After the first round gains are known, and clients count by them."""
    records = ran(rule).records[1:]
    for record in records:
        clients = record["clients"].values()
        assert all("gain" in numbers for numbers in clients)
        assert sum(numbers["weight"] for numbers in clients) == pytest.approx(1.0)
    first, second, third = ([n["weight"] for n in record["clients"].values()] for record in records)
    assert first == pytest.approx([1 / 3] * 3)
    assert max(second) - min(second) > 0.01
    assert max(third) - min(third) > 0.01


@pytest.mark.parametrize(
    ("name", "kept"), [("fedit int8", True), ("rolora int8", True), ("fedex int8", True), ("flexlora mixed", False)]
)
def test_what_rounding_lost_is_kept_where_it_can_be_made_up_for(name: str, kept: bool, ran: Made) -> None:
    """FlexLoRA's components are others in each round, so what one of them lacked is of no use to its successor."""
    memory = Checkpoints(ran(name).directory, 1).load_memory(ran(name).last.round, "ann")
    assert (LOST in memory.array_records) == kept


def test_bytes_by_rule(ran: Made) -> None:
    """4 bytes a number, of both halves or the one that is trained, and 1 in int8; of mixed ranks ann's is 2 of 4."""
    up = {name: ran(name).records[2]["clients"]["ann"]["bytes_up"] for name in RUNS}
    numbers = {half: sum(f[i].numel() for f in ran("fedit").initial.layers.values()) for i, half in enumerate("AB")}
    # What else travels up: names and values of metrics, and evaluations, under 2 kB.
    for name, count in (
        ("fedit", 4 * sum(numbers.values())),
        ("ffa", 4 * numbers["B"]),
        ("rolora", 4 * numbers["A"]),
        ("flora", 4 * sum(numbers.values())),
        ("fedex", 4 * sum(numbers.values())),
        ("flora mixed", 2 * sum(numbers.values())),
        ("rolora int8", numbers["A"]),
    ):
        assert 0 <= up[name] - count < 2000, name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(
            ({"lora": {"rank": RANKS}, "aggregation": {"type": rule}}, f"'{rule}' cannot mix the ranks of lora.rank")
            for rule in ("fedit", "ffa", "rolora", "fedex")
        ),
        ({"lora": {"rank": {"ann": 2, "bob": 4}}, "aggregation": {"type": "flora"}}, "no rank for the client 'cyd'"),
        ({"lora": {"rank": {**RANKS, "dan": 2}}, "aggregation": {"type": "flora"}}, "'dan', which is no client"),
        ({"lora": {"rank": {**RANKS, "cyd": 0}}, "aggregation": {"type": "flora"}}, "whole number from 1 to 1024"),
        ({"lora": {"rank": {**RANKS, "cyd": 2.0}}, "aggregation": {"type": "flora"}}, "whole number from 1 to 1024"),
        ({"lora": {"rank": RANKS}, "federation": {"arm": "central"}}, "'central' has one client, and so one rank"),
        *(
            ({"train": {"optimizer_state": "keep"}, "aggregation": {"type": rule}}, "optimizer_state")
            for rule in ("flora", "flexlora")
        ),
        ({"aggregation": {"robust": "krum"}}, "robust = 'krum'"),
        (
            {"federation": {"clients": 8, "fraction": 0.6}, "aggregation": {"robust": "krum", "robust_hostile": 2}},
            "needs at least 7 clients in a round, not 5",
        ),
        ({"aggregation": {"robust": "trimmed_mean"}}, "robust_trim"),
        ({"aggregation": {"robust": "median", "type": "flora"}}, "stands in for a mean of adapters"),
        *(
            ({"federation": {"arm": arm}, "aggregation": setting}, f"no effect with federation.arm = '{arm}'")
            for arm in ("local", "central")
            for setting in (
                {"type": "flora"},
                {"precision": "int8"},
                {"robust": "clip"},
                {"largest_change": 3.0},
                {"weights": "fgrpo"},
            )
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, dict[str, Any]], reason: str, configured: Configs
) -> None:
    tree = configured(None)
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    assert reason in str(caught.value)


def test_the_same_settings_where_they_go_together(configured: Configs) -> None:
    for rule in ("flora", "hetlora", "flexlora"):
        parse_config(configured(None, lora={"rank": RANKS}, aggregation={"type": rule}))
    parse_config(configured(None, lora={"rank": dict.fromkeys(RANKS, 4)}, aggregation={"type": "fedit"}))
    local = {"federation": {"clients": list(CLIENTS), "arm": "local"}}
    parse_config(configured(None, lora={"rank": RANKS}, **local))
    parse_config(configured(None, train={"optimizer_state": "keep"}, aggregation={"type": "fedex"}))
    parse_config(configured(None, federation={"clients": 5}, aggregation={"robust": "krum"}))
    parse_config(configured(None, aggregation={"robust": "trimmed_mean", "robust_trim": 0.34}))
