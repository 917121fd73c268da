"""Problems with a planted signal: hidden states that tell, in noise, whether the vote and a response are right."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrlvr.supervision.features import Features, Labelled, features, labelled
from fedrlvr.supervision.majority import Clusters, clusters

HIDDEN, GROUP, LONGEST = 16, 8, 20
ANSWERS = {
    "plain": ["a", "a", "a", "a", "a", "b", "b", "c"],
    "unanimous": ["a"] * 8,
    "tied": ["a", "b"] * 4,
    "unreadable": [None] * 8,
    "half": ["a", None, "b", "a", None, None, "a", None],
}


@dataclass(frozen=True)
class World:
    """Problems and their labels."""

    seen: Features
    votes: list[Clusters]
    rewards: list[list[float]]

    def labelled(self) -> Labelled:
        return labelled(self.seen, range(len(self.votes)), self.votes, self.rewards)


def world(problems: int, seed: int, signal: float = 1.5) -> World:
    """Majorities of 5, 2 and 1 in any order; right half of the time, else as often as not the 2 are right."""
    rng, torch_rng = random.Random(seed), torch.Generator().manual_seed(seed)
    prompts, votes, rewards = torch.randn(problems, HIDDEN, generator=torch_rng), [], []
    responses = torch.randn(problems, GROUP, HIDDEN, generator=torch_rng)
    for problem in range(problems):
        answers = rng.sample(ANSWERS["plain"], GROUP)
        truth = rng.choice(["a", "a", "b", "nobody's"])
        reward = [float(answer == truth) for answer in answers]
        prompts[problem, :4] += signal if truth == "a" else -signal
        responses[problem, :, 4:8] += signal * (2 * torch.tensor(reward).unsqueeze(1) - 1)
        votes.append(clusters(answers))
        rewards.append(reward)
    lengths = [[rng.randint(1, LONGEST) for _ in range(GROUP)] for _ in range(problems)]
    return World(features(prompts, responses, votes, lengths, LONGEST), votes, rewards)


def seen(*kinds: str, seed: int = 0) -> Features:
    """Features of problems answered as `ANSWERS` says, of random hidden states."""
    rng = torch.Generator().manual_seed(seed)
    votes = [clusters(ANSWERS[kind]) for kind in kinds]
    hidden = torch.randn(len(kinds), GROUP + 1, HIDDEN, generator=rng)
    return features(hidden[:, 0], hidden[:, 1:], votes, [[10] * GROUP for _ in kinds], LONGEST)


def auc(scores: Tensor, positive: Tensor) -> float:
    """The share of pairs in which a positive is scored above a negative; a tie counts half."""
    differences = scores[positive.bool()].unsqueeze(1) - scores[~positive.bool()].unsqueeze(0)
    return float(((differences > 0).double() + 0.5 * (differences == 0).double()).mean())
