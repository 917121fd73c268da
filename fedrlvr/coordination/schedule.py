"""The schedule of a round's exchanges, and the public problems of each."""

from __future__ import annotations

import random

from fedrlvr.seeds import stream


def stretches(local_steps: int, exchanges: int) -> list[int]:
    """Local steps before each exchange, or the one stretch of a round without exchanges.

    The stretches are equal up to one step, the longer ones first: 5 steps and 2 exchanges give [3, 2].

    Raises:
        ValueError: fewer local steps than exchanges.
    """
    if exchanges == 0:
        return [local_steps]
    if not 0 < exchanges <= local_steps:
        raise ValueError(f"{exchanges} exchanges do not fit into {local_steps} local steps")
    base, longer = divmod(local_steps, exchanges)
    return [base + (i < longer) for i in range(exchanges)]


def public_batch(size: int, count: int, exchange: int, seed: int) -> list[int]:
    """Places of the `count` problems that exchange number `exchange` takes from a public set of `size` problems.

    All clients take the same problems. The set is cycled through in seeded permutations.
    exchange: counted from 0 over the whole run, so that nothing has to be remembered.

    Raises:
        ValueError: more problems than there are, which would put one into a batch twice.
    """
    if not 1 <= count <= size:
        raise ValueError(f"{count} public problems an exchange from a public set of {size}")
    batches = size // count  # whole batches of a permutation, so that no problem is in one twice
    cycle, index = divmod(exchange, batches)
    order = list(range(size))
    random.Random(stream(seed, "public", cycle)).shuffle(order)
    return order[index * count : (index + 1) * count]
