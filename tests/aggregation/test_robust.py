"""Robust means: by hand, against their definitions, against Flower's, and with clients that lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factories import adapter_from
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import robust
from fedrlvr.aggregation.robust import clipped, robust_mean

RULES: tuple[str, ...] = ("median", "trimmed_mean", "krum")


def tiny(*numbers: float) -> Adapter:
    """One layer of rank 1: A is the first two numbers, B the last two."""
    a, b, c, d = numbers
    return adapter_from([[a, b]], [[c], [d]], 1.0, "x")


FIVE = {
    "ann": tiny(11.0, 20.0, 1.0, 0.0),
    "bob": tiny(12.0, 22.0, 2.0, 0.0),
    "cyd": tiny(13.0, 21.0, 3.0, 0.0),
    "dan": tiny(14.0, 25.0, 4.0, 0.0),
    "eve": tiny(-999.0, 999.0, 5.0, 9.0),
}
START = tiny(10.0, 20.0, 0.0, 0.0)


def flat(adapter: Adapter) -> list[float]:
    return torch.cat([tensor.flatten() for _, tensor in adapter.tensors()]).tolist()


def stacked(adapters: dict[str, Adapter]) -> np.ndarray:
    return np.array([flat(adapter) for adapter in adapters.values()])


def random_clients(count: int, seed: int, around: float = 0.0) -> tuple[dict[str, Adapter], Adapter]:
    """Clients that have each moved from one start, all by a change they share and by one of their own."""
    generator = torch.Generator().manual_seed(seed)

    def make(size: float) -> dict[str, torch.Tensor]:
        shapes = {"up.A": (2, 5), "up.B": (4, 2), "down.A": (2, 4), "down.B": (3, 2)}
        return {name: torch.randn(shape, generator=generator) * size for name, shape in shapes.items()}

    start, shared = make(around), make(0.01)
    clients = {}
    for n in range(count):
        noise = make(0.01)
        clients[f"c{n}"] = Adapter.from_tensors({k: start[k] + shared[k] + noise[k] for k in start}, 4.0)
    return clients, Adapter.from_tensors(start, 4.0)


def test_the_median_by_hand() -> None:
    mean, clients = robust_mean(FIVE, START, rule="median")
    assert flat(mean) == [12.0, 22.0, 3.0, 0.0]
    assert clients == ["ann", "bob", "cyd", "dan", "eve"]


def test_the_trimmed_mean_by_hand() -> None:
    """Of five, 0.2 drops one at either end: A keeps 11, 12, 13 and 21, 22, 25; B keeps 2, 3, 4 and 0, 0, 0."""
    mean, clients = robust_mean(FIVE, START, rule="trimmed_mean", trim=0.2)
    np.testing.assert_allclose(flat(mean), [12.0, 68 / 3, 3.0, 0.0], rtol=1e-6)
    assert clients == list(FIVE)
    mean, _ = robust_mean(FIVE, START, rule="trimmed_mean", trim=0.4)
    assert flat(mean) == [12.0, 22.0, 3.0, 0.0], "two at either end of five leave the median"


def test_krum_by_hand() -> None:
    """Squared distances: ann-bob 1 + 4 + 1 = 6, ann-cyd 9, ann-dan 43, bob-cyd 3, bob-dan 17, cyd-dan 18.

    With one hostile of five each is judged by its two nearest: ann 15, bob 9, cyd 12, dan 35.
    """
    mean, clients = robust_mean(FIVE, START, rule="krum", hostile=1)
    assert clients == ["bob"]
    assert flat(mean) == flat(FIVE["bob"])
    mean, clients = robust_mean(dict(reversed(FIVE.items())), START, rule="krum", hostile=1)
    assert clients == ["bob"]


def test_krum_judges_by_fewer_neighbours_the_more_clients_may_be_hostile() -> None:
    """Seven on a line. With 2 hostile, 3 neighbours count: c4 has 0.25 + 0.25 + 0.81 = 1.31, c3 has 3.21, c5 has 1.41.
    With 1 or 0 one or two of the far group count too, to whom c3 is nearest: 3.21 + 96.04 (+ 98.01).
    """
    line = (0.0, 0.1, 0.2, 10.0, 10.5, 11.0, 11.4)
    clients = {f"c{n}": tiny(place, 0.0, 0.0, 0.0) for n, place in enumerate(line)}
    chosen = [robust_mean(clients, tiny(0.0, 0.0, 0.0, 0.0), rule="krum", hostile=n)[1] for n in range(3)]
    assert chosen == [["c3"], ["c3"], ["c4"]]


@pytest.mark.parametrize("count", [5, 6, 8, 11])
@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_random_clients_against_the_definitions(count: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an adapter of 32 numbers is looked at in pieces of 7."""
    monkeypatch.setattr(robust, "PIECE", piece)
    clients, start = random_clients(count, seed=count, around=1.0)
    values = stacked(clients).astype(np.float64)
    got = flat(robust_mean(clients, start, rule="median")[0])
    np.testing.assert_allclose(got, np.median(values, axis=0), rtol=0, atol=2e-7)
    for trim in (0.2, 0.35):
        cut = int(trim * count)
        expected = np.sort(values, axis=0)[cut : count - cut].mean(axis=0)
        got = flat(robust_mean(clients, start, rule="trimmed_mean", trim=trim)[0])
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-7)
    squares = ((values[:, None] - values[None]) ** 2).sum(axis=2)
    for hostile in range((count - 3) // 2 + 1):
        scores = np.sort(squares, axis=1)[:, 1 : count - hostile - 2 + 1].sum(axis=1)
        mean, chosen = robust_mean(clients, start, rule="krum", hostile=hostile)
        assert chosen == [f"c{np.argmin(scores)}"]
        assert flat(mean) == flat(clients[chosen[0]]), "to the bit"


def by_flower(clients: dict[str, Adapter], start: Adapter, strategy: FedAvg) -> list[float]:
    """The start and the aggregate by Flower's strategy of the clients' changes in float64."""
    base, changes = np.array(flat(start)), stacked(clients).astype(np.float64) - np.array(flat(start))
    replies = []
    for number, change in enumerate(changes):
        numbers = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord({"change": Array(change)}), "metrics": numbers})
        metadata = Metadata(0, "", number, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
        replies.append(Message(content, metadata=metadata))  # type: ignore[call-overload]
    arrays, _ = strategy.aggregate_train(0, replies)
    assert arrays is not None
    return (base + arrays["change"].numpy()).astype(np.float32).tolist()


@pytest.mark.parametrize("count", [5, 6, 7, 9, 12])
@pytest.mark.parametrize("seed", range(8))
def test_flowers_strategies_give_the_same_to_the_bit(seed: int, count: int) -> None:
    """160 cases: of each rule, 40 of random clients; the trimmed mean with two trims."""
    clients, start = random_clients(count, seed=100 * seed + count, around=10.0 ** (seed - 4))
    ours: list[tuple[FedAvg, str, dict[str, float]]] = [
        (FedMedian(), "median", {}),
        (FedTrimmedAvg(beta=0.2), "trimmed_mean", {"trim": 0.2}),
        (FedTrimmedAvg(beta=0.34), "trimmed_mean", {"trim": 0.34}),
        (Krum(num_malicious_nodes=1), "krum", {"hostile": 1}),
    ]
    for strategy, rule, options in ours:
        mean, _ = robust_mean(clients, start, rule=rule, **options)  # type: ignore[arg-type]
        assert flat(mean) == by_flower(clients, start, strategy), rule


def test_the_layers_keep_their_places_and_the_adapter_its_kind() -> None:
    clients, start = random_clients(5, seed=1)
    mean, _ = robust_mean(clients, start, rule="median")
    assert (list(mean.layers), mean.alpha, mean.layout) == (["up", "down"], 4.0, start.layout)
    for name, tensor in mean.tensors():
        assert tensor.dtype == torch.float32
        middle = torch.stack([dict(c.tensors())[name] for c in clients.values()]).median(dim=0).values
        torch.testing.assert_close(tensor, middle, rtol=0, atol=1e-8)


@pytest.mark.parametrize("lie", [-1.0, 100.0, -100.0, 1e30, 1e38])
@pytest.mark.parametrize("rule", RULES)
def test_one_liar_of_eight_moves_nothing_beyond_the_honest(rule: str, lie: float) -> None:
    """Its change is turned round or grown; every number of the aggregate stays within the seven others'."""
    clients, start = random_clients(8, seed=3, around=1.0)
    honest = stacked(clients)[:7]
    liar = {name: s + (e - s) * lie for (name, e), (_, s) in zip(clients["c7"].tensors(), start.tensors(), strict=True)}
    clients["c7"] = Adapter.from_tensors({k: v.clamp(-3e38, 3e38) for k, v in liar.items()}, 4.0)
    mean, made_from = robust_mean(clients, start, rule=rule)
    got = np.array(flat(mean))
    assert (got >= honest.min(axis=0) - 1e-7).all()
    assert (got <= honest.max(axis=0) + 1e-7).all()
    assert made_from != ["c7"]
    if abs(lie) > 1:
        plain = stacked(clients).mean(axis=0)
        assert ((plain < honest.min(axis=0)) | (plain > honest.max(axis=0))).any(), "as the plain mean does not"


def test_two_that_agree_on_a_lie_are_not_krums_choice() -> None:
    clients, start = random_clients(8, seed=3)
    for name in ("c2", "c5"):
        clients[name] = Adapter.from_tensors({k: torch.full_like(v, 9.0) for k, v in start.tensors()}, 4.0)
    assert robust_mean(clients, start, rule="krum", hostile=2)[1][0] not in ("c2", "c5")


def test_krum_tells_clients_apart_whose_adapters_are_large_and_changes_small() -> None:
    """At a size of 1000 and changes of 0.001, squares in float32 would be good to 32 million / 2^24, far above 1e-5."""
    start = tiny(1000.0, 1000.0, 1000.0, 1000.0)
    moves = (0.001, 0.002, 0.0025, 0.004, 0.02)
    clients = {f"c{n}": tiny(*(1000.0 + move for _ in range(4))) for n, move in enumerate(moves)}
    assert robust_mean(clients, start, rule="krum", hostile=1)[1] == ["c1"]


def test_an_adapter_far_smaller_than_the_start_comes_back_to_the_bit() -> None:
    """In float32, 1000 + (0.1 - 1000) is not 0.1."""
    clients = {f"c{n}": tiny(0.1, 0.1 * n, 0.3, 0.7) for n in range(5)}
    start = tiny(1000.0, 1000.0, 1000.0, 1000.0)
    assert flat(robust_mean(clients, start, rule="median")[0]) == flat(clients["c2"])
    mean, (chosen,) = robust_mean(clients, start, rule="krum")
    assert flat(mean) == flat(clients[chosen])


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_left_alone_and_nothing_is_said(rule: str, capfd: pytest.CaptureFixture[str]) -> None:
    clients, start = random_clients(8, seed=4)
    before, begun = stacked(clients), flat(start)
    robust_mean(clients, start, rule=rule)
    assert (stacked(clients) == before).all()
    assert flat(start) == begun
    assert list(clients) == [f"c{n}" for n in range(8)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rule", "count", "options", "words"),
    [
        ("median", 2, {}, "at least 3 clients in a round, not 2"),
        ("median", 0, {}, "at least 3 clients in a round, not 0"),
        ("trimmed_mean", 4, {}, "robust_trim = 0.2 needs at least 5 clients in a round, not 4"),
        ("trimmed_mean", 3, {"trim": 0.3}, "at least 4 clients"),
        ("trimmed_mean", 2, {"trim": 0.49}, "at least 3 clients"),
        ("trimmed_mean", 8, {"trim": 0.5}, "below 0.5"),
        ("trimmed_mean", 8, {"trim": 0.0}, "above 0"),
        ("trimmed_mean", 8, {"trim": math.nan}, "above 0"),
        ("krum", 4, {}, "robust_hostile = 1 needs at least 5 clients in a round, not 4"),
        ("krum", 8, {"hostile": 3}, "at least 9 clients"),
        ("krum", 2, {"hostile": 0}, "at least 3 clients"),
        ("krum", 8, {"hostile": -1}, "robust_hostile"),
        ("mode", 8, {}, "unknown rule 'mode'; known: median, trimmed_mean, krum"),
    ],
)
def test_what_a_rule_cannot_do_is_said(rule: str, count: int, options: dict[str, float], words: str) -> None:
    clients, start = random_clients(count, seed=1)
    with pytest.raises(ValueError, match=words):
        robust_mean(clients, start, rule=rule, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", range(3, 40))
def test_a_trim_of_one_client_drops_a_client(count: int) -> None:
    clients = {str(n): tiny(float(n), 0.0, 0.0, 0.0) for n in range(count - 1)}
    start = tiny(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=f"at least {count} clients"):
        robust_mean(clients, start, rule="trimmed_mean", trim=1 / count)
    mean, _ = robust_mean({**clients, "liar": tiny(-1e9, 0.0, 0.0, 0.0)}, start, rule="trimmed_mean", trim=1 / count)
    assert flat(mean)[0] >= 0


def test_the_smallest_federations_that_each_rule_takes() -> None:
    for rule, count, options in (
        ("median", 3, {}),
        ("trimmed_mean", 5, {}),
        ("krum", 5, {}),
        ("krum", 7, {"hostile": 2}),
    ):
        clients, start = random_clients(count, seed=1)
        robust_mean(clients, start, rule=rule, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_alike_or_not_finite_is_no_part_of_a_mean(rule: str) -> None:
    clients, start = random_clients(8, seed=1)
    tensors = dict(start.tensors())
    others = {
        "alike": Adapter({"up": start.layers["up"]}, 4.0),
        "one rank, alpha": Adapter(start.layers, 8.0),
        "c3: .* not finite": Adapter.from_tensors({**tensors, "up.B": torch.full((4, 2), math.nan)}, 4.0),
        "c3: .*leave it out": Adapter.from_tensors({**tensors, "up.B": torch.full((4, 2), -math.inf)}, 4.0),
    }
    for words, other in others.items():
        with pytest.raises(ValueError, match="set of layers" if words == "alike" else words):
            robust_mean({**clients, "c3": other}, start, rule=rule)


def test_clipping_by_hand() -> None:
    """The change 3, 0, 0, 4 is 5 long; to 1 it is 0.6, 0, 0, 0.8."""
    start, end = tiny(10.0, 20.0, 0.0, 1.0), tiny(13.0, 20.0, 0.0, 5.0)
    np.testing.assert_allclose(flat(clipped(end, start, 1.0)), [10.6, 20.0, 0.0, 1.8], rtol=1e-6)
    np.testing.assert_allclose(flat(clipped(end, start, 2.5)), [11.5, 20.0, 0.0, 3.0], rtol=1e-6)
    assert flat(clipped(end, start, 0.0)) == flat(start)
    assert flat(end) == [13.0, 20.0, 0.0, 5.0]
    assert flat(start) == [10.0, 20.0, 0.0, 1.0]


def test_a_change_within_the_limit_is_left_as_it_is() -> None:
    start, end = tiny(10.0, 20.0, 0.0, 1.0), tiny(13.0, 20.0, 0.0, 5.0)
    for limit in (5.0, 6.0, math.inf):
        assert flat(clipped(end, start, limit)) == flat(end)
    assert flat(clipped(start, start, 0.0)) == flat(start)


def test_clipping_takes_all_layers_together() -> None:
    clients, start = random_clients(1, seed=5, around=1.0)
    end = clients["c0"]
    length = math.sqrt(sum((e - s) ** 2 for e, s in zip(flat(end), flat(start), strict=True)))
    short = clipped(end, start, length / 3)
    expected = [s + (e - s) / 3 for e, s in zip(flat(end), flat(start), strict=True)]
    np.testing.assert_allclose(flat(short), expected, rtol=0, atol=1e-6)
    assert short.distance(start) == pytest.approx(length / 3, rel=1e-5)
    assert (short.layout, short.alpha) == (start.layout, start.alpha)


def test_a_huge_change_is_clipped_without_overflow() -> None:
    start = tiny(0.0, 0.0, 0.0, 0.0)
    assert flat(clipped(tiny(3e38, 0.0, -3e38, 0.0), start, math.sqrt(2))) == pytest.approx([1.0, 0.0, -1.0, 0.0])
    assert flat(clipped(tiny(3e38, 0.0, 0.0, 0.0), tiny(-3e38, 0.0, 0.0, 0.0), 1e38)) == pytest.approx(
        [-2e38, 0.0, 0.0, 0.0]
    )


def test_what_cannot_be_clipped() -> None:
    start = tiny(0.0, 0.0, 0.0, 0.0)
    for limit in (-1.0, math.nan):
        with pytest.raises(ValueError, match="length from 0 up"):
            clipped(start, start, limit)
    with pytest.raises(ValueError, match="not finite"):
        clipped(tiny(math.nan, 0.0, 0.0, 0.0), start, 1.0)
    with pytest.raises(ValueError, match="one rank, alpha"):
        clipped(Adapter(start.layers, 2.0), start, 1.0)
