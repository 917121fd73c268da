"""Prompts of a client's problems: wording, instruction and examples become the turns of a conversation.

A problem's text is its prompt in the template, with the instruction after it unless the template places it. Before it
stand a system message and examples, each a question worded like the problem and its answer. Without a chat template the
same is plain text: paragraphs, in which an example's answer follows its question.

Examples from the training problems are shown with their answer marked as the grader reads it. Shots that the
configuration gives are shown as they are written there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

from fedrlvr.config.prompt import Wording
from fedrlvr.config.prompt_template import prompt_template
from fedrlvr.tasks.extraction import wrap
from fedrlvr.tasks.problem import Kind, Problem, Question, Turn, conversation_text

Instruction = Callable[[Kind], str]
"""Kind of problem -> the sentence appended to prompts of that kind; "" for none."""


@dataclass(frozen=True)
class Prompt:
    """A prompt in both forms: turns for a chat template, and plain text for a model without one."""

    turns: tuple[Turn, ...]
    text: str

    @staticmethod
    def of(text: str) -> Prompt:
        """A prompt of one question and nothing else."""
        return Prompt((Turn("user", text),), text)


def no_instruction(kind: Kind) -> str:
    """Instruction of tasks whose prompts need none: the empty text."""
    return ""


def _asked(problem: Problem | Question) -> str:
    """The problem's own question, the last turn where it is a conversation."""
    return problem.messages[-1].content if problem.messages else problem.prompt


def worded(problem: Problem | Question, template: str, **fields: str) -> str:
    """A problem's prompt in a template.

    fields: others than the problem's own.

    Raises:
        DataError: the template does not fit the problem.
    """
    every = {**problem.columns, **fields, "prompt": _asked(problem), "kind": problem.kind}
    return prompt_template(template).render(every, problem=problem.id)


@dataclass(frozen=True)
class Prompts:
    """Maker of the prompts by which one client asks its problems.

    wording: what the configuration says. instruction: kind of problem -> the sentence appended. examples: training
    problems with their answers, one more than wording.examples, so that none is an example of itself.
    """

    wording: Wording = field(default_factory=Wording)
    instruction: Instruction = no_instruction
    examples: Sequence[Problem] = ()

    @cached_property
    def settings(self) -> str:
        """Everything that the prompts depend on besides the problems, as text."""
        stated = self.wording.model_dump_json(exclude={"instruction"})
        return stated + json.dumps([self.instruction(kind) for kind in get_args(Kind)])

    def ask(self, problem: Problem | Question) -> Prompt:
        """The prompt by which a problem is asked, in both forms.

        Raises:
            DataError: the template does not fit the problem.
        """
        before = list(problem.messages[:-1])
        system = [before.pop(0)] if before and before[0].role == "system" else []
        if self.wording.system and not system:
            system = [Turn("system", self.wording.system)]
        turns, paragraphs = list(system), [turn.content for turn in system]
        for question, answer in self._before(problem):
            turns += [Turn("user", question), Turn("assistant", answer.strip())]
            paragraphs.append(question + answer)
        turns += [*before, Turn("user", self._worded(problem))]
        paragraphs += [turn.content for turn in turns[len(turns) - len(before) - 1 :]]
        return Prompt(tuple(turns), "\n\n".join(paragraphs))

    def text(self, problem: Problem | Question) -> str:
        """The prompt of a problem as plain text, before any chat template, for people to read.

        Raises:
            DataError: as `ask`.
        """
        return self.ask(problem).text

    def _before(self, problem: Problem | Question) -> list[tuple[str, str]]:
        """Question and answer of each example; the answer begins as it follows the question in plain text."""
        wording = self.wording
        gap = "\n" if self._appended(problem.kind) else ""
        shots = [
            (self._worded(Question(shot.prompt, f"prompt.shots, number {n}", "", problem.kind)), gap + shot.answer)
            for n, shot in enumerate(wording.shots, start=1)
        ]
        others = [e for e in self.examples if e.id != problem.id and e.prompt != problem.prompt][: wording.examples]
        drawn = [(self._whole(e), ("\n" if self._appended(e.kind) else " ") + wrap(e.answer, e.kind)) for e in others]
        return shots + drawn

    def _whole(self, problem: Problem) -> str:
        return conversation_text([*problem.messages[:-1], Turn("user", self._worded(problem))])

    def _worded(self, problem: Problem | Question) -> str:
        template, instruction = self.wording.template, self.instruction(problem.kind)
        text = _asked(problem) if template is None else worded(problem, template, instruction=instruction)
        return f"{text}\n{instruction}" if self._appended(problem.kind) else text

    def _appended(self, kind: Kind) -> bool:
        """Whether an instruction stands after the problem's text."""
        template = self.wording.template
        placed = template is not None and "instruction" in prompt_template(template).names
        return bool(self.instruction(kind)) and not placed
