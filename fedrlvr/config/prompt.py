"""The section [prompt]: how a problem becomes the text that the model is asked, and where a response ends.

`Wording` is the part that an organisation may state for its own task (`[tasks.NAME.prompt]` in site.toml); the rest is
the same for every client, because others read a response by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedrlvr.config.prompt_template import FIELDS, prompt_template
from fedrlvr.config.sections import OnlyWith, Section
from fedrlvr.errors import ConfigError

LONGEST_TEXT = 8000
"""Largest number of characters of a text in the section."""
MOST_CHARACTERS = 32_000
"""Largest number of characters of all texts in the section, which travel with every message to an organisation."""
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Shots = Annotated[list["Shot"], Field(max_length=64)]
_RESERVED = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "tokenizer_kwargs", "kwargs", "self"),
    )
)
"""Arguments of transformers' `apply_chat_template` that are not the template's own."""


class Shot(Section):
    """One question with its answer that stands before every problem (few-shot prompting)."""

    prompt: str = Field(min_length=1, max_length=LONGEST_TEXT)
    answer: str = Field(min_length=1, max_length=LONGEST_TEXT)


class Wording(Section):
    """Text around a problem, and the examples before it."""

    instruction: Text | None = None
    """Text appended to each problem after a new line. Unset: the task's own instruction, which is empty for the
    embedded problems. A template places it elsewhere with `{{ instruction }}`."""
    system: Text | None = None
    """System message before every problem. Without a chat template it is the first paragraph of the prompt. A problem
    that brings a system message of its own keeps that one. Unset: there is none."""
    template: Text | None = None
    """Jinja template of each problem, or the path of a file that holds it, such as "Q: {{ prompt }}". Its fields are
    `prompt`, `kind`, `instruction` and the problem's public columns (docs/data.md). Unset: the prompt as it is."""
    examples: int = Field(0, ge=0, le=64)
    """Number of the client's own training problems that stand with their answers before every problem (few-shot
    prompting), drawn by seed and the same for the whole run. A problem is never an example of itself. It needs
    supervision.type = 'labels' and no exchange of responses."""
    shots: Shots = Field(default_factory=list)
    """Questions with answers that stand before every problem, the same at all clients, such as
    [{prompt = "3+4=", answer = "7"}]. Answers are shown as they are written."""

    @field_validator("template")
    @classmethod
    def _usable(cls, value: str | None) -> str | None:
        if value is not None:
            prompt_template(value)
        return value

    @model_validator(mode="after")
    def _one_kind_of_examples(self) -> Self:
        if self.examples and self.shots:
            raise ValueError("prompt.examples and prompt.shots both put examples before a problem. Give one of them")
        required = prompt_template(self.template).required if self.template is not None else frozenset()
        if self.shots and (columns := sorted(required - set(FIELDS))):
            raise ValueError(
                f"prompt.template uses the column {columns[0]!r}, which prompt.shots do not have. Use a default filter"
            )
        return self

    @property
    def characters(self) -> int:
        """Number of characters of all texts in the section."""
        return len(json.dumps(self.model_dump(mode="json"), ensure_ascii=False))


class PromptConfig(Wording):
    """Prompts: the text that the model is asked, as all clients of a run ask it."""

    chat: Literal["auto", "on", "off"] = "auto"
    """Use of the tokenizer's chat template: `auto` puts each prompt into it if there is one, `on` refuses a tokenizer
    without one, `off` asks with plain text, as a base model that was not trained on chats needs."""
    template_args: Annotated[dict[str, bool | int | float | str], OnlyWith("chat", ("auto", "on"))] = Field(
        default_factory=dict, max_length=16
    )
    """Arguments of the tokenizer's chat template, such as {enable_thinking = false}. Unset: the template's own
    defaults."""
    prefill: Text = ""
    """Beginning of every response, which the model goes on from, such as `<answer>`. It is part of the text that is
    graded, and none of its tokens are trained on. The default is empty."""
    stop: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default_factory=list, max_length=16)
    """Strings that end a response, such as ["</answer>"]. The token that completes the string is the response's last
    one; the text that is graded ends with the string. Unset: only an end token ends a response."""

    @field_validator("template_args")
    @classmethod
    def _arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name.isidentifier() or len(name) > 64 or name in _RESERVED or name.startswith("return_"):
                raise ValueError(f"{name[:64]!r} is no argument of a chat template")
        return value

    @model_validator(mode="after")
    def _short_enough(self) -> Self:
        if self.characters > MOST_CHARACTERS:
            raise ValueError(
                f"the texts of [prompt] have {self.characters:,} characters, and at most {MOST_CHARACTERS:,} travel "
                "with every message. Shorten prompt.shots, prompt.system or prompt.template"
            )
        return self

    def check(self, config: Any) -> None:
        """Examples of training problems show labels that are paid for, and to nobody but their holder."""
        if not self.examples:
            return
        supervision, coordination = config.supervision.type, config.coordination.type
        advice = "Give examples that everybody may know in prompt.shots"
        if supervision != "labels":
            raise ValueError(
                f"prompt.examples = {self.examples} shows answers of training problems, which supervision.type = "
                f"{supervision!r} does not have or has not paid for. {advice}"
            )
        if coordination != "none":
            raise ValueError(
                f"prompt.examples = {self.examples} puts private problems before public ones, and coordination.type = "
                f"{coordination!r} gives the responses to others. {advice}"
            )

    def worded(self, wording: Wording) -> PromptConfig:
        """These settings with those that an organisation states for its own task in their place."""
        stated = {name: getattr(wording, name) for name in wording.model_fields_set}
        if stated.get("shots"):
            stated.setdefault("examples", 0)
        if stated.get("examples"):
            stated.setdefault("shots", [])
        return self.model_copy(update=stated)


RUN_WIDE = PromptConfig.model_fields.keys() - Wording.model_fields.keys()
"""Settings that no organisation states for itself: a model is loaded for one value of them."""


def with_template(tree: Mapping[str, Any], directory: Path | None = None, *, name: str = "prompt") -> dict[str, Any]:
    """The settings of the section with the content of the file that `template` names, if it names one.

    Called where a configuration is read from this machine, and never for what another party sends.

    directory: to which a relative path is relative; None: the working directory. name: of the section, for messages.

    Raises:
        ConfigError: the file cannot be read, or is too long.
    """
    value = tree.get("template")
    if not isinstance(value, str) or "{{" in value or "{%" in value:
        return dict(tree)
    path = (directory or Path()) / Path(value).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(4 * LONGEST_TEXT + 1)
        text = data.decode("utf-8-sig").removesuffix("\n")
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"{name}.template = {value[:200]!r} is neither a template, which has {{{{ prompt }}}} in it, nor a file "
            f"that can be read ({reason})."
        ) from None
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{name}.template: {path} has more than {LONGEST_TEXT:,} characters.")
    return {**tree, "template": text}
