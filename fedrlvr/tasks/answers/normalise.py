r"""The markup round an answer, taken off in one place: Unicode spellings, fonts, colours, sizes, spacing, delimiters.

The result is LaTeX in one spelling. Words that stood in `\text{}` or in an upright font keep a mark before each of
them (`WORD`), since `5\text{ m}` is a length and `5m` a product; `CURRENCY` stands for a dollar sign that is money
and not LaTeX's delimiter; `ROW` separates the rows of a matrix. `listed`, `related` and `split_at` cut a normalised
text at the separators and relations that stand within no bracket.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

WORD = "\ue000"
CURRENCY = "\ue001"
ROW = "\ue002"

_INVISIBLE = re.compile("[\u00ad\u180e\u20e3\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufe00-\ufe0f\ue000-\ue0ff]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎]+")
# A command of LaTeX, or plain text, and the characters that mean it.
_WRITTEN = r"""
\cdot ·⋅∙•  \times ×✕  \div ÷  \le ≤≦⩽  \ge ≥≧⩾  \ne ≠  \approx ≈  \equiv ≡  \sim ∼  \in ∈  \notin ∉  \cup ∪  \cap ∩
\emptyset ∅⌀Ø  \pm ±  \mp ∓  \to →  \Rightarrow ⇒  \iff ⇔  \infty ∞  \angle ∠  \triangle △  \therefore ∴  \circ ∘
\langle ⟨〈  \rangle ⟩〉  \lfloor ⌊  \rfloor ⌋  \lceil ⌈  \rceil ⌉  \ldots …  \mathbb{R} ℝ  \mathbb{N} ℕ  \mathbb{Z} ℤ
\mathbb{Q} ℚ  \mathbb{C} ℂ  - −–—‐‑‒―﹣－  / ⁄∕  " “”„″  ' ‘’′  * ∗  ° º˚  , ，、  . 。
"""
_SYMBOLS = {
    letter: meaning + " " * meaning.startswith("\\")
    for meaning, letters in zip(_WRITTEN.split()[::2], _WRITTEN.split()[1::2], strict=True)
    for letter in letters
}
_SMALL_GREEK = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho
final_sigma sigma tau upsilon phi chi psi omega"""
_CAPITAL_GREEK = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
_GREEK = {chr(0x3B1 + place): f"\\{name} " for place, name in enumerate(_SMALL_GREEK.split()) if "_" not in name}
_GREEK |= {letter: f"\\{name} " for letter, name in zip("ΓΔΘΛΞΠΣΦΨΩ", _CAPITAL_GREEK.split(), strict=True)}
_TAG = re.compile(
    r"</?(?:b|i|u|p|em|strong|span|code|mark|font|div|center|tt|br)(?:\s+[a-z-]+\s*=[^<>]{0,80})?\s*/?>", re.IGNORECASE
)
# A group with groups in it, to a depth that answers have.
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"

_MATRIX_ROW = re.compile(r"\\\\(?:\[[^\]]{0,12}\])?")
_SPACES = re.compile(
    r"\\(?:quad|qquad|enspace|thinspace|medspace|thickspace|nobreakspace|space|hfill|newline|null)(?![a-zA-Z])"
    r"|\\[hv]space\*?\{[^{}]*\}|\\[,;: ]|~"
)
_IGNORED = re.compile(
    rf"\\(?:color(?:\[[a-zA-Z]*\])?|label|tag|vphantom|hphantom|phantom)\s*{_GROUP}|\\phantom\s*[-+]"
    r"|\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|tiny|small|normalsize|large|Large|LARGE|huge|Huge"
    r"|rm|bf|it|sf|tt|bfseries|itshape|centering|therefore|mathstrut|strut|checkmark|blacksquare|square|qed)(?![a-zA-Z])"
    r"|\\[()\[\]]|\\-"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox|style|class|cssId)(?:\[[a-zA-Z]*\])?\s*\{[^{}]*\}")
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|align|equation|gathered|split|center|math)\*?\}|(?<!\\)&(?==)")
_OLD_FONT = re.compile(r"(?<![a-zA-Z\\])\{\s*\\(rm|bf|it|sf|tt)(?![a-zA-Z])")  # {\rm cm}
_TICKS = str.maketrans("", "", "✓✔✅☑")
_FRACTIONS = re.compile(r"\\(?:dfrac|tfrac|cfrac|sfrac|nicefrac|xfrac)(?![a-zA-Z])")
_OVER = re.compile(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}")
_WHOLE_OVER = re.compile(r"^[\s$]*([^{}$=<>,;]*)\\over(?![a-zA-Z])([^{}$=<>,;]*)[\s$]*$")
_CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}")
_RATE = re.compile(
    rf"\\frac\s*\{{\s*({WORD}[^{{}}]*)\}}\s*\{{\s*({WORD}[^{{}}]*)\}}"
    r"|(?<=[0-9])\s*\\frac\s*\{\s*([a-zA-Z]{1,3})\s*\}\s*\{\s*([a-zA-Z]{1,3})\s*\}$"  # 10\frac{m}{s}
)
_ORDINAL = re.compile(rf"(?<=[0-9])\s*\^\s*\{{?\s*{WORD}?(st|nd|rd|th)\s*\}}?(?![a-zA-Z])")
_DEGREE = re.compile(
    r"(?<=[0-9])\s*\^\s*(?:o(?![a-zA-Z])|\{\s*o\s*\})|"
    r"\^\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?|\\(?:degree|degrees|textdegree)(?![a-zA-Z])|\^\s*°|\{\s*°\s*\}"
)
# The one spelling of a command, and its others; "" is left out.
_SPELLINGS = r"""
le: leq leqslant leqq | ge: geq geqslant geqq | ne: neq | <: lt | >: gt | emptyset: varnothing empty | cup: bigcup
infty: infin | {: lbrace | }: rbrace | [: lbrack | ]: rbrack | (: lparen | ): rparen | |: lvert rvert vert mid | *: ast
to: rightarrow longrightarrow | Rightarrow: implies Longrightarrow | mathbb{R}: Reals reals R | epsilon: varepsilon
phi: varphi | theta: vartheta | ': prime | ^: textsuperscript | ldots: dots cdots | :: colon | : bigl
"""
_RENAMED: dict[str, str] = {
    name: spelling
    for spelling, names in re.findall(r"(\S*): ([a-zA-Z ]+?) ?(?:\||$)", _SPELLINGS, re.MULTILINE)
    for name in names.split()
}
_COMMAND = re.compile(r"\\([a-zA-Z]+)(?![a-zA-Z])")
_TEXT = re.compile(
    r"\\(?:text|textnormal|textbf|textrm|textit|textsf|texttt|textsl|textup|textmd|emph|mbox|hbox|mathrm|operatorname"
    r"|mathop|mathsf|unit|si|rm)\s*\*?\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_FONT = re.compile(
    r"\\(?:mathbf|mathit|mathtt|mathcal|mathfrak|mathnormal|boldsymbol|bm|pmb|mathord|mathbin|mathrel|underline|uline"
    r"|ensuremath|boldmath|num|hl)(?![a-zA-Z])\s*|\\(?:mathrm|mathsf)\s*(?=[0-9])"
)
# Braces round one number, letter or fraction, or round words, that belong to no command, power or index.
_LOOSE_GROUP = re.compile(
    rf"\\[a-zA-Z]+(?:\s*\[[^\[\]]*\])?(?:\s*[0-9](?=\s*\{{))?(?:\s*\{{[^{{}}]*\}})+|[\^_]\s*\{{[^{{}}]*\}}|\\[{{}}]"
    rf"|(?<![}}\]])(?<![}}\]]\s)(?:(?<![0-9])\{{\s*(?P<number>[0-9.,]+)\s*\}}"
    rf"|\{{(?P<rest>\s*(?:{WORD}[^{{}}]*|[a-zA-Z]|\\[a-zA-Z]+|\\frac\s*(?:\{{[^{{}}]*\}}|[0-9]){{2}})\s*)\}})"
)
_ABBREVIATED = re.compile(r"(?<![^\W\d_])([ap])\.\s?(m)\.", re.IGNORECASE)  # a.m.
_UPRIGHT_SYMBOLS = {"e", "i"}
_THE = rf"(?:{WORD}?(?:the|my|our)\s+)?(?:{WORD}?(?:final|correct|right|exact|required|desired|numerical)\s+)*"
_ANSWER = rf"{WORD}?(?:answer|ans|result|solution|value|total)\b(?:\s+{WORD}?of\s+\\?[a-zA-Z]{{1,8}})?"
_IS = rf"(?:{WORD}?(?:is|equals|would\s+{WORD}?be)\b\s*[:=]?|[:=])"
_LEAD = re.compile(
    rf"(?:{WORD}?(?:so|thus|therefore|hence)\b\s*[,:]?\s*)?"
    rf"(?:{_THE}{_ANSWER}\s*{_IS}\s*|{WORD}?(?:it|this|that|which)\s+{WORD}?(?:is|equals)\b\s*[:=]?\s*|=(?!=)\s*)?",
    re.IGNORECASE,
)
_NAME_IS = re.compile(rf"^([a-zA-Z])\s+{WORD}?is\s+(?=[-\d\\])")  # x is 5
_EMPHASIS = re.compile(r"\*\*([^*]*[^*\d\s])\*\*")  # **Answer:** 7
_EDGES = ("**", "__", "`", '"', "'", "*")
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in"}
OTHER_RELATIONS = {
    r"\approx", r"\sim", r"\simeq", r"\cong", r"\equiv", r"\to", r"\Rightarrow", r"\iff", r"\notin", r"\subset",
    r"\subseteq", r"\propto", r"\not", r"\nless", r"\ngtr", r"\nleq", r"\ngeq", r"\ll", r"\gg", r"\mapsto", r"\doteq",
    r"\perp", r"\parallel", r"\neg", r"\lnot", r"\lor", r"\land", r"\vee", r"\wedge", r"\cancel", r"\prec", r"\succ",
}  # fmt: skip
_TOKEN = re.compile(rf"\\[a-zA-Z]+|\\.|{WORD}[^\W\d_]+|[a-zA-Z]+|.", re.DOTALL)
_OPENING = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"}
_CLOSING = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"}
_GROUPED = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")


def normalise(text: str, *, lead: bool = True) -> str:
    r"""The answer's text without markup, in one spelling of LaTeX; see the module.

    lead: words such as "The answer is" in front go too.
    """
    text = _unicode(html.unescape(text) if "&" in text else text)
    text = re.sub("~~(.+?)~~", r"\\cancel{\1}", _TAG.sub(" ", text))  # Markdown's strike-through
    text = _latex(_EMPHASIS.sub(r"\1", text))
    text = _money(text)
    return _bare(_words(text), lead)


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text).translate(_TICKS))
    text = re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀₁₂₃₄₅₆₇₈₉]+)", _small_fraction, text)
    text = _RAISED.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[^\W\d_])", r"\\sqrt{\1}", text).replace("√", r"\sqrt ")
    text = re.sub(r"∛\s*(\d+|[^\W\d_])", r"\\sqrt[3]{\1}", text).replace("∛", r"\sqrt[3]")
    return "".join(_character(c) for c in "".join(_SYMBOLS.get(c, c) for c in text))


def _small_fraction(match: re.Match[str]) -> str:
    return rf"\frac{{{match[1].translate(_SUPERSCRIPTS)}}}{{{match[2].translate(_SUBSCRIPTS)}}}"


def _character(c: str) -> str:
    if c.isascii():
        return c
    if c in _GREEK:
        return _GREEK[c]
    if unicodedata.category(c) == "Nd":
        return str(unicodedata.decimal(c))
    plain = unicodedata.normalize("NFKC", c)
    if "⁄" in plain:  # a fraction in one character
        top, _, bottom = plain.partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}" if top and bottom else c
    return "".join(_GREEK.get(p, _SYMBOLS.get(p, p)) for p in plain)


def _latex(text: str) -> str:
    if "\\begin" in text:
        text = _ALIGNED.sub(" ", text)
    if "\\begin" in text:
        text = _MATRIX_ROW.sub(ROW, text)
    else:  # a backslash too many before a command is a JSON string's, at the end a line break
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text).replace("\\\\", " ")
    if "\\" in text or "~" in text:
        text = text.replace(r"\$", CURRENCY).replace(r"\pounds", "£").replace(r"\euro", "€")
        text = re.sub(r"\\!\s*", "", text)
        text = _OLD_FONT.sub(r"\\math\1{", _SPACES.sub(" ", text))
        text = _COLOURED.sub("", _IGNORED.sub("", text))
        text = _FRACTIONS.sub(r"\\frac", text)
        text = re.sub(r"\\not\s*=|\\not\s*\\eq(?![a-zA-Z])", r"\\ne ", text)
        text = re.sub(r"(?<=[0-9)])\{\s*\}(?=\s*\^)", "", text)  # 90{}^\circ
        text = re.sub(r"\\mathbb\s*([A-Z])(?![a-zA-Z])", r"\\mathbb{\1}", text)
        text = _DEGREE.sub("°", text)
        text = _WHOLE_OVER.sub(r"\\frac{\1}{\2}", _OVER.sub(r"\\frac{\1}{\2}", text))
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
        text = re.sub(r"\{\s*(\\(?:Large|large|huge|bf|rm|it)\b)?", "{", text)
        text = _COMMAND.sub(lambda m: _renamed(m[1]), text)
        text = text.replace(r"\%", "%").replace(r"\&", "&").replace(r"\#", "#").replace(r"\_", "_")
    else:
        text = _DEGREE.sub("°", text)
    text = re.sub(r"(?<![a-zA-Z])\{\s*([-+,:;.])\s*\}", r"\1", text)
    text = text.replace(">=", r"\ge ").replace("<=", r"\le ").replace("=/=", r"\ne ").replace("!=", r"\ne ")
    text = re.sub(r"(?<=[,+])\s*\.\.\.\s*(?=[,+])", r"\\ldots ", text)
    text = re.sub(r"(?<![\\a-zA-Z])frac(?=[{\d])", r"\\frac", text)
    return text.replace("**", "^") if re.search(r"[\w)}]\*\*[-({\w]", text) else text


def _renamed(name: str) -> str:
    new = _RENAMED.get(name, name)
    if new in ("{", "}"):
        return "\\" + new
    return new if new == "" or not new[0].isalpha() else "\\" + new


def _money(text: str) -> str:
    """Dollar signs that are LaTeX's delimiters go; a lone one beside a number is money."""
    count = text.count("$")
    if count == 1 and re.search(r"(?:^|[^\d])\s*\$\s*[-+]?\s*[.\d]|\d\s*\$\s*$", text):
        return text.replace("$", CURRENCY)
    return text.replace("$", " ") if count else text


def _words(text: str) -> str:
    r"""`\text{}` and fonts opened, innermost first; words of an upright font keep their mark."""
    for _ in range(6):
        text, fonts = _FONT.subn("", text)
        text, texts = _TEXT.subn(_opened, text)
        if not fonts + texts:
            break
    text = _ABBREVIATED.sub(lambda m: m[1] + m[2], text)
    text = _ORDINAL.sub(rf"{WORD}\1", _RATE.sub(lambda m: f"{m[1]}/{m[2]}" if m[1] else f" {m[3]}/{m[4]}", text))
    text = re.sub(r"(?<=[0-9])\s*\\Omega\s*$", f" {WORD}ohm", text)
    text = _LOOSE_GROUP.sub(lambda m: m["number"] or m["rest"] or m[0], text) if "{" in text else text
    return re.sub(r"[ \t\r\n\f\v]+", " ", text)


def _opened(match: re.Match[str]) -> str:
    content = match[1].replace("\\", " \\")
    if content.strip() in _UPRIGHT_SYMBOLS:
        return content
    content = _ABBREVIATED.sub(lambda m: m[1] + m[2], content)
    marked = re.sub(rf"(?<![\\{WORD}])(?<![^\W\d_])(?=[^\W\d_])", WORD, content)
    # Two neighbouring texts are two words; a superscript belongs to the word before it.
    return f" {marked.strip()} " if content != content.strip() else marked


def _bare(text: str, lead: bool) -> str:
    """Without quotes, emphasis, punctuation at the end, and (lead) words such as "The answer is"."""
    text = text.strip()
    for _ in range(8):
        before = text
        for edge in _EDGES:
            if len(text) > 2 * len(edge) and text.startswith(edge) and text.endswith(edge):
                text = text[len(edge) : -len(edge)].strip()
        text = text.rstrip(" \\").rstrip()
        if text[-1:] in ".,;:" and not text.endswith(r"\:"):
            text = text[:-1].rstrip()
        if text.startswith("{") and (group := enclosed(text)) is not None and group[2] == "}":
            text = group[1]
        if lead and (match := _LEAD.match(text)):
            text = text[match.end() :].strip() or text
        text = _NAME_IS.sub(r"\1 = ", text) if lead else text
        if text == before:
            break
    return text


def tokens(text: str) -> Iterator[tuple[str, int, int, int]]:
    """Each token with its span and the depth of brackets round it; a bracket has the depth outside it."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _CLOSING:
            depth -= 1
        yield token, match.start(), match.end(), depth
        if token in _OPENING:
            depth += 1


def balanced(text: str) -> bool:
    """Whether as many brackets open as close, of whatever shape, and none closes before one opens."""
    depth = 0
    for token, _, _, depth in tokens(text):
        if depth < 0:
            return False
        depth += token in _OPENING
    return depth == 0


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) if one pair of brackets encloses the whole text."""
    parts = list(tokens(text))
    if len(parts) < 2 or parts[0][0] not in _OPENING or parts[-1][0] not in _CLOSING:
        return None
    if any(depth <= 0 for _, _, _, depth in parts[1:-1]) or parts[-1][3] != 0:
        return None
    return parts[0][0], text[parts[0][2] : parts[-1][1]].strip(), parts[-1][0]


def listed(text: str, *, grouped: bool = True) -> list[str]:
    """Parts between top-level commas, semicolons, "and" and "or"; grouped: a comma may group a number's digits."""
    skip = [match.span() for match in _GROUPED.finditer(text)] if grouped else []
    cuts = []
    for token, start, end, depth in tokens(text):
        if depth:
            continue
        if token in (",", ";") and any(low < start < high for low, high in skip):
            continue
        if token in (",", ";") or token.removeprefix(WORD).casefold() in ("and", "or"):
            cuts.append((start, end))
    parts = cut(text, cuts)
    if not cuts or not parts[0] or not parts[-1]:  # `1, 2 or`
        return [text]
    return [part for part in parts if part]


def related(text: str) -> tuple[list[str], list[str]] | None:
    """(sides, relations) of a text with relations at the top level; None where one is not among `RELATIONS`."""
    cuts, operators = [], []
    for token, start, end, depth in tokens(text):
        if depth == 0 and token in OTHER_RELATIONS:
            return None
        if depth == 0 and token in RELATIONS:
            cuts.append((start, end))
            operators.append(token)
    return cut(text, cuts), operators


def split_at(text: str, separator: str) -> list[str]:
    """Parts between a separator's top-level occurrences."""
    return cut(text, [(start, end) for token, start, end, depth in tokens(text) if depth == 0 and token == separator])


def cut(text: str, cuts: list[tuple[int, int]]) -> list[str]:
    """Parts of the text between the spans, stripped."""
    edges = [(0, 0), *cuts, (len(text), len(text))]
    return [text[left[1] : right[0]].strip() for left, right in pairwise(edges)]
