r"""Units and counted nouns in one spelling: `\text{ meters}`, `m` and `metres` are one, `mg` and `g` are two.

A unit is a product of measures with exponents, and the nouns that stand beside them (`liters of water`). Units are
never converted. What could be more than a noun (`or`, `is`, `wrong`, `than`) makes the phrase no unit at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedrlvr.tasks.answers.expressions import FUNCTIONS, GREEK
from fedrlvr.tasks.answers.normalise import CURRENCY, WORD

_PREFIXES = {"n": "nano", "u": "micro", "m": "milli", "c": "centi", "d": "deci", "k": "kilo", "M": "mega", "G": "giga"}
_SI_UNITS = """
m: meter metre; g: gram gramme; L: liter litre; s: second; J: joule; N: newton; W: watt; V: volt; A: ampere amp
Hz: hertz; Pa: pascal; mol: mole; cal: calorie; eV: electronvolt; B: byte; bit: bit; ohm: ohm; Wh: watthour; C: coulomb; T: tesla
F: farad
"""
# canonical name: spellings in words (any case, plural too), then after "|" abbreviations (case counts).
_OTHERS = """
in: inch inches | in In IN; ft: foot feet | ft Ft FT; yd: yard | yd yds; mi: mile | mi; acre: acre
hectare: hectare | ha; oz: ounce | oz; lb: | lb lbs; pound: pound; ton: ton tonne; g: | gm; kg: kilo | kilo; gal: gallon | gal
qt: quart | qt; pt: pint | pt; cup: cup; tsp: teaspoon | tsp; tbsp: tablespoon | tbsp; mL: | cc ccs; ml: |; uL: | μL μl; ug: | μg mcg
um: | μm; s: | sec secs; ms: | msec; min: minute | min mins Min; h: hour | h hr hrs Hr; d: day | d; wk: week | wk wks
mo: month | mo; yr: year | yr yrs; decade: decade; century: century centuries; K: kelvin | K; deg: degree | ° deg
celsius: celsius centigrade | °C; fahrenheit: fahrenheit | °F; rad: radian | rad; dollar: dollar buck | $ USD US$ usd
cent: cent pennies penny | ¢; euro: euro | € EUR eur; gbp: | £ GBP gbp; yen: yen | ¥ JPY; rupee: rupee | ₹ INR Rs rs
yuan: yuan | CNY RMB; unit: unit; iu: | IU; mmHg: | mmHg; bpm: | bpm; M: molar | M; mM: millimolar | mM; ohm: | Ω
percentpoint: percentagepoint; ordinal: | th st nd rd
"""
_ALIASES = {  # spellings of a product
    "mph": (("mi", 1), ("h", -1)),
    "kph": (("km", 1), ("h", -1)),
    "kmph": (("km", 1), ("h", -1)),
    "kmh": (("km", 1), ("h", -1)),
    "mps": (("m", 1), ("s", -1)),
    "fps": (("ft", 1), ("s", -1)),
    "rpm": (("revolution", 1), ("min", -1)),
}
_JOINED = (  # units of two words
    (re.compile(rf"(?<![a-zA-Z])mm\s+{WORD}?Hg\b"), "mmHg"),
    (re.compile(rf"(?<![a-zA-Z])beats?(?:\s+{WORD}?per\s+|\s*/\s*){WORD}?min(?:ute)?\b"), "bpm"),
    (re.compile(rf"(?<![a-zA-Z])(kilo|mega|)watt\s+{WORD}?hour"), r"\1watthour"),
)
_SINGLE = {"m", "g", "L", "l", "s", "h", "d", "J", "N", "W", "V", "A", "K", "C"}
"""Letters that may be a unit behind a space though nothing says that they are no variable."""
GLUED = frozenset("mgLlsh")
"""Letters that may be one right behind the number as well, where a gold answer is a number or a quantity."""
_MOST_WORDS = 8
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_QUALIFIERS = """
of per each old long tall wide high deep away apart thick left remaining altogether total in all a an the more extra
fewer less heavier lighter taller older younger longer shorter faster every worth
"""
_LOOSE = frozenset(_QUALIFIERS.split())
# With one of these words a phrase says something about the number, or counts further.
_STATEMENTS = """
or and not no nor is isnt are arent was were be wrong incorrect false true than at least most about approximately
approx around roughly nearly almost between to from through up over under above below if but except unless maybe
perhaps possibly probably guess think sure unsure either neither both instead actually wait hmm oops versus vs minus
plus times divided squared cubed minimum maximum max half third quarter percent then never because since so does
doesnt do dont did cannot cant wont could should might would may must correction error sorry however although though
exactly only just even without hundred thousand million billion trillion dozen mod modulo base one two three four five
six seven eight nine ten eleven twelve where when for with by x y z nope nah unlikely doubtful rejected excluded
invalid uncertain estimated estimate guessed ish unknown impossible untrue mistaken mistake inaccurate alternatively
rather also mil bil bn mn tn lakh crore grand negative once twice thrice hourly daily nightly weekly monthly yearly none
nothing anything something everything nobody undefined infinity infinite finite nil null nan factorial doubled tripled
quadrupled halved inverse inverted reciprocal opposite negated root sqrt cube power exponent point decimal comma plural
double triple complement conjugate prime modulus absolute positive less short quarters
"""
_STATEMENT_WORDS = frozenset(_STATEMENTS.split())
_NUMBER_WORD = re.compile(
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|halves|[a-z]*illions?|thirds?"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundreds?|thousands?|dozens?"
    r"|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+teen|[a-z]+tie|hundred|thousand|[a-z]*illion)ths?"
)
_MATHEMATICAL = FUNCTIONS | GREEK | {"pi"}
# Words that say nothing about a value if they stand in its name: "maximum value", "cost for x".
_IN_NAMES = frozenset(["minimum", "maximum", "max", "least", "for", "x", "y", "z", "prime", "root", "point", "power"])
_CHANGED = re.compile(
    r"square(?:d| root| of)|cube(?:d| root| of)|power of"
    r"|\b(?:bound|less|more|add|added|next|previous|another|successor|predecessor|log|sin|cos|tan)\b"
)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_PIECE = re.compile(
    rf"(?P<mark>{WORD}?)(?P<word>[^\W\d_]+|°\s?{WORD}?[CF]?|[$€£¥₹¢{CURRENCY}])|\^\s*\{{?\s*(?P<power>-?[0-9])\s*\}}?"
    rf"|(?P<symbol>/)|\\mu\s*{WORD}?(?P<micro>[a-zA-Z]+)|(?P<product>\\cdot|[-*])|[(){{}}.\s]"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """Measures with their exponents, sorted; and counted nouns, the head noun last."""

    measures: tuple[tuple[str, int], ...]
    nouns: tuple[str, ...]

    @property
    def key(self) -> str:
        """One spelling."""
        return " ".join([*(name if power == 1 else f"{name}^{power}" for name, power in self.measures), *self.nouns])


def _tables() -> tuple[dict[str, str], dict[str, str]]:
    words, abbreviations = {}, {}
    for symbol, names in re.findall(r"(\w+): ([\w ]+)", _SI_UNITS):
        for prefix, long in {"": "", **_PREFIXES}.items():
            abbreviations[prefix + symbol] = prefix + symbol
            for name in names.split():
                words[long + name] = prefix + symbol
    for line in re.split("[;\n]", _OTHERS.strip()):
        name, _, spellings = line.strip().partition(":")
        long_names, _, short = spellings.partition("|")
        words |= dict.fromkeys(long_names.split(), name)
        abbreviations |= dict.fromkeys(short.split(), name)
    for metric in ("m", "g", "L"):  # as people type them
        for prefix in ("m", "c", "k", "d", ""):
            unit = prefix + metric
            others = {unit.upper(), unit.capitalize(), unit.lower()} - {"M", "G", "Mm", "Mg", "MM", "MG"}
            abbreviations |= {other: unit for other in others if len(other) > 1 or other == "l"}
    return words, abbreviations


_WORDS, _ABBREVIATIONS = _tables()


def measure(word: str) -> str | None:
    """The canonical name of a unit of measure or currency, if the word is one."""
    if word in _ABBREVIATIONS:
        return _ABBREVIATIONS[word]
    if word.endswith("s") and len(word) > 2 and word[:-1] in _ABBREVIATIONS:  # kgs
        return _ABBREVIATIONS[word[:-1]]
    low = word.casefold()
    for form in (low, low.removesuffix("s"), low.removesuffix("es")):
        if len(form) > 2 and form in _WORDS:
            return _WORDS[form]
    return None


def says_more(phrase: str) -> bool:
    """Whether a name in words holds one that changes what it names: "half the answer", "x plus one", "not x"."""
    words = re.findall(r"[^\W\d_]+", phrase.casefold())
    said = (word for word in words if word not in _IN_NAMES)
    return any(word in _STATEMENT_WORDS or _NUMBER_WORD.fullmatch(word) for word in said) or bool(
        _CHANGED.search(" ".join(words))
    )


def _counted(mark: str, word: str) -> bool:
    """Whether a word may be a noun that is counted: no statement, no number, no product of variables."""
    low = word.casefold()
    if len(low) == 1 or low in _STATEMENT_WORDS or low in _MATHEMATICAL or _NUMBER_WORD.fullmatch(low):
        return False
    product = len(low) == 2 or low in _ALPHABET or not re.search("[aeiouy]", low) or (len(low) == 3 and word.isupper())
    return bool(mark and len(low) > 2) or not (product and low.isascii())


def stem(word: str) -> str:
    """A noun without its plural's ending."""
    low = word.casefold()
    if low.endswith("ies") and len(low) > 4:
        return low[:-3] + "y"
    if low.endswith(("ches", "shes", "xes", "sses")):
        return low[:-2]
    return low[:-1] if low.endswith("s") and not low.endswith("ss") and len(low) > 2 else low


def unit(phrase: str, *, glued: bool = False) -> Unit | None:
    """The unit that a whole phrase is, or None.

    glued: bare letters stand right behind the number, so only known units and words of four letters are not variables.
    """
    for pattern, joined in _JOINED:
        phrase = pattern.sub(joined, phrase)
    measures: dict[str, int] = {}
    nouns: list[str] = []
    sign, factor, last, count, position, dangling = 1, 1, "", 0, 0, False
    while position < len(phrase):
        match = _PIECE.match(phrase, position)
        if match is None:
            return None
        position = match.end()
        if match["power"]:
            if not last:
                return None
            measures[last] *= int(match["power"])
            last = ""
        elif match["symbol"] or match["product"]:
            sign, dangling = -1 if match["symbol"] else sign, True
        elif match["word"] or match["micro"]:
            count, dangling = count + 1, False
            if count > _MOST_WORDS:
                return None
            word = "u" + match["micro"] if match["micro"] else re.sub(rf"[ {WORD}]", "", match["word"])
            part = _part(match["mark"] or "", word, glued and count == 1, count == 1)
            if part is None:
                return None
            role, name = part
            if role == "loose":
                sign = -1 if name == "per" or (name in ("a", "an") and last) else sign
            elif role == "power" and last and name in ("squared", "cubed"):
                measures[last] *= _POWERS[name]
            elif role == "power":
                factor = _POWERS[name]
            elif role == "alias":
                measures |= dict(_ALIASES[name])
            elif role == "noun" and sign > 0:
                nouns.append(name)
            else:  # "per hour", and "per pupil" too
                last = name
                measures[last] = measures.get(last, 0) + sign * factor
                sign, factor = 1, 1
    if {"celsius", "fahrenheit"} & measures.keys():
        measures.pop("deg", None)
    if not count or len(nouns) > 4 or factor != 1 or dangling:
        return None
    return Unit(tuple(sorted((n, p) for n, p in measures.items() if p)), tuple(nouns))


def _part(mark: str, word: str, glued: bool, first: bool) -> tuple[str, str] | None:
    """What a word is in a unit, and its canonical name; None for a word that belongs in none."""
    word = "$" if word == CURRENCY else word
    low = word.casefold()
    if low in _POWERS:
        return "power", low
    if low in _LOOSE and word != "A" and not glued and not (first and low == "in"):  # else inches
        return "loose", low
    if low in _ALIASES:
        return "alias", low
    known = measure(word)
    if known and (mark or len(word) > 1 or not word.isascii() or not word.isalpha() or word in _SINGLE):
        return "measure", known
    if not _counted(mark, word) or (glued and not mark and len(word) < 4):
        return None
    return "noun", stem(word)


def same(one: Unit, other: Unit) -> bool:
    """Whether two units are one in different words. `pounds` may be of weight or of money."""
    if "pound" in dict(one.measures) or "pound" in dict(other.measures):
        one, other = _any_pound(one), _any_pound(other)
    if one.measures != other.measures:
        return False
    if one.measures and not (one.nouns and other.nouns):
        return True
    return one.nouns[-1:] == other.nouns[-1:]


def _any_pound(unit: Unit) -> Unit:
    names = (("pound" if name in ("lb", "gbp") else name, power) for name, power in unit.measures)
    return Unit(tuple(sorted(names)), unit.nouns)
