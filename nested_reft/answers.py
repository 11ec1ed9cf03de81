r"""Normal forms of answers in plain Python: they decide almost every comparison, exactly and at once.

An answer is LaTeX, a number, a few words, or several of these. Nothing here evaluates anything but
numbers of bounded size, and no pattern backtracks over more than one repetition, so that the time is
linear in the length of the answer.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

# Longer answers are compared as text only.
LONGEST_ANSWER = 1000
LONGEST_NUMBER = 400
LARGEST_EXPONENT = 400
MOST_ELEMENTS = 100
DEEPEST = 24

SUPERSCRIPTS = str.maketrans({sign: f"^{{{digit}}}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
SIGNS = str.maketrans({
    "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ",
    "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "°": "^\\circ ", "⁄": "/", "′": "'", "√": "\\sqrt", "θ": "\\theta ", "⟨": "(", "⟩": ")",
})  # fmt: skip

# Spacing, sizes and styles carry no meaning, and thin ones between digits group thousands.
GROUPING = re.compile(r"(?<=\d)(?:,\s*\\!|\{,\}|\\,)\s*(?=\d)")
THIN_SPACE = re.compile(r"\\[,!]")
SPACING = re.compile(
    r"\\(?:[;:> ]|quad|qquad|displaystyle|textstyle|limits|(?:[Bb]igg?|left|right|middle)[lr]?(?![a-z])\.?)|~|&nbsp;"
)
SAME_COMMAND = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lbrace": "{", "rbrace": "}", "land": "wedge", "lor": "vee", "degree": "circ", "langle": "lparen",
    "rangle": "rparen", "lvert": "vert", "rvert": "vert", "dots": "ldots", "cdots": "ldots", "ast": "cdot",
    "mathbf": "", "boldsymbol": "", "bm": "", "vec": "", "mathcal": "", "mathbb": "", "textstyle": "",
    "rm": "", "bf": "", "it": "",
}  # fmt: skip
COMMAND = re.compile(r"\\([a-zA-Z]+)")
FRAC_OF_TOKENS = re.compile(r"\\frac\s*(\d|[a-zA-Z]|\{[^{}]*\})\s*(\d|[a-zA-Z]|\{[^{}]*\})")
SQRT_OF_TOKEN = re.compile(r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))")
TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mbox|textup)\s*\{([^{}]*)\}")

UNIT_WORDS = (
    r"(?:square|cubic|sq\.?|cu\.?)?\s*(?:millimeters?|centimeters?|kilometers?|meters?|metres?|inch(?:es)?|feet|foot|ft|"
    r"yards?|miles?|mi|cm|mm|km|nm|units?|degrees?|deg|radians?|rad|dollars?|cents?|euros?|pounds?|rupees?|rs\.?|usd|"
    r"seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|mph|kmph|kph|percent|grams?|kg|mg|kilograms?|"
    r"liters?|litres?|ml|gallons?|people|persons?|students?|ways?|points?|times|apples?|books?)"
)
UNIT_AFTER_NUMBER = re.compile(rf"(?<=[\d}})\s])\s*{UNIT_WORDS}(?:\s*\^\s*\{{?[23]\}}?)?\.?$", re.IGNORECASE)
UNIT_IN_TEXT = re.compile(
    r"(?<=.)\s*\\(?:text(?:rm|normal|bf)?|mathrm|mbox|operatorname)\s*\{[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?$"
)
DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*[CF]?$")
CURRENCY = re.compile(r"^(-?)\s*(?:\\\$|\$|€|£|¥|\\text\s*\{\s*\$\s*\}|\\pounds)\s*")

UNSIGNED = r"(?:\d+(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+"
PLAIN = re.compile(rf"([+-]?)\s*({UNSIGNED})")
SCIENTIFIC = re.compile(
    r"([+-]?)\s*(?:(\d+\.?\d*|\.\d+)\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*(?:\^|\*\*))|10\s*(?:\^|\*\*))"
    r"\s*\{?\s*([+-]?\d+)\s*\}?"
)
POWER = re.compile(r"([+-]?)\s*(\d{1,6})\s*(?:\^|\*\*)\s*\{?\s*(-?\d{1,4})\s*\}?")
FRACTION = re.compile(
    r"([+-]?)\s*(?:(\d+)\s*(?:\+\s*)?)?"
    r"(?:\\frac\s*\{\s*([+-]?[\d.]+)\s*\}\s*\{\s*([+-]?[\d.]+)\s*\}|(?<![\d.])([\d.]+)\s*/\s*([\d.]+))"
)
QUOTIENT = re.compile(r"([+-]?)\s*\(?\s*([+-]?[\d.]+)\s*\)?\s*/\s*\(?\s*([+-]?[\d.]+)\s*\)?")
DECIMAL = re.compile(r"\d*\.?\d+|\d+\.")

# What is assigned to in `x = 5`: a variable, a segment or an area, a function, a word, or several of these.
ONE_NAME = (
    r"(?:\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+|[A-Z]{1,4}|[a-zA-Z]|[a-zA-Z]{3,}|\|[A-Z]{2}\|)"
    r"(?:_(?:\{\w{1,4}\}|\w)|'{1,2}|\s*\([a-z]\))?"
)
NAME = re.compile(rf"(?:\\angle\s*)?{ONE_NAME}|\(?\s*{ONE_NAME}(?:\s*[,:]\s*{ONE_NAME}){{1,3}}\s*\)?")


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction
    exact: bool  # not a decimal
    percent: bool


class Several(NamedTuple):
    """Elements in brackets, in a matrix (its rows separated by rows of their own) or in a bare list."""

    kind: str  # `()`, `[)`, ..., `{}`, `matrix`, `union`, or empty for a bare list
    elements: list[str]

    @property
    def ordered(self) -> bool:
        """Whether the order of the elements matters."""
        return self.kind not in ("", "{}", "union")


def clean(answer: str) -> str:
    r"""Return the answer with one spelling for what has many: signs, spacing, fractions, `$` around it.

    White space survives as single spaces, since it tells `3 1/2` from `31/2` and `32, 349` from `32,349`.
    """
    text = answer
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(SUPERSCRIPTS).translate(SIGNS)).translate(SIGNS)
    text = " ".join(text.split(" ")) if "\n" not in text and "\t" not in text else " ".join(text.split())
    text = GROUPING.sub("", strip_delimiters(text.strip()))
    if "\\" in text:
        if "\\begin" not in text:
            text = re.sub(r"\\\\(?=[a-zA-Z!,;{}])", r"\\", text)  # escaped twice
        text = text.replace("\\\\", "\\cr ")  # a row of a matrix ends; two backslashes are no command
        text = SPACING.sub(" ", THIN_SPACE.sub(" ", text))
        text = COMMAND.sub(lambda match: renamed(match[1]), text)
        text = FRAC_OF_TOKENS.sub(lambda match: f"\\frac{braced(match[1])}{braced(match[2])}", text)
        text = SQRT_OF_TOKEN.sub(r"\\sqrt{\1}", text)
    text = PERCENT_WORD.sub("%", from_plain(text))
    text = re.sub(r" {2,}", " ", text).strip()
    return text.rstrip(".").rstrip() if text.endswith(".") and not text.endswith("..") else text


PLAIN_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(sqrt|\^)\s*\(")
PLAIN_NAME = re.compile(r"(?<![\\a-zA-Z])(pi|infinity|inf|oo)(?![a-zA-Z])")
PLAIN_NAMES = {"pi": "\\pi ", "infinity": "\\infty ", "inf": "\\infty ", "oo": "\\infty "}
PERCENT_WORD = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?(?:percentage|percent|pct\.?)\s*\}?$", re.IGNORECASE)


def from_plain(text: str) -> str:
    """Return the text with plain ASCII mathematics as LaTeX: `2**(1/4)`, `sqrt(3)`, `x >= 5`, `pi`."""
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


def renamed(command: str) -> str:
    """Return the command under the name that it shares with others of its meaning."""
    name = SAME_COMMAND.get(command, command)
    if name in ("lparen", "rparen"):
        return "(" if name == "lparen" else ")"
    return f"\\{name}" if name else " "


def braced(token: str) -> str:
    """Return the token in braces."""
    return token if token.startswith("{") else f"{{{token}}}"


def strip_delimiters(text: str) -> str:
    r"""Return the text without the `$`, `\(` or `\[` around all of it."""
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(opening) : -len(closing)]
        enclosed = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if enclosed and opening not in inside:
            return inside.strip()
    return text


def without_unit(text: str) -> str:
    """Return the text without a currency before it or a unit after it; units are not compared."""
    text = CURRENCY.sub(r"\1", text)
    for pattern in (UNIT_IN_TEXT, UNIT_AFTER_NUMBER, DEGREES):
        shorter = pattern.sub("", text).strip()
        if shorter and re.search(r"[\d\\}]", shorter):
            text = shorter
    return text


def without_approximation(text: str) -> str:
    r"""Return the exact value of `\frac{1}{3} \approx 0.33`; a mere name is none, `r \approx 0.33` is `0.33`."""
    exact, _, approximate = text.partition("\\approx")
    if not approximate:
        return text
    return approximate.strip() if NAME.fullmatch(exact.strip()) or not exact.strip() else exact.strip()


def name_and_value(text: str) -> tuple[str, str]:
    r"""Return name and value of `x = 5`, `x \in (1, 2)` and `x = 2 + 3 = 5`; no name if there is none.

    An equation is no assignment: `2x + z = 1` has no name. A calculation, `2 + 3 = 5`, has itself for one.
    """
    before, _, after = text.partition("\\in ")
    if after and NAME.fullmatch(before.strip()):
        return before.strip(), after.strip()
    if "=" not in text or len(split(text, "=")) < 2:
        return "", text
    name, *between, value = split(text, "=")
    if NAME.fullmatch(name) and value:
        return name, value
    calculated = name and not re.search(r"[a-zA-Z]", COMMAND.sub("", name)) and to_number(value) is not None
    return (name, value) if calculated and all(between) else ("", text)


def to_number(text: str) -> Number | None:
    """Return a cleaned text as a number: integer, decimal, fraction, mixed number, power, scientific or percentage."""
    if len(text) > LONGEST_NUMBER or not any(character.isdigit() for character in text):
        return None
    percent = text.endswith("%")
    if percent:
        text = text.rstrip("%").rstrip("\\ ").strip()
    while text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1].strip()
    if match := PLAIN.fullmatch(text):
        sign, digits = match.groups()
        value = Fraction(re.sub("[, ]", "", digits))
        return Number(-value if sign == "-" else value, "." not in digits, percent)
    if match := SCIENTIFIC.fullmatch(text):
        sign, mantissa, exponent = match.groups()
        if len(exponent) > 5 or abs(int(exponent)) > LARGEST_EXPONENT:
            return None
        value = Fraction(mantissa or 1) * Fraction(10) ** int(exponent)
        return Number(-value if sign == "-" else value, not mantissa or "." not in mantissa, percent)
    if match := POWER.fullmatch(text):
        sign, base, exponent = match.groups()
        if abs(int(exponent)) > LARGEST_EXPONENT or (int(base) == 0 and int(exponent) <= 0):
            return None
        value = Fraction(int(base)) ** int(exponent)
        return Number(-value if sign == "-" else value, True, percent)
    if match := FRACTION.fullmatch(text):
        sign, whole, *parts = match.groups()
        above, below = (part for part in parts if part)
        return as_quotient(sign, whole, above, below, percent)
    if match := QUOTIENT.fullmatch(text):
        sign, above, below = match.groups()
        return as_quotient(sign, None, above, below, percent)
    return None


def as_quotient(sign: str, whole: str | None, above: str, below: str, percent: bool) -> Number | None:
    """Return the number [sign][whole] above/below, or None for a division by zero or what is no decimal."""
    if not all(DECIMAL.fullmatch(part.lstrip("+-")) for part in (above, below)) or not Fraction(below):
        return None
    value = Fraction(above) / Fraction(below)
    if whole:
        value += int(whole)
    return Number(-value if sign == "-" else value, "." not in above + below, percent)


def same_number(found: Number, expected: Number) -> bool:
    """Whether two numbers are the same: exactly, or within 1e-6 of their size if one is a decimal.

    A percentage equals its face value and its hundredth, on either side.
    """
    if found.percent != expected.percent:
        hundredth = found._replace(value=found.value / 100) if found.percent else found
        expected_hundredth = expected._replace(value=expected.value / 100) if expected.percent else expected
        return near(found, expected) or near(hundredth, expected_hundredth)
    return near(found, expected)


def near(found: Number, expected: Number) -> bool:
    """Whether the values are equal, or nearly so if one is a decimal."""
    if found.exact and expected.exact:
        return found.value == expected.value
    return abs(found.value - expected.value) <= max(abs(found.value), abs(expected.value)) / 10**6


def deepest(text: str) -> int:
    """Return how deep brackets are nested."""
    depth = most = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        most = max(most, depth)
    return most


def split(text: str, separators: str = ",;") -> list[str]:
    """Return the parts between separators that stand outside of all brackets."""
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


def closes_at_the_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by the one that ends it (intervals may mix their kinds)."""
    depth = 0
    for index, character in enumerate(text):
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
            if depth == 0:
                return index == len(text) - 1
    return False


MATRIX = re.compile(r"\\begin\s*\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}")
LIST_WORDS = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")


def to_several(text: str) -> Several | None:
    """Return the elements of a cleaned list, tuple, interval, set, matrix or union; None for a single thing."""
    if len(text) > LONGEST_ANSWER:
        return None
    if match := MATRIX.fullmatch(text):
        rows = [row for row in match[2].split("\\cr") if row.strip()]
        elements = [cell.strip() for row in rows for cell in (*row.split("&"), "\\cr")]
        return Several("matrix", elements)
    if text.startswith("\\{") and text.endswith("\\}"):
        return Several("{}", split(text[2:-2]))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and closes_at_the_end(text):
        parts = split(text[1:-1])
        return Several(text[0] + text[-1], parts) if len(parts) > 1 else None
    if "\\cup" in text:
        return Several("union", [part.strip() for part in text.split("\\cup")])
    if "\\pm" in text and text.count("\\pm") == 1:
        return Several("", [text.replace("\\pm", "+").removeprefix("+").strip(), text.replace("\\pm", "-").strip()])
    words = LIST_WORDS.sub(", ", text)
    parts = split(words)
    return Several("", parts) if len(parts) > 1 and len(parts) <= MOST_ELEMENTS and all(parts) else None


def to_words(text: str) -> str:
    r"""Return the text without spaces, and without `\text`: words of several letters are compared without case."""
    text = TEXT.sub(r"\1", text)
    text = re.sub(r"\s|\\(?=[$%])", "", re.sub(r"([_^])\s*\{(\w)\}", r"\1\2", text))
    return text.lower() if re.fullmatch(r"[A-Za-z'.-]{3,}", text) else text


def to_choice(text: str) -> str | None:
    r"""Return the letter of an answer to a multiple choice, `(C)`, `C.` or `\text{C}`; None for anything else."""
    match = re.fullmatch(r"\(?([A-J])\)?[.:]?", TEXT.sub(r"\1", text).replace(" ", ""))
    return match[1] if match else None
