r"""Numbers as people write them, to exact rationals and never through a float; units and counted nouns in one spelling.

Numbers are integers, decimals, digits grouped by a comma, a space or an apostrophe, fractions of two integers, mixed
numbers, repeating decimals (`0.\overline{3}`), and scientific notation. Arithmetic that is still to be done (`9+9`,
`2^{10}`, `--18`) is no number.

A unit is a product of measures with exponents, and the nouns that stand beside them (`liters of water`): `meters`, `m`
and `metres` are one, `mg` and `g` are two, and none is converted. What says more than a noun (`or`, `wrong`, `than`,
`factorial`, `fifty`) makes the phrase no unit at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from fedrlvr.tasks.answers.expressions import FUNCTIONS, GREEK
from fedrlvr.tasks.answers.normalise import CURRENCY, WORD

MOST_DIGITS = 1_000
LARGEST_EXPONENT = 4_000
"""Powers of ten beyond this are no numbers: an exact integer of that size is already 13,000 bits."""

_GROUPED = r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+|(?:'[0-9]{3})+)"
_INTEGER = rf"(?:{_GROUPED}|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.(?:[0-9]{{3}}(?: [0-9]{{3}})*(?: [0-9]{{1,3}})|[0-9]*))?|\.[0-9]+)"
_SIGN = r"(?:[-+]\s*)?"
_PART = rf"(?:\{{\s*({_SIGN}{_INTEGER})\s*\}}|\s*([0-9]))"
_FRACTION = rf"\\frac\s*{_PART}\s*{_PART}"
_SLASHED = rf"[({{]?\s*({_SIGN}{_INTEGER})\s*[)}}]?\s*/\s*[({{]?\s*({_SIGN}{_INTEGER})\s*[)}}]?"
_PROPER = r"(?:\\frac\s*(?:\{\s*([0-9]+)\s*\}|\s*([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|\s*([0-9]))|([0-9]+)\s*/\s*([0-9]+))"
_TEN = r"\{?10\}?\s*(?:\^|\*\*)\s*\{?\s*\(?\s*(?P<exponent>[-+]?\s*[0-9]+)\s*\)?\s*\}?"

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALED = re.compile(rf"(.*[\d}}])\s*{WORD}?({'|'.join(_SCALES)})s?", re.DOTALL)


_NEGATED = re.compile(r"-\s*\(\s*(\\frac[^(),+-]*|[0-9]+\s*/\s*[0-9]+)\s*\)")  # -(12/7), not -(-12/7) and not -(5)


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number's exact value, and for a decimal how many significant digits it is written with (else 0)."""

    value: Fraction
    digits: int = 0


def numeral(text: str) -> Numeral | None:
    """The number that the whole normalised text is, or None."""
    text = text.strip()
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}") and not set("(){},") & set(text[1:-1].strip("(){} ")):
        text = text[1:-1].strip()
    if len(text) > MOST_DIGITS or not any("0" <= c <= "9" for c in text):
        return None
    if (match := _NEGATED.fullmatch(text)) and (base := numeral(match[1])) is not None:
        return Numeral(-base.value, base.digits)
    if match := _SCALED.fullmatch(text):
        base = numeral(match[1])
        return Numeral(base.value * _SCALES[match[2]]) if base else None
    for pattern, read in _WRITTEN:
        if match := pattern.fullmatch(text):
            try:
                return read(match)
            except ZeroDivisionError:
                return None
    return None


def _integer(text: str) -> int:
    return int(re.sub(r"[,' +]", "", text))


def _decimal(sign: str, text: str) -> Numeral:
    text = re.sub(r"[,' ]", "", text)
    factor = -1 if "-" in sign else 1
    digits = text.replace(".", "").lstrip("0")
    return Numeral(factor * Fraction(text.rstrip(".")), len(digits) if "." in text.rstrip(".") else 0)


def _fraction(match: re.Match[str]) -> Numeral:
    sign, top, short_top, bottom, short_bottom = match.groups()
    value = Fraction(_integer(top or short_top), _integer(bottom or short_bottom))
    return Numeral(-value if "-" in sign else value)


def _slashed(match: re.Match[str]) -> Numeral:
    return Numeral(Fraction(_integer(match[1]), _integer(match[2])))


def _mixed(match: re.Match[str]) -> Numeral | None:
    sign, whole, space, *parts = match.groups()
    top, bottom = int(parts[0] or parts[1] or parts[4]), int(parts[2] or parts[3] or parts[5])
    if not 0 < top < bottom or (parts[4] and not space):
        return None
    value = int(whole) + Fraction(top, bottom)
    return Numeral(-value if "-" in sign else value)


def _repeating(match: re.Match[str]) -> Numeral:
    sign, whole, start, *period = match.groups()
    digits = period[0] or period[1]
    value = int((whole + start) or 0) + Fraction(int(digits), 10 ** len(digits) - 1)
    return Numeral(value / 10 ** len(start) * (-1 if "-" in sign else 1))


def _scientific(match: re.Match[str]) -> Numeral | None:
    size = match["exponent"].replace(" ", "")
    if len(size) > 6 or abs(int(size)) > LARGEST_EXPONENT:
        return None
    base = _decimal(match[1], match[2] or "1")
    return Numeral(base.value * Fraction(10) ** int(size), base.digits if base.value else 0)


_WRITTEN: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Numeral | None]]] = [
    (re.compile(pattern), read)
    for pattern, read in (
        (rf"({_SIGN})({_DECIMAL})", lambda match: _decimal(match[1], match[2])),
        (rf"({_SIGN}){_FRACTION}", _fraction),
        (_SLASHED, _slashed),
        (rf"({_SIGN})([0-9]+)(\s*){_PROPER}", _mixed),
        (rf"({_SIGN})(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*|{WORD}?[xX])\s*)?{_TEN}", _scientific),
        (rf"({_SIGN})({_DECIMAL})\s*{WORD}?[eE]\s*(?:\{{\s*)?(?P<exponent>[-+]?\s*[0-9]+)\s*\}}?", _scientific),
        (rf"({_SIGN})([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{{\s*([0-9]+)\s*\}}|([0-9]))", _repeating),
    )
]


def spelled(value: Fraction) -> str:
    """One spelling of a rational: `p` or `p/q` in lowest terms, in hexadecimal beyond 4,000 bits."""
    if max(abs(value.numerator), value.denominator).bit_length() <= 4_000:
        return str(value)
    return f"{value.numerator:#x}/{value.denominator:#x}"


def close(left: Numeral, right: Numeral) -> bool:
    """Whether two numbers are equal, or one is a decimal of six or more digits that is the other, rounded.

    A decimal of 15 digits and more may also differ in its last two, which a computer's arithmetic does not hold.
    """
    if left.value == right.value:
        return True
    return _rounded(left, right) or _rounded(right, left)


def _rounded(decimal: Numeral, exact: Numeral) -> bool:
    if decimal.digits < 6 or exact.value == 0 or exact.value.denominator == 1:
        return False
    error = abs(decimal.value - exact.value) / abs(exact.value)
    if exact.digits:  # two decimals: only a computer's rounding separates them
        return decimal.digits >= 15 and error < Fraction(1, 10**14)
    # Half a unit in the last digit of a decimal with this many digits.
    return abs(decimal.value - exact.value) * 2 <= _last_place(decimal)


def _last_place(decimal: Numeral) -> Fraction:
    """The value of one in the last digit that a decimal is written with."""
    size, value = 0, abs(decimal.value)
    while value >= 10:
        value, size = value / 10, size + 1
    while 0 < value < 1:
        value, size = value * 10, size - 1
    return Fraction(10) ** (size - decimal.digits + 1)


_PREFIXES = {"n": "nano", "u": "micro", "m": "milli", "c": "centi", "d": "deci", "k": "kilo", "M": "mega", "G": "giga"}
_SI_UNITS = """
m: meter metre; g: gram gramme; L: liter litre; s: second; J: joule; N: newton; W: watt; V: volt; A: ampere amp
Hz: hertz; Pa: pascal; mol: mole; cal: calorie; eV: electronvolt; B: byte; bit: bit; ohm: ohm; Wh: watthour
C: coulomb; T: tesla; F: farad
"""
# canonical name: spellings in words (any case, plural too), then after "|" abbreviations (case counts).
_OTHERS = """
in: inch inches | in In IN; ft: foot feet | ft Ft FT; yd: yard | yd yds; mi: mile | mi; acre: acre
hectare: hectare | ha; oz: ounce | oz; lb: | lb lbs; pound: pound; ton: ton tonne; g: | gm; kg: kilo | kilo
gal: gallon | gal; qt: quart | qt; pt: pint | pt; cup: cup; tsp: teaspoon | tsp; tbsp: tablespoon | tbsp; mL: | cc ccs
ml: |; uL: | μL μl; ug: | μg mcg; um: | μm; s: | sec secs; ms: | msec; min: minute | min mins Min
h: hour | h hr hrs Hr; d: day | d; wk: week | wk wks; mo: month | mo; yr: year | yr yrs; decade: decade
century: century centuries; K: kelvin | K; deg: degree | ° deg; celsius: celsius centigrade | °C
fahrenheit: fahrenheit | °F; rad: radian | rad; dollar: dollar buck | $ USD US$ usd; cent: cent pennies penny | ¢
euro: euro | € EUR eur; gbp: | £ GBP gbp; yen: yen | ¥ JPY; rupee: rupee | ₹ INR Rs rs; yuan: yuan | CNY RMB
unit: unit; iu: | IU; mmHg: | mmHg; bpm: | bpm; mEq: | mEq meq; M: molar | M; mM: millimolar | mM; ohm: | Ω
cad: | CAD; aud: | AUD; nzd: | NZD; hkd: | HKD; sgd: | SGD; chf: | CHF; sek: | SEK; nok: | NOK; dkk: | DKK; mxn: | MXN
zar: | ZAR; krw: | KRW; php: | PHP; brl: | BRL; pln: | PLN; thb: | THB
percentpoint: percentagepoint; ordinal: | th st nd rd
"""
DOLLARS = {
    f"{country}{CURRENCY}": code
    for country, code in re.findall(r"(\w+) (\w+)", "A AUD AU AUD C CAD CA CAD NZ NZD HK HKD S SGD")
}
_ALIASES = {  # spellings of a rate
    alias: ((above, 1), (below, -1))
    for alias, above, below in re.findall(
        r"(\w+) = (\w+)/(\w+)",
        "mph = mi/h, kph = km/h, kmph = km/h, kmh = km/h, mps = m/s, fps = ft/s, rpm = revolution/min",
    )
}
_JOINED = (  # units of two words
    (re.compile(rf"(?<![a-zA-Z])mm\s+{WORD}?Hg\b"), "mmHg"),
    (re.compile(rf"(?<![a-zA-Z])beats?(?:\s+{WORD}?per\s+|\s*/\s*){WORD}?min(?:ute)?\b"), "bpm"),
    (re.compile(rf"(?<![a-zA-Z])US\s+(?={WORD}?dollar)"), ""),
    (re.compile(rf"^{WORD}?times(?=\s+{WORD}?(?:an?|per|each|every)\s)"), "occasions"),
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
plus times divided squared cubed minimum maximum max percent then never because since so does doesnt do dont did
cannot cant wont could should might would may must correction error sorry however although though exactly only just
even without mod modulo base where when for with by x y z nope nah unlikely doubtful rejected excluded invalid
uncertain estimated estimate guessed ish unknown impossible untrue mistaken mistake inaccurate alternatively rather
also mil bil bn mn tn lakh crore grand once twice thrice hourly daily nightly weekly monthly yearly none nothing
anything something everything nobody undefined infinity nil null nan factorial doubled tripled quadrupled halved
inverse inverted reciprocal opposite negated sqrt exponent comma plural complement conjugate modulus less quarters
gross grosses debt debts owed loss losses deficit deficits lies fakes errors mistakes guesses disproved refuted reversed
rejected retracted denied disputed doubted
"""
_STATEMENT_WORDS = frozenset(_STATEMENTS.split())
# Behind a number these change it (`5 point`, `5 root`), unless a noun follows (`5 decimal places`).
_ADJECTIVES = "positive negative finite infinite prime decimal power short root double triple point cube absolute"
_NO_HEADS = frozenset(_ADJECTIVES.split())
_NUMBER_WORD = re.compile(
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|halves|[a-z]*illions?|thirds?"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ie)|sixe|hundreds?|thousands?|dozens?"
    r"|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+teen|[a-z]+tie|hundred|thousand|[a-z]*illion)ths?)s?"
)
# Heads of a phrase that are no plural in -s.
_SINGULARS = """
people children men women fish sheep deer mice geese teeth feet dice data oxen cattle staff police personnel
apple bag ball balloon banana barrel bead bird block book bottle bowl box boy bus candy car card cat chair child
class coin cookie customer dog egg employee flower friend fruit game girl glass group guest hat house item kid lap
lemon man marble member mouse orange page pair part pen pencil person picture piece pizza plant player point problem
question room row seat share slice song step stick sticker student table team ticket time toy trip tree turn vote way
woman worker bacteria money cash water milk juice oil paint flour sugar salt rice bread butter chocolate homework
profit revenue income change pay savings work sleep food fuel gas gasoline sand soil land fabric ribbon rope wire paper
wood yarn cloth space weight length height width area volume distance ice tea coffee corn wheat hay grass meat beef
chicken wine beer soda lemonade cereal popcorn dirt gravel cement concrete metal gold silver copper iron
"""
_SINGULAR_HEADS = frozenset(_SINGULARS.split())
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
    rf"|(?P<symbol>/)|\\mu\s*{WORD}?(?P<micro>[a-zA-Z]+)|(?P<product>\\cdot|[-*])|[(){{}}.\s]|(?<=s)'(?=\s)"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """Measures with their exponents, sorted; and counted nouns, the head noun last."""

    measures: tuple[tuple[str, int], ...]
    nouns: tuple[str, ...]

    @property
    def key(self) -> str:
        """One spelling for all equal units, to compare them."""
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
    content = (word for word in words if word not in _IN_NAMES)
    return any(word in _STATEMENT_WORDS | _NO_HEADS or _NUMBER_WORD.fullmatch(word) for word in content) or bool(
        _CHANGED.search(" ".join(words))
    )


def _counted(mark: str, word: str) -> bool:
    """Whether a word may be a noun that is counted: no statement, no number, no product of variables."""
    low = word.casefold()
    if len(low) == 1 or low in _STATEMENT_WORDS or low in _MATHEMATICAL or _NUMBER_WORD.fullmatch(low):
        return False
    if re.fullmatch("[A-Z]{2,}s", word):  # TVs
        return True
    product = len(low) == 2 or low in _ALPHABET or not re.search("[aeiouy]", low) or (len(low) == 3 and word.isupper())
    return bool(mark and len(low) > 2) or not (product and low.isascii())


def _is_head(word: str) -> bool:
    """Whether a phrase may have its head in this word: one that looks like a plural, or a known singular."""
    plural = re.search(r"(?<!s)(?<!u)(?<!i)s$|[a-z](?:men|women|people|children)$", word)
    return word not in _NO_HEADS and (plural is not None or word in _SINGULAR_HEADS)


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
    sign, factor, last, head, count, position, dangling = 1, 1, "", "", 0, 0, False
    complete = False  # "of" follows the head
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
            if role == "noun" and name.endswith("ed") and (nouns or measures):  # `18 eggs baked`
                role = "loose"
            if role == "loose":
                complete = complete or (name == "of" and bool(head or measures or count == 1))
                sign = -1 if name == "per" or (name in ("a", "an") and last) else sign
            elif role == "power" and last and name in ("squared", "cubed"):
                measures[last] *= _POWERS[name]
            elif role == "power":
                factor = _POWERS[name]
            elif role == "alias":
                measures |= dict(_ALIASES[name])
            elif role == "noun" and sign > 0:
                nouns.append(name)
                head = head if complete else word.casefold()
            else:  # "per hour", and "per pupil" too
                last, head = name, head if complete else ""
                measures[last] = measures.get(last, 0) + sign * factor
                sign, factor = 1, 1
    if {"celsius", "fahrenheit"} & measures.keys():
        measures.pop("deg", None)
    if not count or len(nouns) > 4 or factor != 1 or dangling or (head and not _is_head(head)):
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


def same(left: Unit, right: Unit) -> bool:
    """Whether two units are one in different words. `pounds` may be of weight or of money."""
    if "pound" in dict(left.measures) or "pound" in dict(right.measures):
        left, right = _any_pound(left), _any_pound(right)
    if left.measures != right.measures:
        return False
    if left.measures and not (left.nouns and right.nouns):
        return True
    return left.nouns[-1:] == right.nouns[-1:]


def _any_pound(unit: Unit) -> Unit:
    names = (("pound" if name in ("lb", "gbp") else name, power) for name, power in unit.measures)
    return Unit(tuple(sorted(names)), unit.nouns)
