"""One exchange of two clients about two problems, from the pool to the gradient, on paper.

Responses are one or two tokens; their probabilities, G = 2:

    problem 0   ann   slot 0  (3)     wrong     p_old 0.5          p 0.45
                      slot 1  (4, 2)  wrong     p_old 0.4, 0.5     p 0.44, 0.35
                bob   slot 0  (5, 6)  correct   q     0.5, 0.8     of which ann's p_old 0.2, 0.5  and p 0.25, 0.45
                      slot 1  (3)     wrong
    problem 1   ann   slot 0  (8)     correct   p_old 0.6          p 0.6
                      slot 1  (9)     wrong     p_old 0.4          p 0.6
                bob   slots 0 and 1   wrong

p is ann's policy as it is trained: a public step after the first, so that ratios are not all 1.

Pool: problem 0 has bob's (5, 6), problem 1 ann's (8). Ann has c = 0 of ceil(2 / 2) = 1 at problem 0 and takes one
response; at problem 1 she has her half and would get nothing anyway, for the only entry is her own. Bob the other way
round. Rewards of ann's groups are then {1, 0} and {1, 0}, mean and population std 0.5, advantages +1 and -1 (up to
eps / std = 2e-6).

Clip 0.2 on both sides. A token's loss is -min(rho A, clip(rho) A), its gradient with respect to log p is -rho A or,
where the clip is active, 0.

    foreign (5, 6), A = +1    local_old   0.25 / 0.2 = 1.25, clipped to 1.2      loss -1.2       gradient  0
                                          0.45 / 0.5 = 0.9                            -0.9                -0.9
                              behaviour   0.25 / 0.5 = 0.5                            -0.5                -0.5
                                          0.45 / 0.8 = 0.5625                         -0.5625             -0.5625
    own (3),        A = -1                0.45 / 0.5 = 0.9                             0.9                 0.9
    own (4, 2),     A = -1                0.44 / 0.4 = 1.1                             1.1                 1.1
                                          0.35 / 0.5 = 0.7, clipped to 0.8             0.8                 0
    own (8),        A = +1                0.6 / 0.6 = 1                               -1                  -1
    own (9),        A = -1                0.6 / 0.4 = 1.5; the clip lets it be         1.5                 1.5

Which of ann's two wrong responses makes room is drawn. The sums, local_old / behaviour:

    slot 0 makes room: (5, 6), (4, 2), (8), (9), 6 tokens
        dapo  sum of tokens    -2.1 / -1.0625  + 1.9 - 1 + 1.5          = 0.3 / 1.3375     over 6:  0.05 / 0.2229167
        grpo  sum of means     -1.05 / -0.53125 + 0.95 - 1 + 1.5        = 0.4 / 0.91875    over 4:  0.1  / 0.2296875
    slot 1 makes room: (3), (5, 6), (8), (9), 5 tokens
        dapo  sum of tokens    0.9 + -2.1 / -1.0625 - 1 + 1.5           = -0.7 / 0.3375    over 5: -0.14 / 0.0675
        grpo  sum of means     0.9 + -1.05 / -0.53125 - 1 + 1.5         = 0.35 / 0.86875   over 4: 0.0875 / 0.2171875

A token's gradient is the one above, over 6 or 5 (dapo), or over 4 x the tokens of its response (grpo).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fedrlvr.coordination import Pool, PoolEntry, Sent, reference, swap
from fedrlvr.rl import group_advantages, policy_loss, response_losses

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}


def logs(*probabilities: float) -> tuple[float, ...]:
    return tuple(math.log(p) for p in probabilities)


@dataclass(frozen=True)
class Scored:
    """A response with its log-probs under ann's old policy and under the one that is trained."""

    old: tuple[float, ...]
    now: tuple[float, ...]
    reward: float


ANN = [
    [Scored(logs(0.5), logs(0.45), 0.0), Scored(logs(0.4, 0.5), logs(0.44, 0.35), 0.0)],
    [Scored(logs(0.6), logs(0.6), 1.0), Scored(logs(0.4), logs(0.6), 0.0)],
]
ANN_REWARDS = [[response.reward for response in group] for group in ANN]
BOB_REWARDS = [[1.0, 0.0], [0.0, 0.0]]
BOBS = Sent(0, (5, 6), logs(0.5, 0.8))
ANNS = Sent(1, (8,), logs(0.6))
BOBS_BY_ANN = Scored(logs(0.2, 0.5), logs(0.25, 0.45), 1.0)
"""Bob's response as ann scores it."""


def exchanged() -> Pool:
    return Pool.of([("ann", ANNS), ("bob", BOBS)], 2, per_problem=8, rng=random.Random(0))


def share(client: str) -> list[list[PoolEntry]]:
    return [exchanged().others(problem, client) for problem in range(2)]


def swaps_of(rewards: list[list[float]], client: str, seed: int) -> list[dict[int, int]]:
    return swap(rewards, share(client), rule="balanced", rng=random.Random(seed))


def seed_that_replaces(slot: int) -> int:
    return next(seed for seed in range(50) if slot in swaps_of(ANN_REWARDS, "ann", seed)[0])


def mixed(rule: Any, slot: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ann's four responses after the exchange: log-probs (a leaf), behaviour, advantages, mask and token weights."""
    rows: list[tuple[tuple[float, ...], list[float], list[float]]] = []
    rewards: list[list[float]] = []
    swaps = swaps_of(ANN_REWARDS, "ann", seed_that_replaces(slot))
    for group, slots, entries in zip(ANN, swaps, share("ann"), strict=True):
        rewards.append([])
        for place, entry in enumerate(group):
            if place in slots:
                sent = entries[slots[place]].sent
                made = reference(rule, tokens=2, local_logps=BOBS_BY_ANN.old, sender_logps=sent.logps)
                rows.append((BOBS_BY_ANN.now, made.behaviour_logps, made.weights or [1.0, 1.0]))
                rewards[-1].append(1.0)
            else:
                rows.append((entry.now, list(entry.old), [1.0] * len(entry.old)))
                rewards[-1].append(entry.reward)
    now, behaviour, weights = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(part, dtype=torch.float64) for part in column], batch_first=True)
        for column in zip(*rows, strict=True)
    )
    mask = torch.tensor([[1, int(len(row[0]) == 2)] for row in rows])
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64)).flatten()
    return now.requires_grad_(), behaviour, advantages, mask, weights


def test_what_each_client_gets() -> None:
    assert share("ann") == [[PoolEntry("bob", BOBS)], []]
    assert share("bob") == [[], [PoolEntry("ann", ANNS)]]
    for seed in range(20):
        anns, bobs = swaps_of(ANN_REWARDS, "ann", seed), swaps_of(BOB_REWARDS, "bob", seed)
        assert anns in ([{0: 0}, {}], [{1: 0}, {}])
        assert bobs in ([{}, {0: 0}], [{}, {1: 0}])


def test_without_the_swap_the_wrong_group_has_no_gradient() -> None:
    assert group_advantages(torch.tensor(ANN_REWARDS))[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("slot", "signs"), [(0, [1.0, -1.0, 1.0, -1.0]), (1, [-1.0, 1.0, 1.0, -1.0])])
def test_advantages_of_the_mixed_groups(slot: int, signs: list[float]) -> None:
    assert mixed("local_old", slot)[2].tolist() == pytest.approx(signs, rel=1e-5)


FOREIGN = {"local_old": [0.0, -0.9], "behaviour": [-0.5, -0.5625]}
"""Gradients of bob's tokens before the normaliser."""
LOSSES_BY_HAND = {
    ("dapo", "local_old", 0): 0.05,
    ("dapo", "behaviour", 0): 1.3375 / 6,
    ("dapo", "local_old", 1): -0.14,
    ("dapo", "behaviour", 1): 0.0675,
    ("grpo", "local_old", 0): 0.1,
    ("grpo", "behaviour", 0): 0.2296875,
    ("grpo", "local_old", 1): 0.0875,
    ("grpo", "behaviour", 1): 0.2171875,
}


@pytest.mark.parametrize(("loss", "rule", "slot"), LOSSES_BY_HAND)
def test_the_loss_and_each_tokens_gradient(loss: Any, rule: Any, slot: int) -> None:
    now, behaviour, advantages, mask, _ = mixed(rule, slot)
    value = policy_loss(now, behaviour, advantages, mask, loss=loss, **CLIP)
    value.backward()
    assert value.item() == pytest.approx(LOSSES_BY_HAND[loss, rule, slot], rel=1e-4)  # eps: 2e-6 of each term

    foreign, tail = FOREIGN[rule], [[-1.0, 0.0], [1.5, 0.0]]
    tokens = torch.tensor([foreign, [1.1, 0.0], *tail] if slot == 0 else [[0.9, 0.0], foreign, *tail])
    lengths = torch.tensor([2.0, 2.0, 1.0, 1.0] if slot == 0 else [1.0, 2.0, 1.0, 1.0])
    expected = tokens / lengths.sum() if loss == "dapo" else tokens / (4 * lengths.unsqueeze(1))
    torch.testing.assert_close(now.grad, expected.double(), rtol=1e-5, atol=1e-9)


def test_the_truncated_ratio_weighs_the_foreign_tokens() -> None:
    """p_old / q is 0.2 / 0.5 = 0.4 and 0.5 / 0.8 = 0.625: bob's two tokens lose -1.2 and -0.9 times that."""
    now, behaviour, advantages, mask, weights = mixed("truncated", 0)
    sums = response_losses(now, behaviour, advantages, mask, loss="dapo", weights_BT=weights, **CLIP)
    sums.sum().backward()
    assert sums.tolist() == pytest.approx([-0.48 - 0.5625, 1.9, -1.0, 1.5], rel=1e-5)
    expected = torch.tensor([[0.0, -0.5625], [1.1, 0.0], [-1.0, 0.0], [1.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(now.grad, expected, rtol=1e-5, atol=1e-9)
