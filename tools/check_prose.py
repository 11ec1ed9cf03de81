"""Find phrases that CONTRIBUTING.md asks writers to avoid: `python tools/check_prose.py [FILE...]`.

The comments and strings of Python files are searched, the text of Markdown pages outside code, and all of other files.
A phrase that continues on the next line is found, too.
"""

import io
import re
import subprocess
import sys
import tokenize
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

# What is banned, and what to write instead.
BANNED = {
    r"\b(told|tells?|telling)\b": "say what is passed, reported, shown or distinguished",
    r"(?<!\bthere )\b(is|are|was|were) no (?!longer|more|less|fewer|larger|smaller)": "write `is not a`, `has no`",
    r"\btaken for\b": "write `treated as`",
    r"\bin the mean\b(?! (of|accuracy|reward|score))": "write `on average`",
    r"\bby nature\b": "leave it out",
    r"\bso many\b": "write `that many`, or name the number",
    r"\bones? that stays?\b": "name what stays",
    r"\b(it|they) (stands?|lies?)\b|\b(stands?|lies) (on|at|beside|under|there|here|in(?! for))\b": "write `is`",
    r"\bwho (draws?|runs?|loads?|reads?|writes?)\b": "of a program, write `that`; of a person, `a user who runs`",
    r"\bas it is\b": "say which state is meant: `unchanged`, `as configured`",
    r"\b(mends?|mended|mending)\b": "write `fix` or `remedy`",
    r"\bnobody's\b": "name the owner, or write `unused`",
}
# Where a banned phrase is right: the file and a piece of the line, and why.
ALLOWED: dict[tuple[str, str], str] = {}

SEARCHED = ("*.py", "*.md", "*.yaml", "*.yml", "*.smk", "*.j2", "*.toml", "Snakefile", "Makefile", "*.cff")
# Generated pages, the past, and the two files that quote the phrases.
SKIPPED = re.compile(r"docs/reports/|nested_reft/embedded/.*/|CHANGELOG\.md|(tools/|tests/test_)check_prose\.py")
CODE = "\N{BROKEN BAR}"


class Finding(NamedTuple):
    """A banned phrase, and the line on which it begins."""

    line: int
    phrase: str
    advice: str


def hidden(text: str) -> str:
    """Return the text with signs of code in the place of its characters, so that lines keep their numbers."""
    return re.sub(r"\S", CODE, text)


def python_prose(source: str) -> str:
    """Return the source with everything hidden but comments and strings."""
    originals = source.splitlines(keepends=True)
    lines = [list(hidden(line)) for line in originals]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            (first, start), (last, end) = token.start, token.end
            for row in range(first - 1, last):
                piece = slice(start if row == first - 1 else 0, end if row == last - 1 else len(originals[row]))
                lines[row][piece] = originals[row][piece]
    return "".join(map("".join, lines))


def prose(path: Path) -> str:
    """Return the text of a file, with its code hidden."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return python_prose(text)
    if path.suffix == ".md":
        code = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
        return code.sub(lambda block: hidden(block[0]), text)
    return text


def findings(text: str) -> Iterator[Finding]:
    """Yield every banned phrase of a text."""
    # The signs that begin a comment or end a string do not separate the words of a phrase.
    words = list(re.finditer(r'[^\s"#]+', text))
    joined = " ".join(word[0] for word in words)
    starts = list(accumulate((len(word[0]) + 1 for word in words), initial=0))
    for pattern, advice in BANNED.items():
        for match in re.finditer(pattern, joined, re.IGNORECASE):
            word = words[bisect(starts, match.start()) - 1]
            yield Finding(text.count("\n", 0, word.start()) + 1, match[0].strip(), advice)


def main(names: list[str]) -> int:
    """Print the findings in the files, or in all files that git knows; return 1 if there is one."""
    if not names:
        names = subprocess.check_output(["git", "ls-files", *SEARCHED], text=True).split()
    count = 0
    for name in filter(lambda name: not SKIPPED.search(name), names):
        lines = Path(name).read_text(encoding="utf-8").splitlines()
        for line, phrase, advice in sorted(findings(prose(Path(name)))):
            if not any(file == name and piece in lines[line - 1] for file, piece in ALLOWED):
                print(f"{name}:{line}: '{phrase}': {advice}")
                count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
