"""A check of what else training has changed (`evaluate.also`): the loss on a text, and pass@1 on an unrelated task.

    loss      mean of -ln p(token | the tokens before it in its window), over windows of the text side by side
    pass@1    mean over the task's held-out problems of the share of correct responses

Both are measured with the base model, without any adapter, and with the adapter at the end, on the same tokens and
random numbers. The text and the task lie on the server's machine; clients have no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedrlvr.adapter import Adapter
from fedrlvr.config import Config
from fedrlvr.config.also import AlsoConfig
from fedrlvr.errors import DataError
from fedrlvr.policy.base import Base
from fedrlvr.policy.cohort import Cohort
from fedrlvr.policy.sampler import Decoding
from fedrlvr.rl import CORRECT
from fedrlvr.seeds import stream
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.tasks.deal import instruction_of, other_problems
from fedrlvr.tasks.prompts import Prompts
from fedrlvr.tasks.rewards import rewards_for, score

WINDOW = 512
"""Largest number of tokens of the text that see each other."""
_ROW = "also"


class AlsoCheck:
    """The text and problems of a configuration that has `evaluate.also`, read and checked before training.

    Raises:
        DataError: the text cannot be read, or has too few tokens that the model knows; or as the loaders say.
        ConfigError, GradingError: as the loaders and graders say.
    """

    def __init__(self, config: Config, base: Base) -> None:
        also = config.evaluate.also
        assert also is not None, "made only where there is something to measure"
        self._evaluate, self._longest, self._seed = config.evaluate, config.sampling.max_new_tokens, config.run.seed
        self._windows = _windows(also, base)
        self._task = also.task
        if also.task is not None:
            prompts = Prompts(also.task.prompt, instruction_of(also.task, also.task.prompt))
            self._problems = other_problems(also.task, prompts, base, self._longest)
            self._prompts = base.encode_all([prompts.ask(problem) for problem in self._problems])
            directory, arithmetic = config.run.started_in, also.task.arithmetic
            self._reward = rewards_for(also.task.rewards, arithmetic=arithmetic, directory=directory).verifier

    def both(self, cohort: Cohort, model: GlobalModel) -> dict[str, Any]:
        """The numbers of the base model and of a run's model, for the last line of metrics.jsonl."""
        return {
            "before": self.measure(cohort, cohort.fresh_adapter(0)),
            "after": self.measure(cohort, model.adapter, model.updates().get("change")),
        }

    def measure(self, cohort: Cohort, adapter: Adapter, change: Adapter | None = None) -> dict[str, Any]:
        """The numbers of one adapter, on base weights with this change.

        Raises:
            GradingError: a response cannot be graded. MemoryLimitError: memory ran out.
        """
        cohort.seat({_ROW: adapter}, {} if change is None else {_ROW: change})
        numbers: dict[str, Any] = {}
        if self._windows:
            tokens = sum(len(window) - 1 for window in self._windows)
            numbers["text"] = {"loss": cohort.text_loss(_ROW, self._windows), "tokens": tokens}
        if self._task is not None:
            numbers["task"] = {"name": self._task.name, **self._pass_rates(cohort)}
        return numbers

    def _pass_rates(self, cohort: Cohort) -> dict[str, float]:
        """The number of problems, and the sums of their pass rates and of the squares of these."""
        decoding = Decoding(self._evaluate.samples, self._longest, self._evaluate.temperature)
        drawn = cohort.sample({_ROW: self._prompts}, decoding, {_ROW: stream(self._seed, _ROW)})[_ROW]
        rates = []
        for problem, responses in zip(self._problems, drawn, strict=True):
            texts, finished = [r.text for r in responses], [r.finished for r in responses]
            right = [reward >= CORRECT for reward in score(self._reward, problem, texts, finished)]
            rates.append(sum(right) / len(right))
        return {"n": len(rates), "total": sum(rates), "squares": sum(rate * rate for rate in rates)}


def _windows(also: AlsoConfig, base: Base) -> list[list[int]]:
    """The text's tokens in windows of the same length, and the rest; none where there is no text."""
    if also.text is None:
        return []
    try:
        with also.text.open(encoding="utf-8") as file:
            text = file.read(64 * also.text_tokens)  # no tokenizer makes fewer tokens of that, but of white space
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"evaluate.also.text: {also.text} cannot be read as UTF-8 text ({error}).") from None
    ids = base.encode_text(text)[: also.text_tokens]
    if len(ids) < 2:
        raise DataError(
            f"evaluate.also.text: {also.text} has {len(ids)} tokens that the model knows; at least 2 are needed."
        )
    return windows(ids, min(WINDOW, base.max_length))


def windows(ids: Sequence[int], length: int) -> list[list[int]]:
    """Tokens in windows of this length side by side, without a last one of a single token, which predicts nothing."""
    cut = [list(ids[start : start + length]) for start in range(0, len(ids), length)]
    return [window for window in cut if len(window) > 1]
