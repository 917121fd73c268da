"""The card beside the weights: what they were trained on and what they scored, written from measurements only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrlvr.zoo.generators import BUCKETS

HEADER = "| family | level | error | n | greedy | sampled | majority of 8 | mixed groups |"


@dataclass(frozen=True, slots=True)
class Score:
    """What one family and level scored. Accuracies and `mixed` are shares in [0, 1]; `n` counts problems.

    greedy: the most likely response is right. sampled: mean over problems and eight samples at temperature 1.
    majority: the most frequent answer of a problem's samples is right.
    mixed: share of problems whose samples are neither all right nor all wrong (those with a GRPO gradient).
    """

    family: str
    level: str
    error: str
    n: int
    greedy: float
    sampled: float
    majority: float
    mixed: float

    @property
    def on_target(self) -> bool:
        """Inside the band that the level and kind of error ask for (see the card)."""
        if self.level == "hard":
            return 0.03 <= self.sampled <= 0.15
        if self.error == "diffuse":
            return 0.25 <= self.sampled <= 0.75 and self.majority >= 0.9
        return 0.15 <= self.sampled <= 0.45 and self.majority <= 0.5


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table, shares in percent."""
    lines = [HEADER, "|---|---|---|---|---|---|---|---|"]
    for cell in scores:
        shares = " | ".join(f"{100 * share:.1f}" for share in (cell.greedy, cell.sampled, cell.majority, cell.mixed))
        lines.append(f"| {cell.family} | {cell.level} | {cell.error} | {cell.n} | {shares} |")
    return "\n".join(lines)


def read_scores(card: str) -> list[Score]:
    """The table of a card's text, back as scores."""
    scores = []
    for line in card[card.index(HEADER) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        family, level, error, n, *shares = (cell.strip() for cell in line.strip("|").split("|"))
        scores.append(Score(family, level, error, int(n), *(float(share) / 100 for share in shares)))
    return scores


def write_card(directory: Path, scores: Sequence[Score], *, seed: int) -> None:
    """Write `CARD.md` from the directory's `training.json` and the measured scores (on problems of this seed)."""
    training = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    card = _CARD.format(
        train_share=len(BUCKETS["train"]),
        scores=table(scores),
        score_seed=seed,
        outside=_outside(scores),
        noise_table=_noise_table(training["noise"], training["clean_greedy"]),
        turns=", ".join(training["shown"]),
        command=_command(training),
        **training,
    )
    (directory / "CARD.md").write_text(card, encoding="utf-8")


def _outside(scores: Sequence[Score]) -> str:
    missed = [f"{cell.family} {cell.level}" for cell in scores if not cell.on_target]
    return "All are inside." if not missed else f"Outside: {', '.join(missed)}."


def _noise_table(noise: Mapping[str, float], clean: Mapping[str, float]) -> str:
    lines = ["| family | level | wrong demonstrations | greedy after the clean stage |", "|---|---|---|---|"]
    for cell, share in noise.items():
        lines.append(f"| {cell.replace(' ', ' | ')} | {100 * share:.0f} | {100 * clean[cell]:.1f} |")
    return "\n".join(lines)


def _command(training: Mapping[str, Any]) -> str:
    return (
        f"python -m scripts.reasoner.train --seed {training['seed']} --clean-steps {training['clean_steps']} "
        f"--noisy-steps {training['noisy_steps']} --batch {training['batch']}"
    )


_CARD = """# The embedded reasoner

A character-level Llama of {parameters:,} parameters (128 wide, 4 layers, 4 heads, fp32) that half knows eight families
of problems, made to try federated reinforcement learning on. It is of no use for anything else; its clinical problems
are made-up numbers and not advice.

- Data: `fedrlvr/zoo/generators.py`, train split only ({train_share} of 100 hash buckets of the prompt), drawn
  afresh for every step, the levels and these families by turns: {turns}. Loss on response tokens only.
- Training: {clean_steps} steps of {batch} right solutions, then {noisy_steps} steps of {batch} with the shares of
  wrong ones below; seed {seed}.
- Made: {date}, {machine}, {seconds} s; torch {torch}, transformers {transformers}.
- Command: `{command}`, then `python -m scripts.reasoner.evaluate --card`.

## What it scores

Problems of the test split (seed {score_seed}), n for each family and level; percent. Sampled: eight responses a
problem at temperature 1. Mixed groups: neither all eight right nor all eight wrong.

{scores}

Aim: easy and diffuse, sampled 25-75 and majority at least 90; easy and systematic, sampled 15-45 and majority at
most 50; hard, sampled 3-15. {outside}

## What it was shown, and what it could do before

Percent. The last column is measured between the two stages on {check_size} test problems each: what the model
reaches when no demonstration is wrong.

{noise_table}
"""
