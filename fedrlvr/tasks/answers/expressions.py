r"""LaTeX and plain formulas to a tree, or nothing: a formula that is not consumed whole is no expression.

A node is a tuple: its operator, then operands (nodes) or, for leaves, a value:

    ("number", Fraction)  ("symbol", name)  ("constant", "pi" | "e" | "i")
    ("+", a, b)  ("*", a, b)  ("/", a, b)  ("^", a, b)  ("-", a)  ("root", n, a)  ("degree", a)
    ("!", a)  ("binomial", n, k)  ("abs", a)  ("floor", a)  ("ceil", a)
    ("sin", a) and the other functions of one argument  ("log", a) or ("log", a, base)
    ("call", name, a, ...)  a function that only has a name, such as f
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Node = tuple[Any, ...]

MOST_NODES = 300
DEEPEST = 40

TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"}
FUNCTIONS = TRIGONOMETRIC | {"log", "ln", "lg", "exp"}
_PLAIN = FUNCTIONS | {"sqrt", "pi", "theta", "alpha", "beta", "infty"}
_FAMILIES = {
    **dict.fromkeys(TRIGONOMETRIC, "trigonometric"),
    **dict.fromkeys(("!", "binomial"), "counting"),
    **dict.fromkeys(("abs", "floor", "ceil"), "rounding"),
    "log": "logarithm",
}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK_NAMES = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega
Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar
"""
GREEK = frozenset(_GREEK_NAMES.split())
_UNKNOWN_FUNCTIONS = set("fghFGHPQ")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|\\(?P<command>[a-zA-Z]+|[{}|])|(?P<letter>[a-zA-Z])|(?P<other>[-+*/^_!(){}\[\]|°':]))"
)
_SPELT = re.compile(rf"(?<![\\a-zA-Z])({'|'.join(sorted(_PLAIN, key=len, reverse=True))})(?![a-zA-Z])")
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")


class _NotWholeError(Exception):
    """The text is no expression."""


def expression(text: str) -> Node | None:
    """The tree of the whole normalised text, or None."""
    text = _SPELT.sub(r"\\\1 ", text)
    if _LONG_WORD.search(text):
        return None
    try:
        parser = _Parser(_tokens(text))
        node = parser.sum(0)
        return _degrees_as_a_unit(node) if parser.kind == "end" else None
    except _NotWholeError:
        return None


def _degrees_as_a_unit(node: Node) -> Node:
    """The tree with a symbol for each degree sign outside of a trigonometric function: no angle is its radians."""
    if node[0] in TRIGONOMETRIC:
        return node
    parts = tuple(_degrees_as_a_unit(part) if isinstance(part, tuple) else part for part in node)
    return ("*", parts[1], ("symbol", "°")) if node[0] == "degree" else parts


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables in a tree."""
    if node[0] == "symbol":
        return frozenset({node[1]})
    return frozenset().union(*(symbols(part) for part in node[1:] if isinstance(part, tuple)))


def operations(node: Node) -> frozenset[str]:
    """Families of functions that a tree leaves to be computed: trigonometric, logarithm, counting, rounding."""
    family = _FAMILIES.get(node[0])
    rest = frozenset().union(*(operations(part) for part in node[1:] if isinstance(part, tuple)))
    return rest | {family} if family else rest


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _NotWholeError
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    if len(tokens) > 2 * MOST_NODES:
        raise _NotWholeError
    return [*tokens, ("end", "")]


class _Parser:
    """Recursive descent; each method returns the node of what it consumed and raises where nothing fits."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.at = 0
        self.nodes = 0
        self.bars = 0

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def value(self) -> str:
        return self.tokens[self.at][1]

    def take(self, value: str | None = None) -> str:
        kind, token = self.tokens[self.at]
        if kind == "end" or (value is not None and token != value):
            raise _NotWholeError
        self.at += 1
        return token

    def node(self, *parts: Any) -> Node:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise _NotWholeError
        return parts

    def sum(self, depth: int) -> Node:
        left = self.product(depth)
        while sign := self.sign():
            right = self.product(depth)
            left = self.node("+", left, right if sign == "+" else self.node("-", right))
        return left

    def sign(self) -> str | None:
        """The sign that stands next, taken."""
        return self.take() if self.kind == "other" and self.value in ("+", "-") else None

    def signed(self, part: Callable[[int], Node], depth: int) -> Node | None:
        """A sign and the `part` behind it; None where no sign stands."""
        if (sign := self.sign()) is None:
            return None
        if depth > DEEPEST:
            raise _NotWholeError
        return part(depth + 1) if sign == "+" else self.node("-", part(depth + 1))

    def factor(self, depth: int) -> Node:
        """A power, with one sign before it or none."""
        return self.signed(self.power, depth) or self.power(depth)

    def product(self, depth: int) -> Node:
        if node := self.signed(self.product, depth):
            return node
        left = self.power(depth)
        while True:
            if self.value in ("cdot", "times", "*"):
                self.take()
                left = self.node("*", left, self.factor(depth))
            elif (self.kind == "other" and self.value == "/") or (self.kind == "command" and self.value == "div"):
                self.take()
                left = self.node("/", left, self.factor(depth))
            elif self.starts_factor():
                left = self.implicit(left, depth)
            else:
                return left

    def starts_factor(self) -> bool:
        if self.kind in ("number", "letter"):
            return True
        if self.kind == "command":
            return self.value not in ("cdot", "times", "div", "rfloor", "rceil", "}", "|", "pm", "mp")
        return self.kind == "other" and (self.value in "({[" or (self.value == "|" and not self.bars))

    def implicit(self, left: Node, depth: int) -> Node:
        before = self.tokens[self.at - 1]
        last = left[2] if left[0] == "*" else left
        if self.kind == "number" and last[0] != "^":
            raise _NotWholeError  # two numbers side by side, or `x2`
        mixed = self.kind == "command" and self.value == "frac" and before[0] == "number" and left[0] == "number"
        right = self.power(depth)
        if mixed and right[0] == "/" and right[1][0] == right[2][0] == "number":
            whole, top, bottom = left[1], right[1][1], right[2][1]
            if whole.denominator == 1 and 0 < top < bottom:
                return self.node("number", whole + top / bottom)
        return self.node("*", left, right)

    def power(self, depth: int) -> Node:
        base = self.atom(depth)
        start = self.at
        while self.kind == "other" and self.value in ("^", "!", "°"):
            operator = self.take()
            if self.at - start > DEEPEST:
                raise _NotWholeError
            if operator == "^":
                base = self.node("^", base, self.script(depth))
            else:
                base = self.node({"!": "!", "°": "degree"}[operator], base)
        return base

    def script(self, depth: int) -> Node:
        """What stands behind `^`: a group, or one atom with its sign; a chain of powers groups from the right."""
        if node := self.signed(self.script, depth):
            return node
        exponent = self.atom(depth)
        if self.kind == "other" and self.value == "^":
            self.take()
            return self.node("^", exponent, self.script(depth + 1))
        return exponent

    def group(self, opening: str, depth: int) -> Node:
        self.take(opening)
        bars, self.bars = self.bars, 0
        node = self.sum(depth + 1)
        self.bars = bars
        self.take({"(": ")", "{": "}", "[": "]"}[opening])
        return node

    def atom(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise _NotWholeError
        kind, value = self.tokens[self.at]
        if kind == "number":
            self.take()
            return self.node("number", Fraction(value.replace(",", "")))
        if kind == "letter":
            return self.named(depth)
        if kind == "command":
            return self.command(depth)
        if kind == "other" and value in "({[":
            return self.group(value, depth)
        if kind == "other" and value == "|":
            self.take()
            self.bars += 1
            inner = self.sum(depth + 1)
            self.bars -= 1
            self.take("|")
            return self.node("abs", inner)
        raise _NotWholeError

    def named(self, depth: int) -> Node:
        name = self.take()
        constant = {"e": "e", "i": "i"}.get(name)
        name += self.marks()
        if constant and len(name) == 1:
            return self.node("constant", constant)
        if name[0] in _UNKNOWN_FUNCTIONS and self.kind == "other" and self.value == "(":
            return self.node("call", name, self.group("(", depth))
        return self.node("symbol", name)

    def marks(self) -> str:
        """A subscript and primes behind a letter, as text."""
        text = ""
        while self.kind == "other" and self.value in ("_", "'"):
            if self.take() == "'":
                text += "'"
                continue
            text += "_"
            if self.kind in ("number", "letter"):
                text += self.take()
            else:
                self.take("{")
                while self.value != "}":
                    text += self.take()
                self.take("}")
        return text

    def command(self, depth: int) -> Node:
        name = self.take()
        if name in FUNCTIONS:
            return self.function(name, depth)
        if name == "frac":
            top, bottom = self.digit_or_atom(depth), self.digit_or_atom(depth)
            return self.node("/", top, bottom)
        if name == "sqrt":
            index: Node = ("number", Fraction(2))
            if self.kind == "other" and self.value == "[":
                index = self.group("[", depth)
            return self.node("root", index, self.atom(depth + 1))
        if name in ("binom", "dbinom", "tbinom"):
            return self.node("binomial", self.digit_or_atom(depth), self.digit_or_atom(depth))
        if name in ("lfloor", "lceil"):
            inner = self.sum(depth + 1)
            self.take("r" + name[1:])
            return self.node(name[1:], inner)
        if name == "|":
            inner = self.sum(depth + 1)
            self.take("|")
            return self.node("abs", inner)
        if name == "pi":
            return self.node("constant", "pi")
        if name in GREEK:
            return self.node("symbol", name + self.marks())
        if name in ("overline", "vec", "hat", "bar"):
            self.take("{")
            letters = name
            while self.value != "}":
                if self.kind != "letter":
                    raise _NotWholeError
                letters += " " + self.take()
            self.take("}")
            return self.node("symbol", letters)
        raise _NotWholeError

    def digit_or_atom(self, depth: int) -> Node:
        r"""An argument as LaTeX takes it: a group, or one token, and of a number its first digit (`\frac12`)."""
        if self.kind == "number" and self.value.isdigit() and len(self.value) > 1:
            first, rest = self.value[0], self.value[1:]
            self.tokens[self.at] = ("number", rest)
            return self.node("number", Fraction(first))
        return self.atom(depth + 1)

    def function(self, name: str, depth: int) -> Node:
        base = exponent = None
        for _ in range(2):
            if self.kind == "other" and self.value == "_" and name in ("log", "lg"):
                self.take()
                base = self.atom(depth + 1)
            elif self.kind == "other" and self.value == "^":
                self.take()
                exponent = self.script(depth + 1)
        if self.kind == "other" and self.value in "({[":
            argument = self.group(self.value, depth)
        else:
            argument = self.argument(depth + 1)
        if name in ("log", "ln", "lg"):
            node = self.node("log", argument, base) if base else self.node("log", argument)
        elif name == "exp":
            node = self.node("^", self.node("constant", "e"), argument)
        elif exponent and exponent[0] == "-" and exponent[1] == ("number", 1) and name in _INVERSE:
            return self.node(_INVERSE[name], argument)
        else:
            node = self.node(name, argument)
        return self.node("^", node, exponent) if exponent else node

    def argument(self, depth: int) -> Node:
        """What a function without parentheses takes: factors up to the next function, bracket or operator."""
        left = self.factor(depth)
        while self.kind == "letter" or (
            self.kind == "command" and (self.value in GREEK or self.value in ("pi", "frac", "sqrt"))
        ):
            left = self.implicit(left, depth)
        if self.kind == "other" and self.value == "/":
            self.take()
            left = self.node("/", left, self.power(depth))
        return left
