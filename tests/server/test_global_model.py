"""What the server sends to whom: all of its model, what is new of it, or nothing; and what it knows of who has what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories import SHAPES, make_strategy, random_adapter
from flwr.app import RecordDict

import fedrlvr
from fedrlvr.adapter import Adapter, fresh
from fedrlvr.aggregation import Result
from fedrlvr.config import parse_config
from fedrlvr.errors import CheckpointError
from fedrlvr.seeds import stream
from fedrlvr.server.aggregator import global_model
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.wire.messages import DELTA, adapter_to_arrays, arrays_to_adapter
from fedrlvr.wire.model_delta import CHANGE, ModelDelta

SEED = 7
HALF, HALF_OF_3 = 202, 230
"""Bytes of half an adapter of rank 2 (A is 2 x 3 and 2 x 4, B is 4 x 2 and 3 x 2: 14 numbers of 4 bytes each, 128 of a
header and 18 of a name), and of one of rank 3, whose halves have 21 numbers."""


def change(seed: int, rank: int = 2) -> Adapter:
    return random_adapter(seed, rank, float(rank))


def same(adapter: Adapter | None, other: Adapter | None) -> bool:
    """Equal to the bit, in the same order."""
    if adapter is None or other is None:
        return adapter is other
    pairs = zip(adapter.tensors(), other.tensors(), strict=True)
    return adapter.alpha == other.alpha and all(n == m and torch.equal(a, b) for (n, a), (m, b) in pairs)


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: adapter.scale * (b.double() @ a.double()) for name, (a, b) in adapter.layers.items()}


def records(model: GlobalModel, client: str, rank: int = 2) -> RecordDict:
    return RecordDict(model.bring(client, rank, adapter_to_arrays(model.adapter, model.halves)))  # type: ignore[arg-type]


def notes(model: GlobalModel, client: str) -> ModelDelta:
    return ModelDelta.model_validate_json(str(records(model, client).config_records[DELTA]["delta"]))


def brought(model: GlobalModel, client: str, rank: int = 2) -> tuple[str | None, str, int]:
    """Halves, what of the change, and bytes of both."""
    sent = records(model, client, rank)
    adapter, update = sent.array_records.get("arrays"), sent.array_records.get(CHANGE)
    delta = notes(model, client) if DELTA in sent else ModelDelta(version=model.version)
    assert (adapter is None) == (delta.halves is None)
    whole = model.updates().get("change" if delta.since is None else "last")
    assert delta.change_rank == (0 if update is None or whole is None else whole.rank)
    kind = "none" if "change" not in model.updates() else "held" if update is None else "next"
    kind = "whole" if kind == "next" and delta.since is None else kind
    return delta.halves, kind, sum(r.count_bytes() for r in (adapter, update) if r is not None)


def begun(rule: str) -> GlobalModel:
    return global_model(parse_config({"aggregation": {"type": rule}}).aggregation, random_adapter(1), SEED)


def rounds_of(rule: str, *results: Result) -> GlobalModel:
    """A model after these rounds; ann answered in all, bob not in the last, cyd not in the last two, dan never."""
    model = begun(rule)
    for version in range(len(results) + 1):
        if version:
            model.advance(results[version - 1], version)
        for client, behind in (("ann", 0), ("bob", 1), ("cyd", 2)):
            if version <= len(results) - behind:
                model.answered(client)
    return model


@pytest.mark.parametrize("rule", ["fedit", "hetlora", "flexlora"])
def test_most_rules_send_all_of_the_adapter_always_and_count_on_nothing(rule: str) -> None:
    model = rounds_of(rule, Result(random_adapter(2)), Result(random_adapter(3)))
    for client in ("ann", "bob", "cyd", "dan"):
        assert brought(model, client) == ("AB", "none", 2 * HALF)
        assert list(records(model, client)) == ["arrays"]
    assert (model.state(), model.updates()) == ({}, {})


def test_what_the_hooks_were_given_is_what_a_client_of_the_full_rank_gets() -> None:
    """So a wrapper's change of it counts also in a round that it makes no aggregate in."""
    for rule, halves in (("fedit", "AB"), ("ffa", "B")):
        given = adapter_to_arrays(random_adapter(9), halves)  # type: ignore[arg-type]
        assert begun(rule).bring("ann", 2, given)["arrays"] is given


def test_ffa_sends_b_alone_beside_the_seeded_a() -> None:
    model = rounds_of("ffa", Result(random_adapter(2)), Result(random_adapter(3)))
    for client in ("ann", "bob", "cyd", "dan"):
        assert brought(model, client) == ("B", "none", HALF)
        assert (notes(model, client).seeded, notes(model, client).keep) == (0, "nothing")
        arrays = records(model, client).array_records["arrays"]
        got = arrays_to_adapter(arrays, random_adapter(1), place="ann", halves="B")
        assert all(torch.equal(got.layers[name].B, random_adapter(3).layers[name].B) for name in SHAPES)
    assert model.state() == {}


def test_rolora_sends_the_half_of_the_last_round_to_who_has_the_rest() -> None:
    results = [Result(random_adapter(seed)) for seed in (2, 3, 4)]
    for count, half in ((2, "A"), (3, "B")):  # B is trained in rounds 1 and 3, A in round 2
        model = rounds_of("rolora", *results[:count])
        assert brought(model, "ann") == (None, "none", 0), "up to date"
        assert brought(model, "bob") == (half, "none", HALF), "one behind"
        assert brought(model, "cyd") == ("AB", "none", 2 * HALF), "two behind"
        assert brought(model, "dan") == ("AB", "none", 2 * HALF), "a stranger"
        deltas = [notes(model, client) for client in ("ann", "bob", "cyd", "dan")]
        assert [delta.since for delta in deltas] == [count, count - 1, None, None]
        assert {(delta.version, delta.seeded, delta.keep) for delta in deltas} == {(count, None, "adapter")}


def test_the_half_that_is_sent_is_that_of_the_adapter_as_it_is_now() -> None:
    model = rounds_of("rolora", Result(random_adapter(2)))
    for seed, replaced in ((2, False), (5, True)):
        if replaced:
            model.replace(random_adapter(5))
        arrays = records(model, "bob").array_records["arrays"]
        got = arrays_to_adapter(arrays, random_adapter(1), place="bob", halves="B")
        assert all(torch.equal(got.layers[name].B, random_adapter(seed).layers[name].B) for name in SHAPES)


def test_flora_sends_no_adapter_and_of_the_change_what_is_new() -> None:
    first = rounds_of("flora")
    assert {brought(first, c) for c in ("ann", "dan")} == {(None, "none", 0)}, "nobody has changed anything"
    model = rounds_of("flora", Result(None, change(2, 1)), Result(None, change(3, 2)))
    assert brought(model, "ann") == (None, "held", 0)
    assert brought(model, "bob") == (None, "next", 2 * HALF), "the last, of rank 2"
    assert brought(model, "cyd") == (None, "whole", 2 * HALF_OF_3), "both, of rank 1 + 2"
    assert brought(model, "dan") == (None, "whole", 2 * HALF_OF_3)
    delta = notes(model, "bob")
    assert (delta.version, delta.since, delta.seeded, delta.keep) == (2, 1, 2, "change")
    drawn = fresh(SHAPES, rank=2, alpha=4.0, seed=stream(SEED, "adapter", 2))
    assert same(model.adapter, drawn), "everybody begins again, each round with another adapter"
    assert not same(drawn, fresh(SHAPES, rank=2, alpha=4.0, seed=stream(SEED, "adapter", 1)))


def test_fedex_sends_all_of_the_adapter_and_of_the_change_what_is_new() -> None:
    model = rounds_of("fedex", Result(random_adapter(2), change(2, 1)), Result(random_adapter(3), change(3, 2)))
    assert brought(model, "ann") == ("AB", "held", 2 * HALF)
    assert brought(model, "bob") == ("AB", "next", 4 * HALF)
    assert brought(model, "cyd") == ("AB", "whole", 2 * HALF + 2 * HALF_OF_3)
    assert brought(model, "dan") == ("AB", "whole", 2 * HALF + 2 * HALF_OF_3)
    delta = notes(model, "cyd")
    assert (delta.version, delta.since, delta.keep) == (2, None, "change")


def test_a_round_without_a_change_leaves_who_is_one_behind_what_it_has() -> None:
    """One client that counts is FedEx's mean, with nothing left out of it."""
    model = rounds_of("fedex", Result(random_adapter(2), change(2, 1)), Result(random_adapter(3)))
    assert list(model.updates()) == ["change"]
    assert same(model.updates()["change"], change(2, 1))
    assert [brought(model, client)[1] for client in ("ann", "bob", "cyd", "dan")] == ["held", "held", "whole", "whole"]
    none_yet = rounds_of("fedex", Result(random_adapter(2)))
    assert [brought(none_yet, client)[1] for client in ("ann", "bob", "dan")] == ["none"] * 3


def test_a_client_of_a_smaller_rank_gets_a_narrow_adapter() -> None:
    model = rounds_of("hetlora", Result(random_adapter(2)))
    for seed in (2, 3):  # what was cut for one round is not sent in the next
        got = []
        for client in ("ann", "bob"):
            arrays = records(model, client, 1).array_records["arrays"]
            assert sum(array.numpy().size for array in arrays.values()) == 14, "7 and 7"
            got.append(arrays_to_adapter(arrays, random_adapter(1).at_rank(1), place=client))
        a, b = random_adapter(seed).layers["up"]
        for adapter in got:
            torch.testing.assert_close(adapter.layers["up"].A, a[:1], rtol=0, atol=0)
            # alpha / 1 is twice alpha / 2
            torch.testing.assert_close(adapter.layers["up"].B, b[:, :1] / 2, rtol=0, atol=0)
        model.advance(Result(random_adapter(3)), 2)
    assert same(model.start_of(1), random_adapter(3).at_rank(1))


def test_a_client_that_failed_is_a_stranger_again() -> None:
    for rule, results, kind in (
        ("rolora", [Result(random_adapter(2))], ("AB", "none", 2 * HALF)),
        ("flora", [Result(None, change(2)), Result(None, change(3))], (None, "whole", 2 * HALF_OF_3)),
    ):
        model = rounds_of(rule, *results)
        model.lost("bob")
        model.lost("dan")
        assert brought(model, "bob") == kind
        assert "bob" not in model.state()["held"]
        model.answered("bob")
        assert model.state()["held"]["bob"] == model.version


def test_changes_add_up_and_the_last_is_the_newest() -> None:
    model = rounds_of("flora", *(Result(None, change(seed, 1)) for seed in (2, 3, 4, 5)))
    assert same(model.updates()["last"], change(5, 1))
    total = model.updates()["change"]
    assert total.rank == 3, "the largest that a layer of 4 x 3 can use"
    for name in SHAPES:
        wanted = torch.stack([dense(change(seed, 1))[name] for seed in (2, 3, 4, 5)]).sum(dim=0)
        torch.testing.assert_close(dense(total)[name], wanted, rtol=0, atol=1e-5)


def test_the_whole_model_is_adapter_and_change_together() -> None:
    alone = rounds_of("fedit", Result(random_adapter(2)))
    assert same(alone.whole(), random_adapter(2))
    fedex = rounds_of("fedex", Result(random_adapter(2, 1), change(2, 1)))
    fedex.replace(random_adapter(6, 1))
    whole = fedex.whole()
    assert whole.rank == 2
    for name in SHAPES:
        wanted = dense(random_adapter(6, 1))[name] + dense(change(2, 1))[name]
        torch.testing.assert_close(dense(whole)[name], wanted, rtol=0, atol=1e-6)
    flora = rounds_of("flora", Result(None, change(2)))
    assert same(flora.whole(), change(2)), "whose new adapter adds nothing, and would only raise the rank"
    assert same(rounds_of("flora").whole(), random_adapter(1))


@pytest.mark.parametrize("rule", ["rolora", "flora", "fedex"])
def test_a_model_that_went_through_a_checkpoint_sends_and_goes_on_alike(rule: str, tmp_path: Path) -> None:
    def strategy() -> FederatedRLVR:
        return make_strategy(start=random_adapter(1), type=rule, run={"seed": SEED})

    adapters = [None if rule == "flora" else random_adapter(seed) for seed in (2, 3, 4)]
    changes = [None if rule == "rolora" else change(seed, 1) for seed in (5, 6, 8)]
    results = [Result(*pair) for pair in zip(adapters, changes, strict=True)]
    saved, restored = strategy(), strategy()
    saved.model = rounds_of(rule, *results[:2])
    Checkpoints(tmp_path, 1).save(Checkpoint(2, saved.model.adapter, saved.state(), saved.model.updates()))
    checkpoint = Checkpoints(tmp_path, 1).load()
    assert checkpoint is not None
    restored.restore(checkpoint)
    for version in (2, 3):
        for model in (saved.model, restored.model):
            if version == 3:
                model.lost("bob")
                model.advance(results[2], 3)
        assert restored.model.version == version
        assert restored.state() == saved.state()
        assert same(saved.model.adapter, restored.model.adapter)
        for part in ("change", "last"):
            assert same(saved.model.updates().get(part), restored.model.updates().get(part))
        for client in ("ann", "bob", "cyd", "dan"):
            assert records(saved.model, client) == records(restored.model, client)


@pytest.mark.parametrize("held", [[1, 2], {"ann": "soon"}, None, {"ann": [1]}])
def test_a_checkpoint_that_does_not_say_who_has_what_is_refused(held: object) -> None:
    strategy = make_strategy(type="rolora")
    with pytest.raises(CheckpointError, match="state of the strategy"):
        strategy.restore(Checkpoint(1, random_adapter(2), json.loads(json.dumps({"held": held}))))


RUN = """
import sys
import fedrlvr
from fedrlvr.config import load_config
settings = ["federation.clients=2", "train.rounds=1", "train.local_steps=1", "train.problems_per_step=1",
    "sampling.group_size=2", "sampling.max_new_tokens=2", "data.train_size=4", "data.test_size=2", "engine.threads=1"]
fedrlvr.run(load_config({file!r}, [*settings, "run.directory={directory}", "aggregation.type={rule}"]))
ours = {{name.rpartition(".")[2] for name in sys.modules if name.startswith("fedrlvr.")}}
rules = {{"averaging", "flora", "fedex", "hetlora", "flexlora"}}
print(sorted(ours & {{"model_delta", "delta_model", "delta_start"}}), sorted(ours & rules))
"""


@pytest.mark.parametrize(
    ("rule", "loaded"),
    [
        ("fedit", "[] ['averaging']"),
        pytest.param("flora", "['delta_model', 'delta_start', 'model_delta'] ['flora']", marks=pytest.mark.slow),
    ],
)
def test_a_run_loads_the_code_of_its_own_rule_only(rule: str, loaded: str, tmp_path: Path) -> None:
    file = str(Path(fedrlvr.__file__).parent / "zoo" / "embedded.toml")
    code = RUN.format(file=file, directory=tmp_path / "run", rule=rule)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == loaded
