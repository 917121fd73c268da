"""How a round's local steps are cut by its exchanges."""

from __future__ import annotations


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
