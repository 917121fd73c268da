"""The section about the personal adapters of the clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedrlvr.aggregation.lora_rule import RULES
from fedrlvr.aggregation.personal import FINISHING, PERSONAL, PersonalMethod
from fedrlvr.config.sections import OnlyWith, Section

FINISHES = OnlyWith("type", FINISHING)


class PersonalConfig(Section):
    """The adapter that each client keeps for itself beside the global one (docs/methods.md, section 2)."""

    type: Literal[tuple(PERSONAL)] = "none"  # type: ignore[valid-type]  # of a table, which mypy does not evaluate
    """Way to a personal adapter for each client. `none` makes none. `finish` takes more local steps from the final
    global adapter, and `mix` then interpolates between the two by the client's own validation problems
    (data.validation_size). `fedsa` averages A only, and each client keeps its own B. With `fedalt` each client trains
    an adapter of its own beside the frozen mean of the others'; for that mean its own adapter travels to the server,
    and with two clients each is sent the other's. Everything else stays at the client."""
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
        """The method goes with the LoRA rule, and a mixed adapter is not measured on the problems that chose it."""
        if self.method.mixes and config.evaluate.split == "validation":
            raise ValueError(
                f"personal.type = {self.type!r} chooses by the validation problems, so evaluate.split = 'validation' "
                "would measure the personal adapter on the problems it was chosen by; set evaluate.split = 'test'"
            )
        if self.method.keeps is None:
            return
        stated, rule = f"personal.type = {self.type!r}", config.aggregation.rule
        if not rule.is_linear or rule.turns != ("AB",):
            able = ", ".join(r.name for r in RULES.values() if r.is_linear and r.turns == ("AB",))
            raise ValueError(
                f"{stated} keeps factors that train in every round, which aggregation.type = {rule.name!r} freezes, "
                f"replaces or adds to the base weights; set aggregation.type = {able}"
            )
        if self.method.beside_others:
            self._check_beside_others(config)

    def _check_beside_others(self, config: Any) -> None:
        """
        Raises:
            ValueError: a setting of what passes between clients has no place beside the mean of the others' adapters.
        """
        if config.coordination.type != "none":
            raise ValueError(f"personal.type = {self.type!r} has no coordination.type = {config.coordination.type!r}")
        for name, info in type(config.aggregation).model_fields.items():
            value = getattr(config.aggregation, name)
            if name != "change_bound" and value != info.get_default(call_default_factory=True):
                raise ValueError(
                    f"aggregation.{name} = {value!r} has no effect with personal.type = {self.type!r}, where each "
                    "client is sent the plain mean of the others' adapters"
                )
        if len(config.federation.names) == 1:
            raise ValueError(f"personal.type = {self.type!r} needs at least two clients (federation.clients)")

    def train(self, train: Any) -> Any:
        """The section [train] that the personal steps go by: one stretch of `steps` at a constant rate."""
        rate = self.learning_rate or train.learning_rate
        changed = {"local_steps": self.steps, "learning_rate": rate, "schedule": "constant", "warmup_steps": 0}
        return train.model_copy(update=changed)
