"""The section about the personal adapters of the clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedrlvr.aggregation.personal import FINISHING, PERSONAL, PersonalMethod
from fedrlvr.config.sections import OnlyWith, Section

FINISHES = OnlyWith("type", FINISHING)


class PersonalConfig(Section):
    """The adapter that each client keeps for itself beside the global one (docs/methods.md, section 2)."""

    type: Literal[tuple(PERSONAL)] = "none"  # type: ignore[valid-type]  # of a table, which mypy does not evaluate
    """Way to a personal adapter, which stays at its client. `none` makes none. `finish` takes more local steps from the
    final global adapter. `mix` then interpolates between the two by the client's own validation problems
    (data.validation_size)."""
    steps: Annotated[int, FINISHES] = Field(10, ge=1)
    """Local steps of each client from the final global adapter. Too many steps fit the client's own training problems
    only; choose the number on validation problems."""
    learning_rate: Annotated[float | None, FINISHES] = Field(None, gt=0)
    """Constant learning rate of the personal steps, which follow no schedule. Unset: train.learning_rate."""

    @property
    def method(self) -> PersonalMethod:
        """Properties of the way that `type` names."""
        return PERSONAL[self.type]

    def check(self, config: Any) -> None:
        """A mixed adapter is not measured on the problems that it was chosen by."""
        if self.method.mixes and config.evaluate.split == "validation":
            raise ValueError(
                f"personal.type = {self.type!r} chooses by the validation problems, so evaluate.split = 'validation' "
                "would measure the personal adapter on the problems it was chosen by; set evaluate.split = 'test'"
            )

    def train(self, train: Any) -> Any:
        """The section [train] that the personal steps go by: one stretch of `steps` at a constant rate."""
        rate = self.learning_rate or train.learning_rate
        changed = {"local_steps": self.steps, "learning_rate": rate, "schedule": "constant", "warmup_steps": 0}
        return train.model_copy(update=changed)
