r"""Normal forms of answers, in plain Python: these decide almost every comparison, exactly and fast.

An answer is LaTeX, a number, a few words, or a collection of these. This module evaluates only numbers of
bounded size, and no pattern backtracks over more than one repetition, so that the time is linear in the
length of the answer.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

# Longer or deeper answers are compared as text only.
MAX_ANSWER_LENGTH = 1000
MAX_BRACKET_DEPTH = 24
# Longer texts, larger exponents and longer bare lists are not read as numbers or lists.
MAX_NUMBER_LENGTH = 400
MAX_EXPONENT = 400
MAX_ELEMENTS = 100

# ---- spelling ------------------------------------------------------------------------------------

SUPERSCRIPTS = str.maketrans({sign: f"^{{{digit}}}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
SIGNS = str.maketrans({
    "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ",
    "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "°": "^\\circ ", "⁄": "/", "′": "'", "√": "\\sqrt", "θ": "\\theta ", "∅": "\\varnothing ", "⟨": "(", "⟩": ")",
})  # fmt: skip

# Spacing, sizes and styles have no meaning. Thin spaces between digits group thousands.
GROUPING = re.compile(r"(?<=\d)(?:,\s*\\!|\{,\}|\\,)\s*(?=\d)")
THIN_SPACE = re.compile(r"\\[,!]")
SPACING = re.compile(
    r"\\(?:[;:> ]|quad|qquad|displaystyle|textstyle|limits|(?:[Bb]igg?|left|right|middle)[lr]?(?![a-z])\.?)|~|&nbsp;"
)
# The name that stands for a command, or nothing for a command that has no meaning here.
COMMAND_NAMES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lbrace": "{", "rbrace": "}", "land": "wedge", "lor": "vee", "degree": "circ", "langle": "lparen",
    "rangle": "rparen", "lvert": "vert", "rvert": "vert", "dots": "ldots", "cdots": "ldots", "ast": "cdot",
    "mathbf": "", "boldsymbol": "", "bm": "", "vec": "", "mathcal": "", "mathbb": "", "textstyle": "",
    "rm": "", "bf": "", "it": "", "emptyset": "varnothing",
}  # fmt: skip
COMMAND = re.compile(r"\\([a-zA-Z]+)")
FRAC_OF_TOKENS = re.compile(r"\\frac\s*(\d|[a-zA-Z]|\{[^{}]*\})\s*(\d|[a-zA-Z]|\{[^{}]*\})")
SQRT_OF_TOKEN = re.compile(r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))")
# Variables such as `i` are not units, even if they are upright.
UPRIGHT_LETTER = re.compile(r"\\mathrm\s*\{\s*([eidxyznk])\s*\}")
QUANTITY_IN_TEXT = re.compile(r"^\\text\s*\{\s*(-?[\d.,]+[^{}]*)\}$")
TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mbox|textup)\s*\{([^{}]*)\}")

# Mathematics in plain ASCII, as programs write it.
PLAIN_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(sqrt|\^)\s*\(")
PLAIN_NAME = re.compile(r"(?<![\\a-zA-Z])(pi|infinity|inf|oo)(?![a-zA-Z])")
PLAIN_NAMES = {"pi": "\\pi ", "infinity": "\\infty ", "inf": "\\infty ", "oo": "\\infty "}
PERCENT_WORD = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?(?:percentage|percent|pct\.?)\s*\}?$", re.IGNORECASE)


def clean(answer: str) -> str:
    r"""Return the answer in one spelling: of signs, spacing, commands and fractions, without `$` around it.

    Single spaces stay, because they distinguish `3 1/2` from `31/2` and `32, 349` from `32,349`.
    """
    text = answer
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(SUPERSCRIPTS).translate(SIGNS)).translate(SIGNS)
    if "\n" in text or "\t" in text:
        text = " ".join(text.split())
    text = GROUPING.sub("", strip_delimiters(text.strip()))
    if "\\" in text:
        if "\\begin" not in text:
            text = re.sub(r"\\\\(?=[a-zA-Z!,;{}])", r"\\", text)  # escaped twice
        text = text.replace("\\\\", "\\cr ")  # two backslashes end a row of a matrix
        text = SPACING.sub(" ", THIN_SPACE.sub(" ", text))
        text = COMMAND.sub(lambda match: canonical_command(match[1]), text)
        text = FRAC_OF_TOKENS.sub(lambda match: f"\\frac{braced(match[1])}{braced(match[2])}", text)
        text = SQRT_OF_TOKEN.sub(r"\\sqrt{\1}", text)
        text = UPRIGHT_LETTER.sub(r" \1 ", QUANTITY_IN_TEXT.sub(r"\1", text))
    text = PERCENT_WORD.sub("%", from_plain(text))
    text = re.sub(r" {2,}", " ", text).strip()
    return text.rstrip(".").rstrip() if text.endswith(".") and not text.endswith("..") else text


def from_plain(text: str) -> str:
    """Return the text with plain ASCII mathematics, such as `2**(1/4)`, `sqrt(3)`, `x >= 5` and `pi`, as LaTeX."""
    text = text.replace("**", "^").replace(">=", "\\ge ").replace("<=", "\\le ").replace("!=", "\\ne ")
    text = PLAIN_NAME.sub(lambda match: PLAIN_NAMES[match[1]], text)
    start = 0
    while match := PLAIN_FUNCTION.search(text, start):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        function = "\\sqrt" if match[1] == "sqrt" else "^"
        text = f"{text[: match.start()]}{function}{{{text[match.end() : end - 1]}}}{text[end:]}"
        start = match.start() + len(function)
    return text


def canonical_command(command: str) -> str:
    """Return LaTeX for a command name, under one name for all commands of the same meaning."""
    name = COMMAND_NAMES.get(command, command)
    if name in ("lparen", "rparen"):
        return "(" if name == "lparen" else ")"
    return f"\\{name}" if name else " "


def braced(token: str) -> str:
    """Return the token in braces."""
    return token if token.startswith("{") else f"{{{token}}}"


def strip_delimiters(text: str) -> str:
    r"""Return the text without a pair of `$`, `\(` or `\[` that encloses all of it."""
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(opening) : -len(closing)]
        enclosed = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if enclosed and opening not in inside:
            return inside.strip()
    return text


# ---- units, names and approximations around a value ----------------------------------------------

# A unit is text, `\text{...}` or `\mathrm{...}`, or a quotient or product of such texts, or a word after a number.
TEXT_COMMAND = r"\\(?:text(?:rm|normal|bf)?|mathrm|mbox|operatorname)\s*\{[^{}]*\}"
POWER_OF_UNIT = r"\s*\^\s*\{?\s*-?\d\s*\}?"
UNIT_IN_TEXT = re.compile(
    rf"\s*(?:{TEXT_COMMAND}|\\frac\s*\{{\s*{TEXT_COMMAND}(?:{POWER_OF_UNIT})?\s*\}}\s*\{{\s*{TEXT_COMMAND}(?:{POWER_OF_UNIT})?\s*\}})"
    rf"(?:\s*(?:[/*]|\\cdot)?\s*{TEXT_COMMAND}|{POWER_OF_UNIT})*$"
)
UNIT_SYMBOLS = """
m cm mm km nm um s ms ns min h hr g kg mg N J kJ W kW V A C K Pa kPa Hz mol L l mL ml eV keV MeV GeV T G F H erg ergs
dyne cal kcal AU pc kpc ly yr rad deg sr in ft lb oz mi mph kmph kph dB bar atm M Da sec cc
""".split()  # noqa: SIM905
UNIT_WORDS = (
    r"(?:millimeter|centimeter|kilometer|meter|metre|inch(?:e)?|foot|feet|yard|mile|unit|degree|radian|dollar|cent|euro|"
    r"pound|rupee|second|sec|minute|min|hour|hr|day|week|month|year|gram|kilogram|liter|litre|gallon|people|person|"
    r"newton|joule|watt|volt|ampere|kelvin|pascal|hertz|mole)s?"
)
BARE_UNIT = rf"(?:square\s+|cubic\s+|sq\.?\s*)?(?:{UNIT_WORDS}|cm|mm|km|kg|mph|ft|m/s|km/h|usd)(?:{POWER_OF_UNIT})?"
UNIT_AFTER_NUMBER = re.compile(rf"\s*(?:{BARE_UNIT})(?:\s*(?:/|per)\s*(?:{BARE_UNIT}|[a-z]))?\.?$", re.IGNORECASE)
# Words after a number that change its meaning and so are not units.
NOT_UNITS = """
and or more less only if is not even odd squared cubed million billion trillion thousand hundred dozen percent am pm
a.m. p.m. increase decrease mod times root
""".split()  # noqa: SIM905
DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*[CF]?$")
CURRENCY = re.compile(r"^(-?)\s*(?:\\\$|\$|€|£|¥|\\text\s*\{\s*\$\s*\}|\\pounds)\s*(?=[-\d.])")

# The left side of an assignment `x = 5`: a variable, a segment or an area, a function, a word, or a tuple of these.
ONE_NAME = (
    r"(?:\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+|[A-Z]{1,4}|[a-zA-Z]|[a-zA-Z]{3,}|\|[A-Z]{2}\|)"
    r"(?:_(?:\{\w{1,4}\}|\w)|'{1,2}|\s*\([a-z]\))?"
)
NAME = re.compile(rf"(?:\\angle\s*)?{ONE_NAME}|\(?\s*{ONE_NAME}(?:\s*[,:]\s*{ONE_NAME}){{1,3}}\s*\)?")


def without_units(found: str, expected: str) -> tuple[str, str]:
    """Return both texts without a currency before and a unit after them; units are not compared.

    An unknown word after a value may have a meaning, so both texts stay whole where these words differ.
    """
    found, expected = CURRENCY.sub(r"\1", found), CURRENCY.sub(r"\1", expected)
    (value, unit, known), (expected_value, expected_unit, expected_known) = split_unit(found), split_unit(expected)
    if unit and expected_unit and not (known and expected_known) and to_words(unit) != to_words(expected_unit):
        return found, expected
    return value, expected_value


def split_unit(text: str) -> tuple[str, str, bool]:
    """Return the text before a unit, the unit (empty if there is none), and whether the unit is a known one."""
    if match := UNIT_IN_TEXT.search(text):
        value, unit = text[: match.start()].strip(), match[0].strip()
        words = re.findall(r"[A-Za-z.]+", re.sub(r"\\[a-zA-Z]+", " ", unit))
        known = all(word in UNIT_SYMBOLS or re.fullmatch(UNIT_WORDS, word.lower()) for word in words) and bool(words)
        noun = len(words) <= 2 and all(len(word) > 2 and word.lower() not in NOT_UNITS for word in words)
        if value and (known or (noun and words and to_number(value) is not None)):
            return value, unit, known
        return text, "", False
    if (match := DEGREES.search(text)) and to_number(text[: match.start()]) is not None:
        return text[: match.start()].strip(), match[0].strip(), True
    if (match := UNIT_AFTER_NUMBER.search(text)) and to_number(text[: match.start()].strip()) is not None:
        return text[: match.start()].strip(), match[0].strip(), True
    return text, "", False


def without_approximation(text: str) -> str:
    r"""Return the exact side of `\frac{1}{3} \approx 0.33`, or the value of `r \approx 0.33`, where `r` is a name."""
    exact, _, approximate = text.partition("\\approx")
    if not approximate:
        return text
    return approximate.strip() if NAME.fullmatch(exact.strip()) or not exact.strip() else exact.strip()


def without_membership(text: str) -> str:
    r"""Return the set of `x \in (1, 2)`."""
    before, _, after = text.partition("\\in ")
    if not after:
        before, _, after = text.partition("\\in\\{")
        after = f"\\{{{after}" if after else ""
    return after.strip() if after and NAME.fullmatch(before.strip()) else text


def name_and_value(text: str) -> tuple[str, str]:
    """Return name and value of `x = 5` or `x = 2 + 3 = 5`, or an empty name and the whole text.

    An equation such as `2x + z = 1` has no name. The first term of a calculation, `2 + 3 = 5`, serves as its name.
    """
    if "=" not in text or len(split_outside_brackets(text, "=")) < 2:
        return "", text
    name, *between, value = split_outside_brackets(text, "=")
    if NAME.fullmatch(name) and value:
        return name, value
    result = to_number(value)
    if result is None or not name or re.search(r"[a-zA-Z]", COMMAND.sub("", name)):
        return "", text
    terms = [to_number(part) for part in (name, *between)]
    return (name, value) if all(term is None or same_number(term, result) for term in terms) else ("", text)


# ---- numbers -------------------------------------------------------------------------------------

UNSIGNED = r"(?:\d+(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+"
DECIMAL_NUMBER = re.compile(rf"([+-]?)\s*({UNSIGNED})")
SCIENTIFIC = re.compile(
    r"([+-]?)\s*(?:(\d+\.?\d*|\.\d+)\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*(?:\^|\*\*))|10\s*(?:\^|\*\*))"
    r"\s*\{?\s*([+-]?\d+)\s*\}?"
)
POWER = re.compile(r"([+-]?)\s*(\d{1,6})\s*(?:\^|\*\*)\s*\{?\s*(-?\d{1,4})\s*\}?")
MIXED_NUMBER = re.compile(
    r"([+-]?)\s*(?:(\d+)\s*(?:\+\s*)?)?"
    r"(?:\\frac\s*\{\s*([+-]?[\d.]+)\s*\}\s*\{\s*([+-]?[\d.]+)\s*\}|(?<![\d.])([\d.]+)\s*/\s*([\d.]+))"
)
QUOTIENT = re.compile(r"([+-]?)\s*\(?\s*([+-]?[\d.]+)\s*\)?\s*/\s*\(?\s*([+-]?[\d.]+)\s*\)?")
DECIMAL = re.compile(r"\d*\.?\d+|\d+\.")
REPEATING_DECIMAL = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
SCALE = re.compile(rf"\s*(?:\\text\s*\{{\s*)?({'|'.join(SCALES)})\s*\}}?$", re.IGNORECASE)
IN_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")


Magnitude = tuple[Fraction, bool]  # the value without its sign, and whether it is exact


class Number(NamedTuple):
    """A number, and how it was written."""

    value: Fraction
    exact: bool  # an integer or a fraction; decimals are compared with a tolerance
    percent: bool


def to_number(text: str) -> Number | None:
    """Return a cleaned text as a number, or None.

    The text is in one of `NUMBER_FORMS`, perhaps in parentheses or before `%` or a word such as `million`.
    """
    if len(text) > MAX_NUMBER_LENGTH or not any(character.isdigit() for character in text):
        return None
    percent = text.endswith("%")
    if percent:
        text = text.rstrip("%").rstrip("\\ ").strip()
    while text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1].strip()
    if match := SCALE.search(text):
        number = to_number(text[: match.start()].strip())
        return number and number._replace(value=number.value * SCALES[match[1].lower()])
    for pattern, build in NUMBER_FORMS:
        if match := pattern.fullmatch(text):
            magnitude = build(match)
            if magnitude is None:
                return None
            value, exact = magnitude
            return Number(-value if match[1] == "-" else value, exact, percent)
    return None


def decimal(match: re.Match[str]) -> Magnitude:
    """Return the magnitude of `1,234.5`."""
    digits = match[2]
    return Fraction(re.sub("[, ]", "", digits)), "." not in digits


def repeating_decimal(match: re.Match[str]) -> Magnitude:
    r"""Return the magnitude of `0.1\overline{6}`, which is exact."""
    _, whole, digits, period = match.groups()
    repeated = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
    return Fraction(f"{whole or 0}.{digits or 0}") + repeated, True


def scientific(match: re.Match[str]) -> Magnitude | None:
    r"""Return the magnitude of `6.02 \times 10^{23}` or `10^{23}`, or None for a large exponent."""
    _, mantissa, exponent = match.groups()
    if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return Fraction(mantissa or 1) * Fraction(10) ** int(exponent), not mantissa or "." not in mantissa


def power(match: re.Match[str]) -> Magnitude | None:
    """Return the magnitude of `2^{10}`, or None for a large exponent or a division by zero."""
    base, exponent = int(match[2]), int(match[3])
    if abs(exponent) > MAX_EXPONENT or (base == 0 and exponent <= 0):
        return None
    return Fraction(base) ** exponent, True


def mixed_number(match: re.Match[str]) -> Magnitude | None:
    r"""Return the magnitude of `3 1/2` or `\frac{7}{2}`, or None for a division by zero."""
    _, whole, *parts = match.groups()
    numerator, denominator = (part for part in parts if part)
    fraction = divided(numerator, denominator)
    return fraction and (fraction[0] + int(whole or 0), fraction[1])


def quotient(match: re.Match[str]) -> Magnitude | None:
    """Return the magnitude of `(-7)/(2)`, or None for a division by zero."""
    return divided(match[2], match[3])


def divided(numerator: str, denominator: str) -> Magnitude | None:
    """Return the quotient of two decimals, or None for a division by zero or text such as `1.2.3`."""
    if not all(DECIMAL.fullmatch(part.lstrip("+-")) for part in (numerator, denominator)) or not Fraction(denominator):
        return None
    return Fraction(numerator) / Fraction(denominator), "." not in numerator + denominator


# The first pattern that matches the whole text decides. The first group of each is the sign.
NUMBER_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Magnitude | None]], ...] = (
    (DECIMAL_NUMBER, decimal),
    (REPEATING_DECIMAL, repeating_decimal),
    (SCIENTIFIC, scientific),
    (POWER, power),
    (MIXED_NUMBER, mixed_number),
    (QUOTIENT, quotient),
)


def same_number(found: Number, expected: Number) -> bool:
    """Whether two numbers are the same: exactly, or to a relative 1e-6 if one is a decimal.

    A percentage equals its face value and its hundredth, on either side.
    """
    if found.percent != expected.percent:
        hundredth = found._replace(value=found.value / 100) if found.percent else found
        expected_hundredth = expected._replace(value=expected.value / 100) if expected.percent else expected
        return nearly_equal(found, expected) or nearly_equal(hundredth, expected_hundredth)
    return nearly_equal(found, expected)


def nearly_equal(found: Number, expected: Number) -> bool:
    """Whether the values are equal, or equal to a relative 1e-6 if one is a decimal."""
    if found.exact and expected.exact:
        return found.value == expected.value
    return abs(found.value - expected.value) <= max(abs(found.value), abs(expected.value)) / 10**6


def in_base(text: str) -> tuple[str, str] | None:
    """Return digits and base of `2516_8`, or None for a number without a base."""
    match = IN_BASE.fullmatch(text)
    return (match[1].upper(), match[2]) if match and match[1][0].isdigit() else None


# ---- collections and intervals -------------------------------------------------------------------

MATRIX = re.compile(r"\\begin\s*\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}")
LIST_WORDS = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")

LESS = r"(<|\\le(?![a-z]))"
MORE = r"(>|\\ge(?![a-z]))"
BETWEEN = re.compile(rf"([^<>]+?)\s*{LESS}\s*[a-zA-Z]\s*{LESS}\s*([^<>]+)")
BETWEEN_FALLING = re.compile(rf"([^<>]+?)\s*{MORE}\s*[a-zA-Z]\s*{MORE}\s*([^<>]+)")
BELOW = re.compile(rf"[a-zA-Z]\s*{LESS}\s*([^<>]+)|([^<>]+?)\s*{MORE}\s*[a-zA-Z]")
ABOVE = re.compile(rf"[a-zA-Z]\s*{MORE}\s*([^<>]+)|([^<>]+?)\s*{LESS}\s*[a-zA-Z]")


class Collection(NamedTuple):
    r"""Elements in brackets, in a matrix (where the element `\cr` ends each row) or in a bare list."""

    kind: str  # `()`, `[)`, ..., `{}`, `matrix`, `union`, `and`, `or`, or empty: a bare list
    elements: list[str]

    @property
    def ordered(self) -> bool:
        """Whether the order of the elements matters."""
        return self.kind not in ("", "{}", "union", "and", "or")


def to_collection(text: str) -> Collection | None:
    """Return the elements of a cleaned list, tuple, interval, set, matrix or union; None for a single value."""
    if len(text) > MAX_ANSWER_LENGTH:
        return None
    if match := MATRIX.fullmatch(text):
        rows = [row for row in match[2].split("\\cr") if row.strip()]
        elements = [cell.strip() for row in rows for cell in (*row.split("&"), "\\cr")]
        return Collection("matrix", elements)
    if text.startswith("\\{") and text.endswith("\\}"):
        if ":" in text or "\\mid" in text or "|" in text:
            return None  # a set that is defined by a property
        return Collection("{}", split_outside_brackets(text[2:-2]))
    if text.startswith("{") and text.endswith("}") and len(split_outside_brackets(text[1:-1])) > 1:
        return Collection("{}", split_outside_brackets(text[1:-1]))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and is_enclosed(text):
        parts = split_outside_brackets(text[1:-1])
        return Collection(text[0] + text[-1], parts) if len(parts) > 1 else None
    if "\\cup" in text:
        return Collection("union", [part.strip() for part in text.split("\\cup")])
    if "\\pm" in text and text.count("\\pm") == 1:
        return Collection("", [text.replace("\\pm", "+").removeprefix("+").strip(), text.replace("\\pm", "-").strip()])
    parts = split_outside_brackets(LIST_WORDS.sub(", ", text))
    if len(parts) > 1 and re.search(r"[<>]|\\[lg]e(?![a-z])", text) and (word := LIST_WORDS.search(text)):
        return Collection("or" if "or" in word[0] else "and", parts)
    return Collection("", parts) if len(parts) > 1 and len(parts) <= MAX_ELEMENTS and all(parts) else None


def to_interval(text: str) -> str | None:
    """Return an inequality in one variable, or several joined by `or`, as an interval or a union of them."""
    parts = [part for part in re.split(r"\\text\s*\{\s*or\s*\}|\bor\b", text) if part.strip()]
    if len(parts) > 1:
        intervals = [to_interval(part) for part in parts]
        return "\\cup ".join(part for part in intervals if part) if all(intervals) else None
    text = text.strip().rstrip(",").strip()
    if match := BETWEEN.fullmatch(text):
        low, closed_low, closed_high, high = match.groups()
    elif match := BETWEEN_FALLING.fullmatch(text):
        high, closed_high, closed_low, low = match.groups()
    elif match := BELOW.fullmatch(text):
        low, closed_low, closed_high, high = "-\\infty", "<", match[1] or match[4], match[2] or match[3]
    elif match := ABOVE.fullmatch(text):
        low, closed_low, closed_high, high = match[2] or match[3], match[1] or match[4], "<", "\\infty"
    else:
        return None
    if any(sign in low + high for sign in ("\\le", "\\ge", "=")):
        return None
    return f"{'(' if closed_low in '<>' else '['}{low.strip()}, {high.strip()}{')' if closed_high in '<>' else ']'}"


def split_outside_brackets(text: str, separators: str = ",;") -> list[str]:
    """Return the parts of a text between the separators that are outside all brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth == 0 and not text[:index].endswith("\\"):
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return parts


def is_enclosed(text: str) -> bool:
    """Whether the last bracket of the text closes the first one; the two of an interval may differ in kind."""
    depth = 0
    for index, character in enumerate(text):
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
            if depth == 0:
                return index == len(text) - 1
    return False


def bracket_depth(text: str) -> int:
    """Return the largest number of brackets that are open at once."""
    depth = deepest = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


# ---- words ---------------------------------------------------------------------------------------


def to_words(text: str) -> str:
    r"""Return the text without spaces and `\text`, in lower case if it is a word of three letters or more."""
    text = TEXT.sub(r"\1", text)
    text = re.sub(r"\s|\\(?=[$%])", "", re.sub(r"([_^])\s*\{(\w)\}", r"\1\2", text))
    return text.lower() if re.fullmatch(r"[A-Za-z'.-]{3,}", text) else text


def to_choice(text: str) -> str | None:
    r"""Return the letter of a choice from A to J, written `(C)`, `C.` or `\text{C}`; None for anything else."""
    match = re.fullmatch(r"\(?([A-J])\)?[.:]?", TEXT.sub(r"\1", text).replace(" ", ""))
    return match[1] if match else None
