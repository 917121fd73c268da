"""Held-out quality of the probes: whether they tell right majorities from wrong ones before they learn from them.

Each new label's problem is judged before the probes learn from it, so the judgements are held out without any label
being set apart. The area under the ROC curve (AUC) of the newest of them is the chance that of a right and a wrong
majority the right one has the larger P1: 0.5 is chance, 1 perfect. Ours; the authors of CARE rank by the probes from
the first step on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

WINDOW = 64
"""Newest labels that the AUC is of, since the probes and the policy change."""
LEAST = 8
"""Labels from which on there is an AUC."""


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Share of the pairs of a positive and a negative in which the positive has the larger score; ties count half.

    None without a pair.

    Raises:
        ValueError: not as many scores as labels.
    """
    pairs = list(zip(scores, positive, strict=True))
    right = [score for score, label in pairs if label]
    wrong = [score for score, label in pairs if not label]
    if not right or not wrong:
        return None
    return sum((r > w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))


class HeldOut:
    """The newest judgements made before the probes learned from the labels."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[float, bool]] = deque(maxlen=WINDOW)

    def add(self, reliable: float, right: bool) -> None:
        """Add a problem's P1 and whether its majority turned out to be right."""
        self._pairs.append((reliable, right))

    @property
    def auc(self) -> float | None:
        """The AUC of P1; None before `LEAST` labels, and while all majorities were right or all wrong."""
        if len(self._pairs) < LEAST:
            return None
        return auc([reliable for reliable, _ in self._pairs], [right for _, right in self._pairs])

    def tensor(self) -> Tensor:
        """The judgements as float64 [n, 2]: P1, and 1 for a right majority."""
        return torch.tensor(list(self._pairs), dtype=torch.float64).reshape(-1, 2)

    def load(self, pairs_N2: Tensor) -> None:
        """Restore the judgements from their tensor.

        Raises:
            ValueError: no such judgements. Nothing has changed then.
        """
        if pairs_N2.dtype != torch.float64 or pairs_N2.dim() != 2 or pairs_N2.shape[1] != 2:
            raise ValueError(f"the held-out judgements are {pairs_N2.dtype} {tuple(pairs_N2.shape)}")
        self._pairs = deque(((p, bool(right)) for p, right in pairs_N2.tolist()), maxlen=WINDOW)
