"""The two probes of CARE on the policy's hidden states, and their losses (arXiv 2605.25864, authors' code).

    reliability   P1 = P(the majority is right), and beside it whether each response is right
    correction    P2(y) = P(y responses outside the majority are right), 0 if the majority is

Both: a prompt branch and a response branch, pooled over responses, side by side into a head. The correction probe sees
no lengths, and of the responses those outside the majority; the others enter its norm as zeros, as with the authors.
1. Batch statistics of a single row are undefined. A norm given one row while training uses its running statistics and
   leaves them as they are. This is our reading: with the authors it is an error.
2. Class weights are count^-0.5 divided by their mean over the classes present, then clipped, as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fedrlvr.supervision.features import Features, Labelled

PROMPT, RESPONSE_HIDDEN, RESPONSE, HEAD = 128, 64, 512, 256
"""Widths of the branches and of the heads' hidden layer."""
AUXILIARY = 1.5
"""Weight of the per-response loss in the reliability probe's loss."""
LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.25, 4.0


class Norm(nn.BatchNorm1d):
    """Batch normalisation that a batch of one row does not break."""

    def forward(self, rows_NF: Tensor) -> Tensor:
        """[N, F] normalised; by the running statistics if N < 2."""
        if self.training and rows_NF.shape[0] < 2:
            return functional.batch_norm(
                rows_NF,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                self.momentum or 0.0,
                self.eps,
            )
        return super().forward(rows_NF)


def _linear(inputs: int, outputs: int, rng: Generator) -> nn.Linear:
    """torch's own initialisation, drawn from the given generator instead of the global one."""
    layer: nn.Linear = skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    bound = 1 / math.sqrt(inputs)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=rng)
    return layer


def _prompt_branch(hidden: int, group: int, rng: Generator) -> nn.Sequential:
    inputs = hidden + 1 + group
    return nn.Sequential(Norm(inputs), _linear(inputs, PROMPT, rng), nn.ReLU())


def _response_branch(inputs: int, rng: Generator) -> nn.Sequential:
    first, second = _linear(inputs, RESPONSE_HIDDEN, rng), _linear(RESPONSE_HIDDEN, RESPONSE, rng)
    return nn.Sequential(Norm(inputs), first, nn.ReLU(), second, nn.ReLU())


def _head(outputs: int, rng: Generator) -> nn.Sequential:
    inputs = PROMPT + RESPONSE
    return nn.Sequential(Norm(inputs), _linear(inputs, HEAD, rng), nn.ReLU(), _linear(HEAD, outputs, rng))


def _prompt_inputs(seen: Features) -> Tensor:
    return torch.cat([seen.prompt_PH, seen.valid_P.unsqueeze(1), seen.cluster_PG], dim=1)


class ReliabilityProbe(nn.Module):
    """Stage 1: is the majority right?"""

    def __init__(self, hidden: int, group: int, rng: Generator) -> None:
        super().__init__()
        self.prompt = _prompt_branch(hidden, group, rng)
        self.response = _response_branch(hidden + 1, rng)
        self.head = _head(2, rng)
        self.each = _head(2, rng)

    def _branches(self, seen: Features) -> tuple[Tensor, Tensor]:
        inputs_PGF = torch.cat([seen.response_PGH, seen.length_PG.unsqueeze(2)], dim=2)
        response_PGR = self.response(inputs_PGF.flatten(0, 1)).unflatten(0, inputs_PGF.shape[:2])
        return self.prompt(_prompt_inputs(seen)), response_PGR

    def forward(self, seen: Features) -> Tensor:
        """Logits [P, 2] that the majority of each problem is wrong or right."""
        prompt_PD, response_PGR = self._branches(seen)
        logits: Tensor = self.head(torch.cat([prompt_PD, response_PGR.mean(dim=1)], dim=1))
        return logits

    def loss(self, batch: Labelled) -> tuple[Tensor, Tensor]:
        """The loss of the vote and that of the single responses, the latter not yet multiplied by `AUXILIARY`."""
        prompt_PD, response_PGR = self._branches(batch)
        logits = self.head(torch.cat([prompt_PD, response_PGR.mean(dim=1)], dim=1))
        beside_PGD = prompt_PD.unsqueeze(1).expand(-1, response_PGR.shape[1], -1)
        each = self.each(torch.cat([beside_PGD, response_PGR], dim=2).flatten(0, 1))
        vote = functional.cross_entropy(logits, batch.right_P, class_weights(batch.right_P, 2))
        return vote, functional.cross_entropy(each, batch.correct_PG.flatten())


class CorrectionProbe(nn.Module):
    """Stage 2: how many responses outside the majority are right?"""

    def __init__(self, hidden: int, group: int, rng: Generator) -> None:
        super().__init__()
        self.prompt = _prompt_branch(hidden, group, rng)
        self.response = _response_branch(hidden, rng)
        self.head = _head(group + 1, rng)

    def forward(self, seen: Features) -> Tensor:
        """Logits [P, G + 1], minus infinity for numbers that are impossible."""
        others_PG1 = seen.others_PG.unsqueeze(2)
        inputs_PGH = seen.response_PGH * others_PG1
        response_PGR = self.response(inputs_PGH.flatten(0, 1)).unflatten(0, inputs_PGH.shape[:2]) * others_PG1
        pooled_PR = response_PGR.sum(dim=1) / others_PG1.sum(dim=1).clamp(min=1)
        logits: Tensor = self.head(torch.cat([self.prompt(_prompt_inputs(seen)), pooled_PR], dim=1))
        return logits.masked_fill(~seen.possible_PC, -math.inf)

    def loss(self, batch: Labelled) -> Tensor:
        """Cross-entropy of the number of correct responses outside the majority."""
        logits = self(batch)
        return functional.cross_entropy(logits, batch.outside_P, class_weights(batch.outside_P, logits.shape[1]))


def class_weights(labels_P: Tensor, classes: int) -> Tensor:
    """Weights [classes] in [0.25, 4] that even out how often the labels occur; 0 for those that do not."""
    counts_C = torch.bincount(labels_P, minlength=classes).float()
    present_C = counts_C > 0
    weights_C = counts_C.clamp(min=1).rsqrt()
    weights_C = (weights_C / weights_C[present_C].mean()).clamp(LOWEST_WEIGHT, HIGHEST_WEIGHT)
    return weights_C.masked_fill(~present_C, 0.0)
