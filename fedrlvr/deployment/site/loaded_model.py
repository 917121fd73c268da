"""A model in the worker's memory, and the one cohort on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedrlvr.config import LoraConfig, PromptConfig
from fedrlvr.config.prompt import Wording
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import MessageError
from fedrlvr.output import logger
from fedrlvr.policy.base import Base, load_base, threads_here
from fedrlvr.policy.choices import choices
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.model_check import check_prompt

_log = logger("deployment")


@dataclass
class LoadedModel:
    """A model in memory, and its one cohort.

    asks: how the cohort's model is asked. checked: the self-check has passed.
    """

    base: Base
    lora: LoraConfig | None = None
    cohort: Cohort | None = None
    asks: PromptConfig | None = None
    checked: bool = False

    def cohort_for(self, org: Organisation, terms: Terms) -> Cohort:
        """The cohort that a run's adapters sit on, asked as the run says.

        Raises:
            ModelError: the model has no layers that the terms name.
            MessageError: it is another than the server's.
        """
        for what, expected, actual in (
            ("model", terms.model_id, self.base.model_id),
            ("model: one with other weights", terms.weights_id, self.base.weights_id),
            ("tokenizer", terms.tokenizer_id, self.base.tokenizer_id),
        ):
            if expected != actual:
                raise MessageError(
                    f"the server has another {what} than {org.name} under the name {terms.model!r} ({expected}, here "
                    f"{actual}): take the same files at both"
                )
        torch.set_num_threads(org.engine.threads or threads_here(org.model(terms.model)))
        lora = LoraConfig(rank=terms.largest, alpha=terms.alpha, targets=terms.targets)
        if self.cohort is None or self.lora != lora:
            if self.cohort is not None:
                self.cohort.stack.remove()
            self.cohort, self.checked = None, False
            self.cohort, self.lora = Cohort(self.base, lora, org.engine), lora
            self.asks = None
        # The model is one for all runs; how it is asked is a run's own.
        asks = terms.prompt.model_copy(update=Wording().model_dump())
        if self.asks != asks:
            self.cohort.base, self.asks = self.base.asking(asks), asks
            check_prompt(self.cohort.base)
        return self.cohort

    def check(self, seed: int, tell: Callable[[str], None]) -> None:
        """Assert that adapters reach the sampler, once for each cohort, and tell what it computes with.

        Raises:
            ModelError: as `Cohort.self_check`.
        """
        assert self.cohort is not None
        if not self.checked:
            self.cohort.self_check(seed)
            for part, choice in choices(self.cohort).items():
                tell(f"{part}: {choice}")
            self.checked = True


def load_model(org: Organisation, name: str, tell: Callable[[str], None]) -> LoadedModel:
    """Load the model of this name in site.toml; takes seconds to minutes.

    Raises:
        ModelError: it cannot be loaded.
    """
    started = time.perf_counter()
    base = load_base(org.model(name))
    line = f"loaded {name} in {time.perf_counter() - started:.1f} s"
    tell(line)
    _log.info("%s", line)
    return LoadedModel(base)
