"""The wording that a server asks for, and a prompt as the organisation's own problem makes it, for its people to read.

What a server has asked for lies in the run's directory here. Nothing of this module leaves the machine, and none of it
is logged: an example is a private problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from fedrlvr.config.prompt import PromptConfig
from fedrlvr.deployment.site.config import Organisation
from fedrlvr.errors import printable
from fedrlvr.files import atomic_text, read_json
from fedrlvr.tasks.prompts import Prompt

PROMPT_FILE = "prompt.json"
"""The file in a run's directory that holds the prompts the server has asked for."""
MOST_LINES = 40
"""Largest number of lines that are shown of one prompt."""


def keep(run: Path, task: str, prompt: PromptConfig) -> None:
    """Write down how a server words the prompts of a run.

    Raises:
        CheckpointError: it cannot be written.
    """
    text = json.dumps({"task": task, "prompt": prompt.model_dump(mode="json")}, indent=1) + "\n"
    path = run / PROMPT_FILE
    if not path.exists() or path.read_text("utf-8") != text:
        atomic_text(path, text)


def asked_for(org: Organisation, task: str) -> tuple[str, PromptConfig] | None:
    """The newest run here that has asked for this task, and its prompts; None if there is none."""
    files = sorted((org.state / "runs").glob(f"*/{PROMPT_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files:
        try:
            kept = read_json(path)
            if kept["task"] == task:
                return path.parent.name, PromptConfig.model_validate(kept["prompt"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            continue
    return None


def stated(org: Organisation, task: str, prompt: PromptConfig) -> Iterator[str]:
    """A line for each setting of a prompt that is not its default, and who states it.

    prompt: as the server asks for it.
    """
    of_task = org.task(task).prompt
    worded = prompt.worded(of_task)
    for name, info in PromptConfig.model_fields.items():
        value = getattr(worded, name)
        if value == info.get_default(call_default_factory=True):
            continue
        source = "site.toml" if name in of_task.model_fields_set else "the server"
        shown = [shot.model_dump() for shot in value] if name == "shots" else value
        yield f"{name} = {printable(json.dumps(shown, ensure_ascii=False))} ({source})"


def example(prompt: Prompt, how: PromptConfig) -> Iterator[str]:
    """The lines of a prompt: by turns, or as plain text where no chat template is used. No line has more than 400
    characters."""
    plain = how.chat == "off"
    parts = [("", prompt.text)] if plain else [(f"{turn.role}: ", turn.content) for turn in prompt.turns]
    if how.prefill:
        parts = [*parts[:-1], ("", parts[-1][1] + how.prefill)] if plain else [*parts, ("assistant: ", how.prefill)]
    lines = [line for role, text in parts for line in f"{role}{text}".split("\n")]
    for line in lines[:MOST_LINES]:
        yield printable(line)[:400]
    if len(lines) > MOST_LINES:
        yield f"... and {len(lines) - MOST_LINES} more lines"
