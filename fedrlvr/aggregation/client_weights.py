"""How much each client's adapter counts, whatever the LoRA rule.

examples   w_k = n_k / sum_j n_j      n_k problems at client k (FedAvg, arXiv 1602.05629)
equal      w_k = 1 / K
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal


def client_weights(examples: Mapping[str, int], *, rule: Literal["examples", "equal"] = "examples") -> dict[str, float]:
    """Weights by client that sum to 1.

    Raises:
        ValueError: no clients, an unknown rule, a negative count, or no examples at all.
    """
    if rule not in ("examples", "equal"):
        raise ValueError(f"unknown weights {rule!r}; known: examples, equal")
    if not examples or any(count < 0 for count in examples.values()):
        raise ValueError("give each of at least one client a number of examples that is not negative")
    counts = examples if rule == "examples" else dict.fromkeys(examples, 1)
    total = sum(counts.values())
    if total == 0:
        raise ValueError("no client has an example to be weighed by")
    return {client: count / total for client, count in counts.items()}
