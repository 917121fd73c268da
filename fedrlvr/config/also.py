"""The settings `evaluate.also`: a check of what else training has changed, beside the held-out problems."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from fedrlvr.config.problems import DataConfig
from fedrlvr.config.prompt import Wording
from fedrlvr.config.sections import EvaluateConfig, OnlyWith, Section, UserPath


class OtherTask(DataConfig):
    """An unrelated task, whose held-out problems are measured. The settings are those of [data]."""

    prompt: Wording = Wording()
    """Text around the task's problems, as in [prompt]; the chat template is the run's. Unset: the task's own
    instruction."""

    @model_validator(mode="after")
    def _held_out_problems_alone(self) -> OtherTask:
        for name in ("train_size", "public_size", "validation_size", "train_on_public"):
            if getattr(self, name):
                raise ValueError(f"{name} has no effect here: only held-out problems are measured")
        if self.prompt.examples:
            raise ValueError("prompt.examples has no effect here: the task has no training problems; give prompt.shots")
        return self


class AlsoConfig(Section):
    """A check of what else training has changed, with the base model and with the final adapter."""

    text: UserPath | None = None
    """File of UTF-8 text on which the loss is measured: the mean negative log-likelihood of a token. Take text of the
    kind that the model is to keep its command of. Unset: no loss is measured."""
    text_tokens: int = Field(16384, ge=2, le=1 << 24)
    """Number of tokens of the text that are measured, from its beginning; the rest is not read."""
    task: OtherTask | None = None
    """An unrelated task, in the settings of [data], such as {name = "svamp", path = "svamp", test_size = 200}. Pass@1
    on its held-out problems is measured as `evaluate.samples` and `evaluate.temperature` say. Unset: no task."""

    @model_validator(mode="after")
    def _something_to_measure(self) -> AlsoConfig:
        if self.text is None and self.task is None:
            raise ValueError("name a text, a task or both; else there is nothing to measure")
        if self.text is None and self.text_tokens != type(self).model_fields["text_tokens"].default:
            raise ValueError("text_tokens has no effect without text")
        return self


class EvaluateSection(EvaluateConfig):
    """Sampled pass@1 on held-out problems, which each client measures on its own."""

    also: Annotated[AlsoConfig | None, OnlyWith("federation.arm", ("federated", "central"))] = None
    """Check of what else training has changed, a table: the loss on a text, and pass@1 on an unrelated task, with the
    base model and with the final adapter. The server's machine measures it after the last round, and nothing travels.
    Unset: nothing else is measured."""

    def check(self, config: Any) -> None:
        """There is one adapter for all clients to measure."""
        if self.also is not None and config.personal.method.keeps is not None:
            raise ValueError(
                f"evaluate.also measures the adapter of all clients, and with personal.type = {config.personal.type!r} "
                "there is none; leave one of them out"
            )
