r"""An answer's text to its type. What no type consumes whole is text.

`parse` gives the reading that an answer has by itself and that votes are counted by; `readings` adds those that a gold
answer may settle: `81,256` is one number or a list of two, `5m` a product or a length, `30 h` a time or a product.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

from fedrlvr.tasks.answers.amounts import DOLLARS, GLUED, Numeral, Unit, numeral, says_more, unit
from fedrlvr.tasks.answers.evaluation import exact, ratios, values
from fedrlvr.tasks.answers.expressions import expression, operations, symbols
from fedrlvr.tasks.answers.forms import (
    REALS,
    Based,
    Colons,
    Compound,
    Expression,
    Form,
    Infinite,
    Letter,
    Matrix,
    Named,
    Number,
    Percent,
    Piece,
    Quantity,
    Region,
    Relation,
    Text,
    half_line,
    intersection,
    interval,
    joined,
    open_interval,
    point,
    reals_without,
    union,
)
from fedrlvr.tasks.answers.normalise import (
    CURRENCY,
    ROW,
    WORD,
    balanced,
    enclosed,
    listed,
    normalise,
    related,
    split_at,
)

LONGEST = 1_000
_DEEPEST = 12

_W = WORD
_PERCENT = re.compile(rf"(.*?)\s*(?:%|{_W}?(?:percent(?:age)?|pct)|{_W}?per\s+{_W}?cent)", re.DOTALL | re.IGNORECASE)
_BASE = rf"(?:{_W}?base[\s-]*)?{_W}?(?P<{{0}}>[0-9]{{{{1,2}}}}|[a-z]+)"
_BASED = re.compile(
    rf"[({{]?\s*(?P<sign>[-+]?)\s*"
    rf"(?P<digits>{_W}?[0-9][0-9A-Za-z]*(?: [0-9]+)*|{_W}{{0,2}}[A-Z0-9]{{1,40}})\s*[)}}]?\s*"
    rf"(?:_\s*\{{?\s*\(?{_BASE.format('low')}\)?\s*\}}?"
    rf"|,?\s*\(?{_W}?(?:in\s+{_W}?)?(?={_W}?base){_BASE.format('spoken')}\)?)"
)
_BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip
_COLONS = re.compile(rf"([0-9]+(?:\.[0-9]+)?)((?:\s*:\s*[0-9]+(?:\.[0-9]+)?)+)\s*{_W}?([aApP][mM])?")
_RATIO_WORD = re.compile(rf"([0-9]+)\s+{_W}?to\s+([0-9]+)")
_MIXED_WORDS = re.compile(rf"([0-9]+)\s*{_W}?and\s+([0-9]+/[0-9]+|\\frac.*)")
_LETTER = re.compile(rf"{_W}[A-Z]|[A-Z]|\(\s*{_W}?[A-Z]\s*\)|\(\s*{_W}[a-z]\s*\)")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array|smallmatrix)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_GREEK_LETTER = (
    r"\\(?:Delta|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|phi|psi|omega|sigma|tau|rho|ell"
    r"|(?:vec|hat|bar|tilde)\s*\{?[a-z]\}?)"
)
_INDEX = rf"_\{{?\s*(?:\\|{_W})?[a-zA-Z0-9]+\s*(?:\}}|(?![a-zA-Z0-9]))"
_ARGUMENT = r"-?[a-zA-Z0-9]+(?:\(\s*-?[a-zA-Z0-9]+\s*\))?"
_ARGUMENTS = rf"\(\s*{_ARGUMENT}(?:\s*,\s*{_ARGUMENT})*\s*\)"
_NAMES = [
    r"(?:m\s*)?(?:\\(?:angle|triangle|overline|vec|overrightarrow|hat)\s*)?\{?[A-Z]{1,4}\}?'*",  # AB, \angle ABC
    rf"(?:[a-zA-Z]|{_GREEK_LETTER})(?:{_INDEX})?'*(?:(?:\^\{{?-1\}}?)?\s*{_ARGUMENTS})?",  # x_1, f(3)
    r"P\s*\([^()]{1,40}\)|E\s*\[[^\[\]]{1,40}\]",  # a probability, an expectation
    r"\\frac\s*\{d[a-z]\}\s*\{d[a-z]\}|\\Delta\s*[a-zA-Z]",
    r"\|\s*[A-Z]{2}\s*\|",  # a length
    r"\[\s*[A-Z]{3,6}\s*\]",  # an area
    r"\(\s*[a-z](?:_[a-z0-9])?(?:\s*,\s*[a-z](?:_[a-z0-9])?)+\s*\)",  # (x, y)
    rf"{_W}[^\W\d_]+(?:\s+{_W}?[^\W\d_]+){{0,5}}",  # \text{total cost}
    r"[A-Za-z]{4,}(?:\s+[A-Za-z]+){0,5}|[Ss]um|[Aa]ns",
]
_NAME = re.compile(rf"(?:{_W}?[Tt]he\s+)?(?:{'|'.join(_NAMES)})")
_CHEMICAL = re.compile(r"(?=.*_)(?=.*[A-Za-z].*[A-Za-z])(?:[A-Z][a-z]?|_[0-9]+)+")  # CO_2
_CONSTANTS = {"e", "i"}
_INFINITE = re.compile(r"([-+]?)\s*(?:\\infty|(?:positive |negative )?infinity|oo)", re.IGNORECASE)
_REALS = {"\\mathbb{R}", "all real numbers", "all reals", "\\mathbb{r}", "all real"}
_EMPTY = {"\\emptyset", "\\{\\}", "empty set", "the empty set", "emptyset"}
_SYMBOL = rf"{WORD}?(?:US|USD|EUR|GBP|Rs\.?|AU?|CA?|NZ|HK|S)?\s*[{CURRENCY}€£¥₹]|{WORD}?(?:USD|EUR|GBP|Rs\.?)\s"
_MONEY_BEFORE = re.compile(rf"([-+]?)\s*({_SYMBOL})\s*([-+]?.*)", re.DOTALL)
_NOUN_START = re.compile(rf"{WORD}[^\W\d_]|(?<![\\a-zA-Z{WORD}])[a-zA-Zμ]|[°€£¥₹¢{CURRENCY}]|\\mu(?![a-zA-Z])")


@lru_cache(maxsize=16_384)
def parse(text: str) -> Form | None:
    """The type and content of an answer; None for one that says nothing (no letter, digit or symbol)."""
    plain = normalise(text[: 2 * LONGEST])
    if not plain or len(text) > LONGEST or not re.search(r"[^\s.,;:!?'\"(){}\[\]]", plain):
        return None
    return _form(plain, 0)


def readings(text: str) -> Iterator[Form]:
    """Every reading of an answer, the one it has by itself first."""
    first = parse(text)
    if first is None:
        return
    yield first
    plain = normalise(text)
    if isinstance(first, Number) and re.fullmatch(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+", plain):
        yield _list(listed(plain, grouped=False), 0)
    elif (match := _MIXED_WORDS.fullmatch(plain)) and (number := numeral(" ".join(match.groups()))) is not None:
        yield Number(number)
    elif isinstance(first, Quantity) or re.fullmatch("[a-z]{2}", plain):
        if (product := _formula(plain)) is not None:
            yield product
    elif isinstance(first, Expression) and (length := _quantity(plain, guess=True)) is not None:
        yield length


def _form(text: str, depth: int) -> Form:
    text = text.strip()
    if depth > _DEEPEST or not balanced(text):
        return _text(text)
    for attempt in (_number, _special, _based, _colons, _matrix):
        if (form := attempt(text)) is not None:
            return form
    if (form := _structured(text, depth)) is not None:
        return form
    if re.fullmatch(rf"{WORD}[a-z]", text):  # a small letter in `\text{}` is a variable all the same
        text = text[1:]
    return _quantity(text) or _word(text) or _formula(text) or _text(text)


def _structured(text: str, depth: int) -> Form | None:
    """Brackets, lists, unions, relations: what is made of other answers."""
    pair = enclosed(text)
    if pair is not None and (form := _bracketed(*pair, depth)) is not None:
        return form
    if len(split_at(text, r"\cup")) > 1 and not _has_relation(text):
        return _union(text, depth)
    parts = listed(text)
    if len(parts) > 1:
        return _joined_regions(text, parts, depth) or _list(parts, depth)
    if (relation := related(text)) is None:
        return _text(text)
    if relation[1]:
        return _relation(*relation, text, depth)
    if len(rest := re.split(r"\\setminus|\\backslash", text)) == 2 or (
        len(rest := re.split(r"(?<=\\mathbb\{R\})\s*-\s*", text)) == 2
    ):
        holes = _form(rest[1], depth + 1)
        if rest[0].strip() in _REALS and isinstance(holes, Compound) and holes.shape == "set":
            return reals_without(list(holes.items)) or _text(text)
        return _text(text)
    if match := _PLUS_MINUS.search(text):
        return _plus_minus(text, match, depth)
    return None


def _number(text: str) -> Form | None:
    if (number := numeral(text)) is not None:
        return Number(number)
    if (match := _PERCENT.fullmatch(text)) and (number := numeral(match[1])) is not None:
        return Percent(number)
    return None


def _special(text: str) -> Form | None:
    plain = text.replace(WORD, "")
    low = plain.casefold()
    if low in _REALS:
        return REALS
    if low in _EMPTY or re.fullmatch(r"\\\{\s*\\\}", low):
        return Compound("set", ())
    if match := _INFINITE.fullmatch(plain):
        return Infinite(match[1] != "-" and "negative" not in low)
    return Letter(re.sub(r"[\W_]", "", text).upper()) if _LETTER.fullmatch(text) else None


def _based(text: str) -> Form | None:
    text = re.sub(r"^[0-9]{1,3}(?:,[0-9]{3})+(?=\s*_)", lambda m: m[0].replace(",", ""), text)
    match = _BASED.fullmatch(re.sub(rf"(?<=[0-9]){_W}(?=[A-Z])", "", text))
    if not match:
        return None
    sign, low, spoken = match["sign"], match["low"], match["spoken"]
    digits = match["digits"].replace(WORD, "").replace(" ", "").upper().lstrip("0") or "0"
    name = (low or spoken).casefold()
    base = int(name) if name.isdigit() else _BASES.get(name, 0)
    if not 2 <= base <= 36 or not all(c.isalnum() and c.isascii() and int(c, 36) < base for c in digits):
        return None
    if base == 10:
        return Number(Numeral(Fraction(int(sign + digits))))
    return Based(("-" if sign == "-" else "") + digits, base)


def _colons(text: str) -> Form | None:
    if match := _RATIO_WORD.fullmatch(text):
        return _ratio((Fraction(match[1]), Fraction(match[2])))
    match = _COLONS.fullmatch(text)
    if not match:
        return None
    written = [match[1], *(part.strip() for part in match[2].split(":")[1:])]
    parts = tuple(Fraction(part) for part in written)
    half = (match[3] or "").lower()
    if half or (all(len(part.partition(".")[0]) == 2 for part in written[1:]) and len(written) < 4):
        return Colons(parts, True, half)
    return _ratio(parts)


def _ratio(parts: tuple[Fraction, ...]) -> Form | None:
    if not any(parts):
        return None
    scale = math.lcm(*(part.denominator for part in parts))  # to the smallest integers with these ratios
    whole = [int(part * scale) for part in parts]
    return Colons(tuple(Fraction(number, math.gcd(*whole)) for number in whole), False)


def _matrix(text: str) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if not match or "\\begin" in match[2]:
        return None
    rows = [row for row in match[2].split(ROW) if row.strip()]
    cells = tuple(tuple(_form(cell, 2) for cell in row.split("&")) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1:
        return None
    return Matrix(cells)


def _bracketed(opening: str, content: str, closing: str, depth: int) -> Form | None:
    kind = opening + closing
    if kind == r"\{\}":
        return _set(content, depth)
    if kind == r"\langle\rangle":
        return Compound("vector", tuple(_form(part, depth + 1) for part in listed(content, grouped=False)))
    if kind == "{}":
        return _form(content, depth + 1)
    if kind not in ("()", "[]", "[)", "(]"):
        return None
    parts = split_at(content, ",")
    parts = split_at(content, ";") if len(parts) == 1 else parts
    if len(parts) == 1:
        return _form(content, depth + 1) if kind == "()" or _MATRIX.fullmatch(content) else None
    items = tuple(_form(part, depth + 1) for part in parts)
    if kind != "()" or any(isinstance(item, Infinite) for item in items):
        ends = interval(items[0], items[-1], opening == "[", closing == "]") if len(items) == 2 else None
        if ends is not None:
            return ends
        return Compound("array", items) if kind == "[]" else _text(opening + content + closing)
    return Compound("tuple", items)


def _set(content: str, depth: int) -> Form | None:
    if builder := re.match(r"\s*([a-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*(.*)", content, re.DOTALL):
        region = _form(builder[2], depth + 1)
        if isinstance(region, Region) and region.variable == builder[1]:
            return Region(region.pieces)
        return None
    return Compound("set", _flat(listed(content, grouped=False), depth))


def _list(parts: list[str], depth: int) -> Form:
    items = _flat(parts, depth)
    # Words are kept in their order: nothing says whether a question asked for one.
    return Compound("words" if any(isinstance(item, Text) for item in items) else "list", items)


def _flat(parts: list[str], depth: int) -> tuple[Form, ...]:
    """The forms of a list's parts; a list among them lends its items."""
    items: list[Form] = []
    for part in parts:
        item = _form(part, depth + 1)
        items.extend(item.items if isinstance(item, Compound) and item.shape == "list" else (item,))
    return tuple(items)


def _joined_regions(text: str, parts: list[str], depth: int) -> Form | None:
    """Inequalities of one variable joined by "or" or "and"."""
    joints = {
        word.casefold() for word in re.findall(rf"(?<![a-zA-Z\\]){WORD}?(or|and)(?![a-zA-Z])", text, re.IGNORECASE)
    }
    if len(joints) != 1 or not _has_relation(text):
        return None
    forms = [_form(part, depth + 1) for part in parts]
    regions = [form for form in forms if isinstance(form, Region) and form.variable]
    if len(regions) < len(forms) or len({form.variable for form in regions}) > 1:
        return None
    how = intersection if joints == {"and"} else lambda left, right: left + right
    return joined(regions, how)


def _union(text: str, depth: int) -> Form:
    pieces: list[Piece] = []
    forms = [_form(part, depth + 1) for part in split_at(text, r"\cup")]
    if all(isinstance(form, Compound) and form.shape == "set" for form in forms):
        return Compound("set", tuple(item for form in forms if isinstance(form, Compound) for item in form.items))
    for form in forms:
        form = open_interval(form) or form
        if isinstance(form, Region):
            pieces.extend(form.pieces)
        elif isinstance(form, Compound) and form.shape == "set":
            points = [piece for item in form.items if (piece := point(item))]
            if len(points) < len(form.items):
                return _text(text)
            pieces.extend(points)
        else:
            return _text(text)
    return Region(union(pieces))


def _has_relation(text: str) -> bool:
    return bool(re.search(r"[=<>]|\\(?:le|ge|ne|in)(?![a-zA-Z])", text))


def _relation(sides: list[str], operators: list[str], text: str, depth: int) -> Form:
    if not all(sides):  # `\neq 7`: an inequality without its variable
        return _text(text)
    if set(operators) == {"="}:
        return _equation(sides, depth) or _difference(sides, operators, text)
    if operators == [r"\in"]:
        inside, name = _form(sides[1], depth + 1), _name(sides[0])
        inside = open_interval(inside) or inside
        if name and isinstance(inside, Region):
            return Region(inside.pieces, name)
        if name and isinstance(inside, Compound) and inside.shape == "set":
            return Named(name, Compound("list", inside.items))
        return _text(text)
    return _inequality(sides, operators, depth) or _difference(sides, operators, text)


def _inequality(sides: list[str], operators: list[str], depth: int) -> Form | None:
    """A region, if one side is a name and the others are constants."""
    at = next((place for place, side in enumerate(sides) if _name(side)), None)
    one_way = len({operator in ("<", r"\le") for operator in operators}) == 1 and r"\ne" not in operators
    if at is None or {r"\in", "="} & {*operators} or (len(sides) > 2 and not (len(sides) == 3 and at == 1 and one_way)):
        return None
    pieces = list(REALS.pieces)
    for place, operator in enumerate(operators):
        other = _form(sides[place if place < at else place + 1], depth + 1)
        if (half := half_line(operator, other, mirrored=place < at)) is None:
            return None
        pieces = intersection(pieces, half)
    return Region(union(pieces), _name(sides[at]) or "") if pieces else None


def _equation(sides: list[str], depth: int) -> Form | None:
    """`name = value`, `value = name`, or one value in several spellings."""
    if len(sides) == 2 and not _name(sides[0]) and _name(sides[1]):
        sides = sides[::-1]
    names = []
    while len(sides) > 1 and (name := _name(sides[0])):
        names.append(name)
        sides = sides[1:]
    forms = [_form(side, depth + 1) for side in sides]
    value = forms[-1]
    if len(forms) > 1:  # `0.56 = 56\%`, and not `7 = 18`
        worth = [_worth(form) for form in forms]
        if worth[0] is None or any(other != worth[0] for other in worth) or len(set(sides)) < len(sides):
            return None
        value = next((form for form in reversed(forms) if isinstance(form, Number)), value)
    if isinstance(value, Text):
        return None
    return Named(names[-1], value) if names else value


def _worth(form: Form) -> Fraction | None:
    if isinstance(form, Number):
        return form.value
    return form.numeral.value / 100 if isinstance(form, Percent) else None


def _name(side: str) -> str | None:
    """The name that a side of an equation is, in one spelling."""
    a_product = re.match(r"[xyz]\s*\(\s*-?[0-9]", side)  # `x(2)`
    letters = re.findall(r"[(,]\s*([a-z])", side) if side[:1] == "(" else []
    swapped = letters != sorted(letters)  # `(y,x)`
    if not _NAME.fullmatch(side) or side in _CONSTANTS or a_product or swapped or ("_" not in side and says_more(side)):
        return None
    return re.sub(rf"[\s{{}}{WORD}]", "", side)


def _difference(sides: list[str], operators: list[str], text: str) -> Form:
    """An equation or inequality by what is compared with zero, up to a factor."""
    if len(sides) != 2 or r"\in" in operators:
        return _text(text)
    operator = operators[0]
    if operator in (">", r"\ge"):
        sides, operator = sides[::-1], {">": "<", r"\ge": r"\le"}[operator]
    left, right = (expression(side) for side in sides)
    if left is None or right is None:
        return _text(text)
    node = ("+", left, ("-", right))
    content = ratios(node, signed=operator not in ("=", r"\ne"))
    if content is None:
        return _text(text)
    return Relation(operator, f"{' '.join(sorted(symbols(node)))};{' '.join(content)}")


def _plus_minus(text: str, match: re.Match[str], depth: int) -> Form:
    if len(_PLUS_MINUS.findall(text)) > 1 or text[0] == "[":
        return _text(text)
    both = [text[: match.start()] + sign + text[match.end() :] for sign in "+-"]
    return Compound("list", tuple(_form(side, depth + 1) for side in both))


def _word(text: str) -> Form | None:
    """Letters alone are a word, however few: no product has an order."""
    plain = re.sub(rf"[{WORD}{{}}]| (?=_)", "", text)
    if _CHEMICAL.fullmatch(plain):
        return _text(plain)
    plain = text.replace(WORD, "")
    return _text(text) if re.fullmatch(r"[^\W\d_]{2,}|[A-Z](?: [A-Z])+", plain) and plain.casefold() != "pi" else None


def _text(text: str) -> Text:
    plain = re.sub(r"[{}\s]+|\\(?=[{}])", " ", text.replace(WORD, " ").replace(CURRENCY, "$")).casefold()
    plain = " ".join(plain.split()).strip(" .")
    return Text(re.sub(r" ?([^\w\s]) ?", r"\1", plain))


def _formula(text: str) -> Expression | None:
    """The expression that a whole text is, if it has a value."""
    if WORD in text:
        return None
    node = expression(text)
    worth = None if node is None else values(node)
    if node is None or worth is None:
        return None
    variables = symbols(node)
    return Expression(node, worth, variables, operations(node), None if variables else exact(node))


def _quantity(text: str, *, guess: bool = False) -> Quantity | None:
    """An amount and the unit or noun behind it, or a currency before it.

    guess: one letter glued to the number may be a unit as well.
    """
    if (match := _MONEY_BEFORE.fullmatch(text)) is not None:
        return _money(*match.groups())
    for start in _NOUN_START.finditer(text):
        amount, phrase = text[: start.start()].rstrip(), text[start.start() :]
        if not amount:
            return None
        if amount.endswith("(") and phrase.endswith(")") and len(phrase.lstrip(WORD)) > 2:  # `5 (eggs)`
            amount, phrase = amount[:-1].rstrip(), phrase[:-1]
        if amount.endswith(("(", "{", "^")):
            continue
        if amount.endswith("/") and (phrase[0] == WORD or len(phrase) > 2):  # `5/hour`
            amount, phrase = amount[:-1].rstrip(), "/" + phrase
        marked = phrase.lstrip("/")[0] in WORD + "°€£¥₹¢" + CURRENCY
        glued = text[start.start() - 1].isalnum() and not marked
        single = glued and len(phrase) == 1
        if single and not (guess and phrase in GLUED):
            continue
        measured = unit(phrase, glued=glued and not single)
        if measured is None:
            continue
        if (number := numeral(amount)) is not None:
            return Quantity(Number(number), measured)
        constant = _formula(amount) if phrase[0] in WORD + "°" or (measured.measures and not glued) else None
        if constant is not None and not constant.left_to_compute and (constant.constant or phrase[0] == WORD):
            return Quantity(constant, measured)
    return None


def _money(sign: str, symbol: str, rest: str) -> Quantity | None:
    plain = re.sub(rf"{WORD}|US(?=\s*{CURRENCY})", "", symbol).strip()
    currency = unit(DOLLARS.get(plain, plain))
    if currency is None:
        return None
    if (number := numeral(sign + rest)) is not None:
        return Quantity(Number(number), currency)
    behind = _quantity(sign + rest)
    if behind is None:
        return None
    repeated = dict(currency.measures).items() <= dict(behind.unit.measures).items()
    a_rate = any(power < 0 for _, power in behind.unit.measures)
    if not (repeated or a_rate or not behind.unit.measures):  # `$5 kg`
        return None
    merged = tuple(sorted({*currency.measures, *behind.unit.measures}))
    return Quantity(behind.amount, Unit(merged, behind.unit.nouns))
