"""The server's step: by hand, against Flower's strategies and torch's SGD, and against dense products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi
from loras import SHAPES, dense, ideal, off, random_adapter
from torch import Tensor

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation import RULES, lora_rule
from fedrlvr.aggregation.delta_space import SPACES, ProductSpace
from fedrlvr.aggregation.lora_rule import StepSpace
from fedrlvr.aggregation.server_step import MOST_COSINES, SERVER_OPTIMIZERS, ServerStep, moved
from fedrlvr.aggregation.stacking import of_delta

SPACE_NAMES: tuple[StepSpace, ...] = ("factors", "products")


def at(*numbers: float) -> Adapter:
    """An adapter whose A is 1, so that its factors and its product change by the same numbers, those of B."""
    return Adapter({"q": Factors(torch.ones(1, 1), torch.tensor(numbers).view(-1, 1))}, 1.0)


def taken(
    step: ServerStep,
    vectors: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    *,
    names: Sequence[str] = ("ann", "bob", "cyd", "dan"),
    start: Sequence[float] | None = None,
    number: int = 1,
    robust: bool = False,
) -> dict[str, Any]:
    """The numbers of a step of clients that moved by these vectors."""
    first = start or [0.0] * len(vectors[0])
    weights = weights or [1.0] * len(vectors)
    ends = {
        name: at(*(a + b for a, b in zip(first, vector, strict=True)))
        for name, vector in zip(names, vectors, strict=False)
    }
    changes = {name: step.space.change(end, at(*first), "AB") for name, end in ends.items()}
    shares = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=False)}
    mean = step.space.total([(changes[name], shares[name]) for name in changes])
    return step.take(changes, mean, shares, number=number, robust=robust)[1]


E1, E2, E3, E4, ZERO = [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0], [0.0, 0, 0, 0]


@pytest.mark.parametrize("space", SPACE_NAMES)
@pytest.mark.parametrize(
    ("vectors", "weights", "ratio"),
    [
        ([E1, E2, E3, E4], None, 2.0),
        ([E1, E2], None, math.sqrt(2)),
        ([E1, E1, E1, E1], None, 1.0),
        ([E1], None, 1.0),
        ([E1], [7.0], 1.0),
        # The mean length is 2/3, the mean change is of length sqrt(2) / 3: what one client of three left out is no
        # disagreement of the others.
        ([E1, E2, ZERO], None, math.sqrt(2)),
        ([E1, ZERO], None, 1.0),
        ([E1, [-1.0, 0, 0, 0]], None, 1.0),
        ([ZERO, ZERO], None, 1.0),
        # Lengths 3 and 4: (3 + 4) / 2 over 5 / 2.
        ([[3.0, 0, 0, 0], [0, 4.0, 0, 0]], None, 1.4),
        # Weights 0.6 and 0.4 of the same length: the square root of the effective number, 1 / (0.36 + 0.16).
        ([E1, E2], [3.0, 2.0], 1 / math.sqrt(0.52)),
        # 0.75 x 1 + 0.25 x 3 over 0.75 x sqrt(2) would be sqrt(2); the effective number is 1 / (0.5625 + 0.0625) = 1.6.
        ([E1, [0, 3.0, 0, 0]], [3.0, 1.0], math.sqrt(1.6)),
        # Half against each other: (1 + 1) / 2 over |(0.8, 0)| / 1.
        ([[0.8, 0.6, 0, 0], [0.8, -0.6, 0, 0]], None, 1.25),
    ],
)
def test_the_first_automatic_step_by_hand(
    vectors: list[list[float]], weights: list[float] | None, ratio: float, space: StepSpace
) -> None:
    for start in (None, [5.0, -3.0, 2.0, 1.0]):
        numbers = taken(ServerStep(space, learning_rate="auto"), vectors, weights, start=start)
        assert numbers["ratio"] == pytest.approx(ratio, abs=1e-6)
        assert numbers["learning_rate"] == pytest.approx(ratio, abs=1e-6)
        assert numbers["agreement"] == 1.0


TURNED = [[0.6, 0.8, 0, 0], E2]
"""Mean length 1; the mean change (0.3, 0.9) has length sqrt(0.9)."""
RATIO = 1 / math.sqrt(0.9)


@pytest.mark.parametrize("space", SPACE_NAMES)
@pytest.mark.parametrize(
    ("second", "ratio", "mean", "clients"),
    [
        ([E1, E2], math.sqrt(2), 1.0, 1.0),
        ([E2, E1], math.sqrt(2), 1.0, 0.0),
        ([E1, [0, -1.0, 0, 0]], math.sqrt(2), 0.0, 0.0),
        ([[-1.0, 0, 0, 0], [0, -1.0, 0, 0]], math.sqrt(2), -1.0, -1.0),
        # Cosines 0.6 and 1 of the clients; of the means (1, 1) and (0.3, 0.9): 1.2 / sqrt(2 x 0.9).
        (TURNED, RATIO, 1.2 / math.sqrt(1.8), 0.8),
        # Who does not move says nothing of directions.
        ([E1, ZERO], 1.0, 1 / math.sqrt(2), 1.0),
        ([ZERO, ZERO], 1.0, 0.0, 1.0),
    ],
)
def test_the_second_automatic_step_by_hand(
    second: list[list[float]], ratio: float, mean: float, clients: float, space: StepSpace
) -> None:
    forms: dict[Any, float] = {"mean": mean, "clients": clients}
    for form, agreement in forms.items():
        step = ServerStep(space, learning_rate="auto", agreement=form)
        taken(step, [E1, E2])
        numbers = taken(step, second, start=[0.5, 0.5, 0, 0])
        assert numbers["ratio"] == pytest.approx(ratio, abs=1e-6)
        assert numbers["agreement"] == pytest.approx(agreement, abs=1e-6)
        assert numbers["learning_rate"] == pytest.approx(1 + (ratio - 1) * max(0.0, agreement), abs=1e-6)


@pytest.mark.parametrize("space", SPACE_NAMES)
def test_a_round_without_a_change_is_not_what_the_next_one_is_compared_with(space: StepSpace) -> None:
    for form in ("mean", "clients"):
        step = ServerStep(space, learning_rate="auto", agreement=form)  # type: ignore[arg-type]
        for vectors in ([ZERO, ZERO], [E1, E2], [ZERO, ZERO]):
            taken(step, vectors)
        assert taken(step, TURNED)["agreement"] == pytest.approx(0.8 if form == "clients" else 1.2 / math.sqrt(1.8))


def test_a_client_that_was_away_is_compared_with_its_last_change() -> None:
    step = ServerStep("factors", learning_rate="auto", agreement="clients")
    taken(step, [E1, E2], names=["ann", "bob"])
    assert taken(step, [E3, E2], names=["cyd", "bob"])["agreement"] == 1.0, "cyd has no earlier change"
    numbers = taken(step, [TURNED[0], E4], [3.0, 1.0], names=["ann", "cyd"])
    assert numbers["agreement"] == pytest.approx(0.75 * 0.6 + 0.25 * 0.0)


def test_where_halves_take_turns_a_half_is_compared_with_itself() -> None:
    step = ServerStep("factors", learning_rate="auto")
    start = Adapter({"q": Factors(torch.zeros(1, 2), torch.zeros(2, 1))}, 1.0)

    def agreement(half: str, numbers: list[float]) -> float:
        factors = start.layers["q"]._replace(
            **{half: torch.tensor(numbers).view(start.layers["q"]["AB".index(half)].shape)}
        )
        change = step.space.change(Adapter({"q": factors}, 1.0), start, half)  # type: ignore[arg-type]
        assert list(change) == [f"q.{half}"]
        return float(step.take({"ann": change}, change, {"ann": 1.0}, number=1, robust=False)[1]["agreement"])

    turns = [("B", [1.0, 0.0]), ("A", [0.0, 2.0]), ("B", [0.6, 0.8]), ("A", [0.0, 1.0]), ("B", [-0.8, 0.6])]
    assert [agreement(*turn) for turn in turns] == pytest.approx([1.0, 1.0, 0.6, 1.0, 0.0], abs=1e-6)


def test_one_huge_change_does_not_lengthen_the_step_of_a_robust_mean() -> None:
    """The mean of the lengths would be 250.75, and the ratio 2."""
    step = ServerStep("factors", learning_rate="auto")
    vectors = [E1, E1, E1, [0, 1000.0, 0, 0]]
    changes = {name: step.space.change(at(*v), at(*ZERO), "AB") for name, v in zip("abcd", vectors, strict=True)}
    shares = dict.fromkeys(changes, 0.25)
    assert step.take(changes, changes["a"], shares, number=1, robust=True)[1]["learning_rate"] == 1.0


@pytest.mark.parametrize("space", SPACE_NAMES)
def test_the_record_of_a_step_by_hand(space: StepSpace) -> None:
    numbers = taken(ServerStep(space, learning_rate=1.5), [[3.0, 0, 0, 0], [0.6, 0.8, 0, 0], ZERO])
    assert numbers["learning_rate"] == 1.5
    assert numbers["norms"] == pytest.approx({"ann": 3.0, "bob": 1.0, "cyd": 0.0}, abs=1e-6)
    assert numbers["mean_norm"] == pytest.approx(math.hypot(3.6, 0.8) / 3)
    flat = {(a, b): cosine for a, row in numbers["cosines"].items() for b, cosine in row.items()}
    expected = {pair: 0.6 if "cyd" not in pair else 0.0 for pair in itertools.permutations(["ann", "bob", "cyd"], 2)}
    assert flat == pytest.approx(expected, abs=1e-6)
    assert numbers["mean_cosine"] == pytest.approx(0.2)
    assert "ratio" not in numbers


def test_many_clients_have_no_matrix_in_the_record() -> None:
    names = [f"c{n}" for n in range(MOST_COSINES + 1)]
    numbers = taken(ServerStep("factors", learning_rate=2.0), [E1] * len(names), names=names)
    assert "cosines" not in numbers
    assert numbers["mean_cosine"] == pytest.approx(1.0)


# Optimizers, on factors.

OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 1.7},
    "momentum": {"learning_rate": 0.8, "momentum": 0.6},
    "nesterov": {"learning_rate": 0.7, "momentum": 0.9},
    "adam": {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-2},
    "yogi": {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-2},
}
OPTIMIZERS: tuple[str, ...] = tuple(SERVER_OPTIMIZERS)
assert set(OPTIONS) == set(OPTIMIZERS)


def path_of(step: ServerStep, targets: Sequence[Sequence[float]]) -> list[list[float]]:
    """The model's numbers after each round; in a round every client moves from them by a vector."""
    model = at(*[0.0] * len(targets[0]))
    path = []
    for number, vector in enumerate(targets, start=1):
        b = model.layers["q"].B.flatten() + torch.tensor(vector)
        change = step.space.change(at(*b.tolist()), model, "B")
        update, _ = step.take({"ann": change}, change, {"ann": 1.0}, number=number, robust=False)
        model = moved(model, change, update)
        path.append(model.layers["q"].B.flatten().tolist())
    return path


VECTORS = np.random.default_rng(0).normal(size=(5, 6)).round(3).tolist()


def flowers_path(strategy: FedAvg, vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """The path that a strategy of Flower's takes when two clients answer with the same arrays; see `path_of`."""
    model = np.zeros(len(vectors[0]), np.float32)
    path = []

    strategy.fraction_train = 0.0  # it is told the model, and asks nobody
    for round_, vector in enumerate(vectors, start=1):
        list(strategy.configure_train(round_, ArrayRecord({"b": Array(model)}), ConfigRecord(), cast(Grid, None)))
        content = [
            RecordDict(
                {
                    "arrays": ArrayRecord({"b": Array((model + np.array(vector)).astype(np.float32))}),
                    "metrics": MetricRecord({"num-examples": 3}),
                }
            )
            for _ in range(2)
        ]
        replies = [
            Message(body, metadata=Metadata(1, "", node, 0, "", "", 1.0, 1.0, MessageType.TRAIN))  # type: ignore[call-overload]
            for node, body in enumerate(content, start=1)
        ]
        arrays, _ = strategy.aggregate_train(round_, replies)
        assert arrays is not None
        model = arrays["b"].numpy().astype(np.float32)
        path.append(model.tolist())
    return path


@pytest.mark.parametrize(
    ("optimizer", "strategy"),
    [
        ("sgd", lambda o: FedAvgM(server_learning_rate=o["learning_rate"])),
        ("momentum", lambda o: FedAvgM(server_learning_rate=o["learning_rate"], server_momentum=o["momentum"])),
        ("adam", lambda o: FedAdam(eta=o["learning_rate"], beta_1=o["beta1"], beta_2=o["beta2"], tau=o["epsilon"])),
        ("yogi", lambda o: FedYogi(eta=o["learning_rate"], beta_1=o["beta1"], beta_2=o["beta2"], tau=o["epsilon"])),
    ],
)
def test_numbers_of_flowers_strategies(optimizer: str, strategy: Any) -> None:
    options = OPTIONS[optimizer]
    ours = path_of(ServerStep("factors", optimizer=optimizer, **options), VECTORS)
    np.testing.assert_allclose(ours, flowers_path(strategy(options), VECTORS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
def test_numbers_of_torchs_sgd(nesterov: bool) -> None:
    """DiLoCo's outer optimizer is torch's, of the gradient global minus mean."""
    name = "nesterov" if nesterov else "momentum"
    model = torch.zeros(6, requires_grad=True)
    rate, momentum = OPTIONS[name]["learning_rate"], OPTIONS[name]["momentum"]
    optimizer = torch.optim.SGD([model], lr=rate, momentum=momentum, nesterov=nesterov)
    path = []
    for vector in VECTORS:
        model.grad = -torch.tensor(vector)
        optimizer.step()
        path.append(model.tolist())
    np.testing.assert_allclose(
        path_of(ServerStep("factors", optimizer=name, **OPTIONS[name]), VECTORS), path, rtol=1e-5, atol=1e-6
    )


def test_nesterov_by_hand() -> None:
    """D = 1, 2: V = 1, 2.5, and U = 0.7 (1 + 0.5), 0.7 (2 + 1.25)."""
    step = ServerStep("factors", optimizer="nesterov", learning_rate=0.7, momentum=0.5)
    assert path_of(step, [[1.0], [2.0]]) == [pytest.approx([1.05]), pytest.approx([1.05 + 2.275])]


# Products.

ON_PRODUCTS = [rule.name for rule in RULES.values() if rule.server_step == "products"]
LINEAR = [name for name, kind in SERVER_OPTIMIZERS.items() if not kind.adaptive]


def summed(*terms: tuple[Mapping[str, Tensor], float]) -> dict[str, Tensor]:
    return {name: sum(weight * update[name] for update, weight in terms) for name in SHAPES}  # type: ignore[misc]


def near(start: Adapter, seed: int, size: float = 0.3) -> Adapter:
    noise = random_adapter(seed, rank=start.rank)
    return Adapter(
        {
            n: Factors(a + size * x, b + size * y)
            for (n, (a, b)), (x, y) in zip(start.layers.items(), noise.layers.values(), strict=True)
        },
        start.alpha,
    )


def test_changes_of_products_are_those_of_dense_weights() -> None:
    start, space = random_adapter(0, rank=3), ProductSpace()
    ends = [near(start, 1), near(start, 2, 1e-4), start, near(start.at_rank(2), 3)]
    starts = [start, start, start, start.at_rank(2)]
    changes = [space.change(end, begun, "AB") for end, begun in zip(ends, starts, strict=True)]
    exact = [summed((dense(end), 1.0), (dense(begun), -1.0)) for end, begun in zip(ends, starts, strict=True)]
    flat = torch.stack([torch.cat([update[name].flatten() for name in SHAPES]) for update in exact])
    torch.testing.assert_close(space.gram(changes), flat @ flat.T, rtol=1e-9, atol=1e-9)
    assert float(space.gram(changes)[2].abs().max()) == 0.0, "who did not move has no length at all"
    weights = [0.5, 100.0, 3.0, -0.25]
    total = of_delta(space.total(list(zip(changes, weights, strict=True))))
    assert off(dense(total), summed(*zip(exact, weights, strict=True))) < 1e-5


@pytest.mark.parametrize("optimizer", LINEAR)
@pytest.mark.parametrize(
    ("rule", "mixed"), [(rule, mixed) for rule in ON_PRODUCTS for mixed in sorted({False, RULES[rule].mixes_ranks})]
)
def test_a_step_on_products_is_exact(rule: str, optimizer: str, mixed: bool) -> None:
    """Three rounds against the same optimizer on dense weights; rank 9 holds what these layers can add up to."""
    rank, shares = 9, {"ann": 0.5, "bob": 0.3, "cyd": 0.2}
    ranks = {"ann": 9, "bob": 2, "cyd": 4} if mixed else dict.fromkeys(shares, rank)
    step = ServerStep("products", optimizer=optimizer, **OPTIONS[optimizer])
    aggregation = lora_rule(rule).aggregation()
    before = random_adapter(0, rank=rank)
    velocity = summed((dense(None), 0.0))
    for round_ in range(1, 4):
        starts = {client: before.at_rank(ranks[client]) for client in shares}
        ends = {client: near(starts[client], 10 * round_ + at) for at, client in enumerate(shares)}
        changes = {client: step.space.change(ends[client], starts[client], "AB") for client in shares}
        mean = step.space.total([(changes[client], shares[client]) for client in shares])
        update, _ = step.take(changes, mean, shares, number=round_, robust=False)
        result = aggregation.stepped(
            ((ends[client], shares[client]) for client in shares), update, rank=rank, before=before
        )

        begun = ideal([(starts[client], shares[client]) for client in shares])
        change = summed((ideal([(ends[client], shares[client]) for client in shares]), 1.0), (begun, -1.0))
        m, rate = OPTIONS[optimizer].get("momentum", 0.0), OPTIONS[optimizer]["learning_rate"]
        velocity = summed((velocity, m), (change, 1.0))
        step_taken = summed((change, 1.0), (velocity, m)) if optimizer == "nesterov" else velocity
        got = summed((dense(result.adapter), 1.0), (dense(result.change), 1.0))
        assert off(got, summed((begun, 1.0), (step_taken, rate))) < 1e-5
        assert result.adapter is not None
        before = result.adapter


@pytest.mark.parametrize("rule", ON_PRODUCTS)
def test_a_step_of_one_on_products_is_the_rule_itself(rule: str) -> None:
    start = random_adapter(0, rank=3)
    pairs = [(near(start, 1), 2.0), (near(start, 2), 1.0)]
    plain = lora_rule(rule).aggregation().aggregate(pairs, rank=3, before=start)
    step = ServerStep("products", learning_rate="auto")
    change = step.space.change(pairs[0][0], start, "AB")
    update, _ = step.take({"ann": change}, change, {"ann": 1.0}, number=1, robust=False)
    stepped = lora_rule(rule).aggregation().stepped(pairs, update, rank=3, before=start)
    for expected, actual in ((plain.adapter, stepped.adapter), (plain.change, stepped.change)):
        assert off(dense(expected), dense(actual)) < 1e-6 if expected else actual is None


def test_fedex_sends_one_more_rank_of_the_adapter_than_without_a_step() -> None:
    start = random_adapter(0, rank=1)
    pairs = [(near(start, seed), 1.0) for seed in (1, 2, 3)]
    step = ServerStep("products", learning_rate=2.0)
    changes = {str(n): step.space.change(end, start, "AB") for n, (end, _) in enumerate(pairs)}
    update, _ = step.take(changes, changes["0"], dict.fromkeys(changes, 1 / 3), number=1, robust=False)
    plain = lora_rule("fedex").aggregation().aggregate(pairs)
    stepped = lora_rule("fedex").aggregation().stepped(pairs, update, rank=1, before=start)
    assert plain.change is not None
    assert stepped.change is not None
    assert (plain.change.rank, stepped.change.rank) == (2, 3)


# Memory.


@pytest.mark.parametrize(
    ("space", "optimizer", "agreement"),
    [
        *itertools.product(SPACE_NAMES, LINEAR, ["mean", "clients", None]),
        *(("factors", name, None) for name in OPTIMIZERS if name not in LINEAR),
    ],
)
def test_a_step_goes_on_from_its_state_to_the_bit(space: StepSpace, optimizer: str, agreement: Any) -> None:
    options = {**OPTIONS[optimizer], **({"learning_rate": "auto", "agreement": agreement} if agreement else {})}
    start = random_adapter(0)

    def advanced(step: ServerStep, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        changes = {
            name: SPACES[space]().change(near(start, 5 * number + i), start, "AB") for i, name in enumerate("ab")
        }
        mean = step.space.total([(change, 0.5) for change in changes.values()])
        update, numbers = step.take(changes, mean, dict.fromkeys(changes, 0.5), number=number, robust=False)
        return {**(update.memory or {}), "factors": torch.tensor([update.of_mean, update.of_memory])}, numbers

    whole, first = (ServerStep(space, optimizer=optimizer, **options) for _ in range(2))
    for number in (1, 2):
        advanced(whole, number)
        advanced(first, number)
    resumed = ServerStep(space, optimizer=optimizer, **options)
    resumed.load_state(dict(sorted(first.state().items())))  # in the order of a safetensors file
    (memory, numbers), (expected, wanted) = advanced(resumed, 3), advanced(whole, 3)
    assert numbers == wanted
    assert list(memory) == list(expected)
    assert all(torch.equal(memory[name], expected[name]) for name in expected)
    assert all(tensor.dtype == torch.float32 for tensor in resumed.state().values())
