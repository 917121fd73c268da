"""Inputs and targets of CARE's probes: features of a problem, and what its label says (arXiv 2605.25864, authors'
code).

hidden states of the policy's last layer, at the last token of the prompt and of each response
share of responses with an answer that could be read; the clusters' sizes / G, largest first; lengths / longest
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from fedrlvr.rl.samples import CORRECT
from fedrlvr.supervision.majority import Clusters


@dataclass(frozen=True)
class Features:
    """P problems of G responses; C = G + 1 classes, the possible numbers of correct responses outside the majority.

    prompt_PH, response_PGH: hidden states, float32, detached.
    valid_P, cluster_PG, length_PG: shares from 0 to 1.
    votes_P: the majority's responses.
    others_PG: whether a response's answer could be read and is not the majority's.
    possible_PC: whether so many may be correct: none, or as many as a cluster outside the majority has.
    """

    prompt_PH: Tensor
    response_PGH: Tensor
    valid_P: Tensor
    cluster_PG: Tensor
    length_PG: Tensor
    votes_P: Tensor
    others_PG: Tensor
    possible_PC: Tensor

    def __len__(self) -> int:
        return self.prompt_PH.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of all fields, by the field's name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Self:
        """A copy of the features on another device."""
        return type(self)(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class Labelled(Features):
    """Features of problems whose answer is known, with the probes' targets.

    right_P: whether the majority is right, int64.
    correct_PG: whether each response is, int64.
    outside_P: correct responses outside the majority, int64; 0 if the majority is right.
    """

    right_P: Tensor
    correct_PG: Tensor
    outside_P: Tensor

    def rows(self) -> list[Labelled]:
        """Each problem by itself, in memory of its own."""
        return [
            Labelled(**{name: tensor[row : row + 1].clone() for name, tensor in self.tensors().items()})
            for row in range(len(self))
        ]


def joined(batches: Iterable[Labelled]) -> Labelled:
    """One batch of at least one, in order."""
    parts = [batch.tensors() for batch in batches]
    return Labelled(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def features(
    prompt_PH: Tensor,
    response_PGH: Tensor,
    votes: Sequence[Clusters],
    lengths: Sequence[Sequence[int]],
    longest: int,
) -> Features:
    """Features of P problems, on the hidden states' device.

    votes: each problem's clusters.
    lengths: tokens of each response, of at most `longest`.

    Raises:
        ValueError: shapes that do not go together, or a hidden state that is not finite.
    """
    problems, group = response_PGH.shape[:2]
    shapes = [prompt_PH.dim() == 2, response_PGH.dim() == 3, prompt_PH.shape[-1] == response_PGH.shape[-1]]
    counts = [len(prompt_PH) == problems, len(votes) == problems, len(lengths) == problems]
    groups = [len(clusters.members) == group for clusters in votes] + [len(row) == group for row in lengths]
    if not all(shapes + counts + groups) or longest < 1:
        raise ValueError("hidden states [P, H] and [P, G, H], clusters and lengths do not go together")
    if not bool(torch.isfinite(prompt_PH).all() and torch.isfinite(response_PGH).all()):
        raise ValueError("hidden states must be finite")
    device = prompt_PH.device
    sizes = [sorted(clusters.sizes, reverse=True) for clusters in votes]
    possible = [{0, *(n for at, n in enumerate(clusters.sizes) if at != clusters.majority)} for clusters in votes]

    def numbers(rows: list[list[float]], width: int = group) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32, device=device).reshape(problems, width)

    return Features(
        prompt_PH=prompt_PH.detach().float(),
        response_PGH=response_PGH.detach().float(),
        valid_P=numbers([[clusters.valid / group] for clusters in votes], 1).squeeze(1),
        cluster_PG=numbers([[size / group for size in row] + [0.0] * (group - len(row)) for row in sizes]),
        length_PG=numbers([[tokens / longest for tokens in of_group] for of_group in lengths]).clamp(0.0, 1.0),
        votes_P=torch.tensor([clusters.votes for clusters in votes], dtype=torch.int64, device=device),
        others_PG=numbers([[float(other) for other in clusters.others] for clusters in votes]).bool(),
        possible_PC=numbers([[float(c in row) for c in range(group + 1)] for row in possible], group + 1).bool(),
    )


def labelled(
    seen: Features,
    rows: Sequence[int],
    votes: Sequence[Clusters],
    true_rewards: Sequence[Sequence[float]],
) -> Labelled:
    """The problems `rows` of the features with what their labels say, one item each of votes and true rewards.

    A number of correct responses that no cluster has (a grader that is not transitive) is made possible.

    Raises:
        ValueError: not as many votes or rewards as rows, or not one reward for each response.
    """
    if not len(rows) == len(votes) == len(true_rewards):
        raise ValueError(f"{len(rows)} rows, {len(votes)} votes, {len(true_rewards)} rewards")
    device = seen.prompt_PH.device
    index = torch.tensor(list(rows), dtype=torch.int64, device=device)
    judged = [clusters.judged(rewards) for clusters, rewards in zip(votes, true_rewards, strict=True)]
    outside_P = torch.tensor([outside for _, outside in judged], dtype=torch.int64, device=device)
    correct = [[int(reward >= CORRECT) for reward in rewards] for rewards in true_rewards]
    taken = {field.name: getattr(seen, field.name)[index] for field in fields(Features)}
    taken["possible_PC"] = taken["possible_PC"].scatter(1, outside_P.unsqueeze(1), True)
    return Labelled(
        **taken,
        right_P=torch.tensor([int(right) for right, _ in judged], dtype=torch.int64, device=device),
        correct_PG=torch.tensor(correct, dtype=torch.int64, device=device).reshape(taken["others_PG"].shape),
        outside_P=outside_P,
    )
