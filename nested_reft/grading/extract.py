r"""The answer of a completion: the content of its last box, `\boxed{...}`.

Only the last box counts, and only in the text after a last `</think>`. A completion whose last box is not
closed has no answer.
"""

import re

BOX = "\\boxed{"
BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
BOX_ESCAPE_OR_BRACE = re.compile(r"\\boxed\s*\{|(?<!\\)\\[{}]|[{}]")
END_OF_THOUGHT = "</think>"


def boxed(answer: str) -> str:
    r"""Return the answer in a box, `\boxed{answer}`."""
    return f"{BOX}{answer}}}"


def extract_answer(completion: str) -> str | None:
    """Return the content of the last box, or None if there is no box or if the last one is not closed."""
    found, closed = find_boxes(completion.rpartition(END_OF_THOUGHT)[2])
    if not found or not closed:
        return None
    content = found[-1][1].strip()
    inner = find_boxes(content)[0] if BOX in content else []  # a box in a box
    return inner[-1][1].strip() if inner else content


def until_first_answer(completion: str) -> str:
    """Return the text up to the end of the first closed box after `</think>`, or all of it without such a box.

    A completion of fixed length goes on after its answer, because the EOS token is banned. That text is noise,
    and no reward may depend on it.
    """
    start = max(0, completion.find(END_OF_THOUGHT))
    found, _ = find_boxes(completion[start:])
    return completion[: start + found[0][0]] if found else completion


def find_boxes(text: str) -> tuple[list[tuple[int, str]], bool]:
    r"""Return (end, content) of every closed outermost `\boxed{...}`, and whether every box is closed.

    Escaped braces, `\{` and `\}`, do not count as braces, unless a box would then stay open.
    """
    found, closed = match_braces(text, BOX_ESCAPE_OR_BRACE)
    return (found, closed) if closed else match_braces(text, BOX_OR_BRACE)


def match_braces(text: str, tokens: re.Pattern[str]) -> tuple[list[tuple[int, str]], bool]:
    """Return the result of `find_boxes`, given the pattern of boxes, braces and perhaps escaped braces."""
    found: list[tuple[int, str]] = []
    depth = start = 0
    for match in tokens.finditer(text):
        if match[0] in ("\\{", "\\}"):
            continue
        if depth == 0:
            if match[0][0] == "\\":
                depth, start = 1, match.end()
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                found.append((match.end(), text[start : match.start()]))
        else:
            depth += 1
    return found, depth == 0
