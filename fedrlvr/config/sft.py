"""The section about supervised training on demonstrations, from which reinforcement learning can start."""

from __future__ import annotations

from pydantic import Field

from fedrlvr.config.sections import Section
from fedrlvr.config.supervision import DemonstrationSource


class SftConfig(Section):
    """Supervised training by `fedrlvr sft`, whose adapter a run can start from (docs/sft.md). No other command reads
    this section."""

    responses: DemonstrationSource = "data"
    """Source of the responses to imitate. `data` is the data set's own: GSM8K's and MATH's worked solutions, or the
    column `response` of your own rows. With `own` the base model answers each problem sampling.group_size times, and
    its correct responses are imitated (rejection sampling)."""
    rounds: int | None = Field(None, ge=1)
    """Number of rounds of the supervised training. Unset: train.rounds."""
    local_steps: int | None = Field(None, ge=1)
    """Local steps of each client in a round of the supervised training. Unset: train.local_steps."""
    problems_per_step: int | None = Field(None, ge=1)
    """Number of problems in a local step of one client in the supervised training. Unset: train.problems_per_step."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the supervised training, usually larger than that of reinforcement learning. Unset:
    train.learning_rate."""
