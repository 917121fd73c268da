"""Which public problems an exchange is about: the same for all clients, cycled through in seeded permutations."""

from __future__ import annotations

import random

from fedrlvr.seeds import stream


def public_batch(size: int, count: int, exchange: int, seed: int) -> list[int]:
    """Places in a public set of `size` problems of the `count` that exchange number `exchange` takes.

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
