"""Table and responses that `fedrlvr prompts` prints: private problems and answers, on this machine's terminal only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedrlvr.config import PromptConfig
from fedrlvr.output import console as new_console
from fedrlvr.output import echo, echo_lines
from fedrlvr.reporting import units
from fedrlvr.reporting.responses import shortened
from fedrlvr.reporting.scores import estimate
from fedrlvr.reporting.tables import new_table, plain

if TYPE_CHECKING:
    from fedrlvr.simulation.prompts import Trial

_LENGTH, _LINES = 700, 24


def show_trials(trials: Sequence[Trial], title: str, *, whole: bool = False) -> None:
    """Print what each candidate's prompt and responses look like, then all numbers side by side.

    whole: show long prompts and responses whole.
    """
    for trial in trials:
        if trial.error or trial.same_as:
            continue
        echo(f"{trial.candidate.name}: {as_toml(trial.candidate.config.prompt)}")
        _show("prompt", trial.prompt, whole)
        for shown in trial.shown:
            read = "no answer found" if shown.answer is None else f"answer {shown.answer}"
            cut = "" if shown.response.finished else ", cut at the length limit"
            tokens = f"{len(shown.response.token_ids):,} tokens{cut}"
            facts = f"reward {shown.reward:g}, {read}, gold {shown.problem.answer}, {tokens}"
            _show(f"response to problem {shown.problem.id}: {facts}", shown.response.text, whole)
        echo()
    table = new_table(title, ["prompt"], ["pass@1", "readable", "tokens", "cut", "prompt tokens"])
    for trial in trials:
        if trial.error or trial.same_as:
            continue
        rates = trial.rates
        score = estimate(len(rates), sum(rates), sum(rate * rate for rate in rates))
        shares = units.percent(trial.readable), f"{trial.length:.1f}", units.percent(trial.cut)
        table.add_row(plain(trial.candidate.name), units.with_interval(score), *shares, f"{trial.prompt_tokens:.1f}")
    new_console().print(table)
    for trial in trials:
        if trial.same_as:
            echo(f"{trial.candidate.name!r} asks in the same way as {trial.same_as!r}, and was not tried again.")
        if trial.error:
            echo(f"{trial.candidate.name!r} cannot be used: {trial.error}")


def as_toml(prompt: PromptConfig) -> str:
    """The settings that are not at their defaults, as the section's inline table in TOML."""
    stated = {
        name: value for name, value in prompt.model_dump(mode="json").items() if value != getattr(PromptConfig(), name)
    }
    return f"prompt = {_inline(stated)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _show(title: str, text: str, whole: bool) -> None:
    echo(f"  {title}")
    lines = text if whole else shortened(text, _LENGTH, _LINES)
    echo_lines("\n".join(f"    {line}" for line in lines.split("\n")))
