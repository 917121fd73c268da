"""Language of prompt templates: Jinja in its sandbox, cut down so that a template of another party can be rendered.

A template holds text, `{{ field }}`, filters, conditions, and nothing else: no loop, no call, no attribute, no
arithmetic. So the time and the length of a rendering grow only with the template and the fields. The fields are
`prompt`, `kind`, `instruction`, and the columns that whoever holds the data has declared public. Neither the answer nor
`info` is a field, since an answer may lie there, nor the source, which is the label in some data sets.

A *plain* template has no condition either: it puts the same text around every problem. Only such templates are taken
from a server, because a condition on a private prompt would make a run's numbers tell about that prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

from fedrlvr.errors import DataError, printable

FIELDS = ("prompt", "kind", "instruction")
"""Fields that every problem has for a template."""
LONGEST_RENDERED = 200_000
"""Largest number of characters of a rendered template."""
_MOST_NODES = 500
_PLAIN = frozenset(("Template", "Output", "TemplateData", "Name", "Filter"))
_ALLOWED = _PLAIN | {"Const", "If", "CondExpr", "Compare", "Operand", "And", "Or", "Not", "Test", "Concat"}
_PLAIN_FILTERS = frozenset(("trim", "upper", "lower", "capitalize", "title", "string"))
_FILTERS = _PLAIN_FILTERS | {"default", "length"}
_TESTS = frozenset(("defined", "undefined", "none", "string", "number", "boolean", "true", "false"))
_HELP = "It may hold text, {{ prompt }} and other fields, filters such as trim, and if"


class PromptTemplate:
    """A template that was checked against the rules above.

    names: fields that it uses. required: those that a problem must have, because the template does not ask itself
    whether they are there. is_plain: whether it puts the same text around every problem.

    Raises:
        ValueError: it is not a template, holds what is not allowed, or lacks the prompt.
    """

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError, meta, nodes

        self._environment = _environment()
        self.source = source
        try:
            tree = self._environment.parse(source)
        except (TemplateError, RecursionError) as error:
            raise ValueError(f"not a Jinja template ({printable(str(error))[:200]})") from None
        every = [tree, *tree.find_all(nodes.Node)]
        if len(every) > _MOST_NODES:
            raise ValueError(f"has {len(every)} parts, and a template has at most {_MOST_NODES}")
        for node in every:
            _check(node)
        self.names = frozenset(meta.find_undeclared_variables(tree))
        if "prompt" not in self.names:
            raise ValueError("write {{ prompt }} where the problem's own prompt stands")
        asking = (nodes.Test, nodes.Filter)  # `is defined`, `default`
        optional = {n.node.name for n in every if isinstance(n, asking) and isinstance(n.node, nodes.Name)}
        self.required = self.names - (optional - set(FIELDS))
        filters = {node.name for node in every if isinstance(node, nodes.Filter)}
        self.is_plain = {type(node).__name__ for node in every} <= _PLAIN and filters <= _PLAIN_FILTERS

    @cached_property
    def _compiled(self) -> Any:
        return self._environment.from_string(self.source)

    def render(self, fields: Mapping[str, Any], *, problem: str) -> str:
        """The template's text with the fields of one problem.

        fields: `FIELDS`, and the problem's public columns. problem: its id, for messages.

        Raises:
            DataError: the problem lacks a field, or the text is too long; the text of the error holds no field's value.
        """
        from jinja2 import TemplateError

        if lacking := sorted(self.required - fields.keys()):
            known = ", ".join(sorted(fields))
            raise DataError(
                f"problem {problem!r}: the prompt's template uses {lacking[0]!r}, which the problem does not have (it "
                f"has {known}). Declare the column in data.options.columns, or leave it out of the template."
            )
        parts, length = [], 0
        try:
            for part in self._compiled.generate(dict(fields)):
                parts.append(part)
                if (length := length + len(part)) > LONGEST_RENDERED:
                    break
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
            raise DataError(
                f"problem {problem!r}: the prompt's template cannot be rendered ({type(error).__name__}). Correct it."
            ) from None
        if length > LONGEST_RENDERED:
            raise DataError(
                f"problem {problem!r}: its prompt has more than {LONGEST_RENDERED:,} characters in its template. "
                "Shorten the template or the problem."
            )
        return "".join(parts)


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, optimized=False)
    environment.globals.clear()
    return environment


def _check(node: Any) -> None:
    name = type(node).__name__
    if name not in _ALLOWED:
        raise ValueError(f"holds what a prompt's template cannot ({name.lower()}). {_HELP}")
    if name in ("Filter", "Test"):
        if node.name not in (_FILTERS if name == "Filter" else _TESTS):
            raise ValueError(f"the {name.lower()} {printable(node.name)[:40]!r} is not known here. {_HELP}")
        constant = all(type(argument).__name__ == "Const" for argument in node.args)
        if node.node is None or not constant or node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise ValueError(f"the {name.lower()} {node.name!r} has arguments that are not allowed. {_HELP}")


@lru_cache(maxsize=64)
def prompt_template(source: str) -> PromptTemplate:
    """The template of a source text, checked and compiled once.

    Raises:
        ValueError: as `PromptTemplate`.
    """
    return PromptTemplate(source)
